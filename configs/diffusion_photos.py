"""Patches of photographs, 32 x 32, from noise in few steps: `diffusion_mnist5k` without classes.

hos-jax --runner LowRankHybridRunner --config diffusion_photos --doc photos --ni
hos-jax --doc photos --test
"""

from hos_jax.config import named_config


def get_config():
    config = named_config("diffusion_mnist5k")
    config.data.update(name="photos", image_size=32, grey=True, random_flip=True)
    config.model.update(ngf=40, classes=None)
    config.model.update(data_std=0.5, smallest_noise=0.02, largest_noise=8.0)
    config.training.update(level_mean=-1.2, level_std=1.4)
    return config
