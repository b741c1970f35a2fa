"""The types that every numerical module accepts, and the check of vectors."""

from collections.abc import Callable

import jax

Array = jax.Array
PRNGKey = jax.Array


# First-order score s1(y) = grad log q(y) at one point: (D,) -> (D,).
ScoreFn = Callable[[Array], Array]


def check_vectors(**vectors: Array | tuple[int, ...]) -> None:
    """Raise ValueError unless all arguments, arrays or shapes, are of one and the same shape (D,).

    Under `vmap` the shapes seen here are those of one example.
    """
    shapes = {name: tuple(getattr(vector, "shape", vector)) for name, vector in vectors.items()}
    if len(set(shapes.values())) != 1 or any(len(shape) != 1 for shape in shapes.values()):
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"expected vectors of one shape (D,), got {listed}; use vmap for batches")
