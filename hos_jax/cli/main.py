"""The command line: what it does, and what happens when something is wrong."""

from __future__ import annotations

import sys

from absl import flags

from hos_jax import config as run_config
from hos_jax import errors, evaluation
from hos_jax.cli.arguments import make_config, parse
from hos_jax.cli.compiled import keep_compiled
from hos_jax.cli.logs import start_logging
from hos_jax.cli.run_folder import run_folder
from hos_jax.cli.train import train
from hos_jax.errors import UserError, did_you_mean

REMEDIES = {
    errors.NoRunError: "; check --run and --doc",
    errors.OtherRunError: ": give those of the run (--config.data.root says where images are), or "
    "start a new run with another --doc",
    errors.InUseError: ": wait for it, or choose another --doc",
    errors.StorageError: "; --resume_training goes on once that is mended",
    errors.NonFiniteError: "; try a lower optim.lr, or a smaller optim.clip above 0",
}
# What takes less memory, of commands that do not train.
SMALLER = {
    "denoise": "a smaller --tile or fewer --samples",
    "causal_order": "fewer rows or columns",
}


def _connect(values: flags.FlagValues) -> None:
    """Join the other processes, where there are some; before what may start JAX's backend."""
    several = values.coordinator, values.processes, values.process_index
    if values.test:
        if values.cluster or any(value is not None for value in several):
            raise UserError("--test runs in one process: leave out the flags of several processes")
        return
    from hos_jax.training import parallel

    parallel.connect(*several, detect=values.cluster)


def run(values: flags.FlagValues) -> int:
    """Do what the flags say; returns the exit status, or raises UserError."""
    if values.test and values.resume_training:
        raise UserError("--test and --resume_training are two commands: give one of them")
    config = make_config(values)
    workdir = run_folder(values)
    _connect(values)
    run_config.validate(config)
    keep_compiled(values.compilation_cache)
    from hos_jax.training import parallel

    parallel.find_devices()
    if values.test:
        result = evaluation.evaluate_run(config, workdir, values.image_folder)
        print(evaluation.evaluate.table(result))
        numbers = workdir / evaluation.report.METRICS_FILE
        print(f"figures: {workdir / values.image_folder}   numbers: {numbers}")
        return 0

    return train(config, workdir, resume=values.resume_training, no_interaction=values.ni)


def _hint_of(word: str) -> str:
    """What to do about a word that is no flag, nor a command in its place."""
    from hos_jax.cli.commands import COMMANDS

    return "it goes first" if word in COMMANDS else f"{did_you_mean(word, COMMANDS)}see --help"


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit status.

    0; 2 for a user's mistake or what the system refuses (a full disk, too little memory); 130 for
    Ctrl-C and 143 for SIGTERM, or where another process of the run was told to stop. Of several
    processes one with an error ends here. A `BrokenPipeError` passes.
    """
    try:
        if argv[1:2] and not argv[1].startswith("-"):
            from hos_jax.cli.commands import COMMANDS, run_command

            if argv[1] in COMMANDS:
                return run_command(argv[1:])
            raise UserError(f"unexpected argument {argv[1]!r} ({_hint_of(argv[1])})")
        values = parse(argv, _hint_of)
        if values is None:
            return 0
        start_logging(values.verbose)
        return run(values)
    except UserError as error:
        message = f"{error}{REMEDIES.get(type(error), '')}"
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        message = f"{error.filename or 'the system'}: {error.strerror or error}"
    except (MemoryError, RuntimeError, ValueError) as error:
        # Of JAX's runtime errors, which are of either kind, these are the user's: what a denoiser
        # outside of JAX raises, and a lack of memory.
        if said := errors.raised_in_callback(error):
            message = f"the denoiser fails: {said}"
        elif isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            smaller = SMALLER.get("".join(argv[1:2]), "a smaller training.batch_size or model.ngf")
            message = f"too little memory: choose {smaller}"
        else:
            raise
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    if parallel := sys.modules.get("hos_jax.training.parallel"):
        parallel.leave(2)
    return 2
