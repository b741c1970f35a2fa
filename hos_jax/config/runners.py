"""The published runner names, and what each of them trains."""

from __future__ import annotations

import logging
from typing import NamedTuple

from hos_jax.errors import UserError, did_you_mean

logger = logging.getLogger(__name__)


class Runner(NamedTuple):
    """What a runner trains: the head it needs, and the published weight gamma sigma^2 of L_1."""

    head: str
    first_order_weight: float
    description: str


RUNNERS = {
    "UnetDSMRunner": Runner("none", 1.0, "the score s1 alone"),
    "LowRankHybridRunner": Runner("low_rank", 10.0, "s1 and a diagonal + low-rank s2"),
    "DoubleDiagonalHybridRunner": Runner("diagonal", 1.0, "s1 and a diagonal s2"),
}


def apply_runner(config, name: str) -> None:
    """Set what a runner decides: the head and its losses; UserError for a name that is none.

    A config may have a local factor in place of the runner's diagonal, as local_low_rank. Any other
    head is replaced, by a runner of s2 with a warning where it was not the default one.
    """
    if name not in RUNNERS:
        hint = did_you_mean(name, RUNNERS, cutoff=0.3)
        raise UserError(f"unknown runner {name!r}: {hint}choose one of {', '.join(RUNNERS)}")
    from hos_jax.config.defaults import default_config

    runner = RUNNERS[name]
    config.runner = name
    if config.model.head not in (runner.head, f"local_{runner.head}"):
        if runner.head != "none" and config.model.head != default_config().model.head:
            logger.warning(
                "%s sets model.head to %s in place of %s; to keep that, set it afterwards "
                "(--config.model.head=%s)",
                name,
                runner.head,
                config.model.head,
                config.model.head,
            )
        config.model.head = runner.head
    if config.loss.first_order_weight is None:
        config.loss.first_order_weight = runner.first_order_weight
    if runner.head == "none":
        config.loss.update(second_order="none", jacobian_weight=0.0, marginal_weight=0.0)
