"""What the fault tests share: a compilation cache, and the figures at the end."""

import io
import logging
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pytest
import quick_compilation

# Before JAX is imported and before workers start: what one process compiles, all of them use.
_OWN = "FAULTS_CACHE" not in os.environ
if _OWN:
    os.environ["FAULTS_CACHE"] = tempfile.mkdtemp(prefix="faults_cache_")
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["FAULTS_CACHE"]
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["XLA_FLAGS"] = quick_compilation.FLAGS

# A shell starts what it runs in the background with Ctrl-C ignored, which workers and runs inherit:
# a run would be right not to stop, and its test would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import fault_runs  # noqa: E402


def pytest_unconfigure():
    if _OWN:
        shutil.rmtree(os.environ["FAULTS_CACHE"], ignore_errors=True)


def pytest_terminal_summary(terminalreporter):
    if fault_runs.figures:
        terminalreporter.section("faults")
    for name, count in sorted(fault_runs.figures.items()):
        terminalreporter.write_line(f"{count:6d}  {name}")


@pytest.fixture(scope="session")
def cache():
    return Path(os.environ["FAULTS_CACHE"])


@pytest.fixture
def command(monkeypatch, capfd):
    """`main.py`'s function in this process; returns the status and what a user would see."""
    from hos_jax.cli import main as cli

    # Pictures are tested elsewhere, and take longer than all the rest.
    monkeypatch.setattr("hos_jax.evaluation.evaluate.log_panel", lambda *arguments: None)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    # Whatever asks a question gets the end of the file for an answer.
    monkeypatch.setattr(sys, "stdin", io.StringIO())

    def run(*arguments):
        capfd.readouterr()
        status = cli.main(["main.py", *map(str, arguments)])
        return status, capfd.readouterr().err

    yield run
    root.handlers[:], root.level = handlers, level
