"""Scores of order one and two on MNIST, published setting: RefineNets, rank 50, batch 40.

    hos-jax --runner LowRankHybridRunner --config unet_mnist.yml \
        --doc low_rank_mnist_0.5 --noise 0.5 --ni
"""

from hos_jax.config import named_config


def get_config():
    config = named_config("dsm_mnist")
    config.training.batch_size = 40
    return config
