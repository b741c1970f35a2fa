"""One picture of any size through a run: denoised, and what its posterior says, as files."""

from __future__ import annotations

import io
import json
import logging
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from hos_jax import data, pointwise
from hos_jax.data.pictures import read_picture
from hos_jax.errors import UserError
from hos_jax.evaluation import figures, report, tiles
from hos_jax.files import write_atomically
from hos_jax.noise import is_within, stream_key
from hos_jax.training.runs import LoadedRun
from hos_jax.types import check_counts
from hos_jax.uncertainty import Posterior, calibration

logger = logging.getLogger(__name__)

PAGE = "page.html"
# Pixels of a picture that is examined as a whole, and the side of the parts of a larger one.
LARGEST_WHOLE = 2**20
TILE = 512
VALUES = "values.npz"
CAPTIONS = {
    "overview.png": "Clean, noisy, denoised, predicted deviation, size of the true error",
    "denoised.png": "Denoised",
    "noisy.png": "Noisy",
    "deviation.png": "Predicted deviation of each pixel",
    "error.png": "True error of each pixel",
    "lower.png": "Lower end of the 90% interval of each value",
    "upper.png": "Upper end of the 90% interval of each value",
    "samples.png": "Draws of the clean picture",
    "directions.png": "Directions of largest posterior variance",
}


# Files that have a pixel for each of the picture; the page enlarges those of fewer on a side.
ENLARGED_FILES = {"denoised.png", "noisy.png", "lower.png", "upper.png"}
ENLARGED_BELOW = 256


class DenoisedPicture(NamedTuple):
    """What a run says of one picture, (H, W, C), data units; `clean` where it is known.

    `lower` and `upper` are 90% intervals of each value, `recalibrated` or the model's. `samples`
    and `directions` are (k, H, W, C), `deviations` along those (k,); there are none of a picture
    that was examined in tiles.
    """

    path: Path
    sigma: float
    value_range: tuple[float, float]
    clean: np.ndarray | None
    noisy: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    recalibrated: bool
    samples: np.ndarray
    directions: np.ndarray
    deviations: np.ndarray

    def measures(self) -> list[tuple[str, str, str]]:
        """Name, value and meaning of each number that is known."""
        low, high = self.value_range
        unit, intervals = high - low, "recalibrated" if self.recalibrated else "model's"
        rows = [("sigma", self.sigma / unit, "deviation of the noise, black 0 and white 1")]
        predicted = float(np.sqrt(np.mean(np.square(self.deviation)))) / unit
        rows.append(("predicted_rmse", predicted, "root mean square of the predicted deviation"))
        width = float(np.mean(self.upper - self.lower)) / unit
        rows.append(("interval_width", width, f"mean width of the {intervals} 90% intervals"))
        if self.clean is not None:
            error = self.mean - self.clean
            rmse = float(np.sqrt(np.mean(np.square(error)))) / unit
            rows.append(("rmse", rmse, "true root mean square error of the denoised picture"))
            rows.append(("psnr", -20.0 * np.log10(max(rmse, 1e-12)), "the same in dB"))
            inside = float(np.mean((self.lower <= self.clean) & (self.clean <= self.upper)))
            rows.append(("coverage_90", inside, f"share of values in the {intervals} intervals"))
        return [(name, f"{value:.4f}", meaning) for name, value, meaning in rows]

    def summary(self) -> str:
        """The numbers as a table for the terminal."""
        return "\n".join(
            f"{name:<16}{value:>10}  {meaning}" for name, value, meaning in self.measures()
        )


def multipliers_of(workdir: Path, run: LoadedRun, sigma: float | None) -> np.ndarray | None:
    """The widths of intervals that `--test` learned of these parameters at this noise level, or
    None if there are none."""
    path = workdir / report.METRICS_FILE
    try:
        metrics = json.loads(path.read_bytes())
        if metrics["step"] != run.step:
            logger.warning("the run was tested at step %d: --test it again", metrics["step"])
            return None
        found = metrics.get("recalibrated")
        table = None if found is None else np.array(found["multipliers"], float)
        if table is not None:
            calibration.check_multipliers(table)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}): test the run again") from error
    if table is None or sigma is None or abs(sigma / run.sigma - 1.0) < 0.01:
        return table
    if is_within(sigma, run.sigma_range):  # others are refused
        logger.warning(
            "intervals are the model's own: --test learned their widths at sigma %.4g, this is "
            "%.4g (in the units of the run's data)",
            *(run.sigma, sigma),
        )
    return None


