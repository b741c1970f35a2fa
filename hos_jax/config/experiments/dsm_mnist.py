"""First-order score on MNIST, published setting: RefineNet, 64 channels, batch 100.

hos-jax --runner UnetDSMRunner --config dsm_mnist.yml --doc dsm_mnist_0.5 --noise 0.5 --ni
"""

from hos_jax.config import default_config


def get_config():
    config = default_config()
    config.data.name = "mnist"
    config.model.name = "refinenet"
    config.model.ngf = 64
    config.model.data_std = 0.0
    config.model.networks = "per_output"
    config.model.rank = 50
    config.loss.first_order = "dsm"
    config.optim.lr = 2e-4
    config.optim.clip = 0.0
    config.training.batch_size = 100
    return config
