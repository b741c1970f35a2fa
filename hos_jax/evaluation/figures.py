"""Pictures of a run: denoising panels, loss curves, sample grids.

Figures are matplotlib's without pyplot, so that nothing of the process changes, and with its
default settings, whatever the process has set; a notebook shows one that ends a cell. Images are
(N, H, W, C), data units; `value_range` is their black and white.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.style import context
from matplotlib.ticker import AutoLocator, LogLocator, NullFormatter, StrMethodFormatter

from hos_jax.data import to_uint8
from hos_jax.evaluation.rows import draw_row

# Around what makes or draws a figure: matplotlib's own settings in place of the process's.
_plain = context("default")


def _axes(
    rows: int, columns: int, width: float, height: float, *, images: bool = False
) -> tuple[Figure, np.ndarray]:
    """A figure of that many inches with axes (rows, columns), bare ones for images."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.axison = not images
    return figure, axes


def _high(wide: float, images: np.ndarray) -> float:
    """The inches that images, (..., H, W, C), of that many inches are high; of very flat ones room
    for a title, of very tall ones no more than a page."""
    return wide * float(np.clip(images.shape[-3] / images.shape[-2], 0.25, 4.0))


def _show(axis: Any, image: np.ndarray, value_range: tuple[float, float]) -> None:
    picture = np.asarray(to_uint8(image, value_range))
    picture = np.repeat(picture, 3, axis=-1) if picture.shape[-1] == 1 else picture
    axis.imshow(picture, interpolation="nearest")


def _map(image: np.ndarray) -> np.ndarray:
    """One number per pixel: the root mean square over channels, in data units."""
    return np.sqrt(np.mean(np.square(image), axis=-1))


def _top(maps: np.ndarray) -> float:
    """Where the common scale of maps ends; a few values may be larger."""
    return float(np.percentile(maps, 99.5))


@_plain
def size_maps(*values: np.ndarray) -> list[Any]:
    """A figure of each map of sizes, (H, W, C), all with one scale."""
    maps, shown = np.stack([_map(each) for each in values]), []
    scale = {"vmin": 0, "vmax": _top(maps), "interpolation": "nearest"}
    for each in maps:
        figure, ((axis,),) = _axes(1, 1, 7.0, _high(6.0, values[0]) + 0.3, images=True)
        shade = axis.imshow(each, cmap="magma", **scale)
        figure.colorbar(shade, ax=axis, fraction=0.04, extend="max")
        shown.append(figure)
    return shown


def _titles(axes: Any, titles: list[str], size: int) -> None:
    """The titles of the first axes of a row."""
    for axis, title in zip(axes, titles, strict=False):
        axis.set_title(title, fontsize=size)


@_plain
def denoising_panel(
    clean: np.ndarray,
    noisy: np.ndarray,
    denoised: np.ndarray,
    standard_deviation: np.ndarray | None,
    value_range: tuple[float, float],
    sigma: float,
    names: list[str] | None = None,
    *,
    units: str = "data units",
) -> Any:
    """A figure with a row per image: clean, noisy, denoised, predicted deviation, realised error;
    of images of height 1 with an axis for each, over its columns.

    `standard_deviation` is that of the posterior for each value, None for a first-order model,
    `sigma` the noise level, for the title, `names` those of the rows, if they have any, and `units`
    those of all these values.
    """
    if clean.shape[1] == 1:
        parts = clean, noisy, denoised, standard_deviation
        return _row_panel(*parts, f"noise of sigma {sigma:.3g}", names, units)
    titles, maps = ["clean", f"noisy, sigma {sigma:.3g}", "denoised"], [_map(denoised - clean)]
    if standard_deviation is not None:
        titles.append(f"predicted std ({units})")
        maps.insert(0, _map(standard_deviation))
    titles.append("|error|")
    rows, columns = len(clean), len(titles)
    height = rows * _high(1.5, clean) + 0.3
    figure, axes = _axes(rows, columns, 1.5 * columns + 0.8, height, images=True)
    top = _top(np.stack(maps))
    for row in range(rows):
        if names is not None:
            place = {"transform": axes[row, 0].transAxes, "rotation": 90, "fontsize": 10}
            axes[row, 0].text(-0.05, 0.5, names[row], **place, ha="right", va="center")
        for axis, image in zip(axes[row], (clean, noisy, denoised), strict=False):
            _show(axis, image[row], value_range)
        for axis, values in zip(axes[row, 3:], maps, strict=True):
            shade = axis.imshow(values[row], cmap="magma", vmin=0, vmax=top)
    _titles(axes[0], titles, 10)
    bar = figure.colorbar(
        shade, ax=axes[:, -1], fraction=0.08, aspect=12 * rows, extend="max", extendfrac=0.05 / rows
    )
    bar.ax.tick_params(labelsize=8)
    return figure


