"""The folder that the flags name, and room in it for a new run."""

from __future__ import annotations

from pathlib import Path

from absl import flags

from hos_jax.errors import UserError
from hos_jax.files import free_name, locked


def run_folder(values: flags.FlagValues) -> Path:
    """RUN/DOC.

    Raises:
      UserError: if it would be RUN itself or lie outside of it: a run may be moved aside, and what
        holds all runs, or anything else, must not be.
    """
    for flag in {"doc", "image_folder"} & set(values):
        parts = Path(values[flag].value).parts
        if not parts or Path(values[flag].value).is_absolute() or ".." in parts:
            raise UserError(
                f"--{flag}={values[flag].value!r} must be a name or a relative path without '..'"
            )
    for flag in {"run", "doc", "image_folder"} & set(values):
        if not values[flag].value.isprintable():
            raise UserError(f"--{flag}={values[flag].value!r} has characters that are no text")
    workdir = Path(values.run) / values.doc
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir} is a file: choose another --doc")
    return workdir


def ask_for_room(workdir: Path, no_interaction: bool) -> None:
    """Ask whether an old run may be moved aside, unless told not to."""
    if no_interaction or not workdir.exists() or not any(workdir.iterdir()):
        return
    question = f"{workdir} holds a run. Move it aside and start anew? [y/N] "
    try:
        answer = input(question)
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise UserError(
            f"{workdir} is left as it is: choose another --doc, --resume_training or --ni"
        )


def make_room(workdir: Path) -> None:
    """Move an old run aside, unless a process still works on it."""
    if not workdir.exists() or not any(workdir.iterdir()):
        return
    with locked(workdir):
        target = free_name(workdir)
        workdir.rename(target)
    print(f"the run that was in {workdir} is now in {target}")
