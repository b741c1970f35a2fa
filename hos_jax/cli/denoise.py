"""The command `denoise`: one picture through a run, with all that its posterior says."""

from __future__ import annotations

from absl import flags

from hos_jax.cli.run_folder import run_folder
from hos_jax.cli.second_order import sigma_levels
from hos_jax.errors import UserError, reason
from hos_jax.files import expanded, try_to_write

USAGE = """\
denoise PICTURE --doc NAME: the denoised picture, a map of deviations, intervals, draws of the clean
picture, leading directions and a page of them all, by a run with a second-order model.
"""


def define(values: flags.FlagValues, argv: list[str]) -> None:
    """The flags of the command."""
    flags.DEFINE_string(
        "sigma",
        None,
        "Deviation of the picture's noise where black is 0 and white is 1, as 25/255. A run of one "
        "level has it; a run of many has to be told.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "add_noise",
        False,
        "The picture is clean: add the noise first, and show the true error beside the predicted.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "output", None, "Folder for what is made; PICTURE_denoised if left out.", flag_values=values
    )
    flags.DEFINE_integer("samples", 4, "Draws of the clean picture.", flag_values=values)
    flags.DEFINE_integer("directions", 4, "Directions of largest variance.", flag_values=values)
    flags.DEFINE_integer(
        "tile",
        None,
        "Side of the parts in which a large picture is examined, so that memory does not grow with "
        "it as fast; 0 for all at once. Without it parts of 512 above a million pixels. Directions "
        "are found of a whole picture only.",
        flag_values=values,
    )


def run(values: flags.FlagValues, rest: list[str]) -> None:
    """Read the picture, and write what the posterior says of it."""
    from hos_jax.evaluation import picture
    from hos_jax.training.runs import load_run

    for name in ("samples", "directions"):
        if values[name].value < 1:
            raise UserError(f"--{name} must be positive, got {values[name].value}")
    if values.tile is not None and values.tile < 0:
        raise UserError(f"--tile must be positive, or 0 for the whole picture, got {values.tile}")
    path, workdir = expanded(rest[0]), run_folder(values)
    output = expanded(values.output or f"{path.stem}_denoised")
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file: choose another --output")
    other = picture.made_of(output)
    if output.is_dir() and any(output.iterdir()) and other is None:
        raise UserError(f"{output} holds other files: choose another --output")
    if other not in (None, path.resolve()):
        raise UserError(f"{output} holds what was made of {other}: choose another --output")
    if path.resolve().parent == output.resolve():
        raise UserError(f"{output} holds the picture itself: choose another --output")
    place = next(one for one in (output, *output.absolute().parents) if one.is_dir())
    try:
        try_to_write(place)
    except OSError as error:
        raise UserError(f"{output} cannot be written ({reason(error)}): choose another") from error
    loaded = load_run(workdir, images=False)
    root = loaded.problem.config.data.root
    if root is not None and expanded(root).absolute() in (output.absolute() / "x").parents:
        raise UserError(f"{output} is within the images of the run: choose another --output")
    sigma = None
    if values.sigma is not None:
        levels = sigma_levels(values.sigma)
        if len(levels) > 1:
            raise UserError(f"--sigma={values.sigma} must be one number")
        low, high = loaded.problem.data.value_range
        sigma = levels[0] * (high - low)
    found = picture.denoise_file(
        loaded,
        path,
        sigma=sigma,
        add_noise=values.add_noise,
        samples=values.samples,
        directions=values.directions,
        multipliers=picture.multipliers_of(workdir, loaded, sigma),
        tile=values.tile,
    )
    try:
        picture.write(found, output)
    except OSError as error:
        what = f"{output} is not whole ({reason(error)})"
        raise UserError(f"{what}: mend that and try again") from error
    print(found.summary())
    print(f"pictures and the page {picture.PAGE}: {output}")
