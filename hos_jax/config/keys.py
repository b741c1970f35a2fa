"""Which keys a config has, and which type each value must have."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator
from operator import getitem

from ml_collections import ConfigDict

from hos_jax.errors import UserError


def all_keys(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    """The paths of all keys, groups among them: `model`, `model.ngf`, ..."""
    for key in config:
        yield prefix + key
        if config.get_type(key) is ConfigDict:
            yield from all_keys(config[key], f"{prefix}{key}.")


def nearest(key: str, known: list[str]) -> str | None:
    """The path of the key that was probably meant, where its group too may be mistaken."""
    near = difflib.get_close_matches(key, known, n=1)
    if not near:
        last = {path.rpartition(".")[2]: path for path in known}
        near = [last[name] for name in difflib.get_close_matches(key.rpartition(".")[2], last, n=1)]
    return near[0] if near else None


def check_key(key: str, known: list[str], prefix: str = "") -> None:
    """Raise UserError for a key that is not known: which was probably meant, after `prefix`."""
    if key == "sampling.step_size":
        raise UserError(f"{key} is now {prefix}sampling.step_fraction, in units of sigma^2")
    if key not in known:
        near = nearest(key, known)
        hint = f": did you mean {prefix}{near}?" if near else ""
        raise UserError(f"unknown config key {key!r}{hint}")


def check_keys_and_types(config: ConfigDict, defaults: ConfigDict) -> None:
    """Raise UserError for a config of other keys than `defaults`, or values of other types.

    An integer will do for a float, and `None` where the default is `None`.
    """
    if not isinstance(config, ConfigDict):
        raise UserError(f"a config must be a ConfigDict, got {type(config).__name__}")
    known = list(all_keys(defaults))
    for key in all_keys(config):
        check_key(key, known)
    for path in known:
        *groups, key = path.split(".")
        given, default = (functools.reduce(getitem, groups, each) for each in (config, defaults))
        if key not in given:
            raise UserError(f"config key {path} is missing: start from hos_jax.config's defaults")
        kind = default.get_type(key)
        if not _fits(given[key], kind, optional=default[key] is None):
            raise UserError(f"{path} must be {_NAMES[kind]}, got {given[key]!r}")


_NAMES = {
    ConfigDict: "a group of keys",
    bool: "True or False",
    int: "an integer",
    float: "a number",
    str: "a text",
    tuple: "a tuple of integers",
}


def _fits(value: object, kind: type, *, optional: bool) -> bool:
    if value is None:
        return optional
    if kind is tuple:
        items = value if isinstance(value, tuple | list) else [None]
        return all(_fits(item, int, optional=False) for item in items)
    if isinstance(value, bool):  # which Python counts among the integers
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)
