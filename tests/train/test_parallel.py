"""The same losses on 1, 2 and 4 devices, for the same global batch."""

import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from hos_jax.cli import main as cli
from hos_jax.data import batch_at
from hos_jax.errors import UserError
from hos_jax.training import parallel
from hos_jax.training.logs import read_history
from hos_jax.training.loop import Batch, make_train_step, train_and_evaluate
from hos_jax.training.problem import Problem

ROOT = Path(__file__).parents[2]

SCRIPT = """
import json, sys
import jax
from hos_jax.training import parallel
from hos_jax.config import default_config
from hos_jax.data import batch_at
from hos_jax.training.problem import Problem
from hos_jax.training.loop import Batch, make_evaluation, make_train_step, train_and_evaluate

config = default_config()
config.update_from_flattened_dict(json.loads(sys.argv[1]))
found = {"devices": jax.device_count()}
for second_order in ("residual_nll", "d2sm_residual"):
    config.loss.second_order = second_order
    problem = Problem.from_config(config)
    state = parallel.replicate(problem.init())
    step, losses = make_train_step(problem), []
    for i in range(3):
        images = batch_at(problem.data.train, i, seed=config.seed, batch_size=8)
        state, metrics = step(state, parallel.shard(Batch(images)))
        losses.append(float(parallel.unreplicate(metrics)["loss"]))
    found[second_order] = [*losses, make_evaluation(problem)(state.best_params)["loss"]]
for folder, resume, steps in json.loads(sys.argv[2]):
    config.training.steps = steps
    train_and_evaluate(config, folder, resume=resume)
print(json.dumps(found))
"""

OVERRIDES = {
    "data.name": "digits",
    "model.name": "mlp",
    "model.ngf": 16,
    "model.depth": 1,
    "model.rank": 3,
    "optim.lr": 1e-3,
    "training.batch_size": 8,
    "training.log_every": 1,
}


def environment(devices):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XLA_FLAGS": flags}


def run_on(devices, script, *arguments):
    """What a script prints last, as JSON, in a process of its own with that many devices."""
    out = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=environment(devices),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(out.stdout.splitlines()[-1])


def history(folder):
    rows = read_history(folder)
    return {(row["group"], row["step"]): row["loss"] for row in rows}


