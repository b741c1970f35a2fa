"""What starting and resuming a run does around training: room for it, signals, the last word."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

from hos_jax.cli import interruption
from hos_jax.cli.malloc import keep_freed_memory
from hos_jax.cli.run_folder import ask_for_room, make_room


def train(config: Any, workdir: Path, *, resume: bool, no_interaction: bool) -> int:
    """Train the run in `workdir` until its end, or a signal; returns the exit status."""
    from hos_jax import evaluation
    from hos_jax.training import parallel
    from hos_jax.training.loop import train_and_evaluate

    parallel.check_agreement("--resume_training", resume)
    if not resume:
        parallel.in_first_process(ask_for_room, workdir, no_interaction)
    with interruption.requested() as stop:
        state = train_and_evaluate(
            config,
            workdir,
            resume=resume,
            # What draws is loaded when there is something to draw.
            on_evaluation=lambda *arguments: evaluation.evaluate.log_panel(*arguments),
            make_room=None if resume else lambda: make_room(workdir),
            should_stop=lambda: stop.signal is not None,
            on_compiled=keep_freed_memory if parallel.on_cpu() else lambda: None,
        )
    step = int(state.step)
    if stop.signal is not None and step < config.training.steps:
        what = "which is saved" if step else "with nothing to save yet"
        print(
            f"{stop.signal.name} at step {step}, {what}: --resume_training goes on from it",
            file=sys.stderr,
        )
        return 128 + stop.signal
    if parallel.process_count() > 1 and step < config.training.steps:
        what = f"stopped at step {step}, as another process was told to"
        print(f"{what}: --resume_training goes on from it", file=sys.stderr)
        return 128 + signal.SIGTERM
    if parallel.process_index() == 0:
        print(f"{workdir}: {step} steps done")
    return 0
