"""The command line: a run and its folder, and what happens when something is wrong."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from absl import flags

from hos_jax import interruption
from hos_jax.arguments import COMMANDS, make_config, parse
from hos_jax.errors import UserError
from hos_jax.files import locked
from hos_jax.malloc import keep_freed_memory


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
    from hos_jax.checkpoint import free_name

    if not workdir.exists() or not any(workdir.iterdir()):
        return
    with locked(workdir):
        target = free_name(workdir)
        workdir.rename(target)
    print(f"the run that was in {workdir} is now in {target}")


def _log_panel(*arguments) -> None:
    """`evaluate.log_panel`; what it needs to draw is loaded when there is something to draw."""
    from hos_jax.evaluate import log_panel

    log_panel(*arguments)


def _keep_compiled(folder: Path) -> None:
    """Let JAX read and write compiled programs in a folder."""
    import jax

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--compilation_cache={folder} cannot be made: {error.strerror}") from error
    jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))


def _connect(values: flags.FlagValues) -> None:
    """Join the other processes, where there are some; before what may start JAX's backend."""
    several = values.coordinator, values.processes, values.process_index
    if values.test:
        if values.cluster or any(value is not None for value in several):
            raise UserError("--test runs in one process: leave out the flags of several processes")
        return
    from hos_jax import parallel

    parallel.connect(*several, detect=values.cluster)


def run(values: flags.FlagValues) -> int:
    """Do what the flags say; returns the exit status.

    Raises:
      UserError: for a mistake that the user can mend.
    """
    config = make_config(values)
    workdir = run_folder(values)
    _connect(values)
    from hos_jax import config as run_config

    run_config.validate(config)
    if values.compilation_cache:
        _keep_compiled(Path(values.compilation_cache))
    if values.test:
        from hos_jax.evaluate import evaluate_run, table

        result = evaluate_run(config, workdir, values.image_folder)
        print(table(result))
        print(f"figures: {workdir / values.image_folder}   numbers: {workdir / 'metrics.json'}")
        return 0

    from hos_jax import parallel
    from hos_jax.train import train_and_evaluate

    if not values.resume_training:
        parallel.from_first_process(lambda: ask_for_room(workdir, values.ni), lambda: None)
    with interruption.requested() as stop:
        state = train_and_evaluate(
            config,
            workdir,
            resume=values.resume_training,
            on_evaluation=_log_panel,
            make_room=None if values.resume_training else lambda: make_room(workdir),
            should_stop=stop,
            on_compiled=keep_freed_memory,
        )
    step = int(state.step)
    if stop.signal is not None and step < config.training.steps:
        print(
            f"{stop.signal.name} at step {step}, which is saved: --resume_training goes on from it",
            file=sys.stderr,
        )
        return stop.exit_status
    if parallel.is_first_process():
        print(f"{workdir}: {step} steps done")
    return 0


def start_logging(verbose: str) -> None:
    """Log at that level; libraries no more than warnings, and orbax nothing that it raises too."""
    logging.basicConfig(
        level=verbose.upper(), format="%(levelname).1s %(name)s: %(message)s", force=True
    )
    for name in ("jax", "matplotlib", "PIL"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.root.level))
    # A save that fails is reported with a traceback, from its thread, before it is raised.
    level = logging.WARNING if verbose == "debug" else logging.CRITICAL
    for name in ("orbax", "absl"):
        logging.getLogger(name).setLevel(level)


def ignore_late_reads(unraisable) -> None:
    """For `sys.unraisablehook`: say nothing of reads that end after the one that failed.

    Orbax closes its event loop when a read of a damaged checkpoint fails; the others of
    tensorstore then find it closed, and each would print a traceback.
    """
    if "Event loop is closed" not in str(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit status.

    0; 2 for a user's mistake or what the system refuses (a full disk, too little memory); 130 for
    Ctrl-C and 143 for SIGTERM.
    """
    try:
        if argv[1:2] and argv[1] in COMMANDS:
            from hos_jax.commands import run_command

            return run_command(argv[1:])
        values = parse(argv)
        start_logging(values.verbose)
        return run(values)
    except UserError as error:
        message = str(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        message = f"{error.filename or 'the system'}: {error.strerror or error}"
    except (MemoryError, RuntimeError) as error:
        # JAX's runtime errors are RuntimeErrors; of those only a lack of memory is the user's.
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        message = "too little memory: choose a smaller training.batch_size or model.ngf"
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2
