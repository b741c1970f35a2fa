"""Images of a folder of yours, 64 x 64, from noise in few steps: as `diffusion_photos`, in colour.

hos-jax --runner LowRankHybridRunner --config diffusion_folder --config.data.root=FOLDER --doc mine

For a GPU: on a CPU core that other work shared, 100 steps ran at 5.5 images a second, in 1.8 GB. It
has not been trained to the end.
"""

from hos_jax.config import named_config


def get_config():
    config = named_config("diffusion_photos")
    # Whole pictures, made smaller; as they are, not mirrored.
    config.data.update(name="image_folder", image_size=64, grey=False, crop=0, random_flip=False)
    config.model.update(ngf=48, multipliers=(1, 2, 3))
    config.training.steps = 50_000
    return config