def denoise_file(
    run: LoadedRun,
    path: Path,
    *,
    sigma: float | None = None,
    add_noise: bool = False,
    samples: int = 4,
    directions: int = 4,
    multipliers: np.ndarray | None = None,
    tile: int | None = None,
) -> DenoisedPicture:
    """Denoise a picture file.

    Args:
      sigma: deviation of its noise, data units; that of the run unless given.
      add_noise: whether the picture is clean, and noise is to be added first.
      samples, directions: how many draws and leading directions.
      multipliers: of `calibration.recalibrated_interval`; the model's intervals without.
      tile: side of the parts in which the picture is examined, and then without directions, which
        are of the whole; 0 for all at once. Unless given, 0 up to `LARGEST_WHOLE` pixels, else 512.

    Raises:
      UserError: for a run of s1 alone, a picture that the model cannot take, or a noise level that
        it was not trained at; as `tiles.examine`.
      ValueError: for a negative count, or tile.
    """
    problem = run.problem
    check_counts(0, samples=samples, directions=directions, tile=tile or 0)
    sigma = _checked_level(run, sigma)
    pixels = _checked_pixels(run, path, warn=not add_noise)
    picture = np.asarray(data.to_float(pixels, problem.data.value_range))
    key = stream_key("added noise", problem.config.seed)
    noise = sigma * jax.random.normal(key, picture.shape) if add_noise else 0.0
    noisy = jnp.asarray(picture) + noise
    directions = min(directions, picture.size)
    interval_of = report.interval_fn(multipliers, sigma)

    @jax.jit
    def examine(posterior: Posterior) -> tuple:
        pairs = posterior.top_eigenpairs(directions)
        drawn = posterior.sample(stream_key("posterior samples", problem.config.seed), samples)
        rows = (posterior.mean, posterior.standard_deviation(), *interval_of(posterior))
        return rows, drawn, pairs.eigenvectors.T, jnp.sqrt(pairs.eigenvalues)

    large = pixels.shape[0] * pixels.shape[1] > LARGEST_WHOLE and problem.config.model.local
    tile = (TILE if large else 0) if tile is None else tile
    if tile:
        found = tiles.examine(run, np.asarray(noisy), sigma, tile, samples, interval_of)
        rows, drawn = found[:4], found.samples
        leading, deviations = np.empty((0, picture.size)), np.empty(0)
    else:
        posterior = pointwise.posterior_fn(run.model, run.params, sigma)(noisy)
        rows, drawn, leading, deviations = jax.device_get(examine(posterior))

    def as_pictures(values: np.ndarray) -> np.ndarray:
        return values.reshape(-1, *picture.shape)

    mean, deviation, lower, upper = (values.reshape(picture.shape) for values in rows)
    return DenoisedPicture(
        path.absolute(),
        sigma,
        problem.data.value_range,
        picture if add_noise else None,
        np.asarray(noisy),
        mean,
        deviation,
        lower,
        upper,
        multipliers is not None,
        as_pictures(drawn),
        as_pictures(leading),
        deviations,
    )


def _read(path: Path, grey: bool, warn: bool) -> np.ndarray:
    """The pixels, in the channels of the run; a warning where that changes the picture's noise."""
    pixels = read_picture(path, grey=False)
    is_grey = bool((pixels == pixels[..., :1]).all())
    if warn and grey and not is_grey:
        logger.warning(
            "%s has colour and the run is grey: the mean of its channels has less noise than they, "
            "two thirds where theirs is independent, so give the --sigma that is left",
            path,
        )
    if warn and is_grey and not grey:
        logger.warning(
            "%s is grey and the run is of colour: its three channels have the same noise, where "
            "the run knows independent noise; take a run of grey images",
            path,
        )
    return np.asarray(Image.fromarray(pixels).convert("L"))[..., None] if grey else pixels


def _checked_pixels(run: LoadedRun, path: Path, *, warn: bool) -> np.ndarray:
    """The pixels as `_read`, or UserError for a picture of a size that the model does not take."""
    pixels = _read(path, run.image_shape[2] == 1, warn)
    head = run.model.head
    assert head is not None
    if head.is_local and min(pixels.shape[:2]) <= head.reach:
        least = head.reach + 1
        raise UserError(f"{path} is too small: the model needs {least} x {least} pixels")
    if pixels.shape != run.image_shape and not run.problem.config.model.local:
        height, width, _ = run.image_shape
        raise UserError(
            f"{path} is {pixels.shape[1]} x {pixels.shape[0]} and the model is one of {width} x "
            f"{height}: model.local=True makes one for all sizes"
        )
    return pixels


