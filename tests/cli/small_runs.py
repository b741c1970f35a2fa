"""Small runs of the command line, each in a process of its own."""

import subprocess
import sys

import command_line
from command_line import ROOT, as_flags

SMALL = command_line.SMALL | {"model.data_std": 0.5}


def runner_in(folder, environment):
    """A function that runs `python main.py ...` with its runs in `folder`."""

    def run(*arguments, stdin=None, small=True):
        overrides = as_flags(SMALL) if small else []
        full = [sys.executable, str(ROOT / "main.py"), "--run", str(folder), *arguments]
        return subprocess.run(
            full + [flag for flag in overrides if flag.partition("=")[0] not in str(arguments)],
            env=environment,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            cwd=ROOT,
        )

    return run
