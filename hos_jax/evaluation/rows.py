"""Rows of a table drawn over their columns: as a strip of grey pixels nobody can read them."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

# Within so many standard deviations lies 90% of a Gaussian.
DEVIATIONS = 1.645


def draw_row(
    axis: Any,
    clean: np.ndarray,
    noisy: np.ndarray,
    denoised: np.ndarray,
    standard_deviation: np.ndarray | None,
) -> None:
    """Draw a row, (1, W, C), over the number of its column, each channel in a colour of its own.

    Clean values are points, noisy ones crosses, denoised ones dashes, with a bar of `DEVIATIONS`
    predicted deviations to either side where these are known.
    """
    columns = np.arange(clean.shape[1])
    label, deviations = "denoised", [None] * clean.shape[-1]
    if standard_deviation is not None:
        label = f"denoised ± {DEVIATIONS} predicted std"
        deviations = list(DEVIATIONS * standard_deviation[0].T)
    for channel, half in enumerate(deviations):
        true, seen, mean = (image[0, :, channel] for image in (clean, noisy, denoised))
        style = {"color": f"C{channel}", "linewidth": 1}
        # Points lie on the bars, and are narrower.
        edge = {"markersize": 4, "markeredgecolor": "black", "zorder": 3}
        axis.plot(columns, true, "o", label="clean", color=f"C{channel}", **edge)
        axis.plot(columns, seen, "x", color="gray", label="noisy")
        # No line: columns have no order.
        axis.errorbar(columns, mean, half, fmt="_", capsize=3, label=label, **style)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=20))
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
