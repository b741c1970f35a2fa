"""What a checkpoint of the published PyTorch code holds, recognised by its content.

Such a file is a list of state dictionaries, optimizer states and counters. Three layouts are known:
s1 alone, s2 and s1, and either with exponential averages of the parameters. Names may carry the
"module." of PyTorch's data-parallel wrapper. Nothing in the file says which entry is what, so:

* a state dictionary with `begin_conv.weight` is one RefineNet; with `low_rank_model.*` and
  `diagonal.*` it is the pair of RefineNets that gives a diagonal plus low-rank s2;
* a later dictionary whose convolutions point the same way as an earlier one's is its average:
  networks trained apart are uncorrelated;
* of two RefineNets that are left the first is the diagonal s2 and the second is s1, as stored.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from hos_jax.errors import UserError
from hos_jax.migrate.refinenet_weights import refinenet_params

LABELS = ("s1", "s2", "ema_s1", "ema_s2")
# Cosine between the convolutions of a network and its average; of unrelated networks it is near 0.
SAME_NETWORK = 0.5
FIRST_LAYER = "begin_conv.weight"
HEAD_NAMES = {"none": "", "diagonal": "diagonal s2 and ", "low_rank": "diagonal + low-rank s2 and "}


class _Stored(NamedTuple):
    """One state dictionary: its label, one of `LABELS` or "", and its arrays by name."""

    label: str
    arrays: dict[str, np.ndarray]

    @property
    def is_pair(self) -> bool:
        return f"low_rank_model.{FIRST_LAYER}" in self.arrays


@dataclasses.dataclass(frozen=True)
class PublishedModel:
    """The networks of a published checkpoint, as parameters of `ScoreModel`.

    Attributes:
      head: "none" for s1 alone, "diagonal" or "low_rank".
      params: parameter trees by network: score1, and diagonal and factor where there are such.
      ema_params: the same with averages in place of what the file has averages of, or None.
      averaged: which scores ("s1", "s2") have averages.
      features, channels: of the first stage, and of an image.
      rank: columns of the factor; 0 without one.
      step: the training step that the file names, or 0.
      order_is_assumed: whether two networks of one kind were told apart by their order alone.
    """

    head: str
    params: dict[str, Any]
    ema_params: dict[str, Any] | None
    averaged: tuple[str, ...]
    features: int
    channels: int
    rank: int
    step: int
    order_is_assumed: bool

    @property
    def description(self) -> str:
        """One line for a person."""
        rank = f" of rank {self.rank}" if self.rank else ""
        averages = f", averages of {' and '.join(self.averaged)}" if self.averaged else ""
        return (
            f"{HEAD_NAMES[self.head]}s1{rank}, RefineNets of {self.features} channels for images "
            f"of {self.channels}, step {self.step}{averages}"
        )

    def swapped(self) -> PublishedModel:
        """The same with the two networks of a diagonal model exchanged."""

        def swap(params):
            return params and {"score1": params["diagonal"], "diagonal": params["score1"]}

        params, ema = swap(self.params), swap(self.ema_params)
        averaged = tuple({"s1": "s2", "s2": "s1"}[name] for name in reversed(self.averaged))
        return dataclasses.replace(self, params=params, ema_params=ema, averaged=averaged)


def recognise(content: Any) -> PublishedModel:
    """Finds the networks of a published checkpoint.

    Args:
      content: nested lists and mappings with NumPy arrays, as loaded. A mapping may also name its
        networks: keys "s1", "s2", "ema_s1", "ema_s2", or one flat mapping with these prefixes.

    Raises:
      UserError: if the networks cannot be told, or their arrays are not those of the published one.
    """
    stored = list(_state_dictionaries(content))
    if not stored:
        raise UserError("no network of the published image code found: no name ends in begin_conv")
    raw: list[_Stored] = []
    averages: list[tuple[_Stored, _Stored]] = []
    for state in stored:
        original = _original(state, raw)
        if original is None:
            raw.append(state)
        else:
            averages.append((state, original))
    score1, score2, assumed = _assign(raw)
    networks = _convert("s1", score1) | (_convert("s2", score2) if score2 is not None else {})
    ema, averaged = dict(networks), []
    for label, trained in (("s1", score1), ("s2", score2)):
        for average in (average for average, original in averages if original is trained):
            ema |= _convert(label, average)
            averaged.append(label)
    head = "none" if score2 is None else "low_rank" if score2.is_pair else "diagonal"
    averages_of = ema if averaged else None, tuple(averaged)
    return PublishedModel(head, networks, *averages_of, *_sizes(networks), _step(content), assumed)


def _state_dictionaries(content: Any, label: str = "") -> Iterator[_Stored]:
    """All state dictionaries in the order of the file, without "module." in their names."""
    if isinstance(content, Mapping):
        names = [name for name in content if isinstance(name, str)]
        prefixed = {name.partition(".")[0] for name in names} & set(LABELS) - set(names)
        if prefixed:
            for prefix in LABELS:
                inside = [name for name in names if name.startswith(f"{prefix}.")]
                part = {name.removeprefix(f"{prefix}."): content[name] for name in inside}
                yield from _state_dictionaries(part, prefix)
        elif any(name.endswith(FIRST_LAYER) for name in names):
            yield _Stored(label, {re.sub(r"\bmodule\.", "", name): content[name] for name in names})
        else:
            for name, value in content.items():
                yield from _state_dictionaries(value, name if name in LABELS else label)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from _state_dictionaries(value, label)


def _original(state: _Stored, raw: list[_Stored]) -> _Stored | None:
    """Of which of the networks as trained this is the average; None if it is one of them."""
    label = state.label.removeprefix("ema_")
    if label != state.label:
        for other in raw:
            if other.label == label:
                return other
        raise UserError(f"{state.label} has no {label} beside it")
    if label:
        return None
    alike = [(_cosine(state.arrays, other.arrays), i) for i, other in enumerate(raw)]
    cosine, nearest = max(alike, default=(0.0, 0))
    return raw[nearest] if cosine > SAME_NETWORK else None


def _cosine(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> float:
    """Cosine of the angle between the convolution kernels of two networks; 0 if they differ."""
    names = [name for name, array in a.items() if np.ndim(array) == 4]
    if set(a) != set(b) or any(a[name].shape != b[name].shape for name in names):
        return 0.0

    def product(x, y):
        return sum(float(np.sum(np.multiply(x[name], y[name], dtype=float))) for name in names)

    return product(a, b) / np.sqrt(product(a, a) * product(b, b))


def _assign(raw: list[_Stored]) -> tuple[_Stored, _Stored | None, bool]:
    """s1, s2 or None, and whether only their order told them apart."""
    by_label = {state.label: state for state in raw if state.label}
    if "s1" in by_label:
        return by_label["s1"], by_label.get("s2"), False
    single, pairs = ([state for state in raw if state.is_pair is pair] for pair in (False, True))
    if len(single) == 1 and len(pairs) <= 1:
        return single[0], pairs[0] if pairs else None, False
    if len(single) == 2 and not pairs:
        return single[1], single[0], True
    raise UserError(
        f"found {len(single)} single networks and {len(pairs)} pairs (low_rank_model, diagonal): "
        "s1 alone, a pair and s1, or two single networks can be imported"
    )


def _convert(label: str, state: _Stored) -> dict[str, Any]:
    """Parameter trees of the networks behind one score."""
    if label == "s2" and state.is_pair:
        prefixes = {"factor": "low_rank_model.", "diagonal": "diagonal."}
        return {name: refinenet_params(state.arrays, prefix) for name, prefix in prefixes.items()}
    return {"score1" if label == "s1" else "diagonal": refinenet_params(state.arrays)}


def _sizes(networks: Mapping[str, Any]) -> tuple[int, int, int]:
    """Width, image channels and rank; what all networks must agree on."""
    shapes = {name: tree["begin_conv"]["kernel"].shape for name, tree in networks.items()}
    channels, features = shapes["score1"][2:]
    for name, shape in shapes.items():
        if shape[2:] != (channels, features):
            score1 = f"score1 has {features} for images of {channels}: they must agree"
            network = f"network {name} has {shape[3]} channels for images of {shape[2]}"
            raise UserError(f"{network}, {score1}")
    outputs = {name: tree["end"]["conv"]["kernel"].shape[-1] for name, tree in networks.items()}
    rank, rest = divmod(outputs.pop("factor", 0), channels)
    wrong = [name for name, count in outputs.items() if count != channels]
    if wrong or rest:
        name = [*wrong, "factor"][0]
        raise UserError(f"network {name} has outputs that do not fit {channels} channels")
    return features, channels, rank


def _step(content: Any) -> int:
    """The training step: the last whole number of the list, or the entry "step"."""
    found = [content.get("step")] if isinstance(content, Mapping) else content
    steps = [value for value in found if isinstance(value, int) and not isinstance(value, bool)]
    return steps[-1] if steps and 0 <= steps[-1] < 2**31 - 1 else 0
