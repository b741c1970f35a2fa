"""Digits from noise in few steps: one model of s1 and s2 for all noise levels, told the class.

hos-jax --runner LowRankHybridRunner --config diffusion_mnist5k --doc diffusion --ni
hos-jax --doc diffusion --test
"""

from hos_jax.config import default_config


def get_config():
    config = default_config()
    config.data.name = "mnist5k"
    config.model.update(ngf=48, multipliers=(1, 3), patch_size=2, networks="shared")
    config.model.update(head="local_low_rank", rank=8, floor=1e-5, precondition_covariance=True)
    config.model.update(data_std=0.3, smallest_noise=0.05, largest_noise=5.0, classes=10)
    # The covariance is easy to learn beside s1, on which the samples depend.
    config.loss.first_order_weight = 10.0
    config.optim.update(lr=2e-3, schedule="cosine", warmup=100, clip=10.0, ema=0.998)
    config.training.update(steps=5600, batch_size=32, log_every=50)
    # Near the size of the data, where digits take shape.
    config.training.update(level_law="log_normal", level_mean=-1.0, level_std=1.2)
    config.training.update(evaluate_every=2800, checkpoint_every=1400)
    config.sampling.update(sampler="ancestral", evaluations=20, chains=100)
    return config
