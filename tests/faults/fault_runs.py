"""A tiny run driven through the real command line, and what can happen to it on the way."""

import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np
from command_line import ROOT, as_flags

from hos_jax.config import load as load_config
from hos_jax.training.checkpoint import Checkpoints
from hos_jax.training.problem import Problem

# The learning rate is constant, so that the length of a run changes nothing of its first steps.
TINY = {
    "data.name": "digits",
    "model.name": "mlp",
    "model.ngf": 4,
    "model.depth": 1,
    "optim.schedule": "constant",
    "training.batch_size": 60,
    "training.log_every": 10,
    "training.evaluate_every": 1_000_000,
    "training.checkpoint_every": 10,
}
RUNNER = ("--runner", "UnetDSMRunner", "--config", "demo")
# What happened, printed at the end.
figures = Counter()


def flags(**overrides):
    """The runner, the config and its overrides; `training__steps=3` sets `training.steps`."""
    values = TINY | {key.replace("__", "."): value for key, value in overrides.items()}
    return [*RUNNER, *as_flags(values)]


def start(workdir, *arguments):
    """`python main.py` in a process of its own, on the run in `workdir`."""
    run = ["--run", str(workdir.parent), "--doc", workdir.name]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), *run, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def finish(process):
    """Status and standard error of a process that ends by itself; a hang is a failure."""
    _, errors = process.communicate(timeout=600)
    assert "Traceback" not in errors, errors
    return process.returncode, errors


def saved_steps(workdir):
    folder = workdir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal())


def is_saving(workdir):
    return any((workdir / "checkpoints").glob("*tmp*"))


def wait_for_moment(process, workdir, moment, rng):
    """Return at a random time of the kind asked for: before, during or after a checkpoint.

    "start" is while the process still imports, loads and compiles; "before" and "after" are up to
    30 ms and right after a new checkpoint, "during" is while one is written.
    """
    if moment == "start":
        maps = Path(f"/proc/{process.pid}/maps")
        while maps.exists() and "jaxlib" not in maps.read_text() and process.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.uniform(0.0, 2.0))
        return
    before = saved_steps(workdir)[-1:]
    reached = {
        "before": lambda: saved_steps(workdir)[-1:] != before,
        "during": lambda: is_saving(workdir),
        "after": lambda: saved_steps(workdir)[-1:] != before,
    }[moment]
    deadline = time.monotonic() + 300
    while not reached() and process.poll() is None:
        assert time.monotonic() < deadline, f"no moment {moment!r} in 300 s"
        time.sleep(0.0005)
    if moment != "after":
        time.sleep(rng.uniform(0.0, 0.03))


def interrupt(workdir, number, moment, rng):
    """One session of the run that ends by a signal; the run is new or resumed. Returns stderr."""
    resumed = (workdir / "config.json").exists()
    how = "--resume_training" if resumed else "--ni"
    process = start(workdir, *flags(training__steps=100_000), how)
    wait_for_moment(process, workdir, moment, rng)
    assert process.poll() is None, process.communicate()
    process.send_signal(number)
    _, errors = process.communicate(timeout=600)
    assert "Traceback" not in errors, errors
    figures["resumes"] += resumed
    figures[f"{signal.Signals(number).name} {moment}"] += 1
    if is_saving(workdir):
        figures["saves cut in two"] += 1
    return process.returncode, errors


def final_state(workdir):
    template = Problem.from_config(load_config(workdir)).abstract_state()
    checkpoints = Checkpoints(workdir / "checkpoints")
    restored = checkpoints.restore(template)
    checkpoints.close()
    return restored


def same_bits(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


def ends_as_if_never_stopped(workdir, command):
    """Resume to 20 steps beyond the last checkpoint, and compare with a run that never stopped."""
    total = (saved_steps(workdir) or [0])[-1] + 20
    status, errors = finish(start(workdir, *flags(training__steps=total), "--resume_training"))
    figures["resumes"] += 1
    figures["lost runs"] += status != 0
    assert status == 0, errors
    whole = workdir.with_name(f"{workdir.name}_whole")
    arguments = flags(training__steps=total, training__checkpoint_every=1_000_000)
    place = ("--run", whole.parent, "--doc", whole.name)
    status, errors = command(*place, *arguments, "--ni")
    assert status == 0, errors
    a, b = final_state(workdir), final_state(whole)
    same = a.step == b.step == total and same_bits(a.state, b.state)
    figures["steps compared bit for bit"] += total
    figures["wrong ends"] += not same
    assert same


def damage(folder, kind, rng=None):
    """Damage a checkpoint: the files of its arrays, or one file chosen by `rng`.

    All of them, as which of those files is read differs from save to save. Returns the damaged.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    arrays = [path for path in files if path.parent.name == "d"]
    victims = arrays if rng is None else [rng.choice(files)]
    for victim in victims:
        content = bytearray(victim.read_bytes())
        if kind == "truncated":
            victim.write_bytes(content[: len(content) // 2])
        elif kind == "bit flipped":
            # One bit that no array uses would change nothing, so where it must be noticed, several.
            places = range(50, len(content), 97) if rng is None else [rng.randrange(len(content))]
            for place in places:
                content[place] ^= 0x10
            victim.write_bytes(content)
    if kind == "half written":
        for path in files[len(files) // 2 :]:
            path.unlink()
    figures["corruptions"] += 1
    return victims
