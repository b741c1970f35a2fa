"""Reading all image files below a folder, whatever they are, in a fixed order."""

import hashlib
import logging
import os
import re
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from hos_jax.errors import UserError, reason
from hos_jax.files import is_run

# What is read: the forms of which Pillow tells how many bits a value has.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# Names of images; a file of another name is one if its content says so.
_IMAGE_NAME = re.compile(
    r"\.(a?png|arw|avif|bmp|cr[23]|dds|dib|dng|exr|fits?|gif|hdr|hei[cf]|icns|ico|j2[ck]|jfif|"
    r"jp[2efx]|jpe?g|jxl|mpo|nef|orf|p[bfgnp]m|pcx|psd|qoi|raf|rw2|sgi|svg|tga|tiff?|webp|x[bp]m)$",
    re.IGNORECASE,
)

logger = logging.getLogger(__name__)

_NAMED_FILES = 10  # of those that are reported
_THREADS = min(os.cpu_count() or 1, 16)  # Pillow decodes without the GIL
# TIFF's numbers of the bits of a value, and of its kind: 1 and 4 are no signed or real numbers.
_TIFF_BITS, _TIFF_KIND = 258, 339
# What is said of files that are not read as they are.
_NO_IMAGE = "are left alone, with neither the name nor the content of an image"
_SEVERAL = "hold several pictures, of which the first is read"
_TRANSPARENT = "have transparent pixels, which are shown on white"
_GREY = "are grey and get three equal channels, as the others are in colour"


class _UnreadableError(UserError):
    """A file that is not a readable 8-bit image."""


# Makes pixels (H, W, 3) of a picture and its path, and tells whether all that is taken of it is
# grey; or says in a UserError why it cannot.
Prepare = Callable[[Path, Image.Image], tuple[np.ndarray, bool]]
# An image as read: its pixels (H, W, 3), a checksum of its file, and what to say of it.
_Picture = tuple[np.ndarray, bytes, list[str]]


class Found(NamedTuple):
    """How many images were read, a checksum of their files, and whether all of them are grey."""

    images: int
    checksum: str
    grey: bool


def _entries(folder: Path, above: tuple = ()) -> Iterator[tuple[Path, str | None]]:
    """All files below a folder, links followed and runs left out, and what keeps one from being
    read."""
    try:
        found = folder.stat()
        children = list(folder.iterdir())
    except OSError as error:
        yield folder, f"cannot be opened ({error.strerror})"
        return
    identity = (found.st_dev, found.st_ino)
    if identity in above:
        # The loop may close further down, at the folder of images itself.
        within = (folder, *folder.parents)[: len(above)]
        link = next((path for path in within if path.is_symlink()), folder)
        yield link, "is a link to a folder that holds it"
        return
    for path in children:
        try:
            mode = path.stat().st_mode
        except OSError as error:
            yield path, f"is not a readable image ({error.strerror})"
            continue
        if stat.S_ISDIR(mode) and is_run(path):
            continue  # Its figures are no data, and come and go.
        if stat.S_ISDIR(mode) and not _IMAGE_NAME.search(path.name):
            yield from _entries(path, (*above, identity))
        else:
            kind = "a folder" if stat.S_ISDIR(mode) else "no file"
            yield path, None if stat.S_ISREG(mode) else f"is {kind} with the name of an image"


def files_below(root: str | os.PathLike | None, name: str) -> tuple[Path, list]:
    """The folder of the data set called `name`, and all files below it in the order of their paths.

    Raises:
        UserError: there is no such folder.
    """
    if root is None:
        raise UserError(f"{name} needs a folder of images: set --config.data.root=FOLDER")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: set --config.data.root to a folder of images")
    # By the bytes of the name: their order is that of UTF-8, whatever the locale.
    return folder, sorted(_entries(folder), key=lambda e: os.fsencode(e[0].relative_to(folder)))


