"""Small runs of the command line, each in a process of its own."""

import multiprocessing
import os
import subprocess
import sys
import tempfile

import command_line
import quick_compilation
from command_line import ROOT, as_flags

SMALL = command_line.SMALL | {"model.data_std": 0.5}
MAIN = str(ROOT / "main.py")
# Each process is a copy of one that has imported what commands import: two seconds less for each.
# None of these may start JAX's backend, whose threads would not be copied.
IMPORTED = (
    "hos_jax.cli.main",
    "hos_jax.cli.causal_order",
    "hos_jax.cli.denoise",
    "hos_jax.cli.second_order",
    "hos_jax.evaluation.evaluate",
    "hos_jax.training.loop",
    "hos_jax.uses.causal",
    "jax.experimental.multihost_utils",
    "matplotlib.backends.backend_agg",
    "tensorboardX",
    "quick_compilation",
)
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(list(IMPORTED))


def _as_a_process(arguments, folder, environment, streams):
    """What `python main.py ...` does, in this process."""
    for descriptor, name in enumerate(streams):
        os.dup2(os.open(name, os.O_RDWR if descriptor else os.O_RDONLY), descriptor)
    sys.stdin = os.fdopen(0)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [MAIN, *arguments]
    quick_compilation.share_context()
    from hos_jax.cli import run

    run()


def quickly(arguments, folder, environment, stdin=None):
    """`python main.py ...` in `folder`, without the time that its imports take.

    For an environment that is the tests' own in what Python and JAX read when they start. At exit
    nothing is done but what `multiprocessing` does.
    """
    with tempfile.TemporaryDirectory() as place:
        streams = [os.path.join(place, name) for name in ("in", "out", "err")]
        for name, text in zip(streams, (stdin or "", "", ""), strict=True):
            with open(name, "w") as file:
                file.write(text)
        process = PROCESSES.Process(
            target=_as_a_process, args=(arguments, str(folder), dict(environment), streams)
        )
        process.start()
        process.join()
        said = []
        for name in streams[1:]:
            with open(name, errors="backslashreplace") as file:
                said.append(file.read())
    return subprocess.CompletedProcess(arguments, process.exitcode, *said)


def slowly(arguments, folder, environment, stdin=None):
    """`python main.py ...` in `folder`, as users start it."""
    return subprocess.run(
        [sys.executable, MAIN, *arguments],
        env=environment,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        cwd=folder,
    )


def runner_in(folder, environment, start=slowly):
    """A function that runs `python main.py ...` with its runs in `folder`."""

    def run(*arguments, stdin=None, small=True):
        overrides = as_flags(SMALL) if small else []
        words = ["--run", str(folder), *arguments]
        words += [flag for flag in overrides if flag.partition("=")[0] not in str(arguments)]
        return start(words, ROOT, environment, stdin)

    return run
