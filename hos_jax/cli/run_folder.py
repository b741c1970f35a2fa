"""The folder that the flags name, and room in it for a new run."""

from __future__ import annotations

import contextlib
from pathlib import Path

from absl import flags

from hos_jax.errors import UserError
from hos_jax.files import expanded, free_name, locked


def run_folder(values: flags.FlagValues) -> Path:
    """RUN/DOC; UserError if that is RUN itself or outside: a run may be moved aside, no more."""
    for flag in {"run", "doc", "image_folder"} & set(values):
        name, path = values[flag].value, Path(values[flag].value)
        if flag != "run" and (not path.parts or path.is_absolute() or ".." in path.parts):
            raise UserError(f"--{flag}={name!r} must be a name or a relative path without '..'")
        if not name.isprintable():
            raise UserError(f"--{flag}={name!r} has characters that are no text")
    workdir = expanded(values.run) / values.doc
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir} is a file: choose another --doc")
    return workdir


def ask_for_room(workdir: Path, no_interaction: bool) -> None:
    """Ask whether an old run may be moved aside, unless told not to."""
    if no_interaction or not workdir.exists() or not any(workdir.iterdir()):
        return
    answer = ""
    with contextlib.suppress(EOFError):
        answer = input(f"{workdir} holds a run. Move it aside and start anew? [y/N] ")
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
