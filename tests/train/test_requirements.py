"""requirements.txt is what pyproject.toml asks for, data extras included."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_requirements_agree_with_the_package_metadata():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = {*project["dependencies"], *extras["packaged-data"], *extras["tfds"]}
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert {line for line in lines if line and not line.startswith("#")} == wanted
