"""The command line of `main.py` as tests write it: where it is, a small run, settings as flags."""

import contextlib
import logging
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Of a run that takes seconds.
SMALL = {
    "data.name": "digits",
    "model.name": "mlp",
    "model.ngf": 16,
    "model.depth": 1,
    # A neighbour is an operation to trace and to compile: 4 of them, not 12.
    "model.reach": 1,
    "training.steps": 6,
    "training.batch_size": 8,
    "training.log_every": 2,
    "training.evaluate_every": 3,
    "training.checkpoint_every": 2,
    "sampling.steps": 5,
    "sampling.chains": 4,
    "sampling.images": 2,
}


@contextlib.contextmanager
def logging_as_before():
    """Undo what a command that runs in this process changes of logging: tests of others follow."""
    names = (None, "jax", "matplotlib", "PIL", "orbax", "absl")
    levels = {logger: logger.level for logger in map(logging.getLogger, names)}
    handlers = logging.root.handlers[:]
    try:
        yield
    finally:
        logging.root.handlers[:] = handlers
        for logger, level in levels.items():
            logger.setLevel(level)


def as_flags(overrides):
    """Settings as flags: {"training.steps": 3} as ["--config.training.steps=3"]."""
    return [f"--config.{key}={value}" for key, value in overrides.items()]