def _checked_level(run: LoadedRun, sigma: float | None) -> float:
    """The noise level, or UserError for one that the run does not know."""
    config = run.problem.config
    if config.model.head == "none":
        raise UserError("this run has s1 alone: a second-order model is needed")
    low, high = run.sigma_range
    if sigma is None and config.model.smallest_noise is not None:
        raise UserError("this run knows many noise levels: say which one the picture has (--sigma)")
    if sigma is None:
        return config.noise
    if not is_within(sigma, run.sigma_range):
        black, white = run.problem.data.value_range
        ends = " to ".join(f"{level / (white - black):.4g}" for level in sorted({low, high}))
        raise UserError(f"the run was trained at sigma {ends}, not {sigma / (white - black):.4g}")
    return float(np.clip(sigma, low, high))


def made_of(folder: Path) -> Path | None:
    """The picture of which the results in a folder are, or None where that is not known."""
    try:
        with np.load(folder / VALUES) as values:
            return Path(str(values["path"])).resolve()
    # A single array has no names.
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile):
        return None


def _figures(found: DenoisedPicture) -> dict[str, Any]:
    """The figures, black 0 and white 1, by the names of their files; None for one that there is
    not."""
    low, high = found.value_range

    def pictures(values: np.ndarray) -> np.ndarray:
        return (values[None] - low) / (high - low)

    noisy, mean, unit = pictures(found.noisy), pictures(found.mean), (0.0, 1.0)
    deviation, leading, overview = found.deviation / (high - low), None, None
    maps = {"deviation.png": deviation}
    if found.clean is not None:
        clean, sigma = pictures(found.clean), found.sigma / (high - low)
        maps["error.png"] = (mean - clean)[0]
        parts = clean, noisy, mean, deviation[None]
        overview = figures.denoising_panel(*parts, unit, sigma, units="white = 1")
    if len(found.directions):
        deviations = found.deviations[None] / (high - low)
        leading = figures.posterior_directions(
            noisy, mean, found.directions[None], deviations, unit
        )
    shown = dict(zip(maps, figures.size_maps(*maps.values()), strict=True))
    return {
        "deviation.png": shown["deviation.png"],
        "error.png": shown.get("error.png"),
        "samples.png": figures.posterior_samples(noisy, mean, pictures(found.samples), unit),
        "directions.png": leading,
        "overview.png": overview,
    }


def write(found: DenoisedPicture, folder: Path) -> None:
    """Write the numbers as `values.npz`, the pictures, and the page that shows all.

    An older page goes first, so that what is not whole has none, and `made_of` knows it all the
    same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = "noisy mean deviation lower upper samples directions deviations sigma value_range"
    numbers = {name: getattr(found, name) for name in names.split()}
    content = io.BytesIO()
    np.savez(content, **numbers, path=np.array(str(found.path.resolve())))
    (folder / PAGE).unlink(missing_ok=True)
    write_atomically(folder / VALUES, content.getvalue())
    for name, values in (
        ("noisy.png", found.noisy),
        ("denoised.png", found.mean),
        ("lower.png", found.lower),
        ("upper.png", found.upper),
    ):
        pixels = data.to_uint8(values, found.value_range)
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(folder / name)
    for name, figure in _figures(found).items():
        if figure is None:
            (folder / name).unlink(missing_ok=True)
        else:
            figures.save(figure, folder / name)
    low, high = found.value_range
    files = [folder / name for name in CAPTIONS if (folder / name).exists()]
    enlarged = ENLARGED_FILES if max(found.mean.shape[:2]) < ENLARGED_BELOW else set()
    page: dict[str, Any] = {
        "heading": "This picture",
        "title": found.path.name,
        "summary": f"Denoised at sigma {found.sigma / (high - low):.4g}, black 0 and white 1.",
        "measures": [[name, value, "", meaning] for name, value, meaning in found.measures()],
        "figures": [
            report.embedded(file, CAPTIONS[file.name], small=file.name in enlarged)
            for file in files
        ],
        "images": [],
    }
    report.write_page(page, folder / PAGE)
