"""What all tests share: compiled programs, and the check that no key is used twice."""

import pytest
import quick_compilation

# Before JAX is imported and before workers start.
quick_compilation.share_programs()


def pytest_unconfigure():
    quick_compilation.remove_programs()


@pytest.fixture
def keys_used_once():
    """A key that is used twice is an error; looking for it takes time in every call of JAX."""
    import jax

    with jax.debug_key_reuse(True):
        yield
