"""The command `second_order`: train s2 for a denoiser that stays as it is."""

from __future__ import annotations

from absl import flags
from ml_collections import config_flags

from hos_jax.cli.run_folder import run_folder
from hos_jax.cli.train import train
from hos_jax.config import named_config
from hos_jax.errors import UserError
from hos_jax.files import expanded

USAGE = """\
second_order --denoiser FILE.py:NAME --data photos --sigma 25/255 --doc NAME: a run that learns the
posterior covariance of a denoiser, which is only called. As all runs it goes on with hos-jax --doc
NAME --resume_training and is tested with hos-jax --doc NAME --test; hos-jax denoise uses it.
"""


def define(values: flags.FlagValues, argv: list[str]) -> None:
    """The flags of the command."""
    flags.DEFINE_string(
        "denoiser",
        None,
        "FILE.py:NAME or MODULE:NAME of a function denoise(noisy, sigma) of NumPy images "
        "(N, H, W, C), black 0 and white 1, and the deviation of their noise, (N,); or of the "
        "images alone; or of what hos_jax.adapters.score_fn returns.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "data",
        "photos",
        "Clean images: a data set by name, a folder of photographs, or a .npy or .npz file.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "sigma",
        None,
        "Deviation of the noise where black is 0 and white is 1, as 25/255 or 0.1; two of them, as "
        "5/255:75/255, for all levels in between.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "ni", False, "A run of the same name is moved aside unasked.", flag_values=values
    )
    config_flags.DEFINE_config_dict(
        "config",
        named_config("second_order"),
        "Keys of the config second_order, such as --config.training.steps=1000.",
        sys_argv=argv,
        flag_values=values,
    )


def run(values: flags.FlagValues, rest: list[str]) -> int:
    """Train the run that the flags describe."""
    from hos_jax import config as run_config

    for name in ("denoiser", "sigma"):
        if values[name].value is None:
            raise UserError(f"--{name} is needed (see --help)")
    config, workdir = make_config(values), run_folder(values)
    run_config.validate(config)
    return train(config, workdir, resume=False, no_interaction=values.ni)


def make_config(values: flags.FlagValues):
    """The config of the run: the file, then the flags, then the overrides."""
    from hos_jax import data
    from hos_jax.config.checks import leave_out_marginal_weight
    from hos_jax.config.denoiser import absolute_name

    config = values.config
    config.model.denoiser = absolute_name(values.denoiser)
    place = expanded(values.data)
    overrides = config_flags.get_override_values(values["config"])
    for key, flag in (("data.name", "data"), ("data.root", "data"), ("model.denoiser", "denoiser")):
        if key in overrides:
            raise UserError(f"--config.{key} is what --{flag} says here")
    if values.data in data.NAMES and place.is_dir():
        raise UserError(f"--data={values.data} is a data set and a folder: say ./{values.data}")
    if values.data in data.NAMES:
        config.data.name = values.data
    elif place.is_dir():
        config.data.update(name="image_crops", root=str(place.absolute()))
    elif place.suffix in (".npy", ".npz"):
        config.data.update(name="arrays", root=str(place.absolute()))
    else:
        known = ", ".join(data.NAMES)
        what = f"--data={values.data} is no folder, no .npy or .npz file"
        raise UserError(f"{what}, and none of {known}")
    if config.data.name in ("photos", "image_crops"):
        # A photograph is one whichever way it is turned, and the network knows fewer by heart.
        config.data.update(random_flip=True, random_turn=True)
    low, high = (
        data.value_range_of(config.data.name)
        or data.load(config.data.name, root=config.data.root).value_range
    )
    levels = sorted({level * (high - low) for level in sigma_levels(values.sigma)})
    # The level of what is shown and measured is the middle one.
    config.noise = (levels[0] * levels[-1]) ** 0.5
    if len(levels) > 1:
        config.model.update(smallest_noise=levels[0], largest_noise=levels[1])
    config.model.data_std *= high - low
    config.update_from_flattened_dict(overrides)
    leave_out_marginal_weight(config, overrides)
    return config


def sigma_levels(text: str) -> list[float]:
    """One or two noise levels of a flag, such as `25/255` or `0.02:0.3`; or UserError."""
    try:
        found = []
        for part in text.split(":"):
            value, slash, whole = part.partition("/")
            found.append(float(value) / (float(whole) if slash else 1.0))
    except (ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"--sigma={text} must be a number, as 25/255, or two, as 0.02:0.3"
        ) from error
    if len(found) > 2 or not all(level > 0 for level in found):
        raise UserError(f"--sigma={text} must be one positive number, or two")
    if max(found) > 10:
        meant = ":".join(part if "/" in part else f"{part}/255" for part in text.split(":"))
        hint = f": did you mean {meant}?" if meant != text else ""
        raise UserError(f"--sigma={text} is of white, which is 1{hint}")
    return found
