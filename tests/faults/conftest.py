"""What the fault tests share: the command line in this process, and the figures at the end."""

import io
import signal
import sys

import command_line
import fault_runs
import pytest

# A shell starts what it runs in the background with Ctrl-C ignored, which workers and runs inherit:
# a run would be right not to stop, and its test would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter):
    if fault_runs.figures:
        terminalreporter.section("faults")
    for name, count in sorted(fault_runs.figures.items()):
        terminalreporter.write_line(f"{count:6d}  {name}")


@pytest.fixture
def command(monkeypatch, capfd):
    """`main.py`'s function in this process; returns the status and what a user would see."""
    from hos_jax.cli import main as cli

    # Pictures are tested elsewhere, and take longer than all the rest.
    monkeypatch.setattr("hos_jax.evaluation.evaluate.log_panel", lambda *arguments: None)
    # Whatever asks a question gets the end of the file for an answer.
    monkeypatch.setattr(sys, "stdin", io.StringIO())

    def run(*arguments):
        capfd.readouterr()
        status = cli.main(["main.py", *map(str, arguments)])
        return status, capfd.readouterr().err

    with command_line.logging_as_before():
        yield run
