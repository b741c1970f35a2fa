"""Speed and memory of a training step: the published settings and the demo's, on this machine.

    python benchmarks/train_step.py [--json PATH] [--quick] [--settings NAME ...] [--run-all]

A name is "setting, network, options": `refinenet` is the published network (64 channels on MNIST,
128 on CIFAR-10), with one network for each of s1, the diagonal and the factor; `unet 64` has
one for s1 and one for s2; `shared` one trunk for everything. `bfloat16` computes the network in
it, with parameters, losses and their linear algebra in float32; `remat` recomputes activations in
the backward pass; `10 steps` takes ten steps per call of the compiled step. The loss is
`residual_nll` unless named. Images are the packaged ones of the same size (mnist5k, photos), so
nothing is downloaded.

Each row runs in a process of its own. "s/step" is the median of the steps of five seconds, and of
--repeats at least, after a warm-up (a step of more than 60 s is timed once, without), "peak" the
largest resident memory of the process, "planned" what XLA plans beside the step's arguments,
"GFLOP/s" the rate of a plain matrix product in the same process.
Loss, optimizer and data are timed alone, as parts of the step: the rest is the network. The last
column is images per second over those of the setting's refinenet row, in one file of rows. Rows
marked "planned" are compiled but not run, unless --run-all or --settings is given.

The published implementation, measured on another machine with 2 cores: first order MNIST 8.4 s and
7.7 GiB where these steps took 6.8 s and 2.1 GiB; low rank MNIST, `dsm_vr` with `d2sm`, 17.6 to
18.4 s and 14.1 GiB where they took 15.6 s and 4.95 GiB.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).parents[1]
SLOW, AT_LEAST = 60.0, 5.0


class Setting(NamedTuple):
    """Arguments of main.py, and whether the step runs by default or is only compiled."""

    flags: str
    run: bool = True


PUBLISHED_LOSS = (
    " --config.loss.second_order=d2sm_vr"
    " --config.loss.stop_gradient_score1=False --config.model.positive_definite=False"
)
FIRST = "--runner UnetDSMRunner --config dsm_mnist --config.data.name=mnist5k"
LOW_RANK = "--runner LowRankHybridRunner --config unet_mnist --config.data.name=mnist5k"
DIAGONAL = "--runner DoubleDiagonalHybridRunner --config unet_cifar10 --config.data.name=photos"
DEMO = "--runner LowRankHybridRunner --config demo"
UNET = (
    " --config.model.name=unet --config.model.networks=per_order --config.model.data_std=0.5"
    " --config.model.ngf=64"
)
SHARED = " --config.model.networks=shared"
HALF = " --config.model.dtype=bfloat16"
REMAT = " --config.model.remat=True"
TEN_STEPS = " --config.training.steps_per_dispatch=10"
SETTINGS = {
    "demo, unet 16": Setting(DEMO),
    "demo, unet 16, shared": Setting(DEMO + SHARED),
    "demo, unet 16, bfloat16": Setting(DEMO + HALF),
    "demo, unet 16, remat": Setting(DEMO + REMAT),
    "demo, unet 16, 10 steps": Setting(DEMO + TEN_STEPS),
    "first order MNIST, refinenet": Setting(FIRST),
    "first order MNIST, refinenet, bfloat16": Setting(FIRST + HALF, run=False),
    "first order MNIST, refinenet, remat": Setting(FIRST + REMAT),
    "first order MNIST, unet 64": Setting(FIRST + UNET),
    "first order MNIST, unet 64, remat": Setting(FIRST + UNET + REMAT, run=False),
    "low rank MNIST, refinenet": Setting(LOW_RANK),
    "low rank MNIST, refinenet, shared": Setting(LOW_RANK + SHARED),
    "low rank MNIST, refinenet, bfloat16": Setting(LOW_RANK + HALF, run=False),
    "low rank MNIST, refinenet, remat": Setting(LOW_RANK + REMAT),
    "low rank MNIST, refinenet, d2sm_vr": Setting(LOW_RANK + PUBLISHED_LOSS),
    "low rank MNIST, unet 64": Setting(LOW_RANK + UNET),
    "low rank MNIST, unet 64, shared": Setting(LOW_RANK + UNET + SHARED),
    "low rank MNIST, unet 64, bfloat16": Setting(LOW_RANK + UNET + HALF),
    "low rank MNIST, unet 64, remat": Setting(LOW_RANK + UNET + REMAT),
    "diagonal CIFAR-10, unet 64": Setting(DIAGONAL + UNET),
    "diagonal CIFAR-10, unet 64, shared": Setting(DIAGONAL + UNET + SHARED),
    "diagonal CIFAR-10, unet 64, bfloat16": Setting(DIAGONAL + UNET + HALF, run=False),
    "diagonal CIFAR-10, unet 64, remat": Setting(DIAGONAL + UNET + REMAT, run=False),
    "diagonal CIFAR-10, refinenet": Setting(DIAGONAL),
    "diagonal CIFAR-10, refinenet, shared": Setting(DIAGONAL + SHARED, run=False),
    "diagonal CIFAR-10, refinenet, bfloat16": Setting(DIAGONAL + HALF, run=False),
    "diagonal CIFAR-10, refinenet, remat": Setting(DIAGONAL + REMAT),
    "diagonal CIFAR-10, refinenet, d2sm_vr": Setting(DIAGONAL + PUBLISHED_LOSS, run=False),
}
QUICK = ("demo, unet 16", "demo, unet 16, shared")


def make_problem(arguments: list[str]):
    """The problem that arguments of main.py describe."""
    sys.path.insert(0, str(ROOT))  # the configs import one another
    from hos_jax.arguments import make_config, parse
    from hos_jax.problem import Problem

    return Problem.from_config(make_config(parse(["main.py", *arguments])))


def measure(setting: Setting, run: bool, repeats: int) -> dict[str, float]:
    """One row, in this process."""
    import jax
    from measure import device_name, matmul_rate

    from hos_jax import parallel
    from hos_jax.data import batch_at
    from hos_jax.malloc import keep_freed_memory
    from hos_jax.train import make_train_step

    problem = make_problem(setting.flags.split())
    training = problem.config.training
    steps = training.steps_per_dispatch
    state = parallel.replicate(problem.init())
    host_images = [
        batch_at(problem.data.train, step, seed=0, batch_size=training.batch_size)
        for step in range(steps)
    ]
    stacked = host_images[0] if steps == 1 else np.stack(host_images)
    images = parallel.shard(stacked, axis=0 if steps == 1 else 1)
    begun = time.perf_counter()
    compiled = parallel.compile_for(make_train_step(problem, steps), state, images)
    row = {
        "compile_seconds": time.perf_counter() - begun,
        "planned_bytes": int(compiled.memory_analysis().temp_size_in_bytes),
        "batch_size": training.batch_size,
        "device": device_name(),
        "jax": jax.__version__,
        "seconds": None,
    }
    if not run:
        return row
    if jax.default_backend() == "cpu":
        keep_freed_memory()  # as the command line does
    state, seconds = _time_steps(compiled, state, images, repeats)
    row["seconds"] = float(np.median(seconds)) / steps
    row["peak_bytes"] = _peak_bytes()
    row["parts"] = parts(problem, parallel.unreplicate(state))
    row["matmul_gflops"] = matmul_rate()
    return row


def _time_steps(compiled, state, images, repeats: int):
    import jax

    seconds = []
    while len(seconds) <= repeats or sum(seconds[1:]) < AT_LEAST:
        begun = time.perf_counter()
        state, metrics = compiled(state, images)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - begun)
        if seconds[0] > SLOW:
            return state, seconds
    return state, seconds[1:]


def _peak_bytes() -> int:
    """The largest memory in use so far: the accelerator's, or this process's on a CPU."""
    import jax

    if jax.default_backend() == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(jax.devices()[0].memory_stats()["peak_bytes_in_use"])


def parts(problem, state) -> dict[str, float]:
    """Seconds of a step's loss (with its gradient), optimizer, and data (with its noise)."""
    import jax
    import jax.numpy as jnp
    from measure import Compiled, seconds_side_by_side

    from hos_jax import parallel
    from hos_jax.data import batch_at, to_float
    from hos_jax.noise import example_keys
    from hos_jax.train_state import apply_gradients

    config, objective = problem.config, problem.objective
    count, key = config.training.batch_size, jax.random.key(0)
    shape = (count, *problem.data.image_shape)

    def draw(key):
        keys = example_keys(key, 0, count)
        return jax.vmap(lambda k: jax.random.normal(k, shape[1:]))(keys)

    clean = jax.random.uniform(key, shape)
    noise = draw(key)
    points = jnp.zeros((count * len(objective.points), *shape[1:]))
    abstract = jax.eval_shape(problem.model.apply, state.params, points, config.noise)
    outputs = jax.tree.map(lambda leaf: jax.random.normal(key, leaf.shape, leaf.dtype), abstract)
    outputs = outputs.replace(sigma=jnp.full_like(outputs.sigma, config.noise))

    def loss(outputs):
        values = objective.per_example(lambda *_: outputs, clean, noise, config.noise)
        return jnp.mean(values["loss"])

    def update(state):
        return apply_gradients(
            state, state.params, jnp.ones(()), problem.optimizer, config.optim.ema
        )

    draw_noise = Compiled(draw, key)

    def data():
        images = batch_at(problem.data.train, 1, seed=0, batch_size=count)
        jax.block_until_ready(to_float(parallel.shard(images), problem.data.value_range))
        draw_noise.run()

    runs = {
        "loss": Compiled(jax.value_and_grad(loss), outputs).run,
        "optimizer": Compiled(update, state).run,
        "data": data,
    }
    found = seconds_side_by_side(runs, repeats=3)
    return {name: float(np.median(seconds)) for name, seconds in found.items()}