def read_all(
    folder: Path,
    entries: list,
    prepare: Prepare,
    keep: Callable[[int, Path, np.ndarray], None],
    skip_unreadable: bool,
    *,
    grey: bool = False,
) -> Found:
    """Read all images among the files; `keep(number, path, pixels)` is called for one at a time.

    Nested folders, hidden files and links are followed; an image is known by its name or by its
    content, and other files are left alone. Images are RGB; photographs are turned upright, and
    transparent pixels are shown on white.

    Args:
        folder, entries: what `files_below` gives.
        skip_unreadable: leave out what is no readable 8-bit image, as if it were not there, and
            name it in a warning.
        grey: make every picture grey first.

    Raises:
        UserError: fewer than two images; a file that is not one readable 8-bit image; what
            `prepare` raises.
    """
    count, colour, errors, checksum = 0, 0, [], hashlib.blake2b(digest_size=16)
    notes: dict[str, list[Path]] = {}

    def read(entry: tuple[Path, str | None]) -> _Picture | _UnreadableError | None:
        path, trouble = entry
        try:
            if trouble is None:
                return _read(path, prepare, grey)
            if not _IMAGE_NAME.search(path.name) and not path.is_dir():
                return None
            raise _UnreadableError(f"{path} {trouble}: mend or remove it")
        except _UnreadableError as error:
            if not skip_unreadable:
                raise
            return error

    pool = ThreadPoolExecutor(_THREADS)
    try:
        with warnings.catch_warnings():
            # Large is no fault as long as Pillow reads it.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            results = pool.map(read, entries)
            # Shown on a terminal only, and only where reading takes a while.
            progress = tqdm(results, "reading images", len(entries), delay=5, disable=None)
            for (path, _), result in zip(entries, progress, strict=True):
                if isinstance(result, _UnreadableError):
                    errors.append(result)
                    continue
                said = [_NO_IMAGE]
                if result is not None:
                    pixels, digest, said = result
                    keep(count, path, pixels)
                    count += 1
                    # Of the files and not of their pixels: decoders may differ between machines.
                    checksum.update(digest)
                    if not pixels.size:  # nothing is taken of it, whatever it is
                        said = [note for note in said if note != _GREY]
                    elif _GREY not in said:
                        colour += 1
                for note in said:
                    notes.setdefault(note, []).append(path.relative_to(folder))
    finally:
        pool.shutdown(cancel_futures=True)  # or an unreadable file is reported after all the others
    if not colour:
        notes.pop(_GREY, None)
    _report(folder, errors, notes)
    if count < 2:
        found = f"{count} readable images" if errors else f"{count} image files"
        needed = f"at least 2 are needed ({', '.join(FORMATS)})"
        remedy = "set --config.data.root to a folder of images"
        raise UserError(f"{folder} holds {found} and {needed}: {remedy}")
    return Found(count, checksum.hexdigest(), grey=not colour)


def _report(folder: Path, errors: list, notes: dict[str, list[Path]]) -> None:
    """Say which files are left out, and which are read in a way that may surprise."""
    if errors:
        logger.warning("%s: %d files are skipped: %s", folder, len(errors), named(errors))
    for note, paths in notes.items():
        level = logging.WARNING if note is _TRANSPARENT else logging.INFO
        logger.log(level, "%s: %d files %s: %s", folder, len(paths), note, named(paths))