def test_losses_and_checkpoints_do_not_depend_on_the_number_of_devices(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    # One run in one piece on one device, and one that moves from 2 to 4 devices and to 1.
    pieces = {
        2: [(str(parts), False, 2)],
        4: [(str(parts), True, 4)],
        1: [(str(parts), True, 6), (str(whole), False, 6)],
    }
    results = {}
    for devices, runs in pieces.items():
        results[devices] = run_on(devices, SCRIPT, json.dumps(OVERRIDES), json.dumps(runs))
        assert results[devices].pop("devices") == devices
    for name, losses in results[1].items():
        for devices in (2, 4):
            np.testing.assert_allclose(results[devices][name], losses, rtol=1e-5)
    expected, found = history(whole), history(parts)
    assert expected.keys() <= found.keys() and ("train", 6) in expected
    for key, loss in expected.items():
        np.testing.assert_allclose(found[key], loss, rtol=1e-5)


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def start_process(index, coordinator, folder, *arguments, devices=2):
    flags = [f"--config.{key}={value}" for key, value in OVERRIDES.items()]
    several = [f"--coordinator={coordinator}", "--processes=2", f"--process_index={index}"]
    command = [sys.executable, str(ROOT / "main.py"), "--runner", "LowRankHybridRunner"]
    command += ["--config", "default", "--run", str(folder), "--doc", "run", *several, *flags]
    return subprocess.Popen(
        [*command, *arguments],
        env=environment(devices),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(processes):
    """Exit status and standard error of each process."""
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [(process.returncode, err) for process, err in zip(processes, errors, strict=True)]


@pytest.mark.slow
def test_two_processes_train_as_one_and_only_the_first_writes(tmp_path, small_config):
    config = small_config(**{key.replace(".", "__"): value for key, value in OVERRIDES.items()})
    config.training.steps = 4
    config.loss.first_order_weight = 10.0  # the runner's
    config.optim.ema = 0.0
    train_and_evaluate(config, tmp_path / "alone")
    for steps, more in ((2, ["--ni"]), (4, ["--resume_training"])):
        coordinator = f"127.0.0.1:{free_port()}"
        found = finish(
            [
                start_process(
                    index,
                    coordinator,
                    tmp_path / str(index),
                    f"--config.training.steps={steps}",
                    *more,
                )
                for index in (0, 1)
            ]
        )
        for status, error in found:
            assert status == 0, error
    assert not (tmp_path / "1").exists()
    expected, losses = history(tmp_path / "alone"), history(tmp_path / "0" / "run")
    assert ("train", 4) in expected and ("held_out", 4) in expected
    for key in [("train", step) for step in (1, 2, 3, 4)] + [("held_out", 4)]:
        np.testing.assert_allclose(losses[key], expected[key], rtol=1e-5)


@pytest.mark.slow
def test_processes_that_differ_or_fail_stop_together(tmp_path):
    def both(*of_the_second):
        coordinator = f"127.0.0.1:{free_port()}"
        common = tmp_path, "--config.training.steps=1"
        return finish(
            [
                start_process(0, coordinator, *common),
                start_process(1, coordinator, *common, *of_the_second),
            ]
        )

    for status, error in both("--config.optim.lr=1e-4"):
        assert status == 2 and "processes 0 and 1 differ in the config" in error
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "something").write_text("")
    (first, first_error), (second, second_error) = both()
    assert first == second == 2
    assert "is left as it is" in first_error and "the first process stopped" in second_error


@pytest.mark.slow
def test_no_process_waits_for_one_that_fails_or_was_told_to_stop(tmp_path):
    def both(*arguments, of_the_second=None, devices=(2, 2), then=None, folder=tmp_path / "a"):
        more = arguments, arguments if of_the_second is None else of_the_second
        coordinator = f"127.0.0.1:{free_port()}"
        processes = [
            start_process(index, coordinator, folder, *more[index], devices=devices[index])
            for index in (0, 1)
        ]
        if then is not None:
            history = folder / "run" / "history.jsonl"
            while not history.exists() or not history.read_text():
                assert processes[0].poll() is None
                time.sleep(0.1)
            then(processes[1])
        return finish(processes)

    for status, error in both(devices=(2, 1)):
        assert status == 2 and "the same number of devices, they have 2, 1" in error
    long = "--config.training.steps=1000000", "--config.training.checkpoint_every=30"

    (status, error), (second, second_error) = both(
        *long, then=lambda process: process.send_signal(signal.SIGINT)
    )
    assert status == 143 and "as another process was told to: --resume_training" in error
    assert second == 130 and "SIGINT at step" in second_error
    for status, error in both(*long, of_the_second=(*long, "--resume_training")):
        assert status == 2 and "processes 0 and 1 differ in --resume_training" in error

    folder = tmp_path / "b" / "run" / "checkpoints"

    def take_away(_):
        folder.rename(folder.with_name("elsewhere"))
        folder.touch()

    (status, error), (second, second_error) = both(*long, then=take_away, folder=tmp_path / "b")
    assert status == second == 2 and "cannot write to" in error
    assert "the first process stopped" in second_error


def test_devices_are_as_many_in_every_process(monkeypatch):
    devices = [types.SimpleNamespace(process_index=index) for index in (0, 0, 1)]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    with pytest.raises(UserError, match="the same number of devices, they have 2, 1"):
        parallel.find_devices()


def test_second_order_joins_the_processes_of_the_environment(monkeypatch, capsys):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    arguments = ["--denoiser", "mine.py:half", "--sigma", "0.1", "--doc", "mine"]
    assert cli.main(["hos-jax", "second_order", *arguments]) == 2
    assert "several processes need --coordinator" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("localhost:1234", None, None), "JAX_NUM_PROCESSES, JAX_PROCESS_ID is missing"),
        (("localhost", 2, 0), "must be given as address:port"),
        (("localhost:1234", 2, 2), r"must be in 0\.\.1"),
        (("localhost:1234", 0, 0), "at least 1"),
    ],
)
def test_a_wrong_description_of_the_processes_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        parallel.connect(*arguments)


