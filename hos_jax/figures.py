"""Pictures of a run: denoising panels, loss curves, sample grids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from hos_jax.data import to_uint8

# Figures are files: no window is ever opened, wherever the program runs.
matplotlib.use("Agg")
import matplotlib.pyplot as plt


def _shown(image: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    picture = np.asarray(to_uint8(image, value_range))
    return np.repeat(picture, 3, axis=-1) if picture.shape[-1] == 1 else picture


def _map(image: np.ndarray) -> np.ndarray:
    """One number per pixel: the root mean square over channels, in data units."""
    return np.sqrt(np.mean(np.square(image), axis=-1))


def denoising_panel(
    clean: np.ndarray,
    noisy: np.ndarray,
    denoised: np.ndarray,
    standard_deviation: np.ndarray | None,
    value_range: tuple[float, float],
    sigma: float,
) -> Any:
    """A figure with a row per image: clean, noisy, denoised, predicted deviation, realised error.

    Args:
      clean, noisy, denoised: (N, H, W, C), data units.
      standard_deviation: per-value posterior standard deviation, (N, H, W, C), data units, or None
        for a first-order model.
      value_range: black and white of the data.
      sigma: the noise level, for the title.
    """
    error = denoised - clean
    columns = ["clean", f"noisy, sigma {sigma:g}", "denoised", "predicted std", "|error|"]
    if standard_deviation is None:
        columns.remove("predicted std")
    rows = len(clean)
    figure, axes = plt.subplots(
        rows,
        len(columns),
        figsize=(1.5 * len(columns) + 0.8, 1.5 * rows + 0.3),
        squeeze=False,
        layout="constrained",
    )
    maps = [_map(error)]
    if standard_deviation is not None:
        maps.insert(0, _map(standard_deviation))
    top = float(np.percentile(np.stack(maps), 99.5))
    for row in range(rows):
        for axis, image in zip(axes[row], (clean, noisy, denoised), strict=False):
            axis.imshow(_shown(image[row], value_range), interpolation="nearest")
        for axis, values in zip(axes[row, 3:], maps, strict=True):
            shade = axis.imshow(values[row], cmap="magma", vmin=0, vmax=top)
    for axis, title in zip(axes[0], columns, strict=True):
        axis.set_title(title, fontsize=10)
    for axis in axes.flat:
        axis.set_axis_off()
    bar = figure.colorbar(shade, ax=axes[:, -1], fraction=0.08, aspect=12 * rows)
    bar.ax.tick_params(labelsize=8)
    return figure


def sample_grid(images: np.ndarray, value_range: tuple[float, float]) -> Any:
    """A figure with the images, (N, H, W, C), in a near-square grid."""
    columns = int(np.ceil(np.sqrt(len(images))))
    rows = int(np.ceil(len(images) / columns))
    figure, axes = plt.subplots(
        rows, columns, figsize=(0.9 * columns, 0.9 * rows), squeeze=False, layout="constrained"
    )
    for axis, image in zip(axes.flat, images, strict=False):
        axis.imshow(_shown(image, value_range), interpolation="nearest")
    for axis in axes.flat:
        axis.set_axis_off()
    return figure


_TITLES = {
    "loss": "training objective",
    "score1": "score s1: squared residual per dimension",
    "score2": "second-order loss per dimension",
}


def loss_curves(history: list[dict]) -> Any:
    """A figure of the training and held-out losses by step, from the rows of a run's history."""
    names = [name for name in _TITLES if any(name in row for row in history)]
    if "score2" not in names and "loss" in names:
        names.remove("loss")
    figure, axes = plt.subplots(
        1, len(names), figsize=(4.2 * len(names), 3.2), squeeze=False, layout="constrained"
    )
    for axis, name in zip(axes[0], names, strict=True):
        for group, style in (("train", "-"), ("held_out", "o-")):
            rows = [row for row in history if row["group"] == group and name in row]
            axis.plot(
                [row["step"] for row in rows],
                [row[name] for row in rows],
                style,
                label=group.replace("_", " "),
                markersize=4,
            )
        axis.set_title(_TITLES[name], fontsize=10)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if name == "score1" and all(row.get(name, 1.0) > 0 for row in history):
            axis.set_yscale("log")
        axis.legend(fontsize=8)
    return figure


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG, making its folder if need be, and forget it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def as_array(figure: Any) -> np.ndarray:
    """A figure as pixels, uint8 (H, W, 3), and forget it."""
    figure.canvas.draw()
    pixels = np.array(figure.canvas.buffer_rgba())[..., :3]
    plt.close(figure)
    return pixels