def _read(path: Path, prepare: Prepare, grey: bool = False) -> _Picture | None:
    """One file; None if neither its name nor its content is that of an image.

    Raises:
        _UnreadableError: it is not a readable 8-bit image.
        UserError: what `prepare` raises.
    """
    notes = []
    try:
        with path.open("rb") as file:
            try:
                image = Image.open(file, formats=FORMATS)
            except Image.UnidentifiedImageError:
                if _IMAGE_NAME.search(path.name):
                    raise
                return None
            _check_form(path, image)
            if getattr(image, "n_frames", 1) > 1:  # a camera's, as all others are refused
                notes.append(_SEVERAL)
            image = ImageOps.exif_transpose(image)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                if image.getchannel("A").getextrema()[0] < 255:
                    notes.append(_TRANSPARENT)
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("RGB")
            file.seek(0)
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
    except _UnreadableError:
        raise
    except Image.DecompressionBombError as error:
        most = f"at most {2 * Image.MAX_IMAGE_PIXELS} pixels are read"
        what = f"{path} is too large, {most}: make it smaller or cut it up"
        raise _UnreadableError(what) from error
    except Exception as error:  # Pillow's readers raise whatever damage makes them run into
        unknown = isinstance(error, Image.UnidentifiedImageError)
        said = "it has other content" if unknown else reason(error)
        what = f"is not a readable image ({', '.join(FORMATS)}): mend or remove it: {said}"
        raise _UnreadableError(f"{path} {what}") from error
    if grey:
        image = image.convert("L").convert("RGB")
    pixels, is_grey = prepare(path, image)
    if is_grey:
        notes.append(_GREY)
    return pixels, digest, notes


def sizes_of(paths: Iterable[Path]) -> dict[Path, tuple[int, int]]:
    """The width and height, turned or not, of those files that are images, by what their heads say;
    (0, 0) of one that cannot be read."""

    def size_of(path: Path) -> tuple[int, int] | None:
        try:
            with path.open("rb") as file:
                return Image.open(file, formats=FORMATS).size
        except Exception:  # as in `_read`, which says what is wrong
            return (0, 0) if _IMAGE_NAME.search(path.name) else None

    paths = list(paths)
    with warnings.catch_warnings(), ThreadPoolExecutor(_THREADS) as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        found = zip(paths, pool.map(size_of, paths), strict=True)
        return {path: size for path, size in found if size is not None}


def named(paths: Iterable[Path]) -> str:
    """The first of many files, and how many there are more."""
    paths = list(paths)
    more = [f"and {len(paths) - _NAMED_FILES} more"] if len(paths) > _NAMED_FILES else []
    return "; ".join([*map(str, paths[:_NAMED_FILES]), *more])


def all_grey(pixels: np.ndarray) -> bool:
    """Whether the three channels of pixels (..., 3) are one."""
    red = pixels[..., 0]
    return all(np.array_equal(red, pixels[..., channel]) for channel in (1, 2))


def _check_form(path: Path, image: Image.Image) -> None:
    """Refuse what Pillow would read by scaling or clipping values, or only in part."""
    tags, tile = getattr(image, "tag_v2", {}), str(image.tile)
    deep = image.mode.startswith(("I", "F")) or ";16B" in tile
    deep |= max(tags.get(_TIFF_BITS, (1,))) > 8 or not {1, 4}.issuperset(tags.get(_TIFF_KIND, (1,)))
    if image.format == "PPM" and not deep:
        arguments = image.tile[0][3]
        deep = isinstance(arguments, tuple) and arguments[1] > 255
    if deep:
        raise _UnreadableError(f"{path} is not an 8-bit image: convert it to 8 bits or remove it")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        remedy = "save each in a file of its own, or remove it"
        raise _UnreadableError(f"{path} holds {frames} images: {remedy}")


def read_picture(path: Path, *, grey: bool) -> np.ndarray:
    """One image file at its own size, uint8 (H, W, 1) if `grey`, else (H, W, 3).

    Raises:
        UserError: it is not one readable 8-bit image.
    """

    def prepare(_: Path, image: Image.Image) -> tuple[np.ndarray, bool]:
        return np.asarray(image.convert("L"))[..., None] if grey else np.asarray(image), False

    if path.is_dir():
        raise UserError(f"{path} is a folder: give one picture in it")
    if not path.is_file():  # to open a named pipe would wait for who writes to it
        raise UserError(f"there is no picture {path}: check the path")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        found = _read(path, prepare)
    if found is None:
        raise UserError(f"{path} is not a readable image ({', '.join(FORMATS)})")
    for note in set(found[2]):
        logger.warning("%s: files like it %s", path, note)
    return found[0]