def show(name: str, row: dict, reference: dict | None) -> None:
    """One line of the table."""
    planned = f"{row['planned_bytes'] / 2**30:>8.2f}"
    if row["seconds"] is None:
        print(f"{name:<42}{'':>15}{planned}  planned", flush=True)
        return
    rate = row["batch_size"] / row["seconds"]
    known = {part: seconds / row["seconds"] for part, seconds in row["parts"].items()}
    shares = [1.0 - sum(known.values()), *known.values()]
    ratio = ""
    if reference is not None and reference["seconds"]:
        ratio = f"{rate * reference['seconds'] / reference['batch_size']:.1f}"
    print(
        f"{name:<42}{row['seconds']:>8.3f}{rate:>7.1f}{planned}{row['peak_bytes'] / 2**30:>7.2f}"
        f"{row['matmul_gflops']:>9.0f}"
        + "".join(f"{100 * s:>6.1f}" for s in shares)
        + f"{ratio:>7}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="two small settings")
    parser.add_argument("--settings", nargs="*", choices=list(SETTINGS))
    parser.add_argument("--run-all", action="store_true", help="time what is only planned, too")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        setting = SETTINGS[options.one]
        run = setting.run or options.run_all
        print(json.dumps(measure(setting, run, options.repeats)))
        return
    from measure import Rows

    table = Rows(options.json, ("setting",), {"repeats": options.repeats})
    print(
        f"{'setting':<42}{'s/step':>8}{'img/s':>7}{'planned':>8}{'peak':>7}{'GFLOP/s':>9}"
        f"{'net %':>6}{'loss':>6}{'opt.':>6}{'data':>6}{'ratio':>7}   (memory in GiB)"
    )
    for name in options.settings or (QUICK if options.quick else SETTINGS):
        row = table.find(setting=name)
        if row is None or (row["seconds"] is None and options.run_all):
            command = [sys.executable, __file__, "--one", name, "--repeats", str(options.repeats)]
            command += ["--run-all"] if options.run_all or options.settings else []
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
                print(f"{name:<42}  failed: {reason}", flush=True)
                continue
            row = table.add({"setting": name, **json.loads(done.stdout.splitlines()[-1])})
        reference = table.find(setting=f"{name.partition(',')[0]}, refinenet")
        show(name, row, reference)


if __name__ == "__main__":
    main()
