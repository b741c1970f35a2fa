"""Speed and memory of a training step: the published settings and the demo's, on this machine.

    python benchmarks/train_step.py [--json PATH] [--quick | --accelerator] [--settings NAME ...]
        [--run-all] [--profile FOLDER]

A name is "setting, network, options": `refinenet` is the published network (64 channels on MNIST,
128 on CIFAR-10), with one network for each of s1, the diagonal and the factor; `unet 64` has
one for s1 and one for s2; `shared` one trunk for everything. `bfloat16` computes the network in
it, with parameters, losses and their linear algebra in float32; `remat` recomputes activations in
the backward pass; `10 steps` takes ten steps per call of the compiled step. The loss is
`residual_nll` unless named. Images are the packaged ones of the same size (mnist5k, photos), so
nothing is downloaded.

Each row runs in a process of its own. "s/step" is the median of the steps of five seconds, and of
--repeats at least, after a warm-up (a step of more than 60 s is timed once, without), "peak" the
largest resident memory of the process (on an accelerator: of the device), "planned" what XLA plans
beside the step's arguments, "TFLOP/s" the operations of a step, counted in the program before it is
optimized, over its time, and "%" that over the rate of a plain matrix product in the same process,
of the dtype of the network.
Loss, optimizer and data are timed alone, as parts of the step: the rest is the network. The last
column is images per second over those of the setting's refinenet row, in one file of rows. Rows
marked "planned" are compiled but not run, unless --run-all or --settings is given. --accelerator
takes the settings of an accelerator, widest first. --profile writes a trace of three steps of each
setting there and prints which operations their time goes to.

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
# Published in form, s1 a constant in the second order, as is the default here.
DETACHED = " --config.loss.first_order=dsm_vr --config.model.positive_definite=False"
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
    "low rank MNIST, refinenet, d2sm, constant s1": Setting(
        LOW_RANK + DETACHED + " --config.loss.second_order=d2sm", run=False
    ),
    "low rank MNIST, refinenet, d2sm_vr, constant s1": Setting(
        LOW_RANK + DETACHED + " --config.loss.second_order=d2sm_vr", run=False
    ),
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
WIDE = (
    "--runner LowRankHybridRunner --config unet_cifar10 --config.data.name=photos"
    " --config.model.rank=16" + UNET.replace("ngf=64", "ngf=128") + SHARED
)
for _batch in (512, 128, 40):
    for _dtype, _flag in ((", bfloat16", HALF), ("", "")):
        SETTINGS[f"low rank photos, unet 128, shared{_dtype}, batch {_batch}"] = Setting(
            f"{WIDE}{_flag} --config.training.batch_size={_batch}", run=False
        )
for _batch in (512, 40):
    SETTINGS[f"low rank MNIST, unet 64, shared, bfloat16, batch {_batch}"] = Setting(
        f"{LOW_RANK}{UNET}{SHARED}{HALF} --config.training.batch_size={_batch}", run=False
    )
ACCELERATOR = (
    "low rank photos, unet 128, shared, bfloat16, batch 512",
    "low rank photos, unet 128, shared, batch 512",
    "low rank MNIST, refinenet",
    "first order MNIST, refinenet",
    "low rank MNIST, refinenet, d2sm_vr",
    "diagonal CIFAR-10, refinenet",
    "low rank MNIST, unet 64, shared, bfloat16, batch 512",
    "low rank photos, unet 128, shared, bfloat16, batch 128",
    "low rank photos, unet 128, shared, bfloat16, batch 40",
    "low rank MNIST, unet 64, shared",
    "low rank MNIST, unet 64, shared, bfloat16, batch 40",
    "low rank MNIST, refinenet, bfloat16",
    "low rank MNIST, unet 64",
    "demo, unet 16, shared",
    "demo, unet 16, 10 steps",
    "demo, unet 16",
)
QUICK = ("demo, unet 16", "demo, unet 16, shared")


def make_problem(arguments: list[str]):
    """The problem that arguments of main.py describe."""
    from hos_jax.cli.arguments import make_config, parse
    from hos_jax.training.problem import Problem

    return Problem.from_config(make_config(parse(["main.py", *arguments])))


def measure(setting: Setting, run: bool, repeats: int, profile: Path | None) -> dict:
    """One row, in this process."""
    import jax
    from measure import (
        device_name,
        matmul_rate,
        operation_shares,
        random_tree,
        seconds_side_by_side,
    )

    from hos_jax.cli.malloc import keep_freed_memory
    from hos_jax.data import batch_at
    from hos_jax.training import parallel
    from hos_jax.training.loop import Batch, make_train_step

    problem = make_problem(setting.flags.split())
    training = problem.config.training
    steps = training.steps_per_dispatch
    state = parallel.replicate(random_tree(problem.abstract_state()))
    host_images = [
        batch_at(problem.data.train, step, seed=0, batch_size=training.batch_size)
        for step in range(steps)
    ]
    stacked = host_images[0] if steps == 1 else np.stack(host_images)
    batch = parallel.shard(Batch(stacked), axis=0 if steps == 1 else 1)
    train_step = make_train_step(problem, steps)
    begun = time.perf_counter()
    compiled = parallel.compile_for(train_step, state, batch)
    row = {
        "compile_seconds": time.perf_counter() - begun,
        "planned_bytes": int(compiled.memory_analysis().temp_size_in_bytes),
        "batch_size": training.batch_size,
        "tflop": count_operations(problem) / 1e12,
        "device": device_name(),
        "jax": jax.__version__,
        "seconds": None,
    }
    if not run:
        return row
    if jax.default_backend() == "cpu":
        keep_freed_memory()  # as the command line does
    runs = parts(problem, parallel.unreplicate(state))
    state, seconds = _time_steps(compiled, state, batch, repeats)
    row["seconds"] = float(np.median(seconds)) / steps
    row["peak_bytes"] = _peak_bytes()
    if profile is not None:
        with jax.profiler.trace(str(profile), create_perfetto_trace=True):
            for _ in range(3):
                state, metrics = compiled(state, batch)
            jax.block_until_ready((state, metrics))
        row["operations"] = operation_shares(profile)
    found = seconds_side_by_side(runs, repeats=3)
    row["parts"] = {name: float(np.median(seconds)) for name, seconds in found.items()}
    row["matmul_gflops"] = matmul_rate(problem.config.model.dtype)
    return row


def count_operations(problem) -> float:
    """Floating-point operations of a step's loss and gradient, before the compiler optimizes them.

    Counted for a CPU, wherever this runs: not every back end counts.
    """
    import jax
    import jax.numpy as jnp

    config = problem.config
    shape = (config.training.batch_size, *problem.data.image_shape)
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    sigma = jax.ShapeDtypeStruct(shape[:1], jnp.float32)

    def loss(params, clean, noise, sigma):
        return jnp.mean(problem.losses(params, clean, noise, sigma)["loss"])

    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        params = problem.abstract_state().params
        lowered = jax.jit(jax.grad(loss)).lower(params, images, images, sigma)
        return lowered.cost_analysis()["flops"]


def _time_steps(compiled, state, batch, repeats: int):
    import jax

    seconds = []
    while len(seconds) <= repeats or sum(seconds[1:]) < AT_LEAST:
        begun = time.perf_counter()
        state, metrics = compiled(state, batch)
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


def parts(problem, state) -> dict:
    """A step's loss (with its gradient), optimizer, and data (with its noise), compiled."""
    import jax
    import jax.numpy as jnp
    from measure import Compiled

    from hos_jax.data import batch_at, to_float
    from hos_jax.noise import example_keys
    from hos_jax.training import parallel
    from hos_jax.training.state import apply_gradients

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

    return {
        "loss": Compiled(jax.value_and_grad(loss), outputs).run,
        "optimizer": Compiled(update, state).run,
        "data": data,
    }


