"""CIFAR-10 from noise in few steps: as `diffusion_photos`, in colour, and told the class.

hos-jax --runner LowRankHybridRunner --config diffusion_cifar10 --doc cifar --ni

For a GPU. It has not been trained: CIFAR-10 is downloaded, and was not to be had where this was
written.
"""

from hos_jax.config import named_config


def get_config():
    config = named_config("diffusion_photos")
    config.data.update(name="cifar10", image_size=None, grey=False)
    config.model.update(ngf=64, classes=10)
    config.training.steps = 50_000
    return config
