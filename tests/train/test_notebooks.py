"""The notebooks run, in a short form, and the pictures kept belong to their text."""

import functools
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


@pytest.fixture(scope="module")
def small_run(small_config, tmp_path_factory):
    """`small_run(name)`: the folder of the run that notebooks read under this name, a small one,
    made when it is first asked for; None for a run that they train themselves."""
    folder = tmp_path_factory.mktemp("small_runs")

    def pictures():
        """Colour pictures of noise."""
        noise = np.random.default_rng(0).integers(0, 256, (120, 8, 8, 3), dtype=np.uint8)
        (folder / "pictures").mkdir()
        for index, values in enumerate(noise):
            Image.fromarray(values).save(folder / "pictures" / f"{index}.png")
        return str(folder / "pictures")

    def options_of(name):
        if name == "mnist_diagonal":
            return {"model__head": "diagonal"}
        if name == "cifar10_diagonal":
            data = {"data__name": "image_folder", "data__root": pictures(), "data__crop": 0}
            return {"model__head": "diagonal", "data__image_size": 8, **data}
        if name == "diffusion":
            network = {"model__name": "unet", "model__ngf": 8, "model__multipliers": (1,)}
            levels = {"model__smallest_noise": 0.05, "model__largest_noise": 5.0}
            return {"model__head": "local_low_rank", "model__classes": 10, **network, **levels}
        return None

    @functools.cache
    def make(name):
        options = options_of(name)
        if options is None:
            return None
        train_and_evaluate(small_config(**options), folder / name)
        return folder / name

    return make


# The others take half a minute each and more.
EVERY_TIME = ("causal_order", "cifar10_diagonal_analysis")


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=() if path.stem in EVERY_TIME else pytest.mark.slow, id=path.stem)
        for path in NOTEBOOKS
    ],
)
def test_notebook_runs(path, small_run, tmp_path):
    text, count = re.subn(r"STEPS = (0\.3, )?\d+\n", r"STEPS = \g<1>20\n", path.read_text())
    # It trains, which is made short, or takes the weights of the package.
    assert count == ("import_checkpoint" not in text)
    (tmp_path / "runs").mkdir()
    for name in re.findall(r"RUN = Path\(\"runs/(\w+)\"\)", text):
        if run := small_run(name):
            (tmp_path / "runs" / name).symlink_to(run)
    # A denoiser without a network takes most of the time, pixel by pixel.
    text = re.sub(r"SIDE = \d+", "SIDE = 48", text).replace("image_size=32", "image_size=16")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", text],
        cwd=tmp_path,
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
