"""MNIST, Fashion-MNIST and CIFAR-10 through TensorFlow Datasets, read without TensorFlow.

The data is prepared once, in the array_record format, which has random access and a reader of its
own. TensorFlow is imported only while that happens.
"""

import contextlib
import importlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from hos_jax.data.image_data import SIGNED_RANGE, UNIT_RANGE, ImageData
from hos_jax.errors import UserError, missing_package, reason

VALUE_RANGES = {"mnist": UNIT_RANGE, "fashion_mnist": UNIT_RANGE, "cifar10": SIGNED_RANGE}
NAMES = tuple(VALUE_RANGES)

_FORMAT = "array_record"
_READ_AT_ONCE = 2048
_PROBE_SECONDS = 10
_WITHOUT_DOWNLOAD = (
    "put prepared data under --config.data.root, "
    "or use --config.data.name=mnist5k, digits or photos, which need no download"
)


def load_prepared(name: str, *, root: str | os.PathLike | None = None) -> ImageData:
    """TFDS's train and test splits, downloaded and prepared first where that was not done yet.

    Args:
        root: TFDS's data_dir: the data lies in `root/name/version`, downloads in
            `root/downloads`; original files put into `root/downloads/manual` are used instead of
            a download. None: TFDS's own choice, $TFDS_DATA_DIR or ~/tensorflow_datasets.

    Raises:
        UserError: a package is missing, the download cannot happen, or what lies under `root`
            cannot be read. A failed preparation leaves nothing that passes for prepared data.
    """
    with _quiet():
        builder = _open_builder(name, root)
        if not builder.data_path.exists():
            _prepare(builder, name)
            builder = _open_builder(name, root)  # what is on disk, whoever wrote it
        _check_format(builder)
        train, train_labels = _read_split(builder, "train")
        held_out, held_out_labels = _read_split(builder, "test")
    return ImageData(name, train, held_out, train_labels, held_out_labels, VALUE_RANGES[name])


def _open_builder(name: str, root: str | os.PathLike | None) -> Any:
    data_dir = None if root is None else Path(root).expanduser()
    place = data_dir or "TFDS's data folder"
    with _reading(f"{place}/{name}", name):
        tfds = importlib.import_module("tensorflow_datasets")
        return tfds.builder(name, data_dir=data_dir)


def _check_format(builder: Any) -> None:
    # Other projects share TFDS's default folder, mostly in TFDS's default format: theirs to keep.
    # Without splits nothing was read from disk, and the format named is only the default.
    found = builder.info.file_format
    if builder.info.splits and found is not None and found.value != _FORMAT:
        raise UserError(
            f"the data in {builder.data_path} was prepared in the format {found.value}, and "
            f"{_FORMAT} is needed: set --config.data.root to another folder to prepare it there"
        )


def _read_split(builder: Any, split: str) -> tuple[np.ndarray, np.ndarray]:
    """All images, uint8 (N, H, W, C), and labels, int32 (N,), of one split."""
    with _reading(builder.data_path, builder.name):
        source = builder.as_data_source(split=split)
        count = builder.info.splits[split].num_examples
        images = np.empty((count, *builder.info.features["image"].shape), np.uint8)
        labels = np.empty(count, np.int32)
        for start in range(0, count, _READ_AT_ONCE):
            records = source.__getitems__(range(start, min(start + _READ_AT_ONCE, count)))
            for index, record in enumerate(records, start):
                images[index], labels[index] = record["image"], record["label"]
        return images, labels


@contextlib.contextmanager
def _explained(name: str, what: str, remedy: str) -> Iterator[None]:
    """Say in one line what fails, whatever TFDS, its readers, the network or the disk raise."""
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        raise missing_package(f"data set {name!r}", error.name or str(error), "tfds") from error
    except Exception as error:
        raise UserError(f"{what} ({type(error).__name__}: {reason(error)}): {remedy}") from error


def _reading(place: Any, name: str) -> contextlib.AbstractContextManager[None]:
    remedy = "delete that folder to prepare it again, or set another --config.data.root"
    return _explained(name, f"the prepared data in {place} cannot be read", remedy)


def _prepare(builder: Any, name: str) -> None:
    """Download and write the data set; TFDS renames it into place only when it is complete."""
    what = f"cannot download and prepare {name} in {builder.data_path}"
    with _explained(name, what, f"check the network and the free space, {_WITHOUT_DOWNLOAD}"):
        _check_network(builder)
        importlib.import_module("array_record")
        tensorflow = importlib.import_module("tensorflow")
        # It only encodes images here; without this it may claim the memory of every GPU.
        with contextlib.suppress(RuntimeError):
            tensorflow.config.set_visible_devices([], "GPU")
        try:
            builder.download_and_prepare(file_format=_FORMAT)
        except Exception:
            # Another process may have prepared the same data meanwhile: only the rename fails.
            if not builder.data_path.exists():
                raise


def _check_network(builder: Any) -> None:
    """Fail within seconds where the source cannot be reached; TFDS would retry for minutes."""
    import requests

    downloads = Path(builder.data_path).parents[1] / "downloads"
    cached = [*(downloads / builder.name).glob("*.INFO"), *(downloads / "manual").glob("*")]
    if len(cached) >= len(builder.url_infos):
        return
    url = getattr(builder, "URL", None) or next(iter(builder.url_infos))
    try:
        # Any answer will do, an error page included: it shows that the server is there.
        requests.head(url, timeout=_PROBE_SECONDS, allow_redirects=False)
    except requests.RequestException as error:
        raise UserError(
            f"cannot download {builder.name}: no connection to {urlsplit(url).netloc} "
            f"({type(error).__name__}): {_WITHOUT_DOWNLOAD}"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep TensorFlow and TFDS off the terminal, but for their progress bars, on stderr."""
    loggers = {logger: logger.level for logger in map(logging.getLogger, ("absl", "urllib3"))}
    chosen = "TF_CPP_MIN_LOG_LEVEL" in os.environ
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        for logger, level in loggers.items():
            logger.setLevel(level)
        if not chosen:  # XLA reads the same variable, and is not ours to silence
            os.environ.pop("TF_CPP_MIN_LOG_LEVEL", None)
