"""Tries an installed hos_jax from outside the repository; run by `make package`.

python check_package.py README.md, in an environment that holds nothing but the wheel.
"""

import importlib.resources
import re
import runpy
import sys
import tempfile
from pathlib import Path

readme = Path(sys.argv[1]).resolve()
repository = readme.parent

import hos_jax  # noqa: E402

location = Path(hos_jax.__file__).resolve()
assert "site-packages" in location.parts, location
page = importlib.resources.files("hos_jax.evaluation") / "report.html"
assert page.read_text().startswith("<!doctype")
for path in sorted((repository / "hos_jax").rglob("*.py")):
    installed = location.parent / path.relative_to(repository / "hos_jax")
    assert installed.is_file(), f"{installed} is not in the wheel"

examples = re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)
assert examples
for i, example in enumerate(examples, 1):
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(example)
        file.flush()
        runpy.run_path(file.name)
    print(f"example {i} of {len(examples)} runs")
