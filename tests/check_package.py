"""Tries an installed hos_jax from an empty folder, as a user meets it; run by `make package`.

python check_package.py, in an environment that holds nothing but the wheel and its extra
packaged-data.
"""

import importlib.metadata
import importlib.resources
import os
import subprocess
import sysconfig
import tempfile
import time
import warnings
from pathlib import Path

import command_line
import pages
import quick_compilation

os.environ["MPLBACKEND"] = "Agg"
os.environ["XLA_FLAGS"] = quick_compilation.FLAGS
warnings.simplefilter("error", DeprecationWarning)

import hos_jax  # noqa: E402

# The demo's data, in seconds instead of minutes.
SHORT = command_line.SMALL | {"data.name": "mnist5k"}


def check_files() -> None:
    """All of the package is in the wheel, and beside it nothing."""
    installed = Path(hos_jax.__file__).resolve().parent
    assert "site-packages" in installed.parts, installed
    page = importlib.resources.files("hos_jax.evaluation") / "report.html"
    assert page.read_text().startswith("<!doctype")
    package = pages.ROOT / "hos_jax"
    for path in [*package.rglob("*.py"), *package.rglob("*.safetensors"), package / "py.typed"]:
        file = installed / path.relative_to(package)
        assert file.is_file(), f"{file} is not in the wheel"
    found = importlib.metadata.files("hos_jax")
    tops = {file.parts[0] for file in found if ".." not in file.parts}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"hos_jax"}, tops


def hos_jax_command(*arguments: str) -> str:
    """What the installed command prints."""
    command = [Path(sysconfig.get_path("scripts")) / "hos-jax", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check_commands() -> None:
    """The quick start: a run, and its test."""
    run = ("--runner", "LowRankHybridRunner", "--config", "demo", "--doc", "demo", "--ni")
    print(hos_jax_command(*run, *command_line.as_flags(SHORT)))
    print(hos_jax_command("--doc", "demo", "--test"))
    assert (pages.DEMO_RUN / "report.html").is_file()


if __name__ == "__main__":
    check_files()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        check_commands()
        for path in pages.PYTHON_PAGES:
            started = time.monotonic()
            pages.run_python(path)
            print(f"{pages.name_of(path)}: its Python runs, {time.monotonic() - started:.0f} s")
