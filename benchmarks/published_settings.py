"""Time and memory of one training step at the published settings, on this machine.

    python benchmarks/published_settings.py [--json PATH] [--settings NAME ...] [--repeats 3]

Each row runs in a process of its own: the time is the fastest of the repeats after a warm-up, with
the device's work waited for; "GFLOP/s" is the rate of a plain matrix product in the same process,
as machines differ; "peak" is the largest resident memory of the whole process, and
"temporary" what XLA plans beside the step's arguments. Images are the packaged ones of the same
size (mnist5k for MNIST, photos for CIFAR-10), so nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
PUBLISHED_LOSS = (
    "--config.loss.second_order=d2sm_vr "
    "--config.loss.stop_gradient_score1=False --config.model.positive_definite=False"
)
FIRST = "--runner UnetDSMRunner --config dsm_mnist --config.data.name=mnist5k"
LOW_RANK = "--runner LowRankHybridRunner --config unet_mnist --config.data.name=mnist5k"
DIAGONAL = "--runner DoubleDiagonalHybridRunner --config unet_cifar10 --config.data.name=photos"
UNET = (
    "--config.model.name=unet --config.model.networks=per_order --config.model.data_std=0.5 "
    "--config.model.ngf"
)
SETTINGS = {
    "first order MNIST, refinenet": FIRST,
    "low rank MNIST, refinenet, residual_nll": LOW_RANK,
    "low rank MNIST, refinenet, d2sm_vr": f"{LOW_RANK} {PUBLISHED_LOSS}",
    "low rank MNIST, unet 64, residual_nll": f"{LOW_RANK} {UNET}=64",
    "low rank MNIST, unet 16, residual_nll": f"{LOW_RANK} {UNET}=16",
    "diagonal CIFAR-10, refinenet, residual_nll": DIAGONAL,
    "diagonal CIFAR-10, refinenet, d2sm_vr": f"{DIAGONAL} {PUBLISHED_LOSS}",
    "diagonal CIFAR-10, unet 64, residual_nll": f"{DIAGONAL} {UNET}=64",
}


def matmul_rate() -> float:
    """GFLOP/s of a 2048 x 2048 float32 product on this machine now."""
    import jax
    import jax.numpy as jnp

    square = jnp.ones((2048, 2048))
    product = jax.jit(lambda a: a @ a)
    product(square).block_until_ready()
    begun = time.perf_counter()
    for _ in range(10):
        result = product(square)
    result.block_until_ready()
    return 10 * 2 * 2048**3 / (time.perf_counter() - begun) / 1e9


def measure(arguments: list[str], repeats: int) -> dict[str, float]:
    """One row, in this process."""
    import jax

    sys.path.insert(0, str(ROOT))  # the configs import one another
    from hos_jax import parallel
    from hos_jax.cli import make_config, parse
    from hos_jax.data import batch_at
    from hos_jax.train import Problem, make_train_step

    config = make_config(parse(["main.py", *arguments]))
    problem = Problem.from_config(config)
    state = parallel.replicate(problem.init())
    batch_size = config.training.batch_size
    images = parallel.shard(
        batch_at(problem.data.train, 0, seed=config.seed, batch_size=batch_size)
    )
    step = make_train_step(problem)
    compiled = step.lower(state, images).compile()
    memory = compiled.memory_analysis()
    seconds = []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        state, metrics = compiled(state, images)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - begun)
    return {
        "seconds": min(seconds[1:]),
        "images_per_second": batch_size / min(seconds[1:]),
        "temporary_gib": memory.temp_size_in_bytes / 2**30,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "matmul_gflops": matmul_rate(),
        "jax": jax.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(SETTINGS[options.one].split(), options.repeats)))
        return
    rows = []
    print(
        f"{'setting':<44}{'s/step':>8}{'img/s':>8}{'temp GiB':>10}{'peak GiB':>10}"
        f"{'GFLOP/s':>9}  jax"
    )
    for name in options.settings:
        command = [sys.executable, __file__, "--one", name, "--repeats", str(options.repeats)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
            print(f"{name:<44}  failed: {reason}", flush=True)
            rows.append({"setting": name, "failed": reason})
            continue
        row = {"setting": name, **json.loads(done.stdout.splitlines()[-1])}
        rows.append(row)
        print(
            f"{name:<44}{row['seconds']:>8.2f}{row['images_per_second']:>8.1f}"
            f"{row['temporary_gib']:>10.2f}{row['peak_gib']:>10.2f}"
            f"{row['matmul_gflops']:>9.0f}  {row['jax']}",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
