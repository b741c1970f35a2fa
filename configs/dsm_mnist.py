"""First-order score on MNIST, published setting: RefineNet, 64 channels, batch 100.

hos-jax --runner UnetDSMRunner --config dsm_mnist.yml --doc dsm_mnist_0.5 --noise 0.5 --ni
"""

from hos_jax.config import default_config


def get_config():
    config = default_config()
    config.data.name = "mnist"
    config.model.update(name="refinenet", ngf=64, networks="per_output", rank=50, data_std=0.0)
    config.loss.first_order = "dsm"
    config.optim.update(lr=2e-4, clip=0.0)
    config.training.batch_size = 100
    return config
