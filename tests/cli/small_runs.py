"""Small runs of the command line, each in a process of its own."""

import subprocess
import sys
from pathlib import Path

from command_line import as_flags

ROOT = Path(__file__).parents[2]
SMALL = {
    "data.name": "digits",
    "model.name": "mlp",
    "model.ngf": 16,
    "model.depth": 1,
    "model.data_std": 0.5,
    "training.steps": 6,
    "training.batch_size": 8,
    "training.log_every": 2,
    "training.evaluate_every": 3,
    "training.checkpoint_every": 2,
    "sampling.steps": 5,
    "sampling.chains": 4,
    "sampling.images": 2,
}


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
