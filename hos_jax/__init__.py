"""High-order scores of the data density, learned by denoising; see the README for a tour.

Everything is loaded when it is first used, so that `import hos_jax` takes no time:
`hos_jax.losses`, `hos_jax.load_run` and the others need no import of their own.
"""

import sys
from typing import Any

from hos_jax import _names

__version__ = "0.2.0"

_find, __dir__ = _names.lazily(
    __name__,
    adapters="",
    autodiff="",
    cli="",
    config="",
    data="",
    distributions="",
    errors="UserError",
    evaluation="",
    files="",
    fit="",
    linops="",
    losses="",
    migrate="load_pretrained",
    models="",
    noise="",
    pointwise="",
    samplers="",
    training="load_run train_and_evaluate",
    tweedie="",
    types="",
    uncertainty="",
    uses="",
)
_names.install_old_names()


def __getattr__(name: str) -> Any:
    if name in _names.MOVED:
        _names.warn(name, _names.MOVED[name])
        return sys.modules[f"{__name__}.{name}"]
    return _find(name)
