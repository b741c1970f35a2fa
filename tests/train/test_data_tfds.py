"""The real TFDS path: download from a local server, prepare, read back without TensorFlow.

Everything runs in subprocesses: whether TensorFlow gets imported is part of what is tested, and its
import emits deprecation warnings that are not ours.
"""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from data_fixtures import FULL_SIZE, fashion_mnist_files, read_idx, served

# importlib_resources: TFDS imports it when it prepares, and does not declare it (its issue 11212).
_NEEDED = ("tensorflow_datasets", "tensorflow", "array_record", "importlib_resources")
_MISSING = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(_MISSING), reason=f"hos_jax[tfds] lacks {_MISSING}")

# argv: the folder, the URL that replaces the published one ("" leaves it), where arrays are saved,
# how many images the files have.
_LOAD = """
import json, sys
import numpy as np
root, url, out, train, held_out = sys.argv[1:]
if url:
    from tensorflow_datasets.image_classification import mnist
    mnist.FashionMNIST.URL = url
    mnist._TRAIN_EXAMPLES, mnist._TEST_EXAMPLES = int(train), int(held_out)
from hos_jax import data
from hos_jax.errors import UserError
report = {"error": None}
try:
    loaded = data.load("fashion_mnist", root=root)
except UserError as error:
    report["error"] = str(error)
else:
    report["value_range"] = loaded.value_range
    if out:
        np.savez(out, train=loaded.train, train_labels=loaded.train_labels,
                 held_out=loaded.held_out, held_out_labels=loaded.held_out_labels)
report["tensorflow"] = "tensorflow" in sys.modules
print(json.dumps(report))
"""


def _load(root, url="", out="", counts=FULL_SIZE):
    """Run `load` in a process of its own: (its report, its stderr)."""
    environment = os.environ | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)
    command = [sys.executable, "-c", _LOAD, str(root), url, str(out), *map(str, counts)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    # All of stdout is the report: what TFDS prints goes to stderr.
    return json.loads(result.stdout), result.stderr


def _assert_nothing_prepared(root):
    left = [*root.glob("fashion_mnist/*")]
    assert not left, f"left behind: {left}"


@pytest.mark.parametrize("counts", [(3000, 500), pytest.param(FULL_SIZE, marks=pytest.mark.slow)])
def test_prepare_then_read_without_tensorflow(tmp_path, counts):
    files = fashion_mnist_files(tmp_path, *counts)
    root = tmp_path / "root"
    with served(files) as url:
        report, _ = _load(root, url, counts=counts)
    assert report == {"error": None, "value_range": [0.0, 1.0], "tensorflow": True}

    # The server is gone: what follows reads what was prepared.
    report, stderr = _load(root, out=tmp_path / "read.npz")
    assert report == {"error": None, "value_range": [0.0, 1.0], "tensorflow": False}
    assert stderr == ""
    _assert_same_data(files, tmp_path / "read.npz", counts)
    _assert_damage_is_reported(root)


def _assert_same_data(files, saved, counts):
    parts = (("train", "train"), ("t10k", "held_out"))
    with np.load(saved, allow_pickle=False) as arrays:
        for (part, split), count in zip(parts, counts, strict=True):
            images, labels = arrays[split], arrays[f"{split}_labels"]
            assert images.shape == (count, 28, 28, 1) and images.dtype == np.uint8
            assert labels.shape == (count,) and labels.dtype == np.int32
            expected, expected_labels = read_idx(files, part)
            found = sorted(zip(map(bytes, images), labels.tolist(), strict=True))
            assert found == sorted(zip(map(bytes, expected), expected_labels.tolist(), strict=True))


def _assert_damage_is_reported(root):
    (version,) = (root / "fashion_mnist").iterdir()
    (records,) = version.glob("*-train.array_record*")
    info = version / "dataset_info.json"
    whole_records, whole_info = records.read_bytes(), info.read_text()
    damages = [
        (records, whole_records[: len(whole_records) // 2]),
        (info, whole_info[:40].encode()),
        (info, None),
    ]
    for path, content in damages:
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        report, _ = _load(root)
        assert report["error"] and "\n" not in report["error"], (path, content and content[:50])
        assert str(root / "fashion_mnist") in report["error"]
        assert "delete that folder" in report["error"]
        records.write_bytes(whole_records)
        info.write_text(whole_info)
    # Data in TFDS's default format may belong to another project: it is not to be deleted.
    info.write_text(whole_info.replace("array_record", "tfrecord"))
    error = _load(root)[0]["error"]
    assert "prepared in the format tfrecord" in error and "delete" not in error


def test_no_network_is_said_at_once_and_leaves_nothing(tmp_path):
    # What is left of an earlier download, one file of four, is not enough.
    left = tmp_path / "downloads" / "fashion_mnist" / "one.INFO"
    left.parent.mkdir(parents=True)
    left.write_text("{}")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        start = time.perf_counter()
        report, stderr = _load(tmp_path, url)
    # TFDS itself retries for a quarter of an hour; a busy machine needs a minute to import it.
    assert time.perf_counter() - start < 300
    assert "\n" not in report["error"] and "cannot download" in report["error"]
    assert "--config.data.name=mnist5k" in report["error"] and "data.root" in report["error"]
    assert stderr == ""
    _assert_nothing_prepared(tmp_path)


def test_a_broken_download_leaves_nothing(tmp_path):
    files, root = tmp_path / "files", tmp_path / "root"
    files.mkdir()
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (files / f"{part}-{kind}-ubyte.gz").write_bytes(b"not compressed")
    with served(files) as url:
        report, _ = _load(root, url)
    assert "cannot download and prepare fashion_mnist" in report["error"]
    assert "\n" not in report["error"]
    _assert_nothing_prepared(root)
    shutil.rmtree(root)
    for file in files.iterdir():
        file.unlink()  # the server is there, and answers 404
    with served(files) as url:
        report, _ = _load(root, url)
    assert "404" in report["error"] and "\n" not in report["error"]
    _assert_nothing_prepared(root)
