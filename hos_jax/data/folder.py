"""A folder of image files, prepared the way CelebA is in the published experiments."""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from hos_jax.data.image_data import SIGNED_RANGE, ImageData
from hos_jax.errors import UserError

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})

# Modes that convert("RGB") would clip rather than scale.
_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")

logger = logging.getLogger(__name__)

# Of files that are skipped, so many are named.
_NAMED_FILES = 10

# One image in this many is held out.
_HELD_OUT_EVERY = 20


def load_folder(
    root: str | os.PathLike | None,
    *,
    crop: int = 140,
    image_size: int = 32,
    skip_unreadable: bool = False,
) -> ImageData:
    """Every image below `root`: centre crop, antialiased resize, RGB.

    The defaults are those published for CelebA (178 x 218 pixels): the central 140 x 140 pixels,
    resized to 32 x 32 by a bilinear filter with antialiasing. Files are taken in the order of
    their path, nested folders included; the 20th, 40th, ... is held out (the last one where there
    are fewer). Files that do not have the name of an image (`.jpg`, `.png`, ...) are left alone.

    Args:
        root: the folder.
        crop: side of the central square that is kept; 0 for the largest that fits.
        image_size: side of the result.
        skip_unreadable: leave out files that are not readable 8-bit images, as if they were not
            there, and name them in a warning.

    Returns:
        ImageData with images (N, image_size, image_size, 3) and no labels.

    Raises:
        UserError: `root` is not given, does not exist or holds fewer than two images; a file is
            not a readable 8-bit image or is smaller than `crop`; sizes that are not positive.
    """
    if root is None:
        raise UserError("image_folder needs a folder of images: set --config.data.root=FOLDER")
    if crop < 0 or image_size < 1:
        raise UserError(f"image_folder: crop {crop} and image_size {image_size} must be positive")
    folder = Path(root).expanduser()
    paths = _image_paths(folder)
    if len(paths) < 2:
        raise UserError(
            f"{folder} holds {len(paths)} image files and at least 2 are needed "
            f"({', '.join(sorted(SUFFIXES))}): set --config.data.root to a folder of images"
        )
    images, errors = _read_all(paths, crop, image_size, skip_unreadable)
    if errors:
        _warn_of(errors, folder)
    if len(images) < 2:
        raise UserError(f"{folder} holds {len(images)} readable images and at least 2 are needed")
    held_out = np.arange(1, len(images) + 1) % _HELD_OUT_EVERY == 0
    held_out[-1] |= not held_out.any()
    return ImageData("image_folder", images[~held_out], images[held_out], None, None, SIGNED_RANGE)


def _image_paths(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: set --config.data.root to a folder of images")
    files = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    # As strings with forward slashes, so that the order is the same on every system.
    return sorted(
        (path for path in files if path.is_file()), key=lambda p: p.relative_to(folder).as_posix()
    )


class _UnreadableError(UserError):
    """A file that is not a readable 8-bit image."""


def _warn_of(errors: list[_UnreadableError], folder: Path) -> None:
    shown = "; ".join(str(error) for error in errors[:_NAMED_FILES])
    more = f"; and {len(errors) - _NAMED_FILES} more" if len(errors) > _NAMED_FILES else ""
    logger.warning("%s: %d files are skipped: %s%s", folder, len(errors), shown, more)


def _read_all(
    paths: list[Path], crop: int, size: int, skip_unreadable: bool
) -> tuple[np.ndarray, list[_UnreadableError]]:
    """The images in the order of their paths, and what is wrong with those that are left out."""
    images = np.empty((len(paths), size, size, 3), np.uint8)
    count, errors = 0, []
    skipped = (_UnreadableError,) if skip_unreadable else ()

    def read(path: Path) -> np.ndarray | _UnreadableError:
        try:
            return _read(path, crop=crop, size=size)
        except skipped as error:
            return error

    pool = ThreadPoolExecutor(min(os.cpu_count() or 1, 16))  # Pillow decodes without the GIL
    try:
        results = pool.map(read, paths)
        # Shown on a terminal only, and only where reading takes a while.
        progress = tqdm(results, "reading images", len(paths), delay=5, disable=None)
        for result in progress:
            if isinstance(result, _UnreadableError):
                errors.append(result)
            else:
                images[count], count = result, count + 1
    finally:
        pool.shutdown(cancel_futures=True)  # or an unreadable file is reported after all the others
    return images[:count], errors


def _read(path: Path, *, crop: int, size: int) -> np.ndarray:
    try:
        with Image.open(path) as image:
            if image.mode in _DEEP_MODES:
                raise _UnreadableError(
                    f"{path} is not an 8-bit image: convert it to 8 bits or remove it"
                )
            image = ImageOps.exif_transpose(image)
            # A transparent palette reaches RGB without a warning only through RGBA.
            if "transparency" in image.info:
                image = image.convert("RGBA")
            image = image.convert("RGB")
    except UserError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _UnreadableError(f"{path} is not a readable image: mend or remove it") from error
    side = crop or min(image.size)
    if side > min(image.size):
        raise UserError(
            f"{path} is {image.width} x {image.height}, smaller than the crop of {crop} pixels: "
            "lower --config.data.crop, or set it to 0 for the largest square"
        )
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # Not resize(box=...): its filter would look beyond the edge of the box.
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.BILINEAR))
