"""How tests write a command line of `main.py`."""


def as_flags(overrides):
    """Settings as flags: {"training.steps": 3} as ["--config.training.steps=3"]."""
    return [f"--config.{key}={value}" for key, value in overrides.items()]
