"""Scores of order one and two on CIFAR-10, published setting: RefineNets of 128 channels, batch 40.

    hos-jax --runner DoubleDiagonalHybridRunner --config unet_cifar10.yml \
        --doc diagonal_cifar10_0.5 --noise 0.5 --ni
"""

from hos_jax.config import named_config


def get_config():
    config = named_config("dsm_mnist")
    config.data.update(name="cifar10", random_flip=True)
    config.model.ngf = 128
    config.optim.ema = 0.999
    config.training.batch_size = 40
    return config
