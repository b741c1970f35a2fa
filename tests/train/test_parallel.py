"""The same losses on 1, 2 and 4 devices, for the same global batch."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

SCRIPT = """
import json, sys
import jax
from hos_jax import parallel
from hos_jax.config import default_config
from hos_jax.data import batch_at
from hos_jax.train import Problem, make_evaluation, make_train_step

config = default_config()
config.update_from_flattened_dict(json.loads(sys.argv[1]))
problem = Problem.from_config(config)
state = parallel.replicate(problem.init())
step, losses = make_train_step(problem), []
for i in range(3):
    images = batch_at(problem.data.train, i, seed=config.seed, batch_size=8)
    state, metrics = step(state, parallel.shard(images))
    losses.append(float(parallel.unreplicate(metrics)["loss"]))
held_out = make_evaluation(problem)(state.best_params)["loss"]
print(json.dumps({"devices": jax.device_count(), "losses": losses, "held_out": held_out}))
"""


def run_on(devices, script, *arguments):
    """What a script prints last, as JSON, in a process of its own with that many devices."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    out = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(out.stdout.splitlines()[-1])


@pytest.mark.parametrize("second_order", ["residual_nll", "d2sm_residual"])
def test_losses_do_not_depend_on_the_number_of_devices(second_order):
    overrides = {
        "data.name": "digits",
        "model.name": "mlp",
        "model.ngf": 16,
        "model.depth": 1,
        "model.rank": 3,
        "optim.lr": 1e-3,
        "training.batch_size": 8,
        "loss.second_order": second_order,
    }
    results = []
    for devices in (1, 2, 4):
        results.append(run_on(devices, SCRIPT, json.dumps(overrides)))
        assert results[-1]["devices"] == devices
    for other in results[1:]:
        np.testing.assert_allclose(other["losses"], results[0]["losses"], rtol=1e-5)
        np.testing.assert_allclose(other["held_out"], results[0]["held_out"], rtol=1e-5)


CHAINS = """
import json
import jax, jax.numpy as jnp, numpy as np
from hos_jax.samplers import anneal_chains, langevin, run_chains

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
try:
    run_chains(jax.random.key(0), sampler.step, states, 1, devices=jax.devices() * 3)
    refused = ""
except ValueError as error:
    refused = str(error)
print(json.dumps({
    "devices": len(chains.states.position.sharding.device_set),
    "annealed_devices": len(annealed.positions.sharding.device_set),
    "annealed": np.asarray(annealed.positions).tolist(),
    "trajectory": np.asarray(chains.trajectory).tolist(),
    "refused": refused,
}))
"""


def test_chains_are_split_over_devices_and_draw_the_same():
    results = []
    for devices in (1, 4):
        results.append(run_on(devices, CHAINS))
        assert results[-1]["devices"] == results[-1]["annealed_devices"] == devices
        assert "evenly" in results[-1]["refused"]
    for name in ("trajectory", "annealed"):
        np.testing.assert_allclose(results[1][name], results[0][name], rtol=1e-5)
