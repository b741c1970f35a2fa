"""The notebooks run, in a short form, and the pictures kept belong to their text."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.py"))


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path):
    text = path.read_text()
    assert "STEPS = 0.3, 2000" in text
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            text.replace("STEPS = 0.3, 2000", "STEPS = 0.3, 100"),
        ],
        cwd=path.parents[1],
        env={**os.environ, "MPLBACKEND": "Agg"},
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
