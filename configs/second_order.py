"""Posterior covariances for a denoiser that stays as it is; see docs/how-to/your-denoiser.md.

hos-jax second_order --denoiser FILE.py:NAME --data photos --sigma 25/255 --doc my_denoiser
hos-jax --doc my_denoiser --test
hos-jax denoise picture.png --doc my_denoiser
"""

from hos_jax.config import default_config


def get_config():
    config = default_config()
    config.runner = "LowRankHybridRunner"
    config.data.name = "photos"
    # Trained on crops, used on images of any size.
    config.model.update(name="unet", local=True, ngf=32, multipliers=(1, 2), blocks=1)
    config.model.update(head="local_low_rank", rank=8, reach=2, floor=1e-5)
    # Where black is 0 and white is 1; the command knows the range of the data.
    config.model.data_std = 0.25
    # Without marginal_weight variances of single values may come out at half of the errors'.
    config.loss.update(second_order="residual_nll", first_order_weight=0.0, marginal_weight=0.3)
    # A faster start can make the local factor diverge: its inverse grows across the crop.
    config.optim.update(lr=1e-3, schedule="cosine", warmup=200, final_lr=1e-4, clip=0.5, ema=0.99)
    config.training.update(steps=2000, batch_size=16, log_every=50)
    config.training.update(evaluate_every=500, checkpoint_every=500)
    config.sampling.update(images=6, batch_size=50)
    return config
