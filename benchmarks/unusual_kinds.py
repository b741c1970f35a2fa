"""Images that are no upright handwritten digits, 28 x 28, to tell from those that are.

`kinds(digits, part, count)` makes them: what is changed digits from the digits given, and letters,
other digits and photographs from two parts that share nothing, "choose" and "report".
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from hos_jax.data import load

# Fonts that matplotlib ships; letters that look like a 0 or a 1 are left out.
FONTS = {
    "choose": ("DejaVuSerif-Bold", "STIXGeneralBol"),
    "report": ("DejaVuSans-Bold", "DejaVuSansMono-Bold", "STIXGeneral", "DejaVuSans"),
}
LETTERS = {"choose": "abdefghijkmnpqrstuvwxyz", "report": "ABCDEFGHJKLMNPQRSTUVWXYZ"}
NEAR = ("letters", "rotated by 90", "rotated by 45")
HARD = (*NEAR, "mirrored", "shifted by 6", "hole of 8 x 8")


def centred(image: np.ndarray) -> np.ndarray:
    """An image of any size, 0 outside its figure, as MNIST's are: the figure's longer side 20
    pixels, its centre of mass in the middle of 28 x 28."""
    rows, columns = np.nonzero(image > 0.02)
    figure = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    scale = 20 / max(figure.shape)
    size = tuple(max(1, round(side * scale)) for side in figure.shape[::-1])
    small = Image.fromarray(figure.astype(np.float32)).resize(size, Image.Resampling.LANCZOS)
    small = np.clip(np.asarray(small), 0, 1)
    place = np.zeros((28, 28), np.float32)
    top, left = (28 - small.shape[0]) // 2, (28 - small.shape[1]) // 2
    place[top : top + small.shape[0], left : left + small.shape[1]] = small
    shift = 13.5 - np.array(ndimage.center_of_mass(place))
    return np.clip(ndimage.shift(place, np.round(shift), order=0), 0, 1)


def letters(part: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """Letters in printed fonts, drawn large and reduced as MNIST's digits were."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    found = []
    for _ in range(count):
        font = ImageFont.truetype(folder / f"{rng.choice(FONTS[part])}.ttf", 100)
        canvas = Image.new("L", (200, 200))
        ImageDraw.Draw(canvas).text((40, 30), rng.choice(list(LETTERS[part])), 255, font=font)
        found.append(centred(np.asarray(canvas, np.float32) / 255))
    return np.stack(found)


def other_digits(part: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """scikit-learn's digits of 8 x 8 pixels, enlarged; the two parts are those of its split."""
    data = load("digits")
    images = data.train if part == "choose" else data.held_out
    chosen = rng.choice(len(images), min(count, len(images)), replace=False)
    return np.stack([centred(ndimage.zoom(images[i, ..., 0] / 255.0, 4, order=1)) for i in chosen])


def photographs(part: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """Grey patches of photographs; the two parts are regions that do not overlap."""
    data = load("photos", image_size=28, grey=True)
    images = data.train if part == "choose" else data.held_out
    return images[rng.choice(len(images), count, replace=False), ..., 0] / np.float32(255)


def _rotated(angle: float) -> Callable:
    def rotate(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        turned = ndimage.rotate(image, angle * rng.choice([-1, 1]), reshape=False, order=1)
        return np.clip(turned, 0, 1)

    return rotate


def _shifted(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    return ndimage.shift(image, np.round([6 * np.sin(angle), 6 * np.cos(angle)]), order=0)


def hole(image: np.ndarray, rng: np.random.Generator) -> tuple[slice, slice]:
    """A square of 8 x 8 pixels around a pixel of the figure."""
    place = rng.choice(np.argwhere(image > 0.5))
    top, left = np.clip(place - 4, 0, 20)
    return slice(top, top + 8), slice(left, left + 8)


def _occluded(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    changed = image.copy()
    changed[hole(image, rng)] = 0.0
    return changed


CHANGES: dict[str, Callable] = {
    "rotated by 90": _rotated(90),
    "rotated by 45": _rotated(45),
    "mirrored": lambda image, rng: image[:, ::-1],
    "shifted by 6": _shifted,
    "inverted": lambda image, rng: 1 - image,
    "noise of 0.1": lambda image, rng: np.clip(image + 0.1 * rng.standard_normal((28, 28)), 0, 1),
    "blurred by 1": lambda image, rng: ndimage.gaussian_filter(image, 1.0),
    "hole of 8 x 8": _occluded,
}


def kinds(digits: np.ndarray, part: str, count: int) -> dict[str, np.ndarray]:
    """`count` images of each kind, (count, 28, 28), in [0, 1]; digits are (N >= count, 28, 28)."""
    rng = np.random.default_rng(("choose", "report").index(part))
    found = {
        "letters": letters(part, count, rng),
        "other digits": other_digits(part, count, rng),
        "photographs": photographs(part, count, rng),
    }
    for name, change in CHANGES.items():
        chosen = rng.choice(len(digits), count, replace=False)
        found[name] = np.stack([change(digits[i], rng) for i in chosen])
    return {name: images.astype(np.float32) for name, images in found.items()}
