"""The notebooks run, in a short form, and the pictures kept belong to their text."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hos_jax.training.loop import train_and_evaluate

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.py"))


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.fixture
def small_runs(small_config, tmp_path):
    """A folder with the runs that notebooks read: grey digits, and colour pictures of noise."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (120, 8, 8, 3), dtype=np.uint8)
    for index, values in enumerate(noise):
        Image.fromarray(values).save(pictures / f"{index}.png")
    colour = {
        "data__name": "image_folder",
        "data__root": str(pictures),
        "data__image_size": 8,
        "data__crop": 0,
    }
    for name, options in {"mnist_diagonal": {}, "cifar10_diagonal": colour}.items():
        config = small_config(model__head="diagonal", **options)
        train_and_evaluate(config, tmp_path / "runs" / name)
    return tmp_path


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, small_runs):
    text, count = re.subn(r"STEPS = (0\.3, )?\d+\n", r"STEPS = \g<1>20\n", path.read_text())
    assert count == 1
    text = re.sub(r"SIDE = \d+", "SIDE = 64", text)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", text],
        cwd=small_runs,
        env={**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": str(path.parents[1])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_rendered_notebook_is_that_of_the_text(path):
    notebook = json.loads(path.with_suffix(".ipynb").read_text())
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    text = path.read_text()
    assert code and all(cell in text for cell in code)
    outputs = [out for cell in notebook["cells"] for out in cell.get("outputs", [])]
    assert any("image/png" in out.get("data", {}) for out in outputs)
    assert not any(out["output_type"] == "error" for out in outputs)
