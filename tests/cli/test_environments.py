"""A run can be made and tested in any environment: locale, streams, folders, precision, devices."""

import json
import os
import subprocess
import sys

import pytest
from command_line import ROOT
from small_runs import runner_in

NEW = "--runner", "LowRankHybridRunner", "--config", "demo", "--doc", "größe", "--ni"
ODD = {
    "LC_ALL": "C",
    "PYTHONCOERCECLOCALE": "0",
    "PYTHONIOENCODING": "ascii",
    "MPLBACKEND": "no such backend",
    "HOME": "/proc/none",
    "MPLCONFIGDIR": "/proc/none",
}


def test_a_run_moves_between_environments(tmp_path, environment):
    odd = runner_in(tmp_path, environment | ODD | {"JAX_ENABLE_X64": "1"})
    done = odd(*NEW, "--comment", "naïve")
    assert done.returncode == 0 and "gr\\xf6\\xdfe: 6 steps done" in done.stdout, done.stderr
    folder = tmp_path / "größe"
    assert json.loads((folder / "config.json").read_text())["comment"] == "naïve"

    # The batch of 8 does not divide over 3 devices; what differs from the run is said.
    devices = {"XLA_FLAGS": environment["XLA_FLAGS"] + " --xla_force_host_platform_device_count=3"}
    test = runner_in(tmp_path, environment | devices)
    done = test("--doc", "größe", "--test", "--config.sampling.steps=3", small=False)
    assert done.returncode == 0 and "denoise_mse" in done.stdout, done.stderr
    assert "sampling.steps: 5 -> 3" in done.stderr and done.stderr.count(" -> ") == 1

    # Nobody reads what it says, and the streams are closed.
    steps = "--config.training.steps=8 --config.optim.lr=0.1"
    command = f"{sys.executable} main.py --run {tmp_path} --doc größe --resume_training {steps}"
    subprocess.run(f"{command} <&- >&- 2>&-", shell=True, check=True, cwd=ROOT, env=environment)
    assert json.loads((folder / "history.jsonl").read_text().splitlines()[-1])["step"] == 8


@pytest.mark.parametrize("kind", ["cuda", "abacus"])
def test_devices_that_are_not_there_are_named(tmp_path, environment, kind):
    command = runner_in(
        tmp_path, {**environment, "JAX_PLATFORMS": kind, "CUDA_VISIBLE_DEVICES": ""}
    )
    done = command("--runner", "UnetDSMRunner", "--config", "demo", "--ni")
    assert done.returncode == 2 and done.stderr.startswith("error: JAX finds no device: ")
    assert kind in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_help_into_a_pipe_that_nobody_reads():
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, str(ROOT / "main.py"), "--help"]
    done = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, timeout=60)
    os.close(write)
    assert done.returncode == 141 and not done.stderr


def test_figures_leave_the_process_as_it_is():
    script = (
        "import sys, numpy as np; from hos_jax.evaluation import figures\n"
        "drawn = figures.sample_grid(np.zeros((3, 4, 4, 1)), (-1.0, 1.0))\n"
        "assert figures.as_array(drawn).any() and 'matplotlib.pyplot' not in sys.modules"
    )
    backend = {"MPLBACKEND": "module://no_such_backend"}
    command = [sys.executable, "-c", script]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, **backend})