def rate_of(row: dict) -> str:
    """TFLOP/s of a step, and their share of a matrix product's rate."""
    if "tflop" not in row:  # of an earlier version of this script
        return f"{'':>15}"
    rate = row["tflop"] / row["seconds"]
    return f"{rate:>9.3f}{100e3 * rate / row['matmul_gflops']:>6.1f}"


def show(name: str, row: dict, reference: dict | None) -> None:
    """One line of the table."""
    planned = f"{row['planned_bytes'] / 2**30:>8.2f}"
    if row["seconds"] is None:
        print(f"{name:<54}{'':>16}{planned}  planned", flush=True)
        return
    rate = row["batch_size"] / row["seconds"]
    known = {part: seconds / row["seconds"] for part, seconds in row["parts"].items()}
    shares = [1.0 - sum(known.values()), *known.values()]
    ratio = ""
    if reference is not None and reference["seconds"]:
        ratio = f"{rate * reference['seconds'] / reference['batch_size']:.1f}"
    print(
        f"{name:<54}{row['seconds']:>8.4f}{rate:>8.1f}{planned}{row['peak_bytes'] / 2**30:>7.2f}"
        f"{rate_of(row)}" + "".join(f"{100 * s:>6.1f}" for s in shares) + f"{ratio:>7}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="two small settings")
    parser.add_argument("--accelerator", action="store_true", help="those for an accelerator")
    parser.add_argument("--profile", type=Path, help="folder for traces")
    parser.add_argument("--settings", nargs="*", choices=list(SETTINGS))
    parser.add_argument("--run-all", action="store_true", help="time what is only planned, too")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        setting = SETTINGS[options.one]
        run = setting.run or options.run_all
        print(json.dumps(measure(setting, run, options.repeats, options.profile)))
        return
    from measure import Rows

    table = Rows(options.json, ("setting",), {"repeats": options.repeats})
    print(
        f"{'setting':<54}{'s/step':>8}{'img/s':>8}{'planned':>8}{'peak':>7}{'TFLOP/s':>9}{'%':>6}"
        f"{'net %':>6}{'loss':>6}{'opt.':>6}{'data':>6}{'ratio':>7}   (memory in GiB)"
    )
    chosen = ACCELERATOR if options.accelerator else QUICK if options.quick else tuple(SETTINGS)
    run_all = bool(options.run_all or options.settings or options.accelerator)
    for name in options.settings or chosen:
        row = table.find(setting=name)
        if row is None or (row["seconds"] is None and options.run_all):
            command = [sys.executable, __file__, "--one", name, "--repeats", str(options.repeats)]
            command += ["--run-all"] if run_all else []
            if options.profile:
                folder = options.profile / name.replace(", ", "-")
                command += ["--profile", str(folder.absolute())]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
                print(f"{name:<54}  failed: {reason}", flush=True)
                continue
            row = table.add({"setting": name, **json.loads(done.stdout.splitlines()[-1])})
        show(name, row, table.find(setting=f"{name.partition(',')[0]}, refinenet"))
        for operation, share in row.get("operations", {}).items():
            print(f"    {100 * share:>5.1f}%  {operation}", flush=True)


if __name__ == "__main__":
    main()