def test_the_environment_describes_the_processes_too(monkeypatch):
    parallel.connect()  # one process: nothing happens
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1234")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    with pytest.raises(UserError, match="must be whole"):
        parallel.connect()


def test_steps_in_one_call_are_the_same_steps(small_config, tmp_path):
    every = {f"training__{name}_every": 3 for name in ("log", "evaluate", "checkpoint")}
    config = small_config(training__steps=4, training__steps_per_dispatch=3, **every)
    train_and_evaluate(config, tmp_path)
    problem = Problem.from_config(config)
    state, step, losses = parallel.replicate(problem.init()), make_train_step(problem), []
    for index in range(4):
        images = batch_at(problem.data.train, index, seed=config.seed, batch_size=8)
        state, metrics = step(state, parallel.shard(Batch(images)))
        losses.append(float(parallel.unreplicate(metrics)["loss"]))
    found = history(tmp_path)
    np.testing.assert_allclose(found["train", 3], np.mean(losses[:3]), rtol=1e-4)
    np.testing.assert_allclose(found["train", 4], losses[3], rtol=1e-4)


def test_steps_per_dispatch_must_divide_what_happens_in_between(small_config, tmp_path):
    config = small_config(training__steps_per_dispatch=2)
    with pytest.raises(UserError, match="evaluate_every=3 must be a multiple of"):
        train_and_evaluate(config, tmp_path)


CHAINS = """
import json
import jax, jax.numpy as jnp, numpy as np
from hos_jax.linops import Diagonal
from hos_jax.samplers import anneal_chains, diffusion, langevin, reverse_chains, run_chains

sampler = langevin.as_top_level_api(jnp.negative, 0.1)
states = jax.vmap(sampler.init)(jnp.zeros((8, 3)))
chains = run_chains(
    jax.random.key(0), sampler.step, states, 20, thinning=5, collect=lambda s: s.position
)
annealed = anneal_chains(
    jax.random.key(1),
    lambda sigma: langevin.as_top_level_api(lambda x: -x / (1 + sigma**2), sigma**2 / 5),
    jnp.ones((8, 3)),
    jnp.array([3.0, 1.0]),
    4,
)
reverse = reverse_chains(
    jax.random.key(2),
    diffusion.ancestral(),
    lambda x, sigma: (-x / (1 + sigma**2), Diagonal(jnp.full(3, -1 / (1 + sigma**2)))),
    jnp.ones((8, 3)),
    jnp.array([3.0, 1.0, 0.1]),
)
try:
    run_chains(jax.random.key(0), sampler.step, states, 1, devices=jax.devices() * 3)
    refused = ""
except ValueError as error:
    refused = str(error)
print(json.dumps({
    "devices": len(chains.states.position.sharding.device_set),
    "annealed_devices": len(annealed.states.position.sharding.device_set),
    "reverse_devices": len(reverse.states.position.sharding.device_set),
    "annealed": np.asarray(annealed.states.position).tolist(),
    "reverse": np.asarray(reverse.states.position).tolist(),
    "trajectory": np.asarray(chains.trajectory).tolist(),
    "refused": refused,
}))
"""


def test_chains_are_split_over_devices_and_draw_the_same():
    results = []
    for devices in (1, 4):
        results.append(run_on(devices, CHAINS))
        for name in ("devices", "annealed_devices", "reverse_devices"):
            assert results[-1][name] == devices
        assert "evenly" in results[-1]["refused"]
    for name in ("trajectory", "annealed", "reverse"):
        np.testing.assert_allclose(results[1][name], results[0][name], rtol=1e-5)


