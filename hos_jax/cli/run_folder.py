"""The folder that the flags name, and room in it for a new run."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from absl import flags

from hos_jax.errors import UserError
from hos_jax.files import check_run_path, expanded, free_name, is_run, locked


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


def _check_apart(workdir: Path) -> None:
    """Raise UserError if a new run would be part of another, or have others in it: one of them
    would be moved aside with the other, whatever process works on it."""
    for folder in workdir.absolute().parents:
        if is_run(folder):
            raise UserError(f"{folder} is itself a run: choose another --doc")
    for folder in map(Path, (path for path, _, _ in os.walk(workdir))):
        if folder != workdir and is_run(folder):
            inside = folder.relative_to(workdir)
            raise UserError(f"{workdir} has another run in it, {inside}: choose another --doc")


def ask_for_room(workdir: Path, no_interaction: bool) -> None:
    """Ask whether an old run may be moved aside, unless told not to.

    Raises:
      UserError: if it may not, or the folder is part of another run or has another in it, or is one
        that cannot hold checkpoints.
    """
    check_run_path(workdir)
    _check_apart(workdir)
    if no_interaction or not workdir.exists() or not any(workdir.iterdir()):
        return
    held, remedy = "files of yours", "choose another --doc, or --ni, which moves it aside"
    if is_run(workdir):
        held, remedy = "a run", f"{remedy}; hos-jax --resume_training goes on with it"
    answer = ""
    with contextlib.suppress(EOFError):
        answer = input(f"{workdir} holds {held}. Move it aside and start anew? [y/N] ")
    if answer.strip().lower() not in ("y", "yes"):
        raise UserError(f"{workdir} is left as it is: {remedy}")


def make_room(workdir: Path) -> None:
    """Move an old run aside; UserError if a process still works on it, or as `_check_apart`."""
    _check_apart(workdir)
    if not workdir.exists() or not any(workdir.iterdir()):
        return
    with locked(workdir):
        target = free_name(workdir)
        workdir.rename(target)
    print(f"the run that was in {workdir} is now in {target}")
