"""Every key of a config, and its default."""

from __future__ import annotations

import ml_collections
from ml_collections import config_dict


def default_config() -> ml_collections.ConfigDict:
    """The project's defaults; what may be left out is a typed `None`: overrides are checked."""
    none = config_dict.placeholder
    config = ml_collections.ConfigDict()
    config.runner = ""
    config.comment = ""
    config.noise = 0.5
    config.seed = 1234

    config.data = ml_collections.ConfigDict()
    config.data.name = "mnist"
    config.data.root = none(str)
    config.data.image_size = none(int)
    # Of images that are not square; then `image_size` is their height.
    config.data.image_width = none(int)
    config.data.crop = none(int)
    # Mirror training images left to right, and turn them by quarters of a circle.
    config.data.random_flip = False
    config.data.random_turn = False
    # Of photos and image_crops: one channel in place of three.
    config.data.grey = False
    # Of a folder of images: leave out files that are no readable images, instead of refusing them.
    config.data.skip_unreadable = False

    config.model = ml_collections.ConfigDict()
    config.model.name = "unet"
    config.model.ngf = 16
    config.model.multipliers = (1, 2, 4)
    config.model.blocks = 1
    config.model.patch_size = 1
    config.model.attention_size = 8
    # For images of any size: no attention, normalization pixel by pixel, padding.
    config.model.local = False
    config.model.depth = 3
    config.model.head = "low_rank"
    config.model.rank = 16
    # Of the local heads: how many pixels away a value's neighbours may be.
    config.model.reach = 2
    # The smallest variance of a positive definite head, in units of sigma^2.
    config.model.floor = 1e-4
    # Of the residual's law: what `residual_nll` and the intervals of values are made with.
    config.model.tails = "gaussian"
    config.model.positive_definite = True
    config.model.third_order = "none"
    config.model.networks = "per_order"
    config.model.data_std = 0.5
    config.model.output_units = "dimensionless"
    # One model for the noise levels in between; without them for `noise` alone.
    config.model.smallest_noise = none(float)
    config.model.largest_noise = none(float)
    # Whether C is multiplied by what it is of Gaussian data, data_std^2 / (data_std^2 + sigma^2).
    config.model.precondition_covariance = False
    # The number of classes that the network is told, of data that has them.
    config.model.classes = none(int)
    # "MODULE:NAME" or "FILE.py:NAME" of what gives s1, which then is not trained.
    config.model.denoiser = none(str)
    config.model.dtype = "float32"
    config.model.remat = False

    config.loss = ml_collections.ConfigDict()
    config.loss.first_order = "dsm"
    config.loss.second_order = "residual_nll"
    # What the runner says, or else 1.
    config.loss.first_order_weight = none(float)
    # Beside a residual loss: how much of the target is the derivative of s1.
    config.loss.jacobian_weight = 0.0
    config.loss.jacobian_probe = "signs"
    # Beside residual_nll: how much of it are the likelihoods of single values.
    config.loss.marginal_weight = 0.0
    config.loss.stop_gradient_score1 = True
    config.loss.third_order = "none"
    config.loss.third_order_weight = 1.0

    config.optim = ml_collections.ConfigDict()
    config.optim.lr = 2e-4
    config.optim.schedule = "constant"
    config.optim.final_lr = 0.0
    config.optim.warmup = 0
    config.optim.beta1 = 0.9
    config.optim.beta2 = 0.999
    config.optim.eps = 1e-8
    config.optim.weight_decay = 0.0
    config.optim.clip = 1.0
    config.optim.ema = 0.0

    config.training = ml_collections.ConfigDict()
    config.training.steps = 200_000
    config.training.batch_size = 100
    # Steps that run without the host in between; worth it where a step takes milliseconds. Not on
    # CPU, where XLA runs convolutions in a loop less well (a step of the demo took a third longer).
    config.training.steps_per_dispatch = 1
    # Of a range of noise levels: how examples are spread over it. The mean and the standard
    # deviation are those of log(sigma), of `log_normal`.
    config.training.level_law = "log_uniform"
    config.training.level_mean = -1.2
    config.training.level_std = 1.2
    # How often the class is hidden, so that the network knows the whole law too.
    config.training.label_dropout = 0.1
    config.training.log_every = 100
    config.training.evaluate_every = 2_500
    config.training.checkpoint_every = 2_500
    config.training.keep_checkpoints = 2

    config.sampling = ml_collections.ConfigDict()
    config.sampling.batch_size = 100
    config.sampling.images = 8
    config.sampling.chains = 36
    config.sampling.steps = 500
    # Steps in units of sigma^2; Langevin is stable below 2.
    config.sampling.step_fraction = 0.2
    config.sampling.sampler = "langevin"
    # That of `hos_jax.linops`, which is not asked as --help does without JAX; a test compares them.
    config.sampling.krylov_vectors = 20
    # Annealing: noise levels, and steps at each of them.
    config.sampling.levels = 30
    config.sampling.steps_per_level = 5
    # Reverse diffusion: evaluations of the network for one sample, the last of which denoises it.
    config.sampling.evaluations = 40
    # What stands for the posterior covariance: `full` unless given in ancestral steps, and none,
    # which is `small`, in ddim.
    config.sampling.covariance = none(str)
    # The largest noise level at which it is used; above it `small` is.
    config.sampling.covariance_below = none(float)
    config.sampling.churn = 0.0
    # Of models that are told the class: that of all samples, or else all in turn; and by how much
    # it is overstated, for two evaluations in place of one.
    config.sampling.label = none(int)
    config.sampling.guidance = 1.0
    return config