# A call that frees 64 MB at its end; prints the new pages that one call takes, from the third on. A
# call may begin before the last has freed its memory, so that it takes several to have enough.
_PAGES = """
import resource, sys
import jax, jax.numpy as jnp
from hos_jax.cli.malloc import keep_freed_memory
from hos_jax.training import parallel

def large(x):
    for i in range(1, 4):
        x = jax.lax.optimization_barrier(jnp.sin(x * i))
    return x.sum()

x = parallel.replicate(jnp.ones((4000, 4000)))
mapped = parallel.map_over_devices(large)
compiled = parallel.compile_for(mapped, x)
if sys.argv[1] == "command line":
    keep_freed_memory()
for call in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    jax.block_until_ready(compiled(x))
    if call > 1:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc's allocator")
def test_memory_that_a_step_frees_is_kept_for_the_next():
    def pages(which):
        command = [sys.executable, "-c", _PAGES, which]
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return min(int(line) for line in done.stdout.split())

    assert pages("command line") < 200 < pages("library") / 50


# Trains, and prints how many MB a large array that is freed then leaves behind.
_TRAIN = """
import gc, os, sys, resource
from pathlib import Path
import numpy as np
from hos_jax import config as run_config, train_and_evaluate
from hos_jax.config.runners import apply_runner

def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20

config = run_config.default_config()
apply_runner(config, "LowRankHybridRunner")
config.data.name, config.model.name, config.model.ngf, config.model.rank = "digits", "mlp", 8, 1
config.training.batch_size = 4
for name in ("steps", "log_every", "evaluate_every", "checkpoint_every"):
    config.training[name] = 2
train_and_evaluate(config, Path(sys.argv[1]) / "run")
before = resident()
array = np.ones(800 * 2**17)
del array
gc.collect()
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc's allocator")
def test_training_leaves_the_process_as_it_was(tmp_path):
    command = [sys.executable, "-c", _TRAIN, str(tmp_path)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 200


@pytest.mark.parametrize(
    "options",
    [{"xla_cpu_of_another_version": ""}, {name: "OTHER_VALUE" for name in parallel.WITHOUT_YNN}],
)
def test_a_compiler_that_lacks_an_option_compiles_without_it(monkeypatch, options):
    monkeypatch.setattr(parallel, "CPU_OPTIONS", options)
    x = parallel.replicate(np.ones(3, np.float32))
    compiled = parallel.compile_for(parallel.map_over_devices(lambda x: 2 * x), x)
    np.testing.assert_array_equal(parallel.unreplicate(compiled(x)), 2 * np.ones(3))


def test_what_is_not_to_be_compiled_runs_operation_by_operation():
    with jax.disable_jit():
        x = parallel.replicate(np.ones(3, np.float32))
        run = parallel.compile_for(parallel.map_over_devices(lambda x: 2 * x), x)
        np.testing.assert_array_equal(parallel.unreplicate(run(x)), 2 * np.ones(3))


def test_this_compiler_knows_the_options():
    function = jax.jit(lambda x: 2 * x).lower(1.0)
    assert function.compile(compiler_options=parallel.WITHOUT_YNN)(3.0) == 6.0


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the option is one for CPUs")
def test_ynn_is_left_out_where_the_options_say_so(monkeypatch):
    def function(images, kernel):
        dimensions = ("NHWC", "HWIO", "NHWC")
        found = jax.lax.conv_general_dilated(
            images, kernel, (1, 1), "SAME", dimension_numbers=dimensions
        )
        return found, images.reshape(-1, 32) @ kernel[0, 0]

    arrays = np.zeros((8, 16, 16, 32), np.float32), np.zeros((3, 3, 32, 32), np.float32)
    mapped = parallel.map_over_devices(function)
    for options in ({}, parallel.WITHOUT_YNN):
        monkeypatch.setattr(parallel, "CPU_OPTIONS", options)
        text = parallel.compile_for(mapped, *parallel.replicate(arrays)).as_text()
        assert ("__ynn_fusion" in text) == (not options) and " convolution(" in text