def _row_panel(
    clean: np.ndarray,
    noisy: np.ndarray,
    denoised: np.ndarray,
    standard_deviation: np.ndarray | None,
    title: str,
    names: list[str] | None,
    units: str,
) -> Figure:
    """`denoising_panel` of images of height 1."""
    figure, axes = _axes(len(clean), 1, 8.3, 1.5 * len(clean) + 0.8)
    for index, axis in enumerate(axes[:, 0]):
        deviation = None if standard_deviation is None else standard_deviation[index]
        draw_row(axis, clean[index], noisy[index], denoised[index], deviation)
        if names is not None:
            axis.set_ylabel(names[index])
    axes[-1, 0].set_xlabel("column")
    figure.supylabel(units, fontsize=10)
    figure.suptitle(title, fontsize=10)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    shown = dict(zip(labels, handles, strict=True))
    figure.legend(shown.values(), shown, loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _columns(reliability: list[dict[str, float]]) -> dict[str, np.ndarray]:
    """The rows of `calibration.reliability` with at least 0.1% of the values, as arrays."""
    rows = [row for row in reliability if row["share"] >= 1e-3]
    return {name: np.array([row[name] for row in rows]) for name in (rows or [{}])[0]}


def _label_plainly(axis: Any) -> None:
    """Labels such as 0.2 along a logarithmic axis, in place of powers of ten."""
    low, high = axis.get_view_interval()
    # In less than five times its low end an axis may have but one of 1, 2 and 5.
    narrow = high < 5.0 * low
    axis.set_major_locator(AutoLocator() if narrow else LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _at_least_fourfold(values: np.ndarray) -> tuple[float, float]:
    """Ends of a logarithmic axis for positive values, so far apart that it has several labels."""
    logs = np.log(values[np.isfinite(values) & (values > 0)])
    low, high = (logs.min(), logs.max()) if len(logs) else (0.0, 0.0)
    middle, half = (low + high) / 2, max(0.53 * (high - low), np.log(2.0))
    return float(np.exp(middle - half)), float(np.exp(middle + half))


@_plain
def calibration(
    reliability: list[dict[str, float]],
    recalibrated: list[dict[str, float]] | None,
    directions: dict[str, Any],
) -> Any:
    """A figure in three panels: variances, intervals, and the error in leading directions.

    From `calibration.reliability` of the model's intervals, the same of recalibrated ones, if there
    are any, and `held_out.direction_scores`.
    """
    rows, better = _columns(reliability), _columns(recalibrated or [])
    predicted = np.sqrt(rows["predicted"])
    figure, ((left, middle, right),) = _axes(1, 3, 12.6, 3.6)
    sizes = 15 + 300 * rows["share"]
    ends = _at_least_fourfold(np.concatenate([predicted, np.sqrt(better.get("predicted", []))]))
    left.plot(ends, ends, color="gray", linewidth=0.8, label="perfect")
    left.scatter(
        predicted, np.sqrt(rows["realised"]), sizes, alpha=0.6, label="bins, by share of values"
    )
    left.set(xscale="log", yscale="log", xlim=ends, xlabel="predicted deviation / sigma")
    left.set_ylabel("realised error (root mean square) / sigma")
    for index, name in enumerate(name for name in rows if name.startswith("coverage_")):
        level = int(name.removeprefix("coverage_"))
        style = {"color": f"C{index}", "markersize": 4}
        middle.axhline(level / 100, color="gray", linewidth=0.8)
        hollow = {**style, "markerfacecolor": "white"}
        middle.plot(predicted, rows[name], "o:", **hollow, label=f"{level}%, the model's")
        if better:
            deviation = np.sqrt(better["predicted"])
            middle.plot(deviation, better[name], "o-", **style, label=f"{level}%, recalibrated")
    middle.set(xscale="log", xlim=ends, ylim=(0, 1.02), xlabel="predicted deviation / sigma")
    middle.set_ylabel("share of errors inside the interval")
    for name, line, label in (
        ("model", "o-", "posterior's own"),
        ("refined", "o-", "the same, refined by the derivative of s1"),
        ("predicted", "--", "posterior's own, predicted"),
        ("pca", "o-", "principal components of the data"),
        ("random", "o-", "random"),
    ):
        shares = directions.get(name)
        if shares is not None:
            right.plot(1 + np.arange(len(shares)), shares, line, markersize=3, label=label)
    # Curves rise to the right: above them there is room for the legend.
    right.set(xlabel="leading directions", ylim=(0, 1.5 * right.get_ylim()[1]))
    right.set_ylabel("share of the squared error")
    for axis in (left.xaxis, left.yaxis, middle.xaxis):
        _label_plainly(axis)
    for axis in (left, middle, right):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    middle.legend(fontsize=7, ncols=2)
    return figure


def _signed(axis: Any, image: np.ndarray, except_at: tuple[int, int] | None = None) -> None:
    """Show numbers of both signs, (H, W, C) averaged over channels, 0 in white; that at `except_at`
    may be larger than the colours reach."""
    values = image.mean(axis=-1)
    sizes = np.abs(values)
    if except_at is not None:
        sizes[except_at] = 0.0
    top = float(sizes.max()) or 1.0
    axis.imshow(values, cmap="RdBu_r", vmin=-top, vmax=top, interpolation="nearest")


@_plain
def posterior_directions(
    noisy: np.ndarray,
    mean: np.ndarray,
    directions: np.ndarray,
    deviations: np.ndarray,
    value_range: tuple[float, float],
) -> Any:
    """A figure with a row per image: noisy, denoised, and the directions of largest variance.

    `directions` are eigenvectors of the posterior covariance, (N, k, H, W, C), of either sign, and
    `deviations` the square roots of their eigenvalues, (N, k), data units.
    """
    rows, columns = directions.shape[0], 2 + directions.shape[1]
    height = rows * (_high(1.4, mean) + 0.15)
    figure, axes = _axes(rows, columns, 1.4 * columns, height, images=True)
    for row in range(rows):
        for axis, image in zip(axes[row], (noisy[row], mean[row]), strict=False):
            _show(axis, image, value_range)
        for axis, image, deviation in zip(
            axes[row, 2:], directions[row], deviations[row], strict=True
        ):
            _signed(axis, image)
            # Two digits also of 0.50, and no dot after 12.
            axis.set_title("deviation " + f"{deviation:#.2g}".rstrip("."), fontsize=8)
    _titles(axes[0], ["noisy", "denoised"], 8)
    return figure


@_plain
def posterior_samples(
    noisy: np.ndarray, mean: np.ndarray, samples: np.ndarray, value_range: tuple[float, float]
) -> Any:
    """A figure with a row per image: noisy, denoised, and draws of the clean image, (N, k, H, W,
    C)."""
    rows, columns = samples.shape[0], 2 + samples.shape[1]
    figure, axes = _axes(rows, columns, 1.5 * columns, rows * _high(1.5, mean), images=True)
    for row in range(rows):
        images = noisy[row], mean[row], *samples[row]
        for axis, image in zip(axes[row], images, strict=True):
            _show(axis, image, value_range)
    draws = [f"sample {number + 1}" for number in range(samples.shape[1])]
    _titles(axes[0], ["noisy", "denoised", *draws], 8)
    return figure


def uncertain_pixels(deviation: np.ndarray, count: int) -> np.ndarray:
    """Flat indices of the values of largest deviation, (H, W, C), no two of them close together,
    (count,); fewer distinct places than `count` repeat the first."""
    height, width, _ = deviation.shape
    left = deviation.copy()
    radius = max(1, max(height, width) // 8)
    chosen: list[int] = []
    for _ in range(count):
        if not (left > 0).any():
            chosen.append(chosen[0] if chosen else 0)
            continue
        place = int(left.argmax())
        chosen.append(place)
        row, column, _ = np.unravel_index(place, left.shape)
        rows = slice(max(row - radius, 0), row + radius + 1)
        left[rows, max(column - radius, 0) : column + radius + 1] = 0.0
    return np.array(chosen, np.int32)


@_plain
def covariance_rows(
    mean: np.ndarray, pixels: np.ndarray, rows: np.ndarray, value_range: tuple[float, float]
) -> Any:
    """A figure with a row per image: denoised, then the covariance of chosen pixels with all.

    `pixels` are flat indices of the chosen values, (N, k), and `rows` their rows of the posterior
    covariance, (N, k, H, W, C), data units^2.
    """
    count, chosen = pixels.shape
    height = count * _high(1.5, mean) + 0.2
    figure, axes = _axes(count, 1 + chosen, 1.5 * (1 + chosen), height, images=True)
    for index in range(count):
        _show(axes[index, 0], mean[index], value_range)
        for number, (pixel, image) in enumerate(zip(pixels[index], rows[index], strict=True)):
            axis = axes[index, 1 + number]
            row, column, _ = np.unravel_index(pixel, mean.shape[1:])
            _signed(axis, image, except_at=(row, column))
            axes[index, 0].plot(column, row, "x", color=f"C{2 + number}", markersize=6)
            # Seen on red, on blue and on white.
            axis.plot(column, row, "x", color="white", markersize=6, markeredgewidth=2.4)
            axis.plot(column, row, "x", color="black", markersize=5)
    titles = [f"covariance with x {number + 1}" for number in range(chosen)]
    _titles(axes[0], ["denoised", *titles], 9)
    for number in range(chosen):
        axes[0, 1 + number].title.set_color(f"C{2 + number}")
    return figure


@_plain
def sample_grid(images: np.ndarray, value_range: tuple[float, float]) -> Any:
    """A figure with the images, (N, H, W, C), in a near-square grid."""
    columns = int(np.ceil(np.sqrt(len(images))))
    rows = int(np.ceil(len(images) / columns))
    figure, axes = _axes(rows, columns, 0.9 * columns, rows * _high(0.9, images), images=True)
    for axis, image in zip(axes.flat, images, strict=False):
        _show(axis, image, value_range)
    return figure


@_plain
def trajectories(course: np.ndarray, titles: list[str], value_range: tuple[float, float]) -> Any:
    """A figure of chains over time, (kept, chains, H, W, C), with the titles of the kept steps."""
    kept, chains = course.shape[:2]
    height = chains * _high(0.9, course) + 0.3
    figure, axes = _axes(chains, kept, 0.9 * kept, height, images=True)
    for row in range(chains):
        for column in range(kept):
            _show(axes[row, column], course[column, row], value_range)
    _titles(axes[0], titles, 8)
    return figure


@_plain
def mixing_curves(curves: dict[str, list[float]]) -> Any:
    """A figure of `generate.course_curves`: correlation with the start, distance from the data."""
    figure, ((left, right),) = _axes(1, 2, 8.4, 3.2)
    left.plot(curves["step"], curves["correlation"], "o-", markersize=4)
    left.axhline(0.0, color="gray", linewidth=0.8)
    left.set_title("correlation with the first kept step", fontsize=10)
    for name, style in (("distance", "o-"), ("distance_of_data", "--")):
        label = "chains" if name == "distance" else "training data"
        steps = curves["step"][: len(curves[name])]
        right.plot(steps, curves[name], style, markersize=4, label=label)
    right.set_title("sliced Wasserstein distance from the data", fontsize=10)
    right.set_ylim(bottom=0.0)
    right.legend(fontsize=8)
    for axis in (left, right):
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    return figure


_TITLES = {
    "loss": "training objective",
    "score1": "score s1: squared residual per dimension",
    "score2": "second-order loss per dimension",
}


@_plain
def loss_curves(history: list[dict]) -> Any:
    """A figure of the training and held-out losses by step, from the rows of a run's history."""
    names = [name for name in _TITLES if any(name in row for row in history)]
    if "score2" not in names and "loss" in names:
        names.remove("loss")
    figure, axes = _axes(1, len(names), 4.2 * len(names), 3.2)
    for axis, name in zip(axes[0], names, strict=True):
        for group, style in (("train", "-"), ("held_out", "o-")):
            rows = [row for row in history if row["group"] == group and name in row]
            steps, values = [row["step"] for row in rows], [row[name] for row in rows]
            # A line of one point would not be seen.
            style = "o" if len(rows) == 1 else style
            if rows:
                axis.plot(steps, values, style, label=group.replace("_", " "), markersize=4)
        axis.set_title(_TITLES[name], fontsize=10)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if name == "score1" and all(row.get(name, 1.0) > 0 for row in history):
            axis.set_yscale("log")
            _label_plainly(axis.yaxis)
        axis.legend(fontsize=8)
    return figure


@_plain
def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG, making its folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


@_plain
def as_array(figure: Any) -> np.ndarray:
    """A figure as pixels, uint8 (H, W, 3)."""
    figure.canvas.draw()
    return np.array(figure.canvas.buffer_rgba())[..., :3]
