"""Patches of photographs, 32 x 32, from noise in few steps: one model for all noise levels.

hos-jax --runner LowRankHybridRunner --config diffusion_photos --doc photos --ni
hos-jax --doc photos --test
"""

from hos_jax.config import default_config


def get_config():
    config = default_config()
    config.data.update(name="photos", image_size=32, grey=True, random_flip=True)
    config.model.update(ngf=40, multipliers=(1, 3), patch_size=2, networks="shared")
    config.model.update(head="local_low_rank", rank=8, floor=1e-5, precondition_covariance=True)
    config.model.update(data_std=0.5, smallest_noise=0.02, largest_noise=8.0)
    # The covariance is easy to learn beside s1, on which the samples depend.
    config.loss.first_order_weight = 10.0
    config.optim.update(lr=2e-3, schedule="cosine", warmup=100, clip=10.0, ema=0.998)
    config.training.update(steps=5600, batch_size=32, log_every=50)
    config.training.update(level_law="log_normal", level_mean=-1.2, level_std=1.4)
    config.training.update(evaluate_every=2800, checkpoint_every=1400)
    config.sampling.update(sampler="ancestral", evaluations=20, chains=100)
    return config
