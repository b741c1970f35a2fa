"""Every key with its default: U-Nets of 16 channels on MNIST, s1 and low-rank s2.

hos-jax --runner LowRankHybridRunner --config default --doc my_run --noise 0.5 --ni
"""

from hos_jax.config import default_config


def get_config():
    return default_config()
