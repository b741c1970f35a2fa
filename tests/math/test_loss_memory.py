"""No loss builds a D x D array: shown by the memory that XLA plans for a 256 x 256 RGB image."""

import jax
import jax.numpy as jnp
import pytest

from hos_jax import losses
from hos_jax.linops import Diagonal, DiagonalPlusLowRank

DIM, RANK = 256 * 256 * 3, 16


def objective(name, outputs, noise, sigma):
    (s1, s2), (s1_minus, s2_minus), (s1_clean, s2_clean) = outputs
    if name == "d2sm":
        return losses.d2sm(s1, s2, noise, sigma)
    if name == "d2sm_vr":
        return losses.d2sm_vr(s1, s2, s1_minus, s2_minus, s1_clean, s2_clean, noise, sigma)
    if name == "residual_nll":
        return losses.residual_nll(losses.residual(s1, noise, sigma), s2)
    terms = losses.d2sm_residual_terms(
        losses.residual(s1, noise, sigma),
        s2,
        losses.residual(s1_minus, -noise, sigma),
        s2_minus,
        noise,
        s2_clean,
    )
    return losses.d2sm_residual(terms, 0.5)


@pytest.mark.parametrize("name", ["d2sm", "d2sm_vr", "d2sm_residual", "residual_nll"])
@pytest.mark.parametrize("structure", ["diagonal", "low_rank"])
def test_memory_of_value_and_gradient_is_linear_in_the_dimension(name, structure):
    def array(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    rank = RANK if structure == "low_rank" else 0
    s2 = DiagonalPlusLowRank(array(DIM), array(DIM, RANK)) if rank else Diagonal(array(DIM))
    outputs = ((array(DIM), s2),) * 3
    compiled = (
        jax.jit(jax.value_and_grad(objective, argnums=1), static_argnums=0)
        .lower(name, outputs, array(DIM), array())
        .compile()
    )
    memory = compiled.memory_analysis()
    one_set_of_outputs = 4 * DIM * (rank + 2)
    # Three evaluation points, and a few arrays of the size of their outputs at each.
    assert memory.temp_size_in_bytes < 12 * one_set_of_outputs
    assert memory.temp_size_in_bytes < 4 * DIM * DIM / 500
