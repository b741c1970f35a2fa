"""kill -9, SIGTERM and Ctrl-C at random moments: a resumed run ends as if never stopped."""

import random
import signal

import pytest
from fault_runs import (
    ends_as_if_never_stopped,
    figures,
    finish,
    flags,
    interrupt,
    saved_steps,
    start,
    wait_for_moment,
)

MOMENTS = ("start", "before", "during", "after")
EXIT_STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}
# ml-collections 1.1 loads config files with a deprecated method of importlib.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def interrupt_all(workdir, plan):
    rng = random.Random(0)
    for number, moment in plan:
        status, errors = interrupt(workdir, number, moment, rng)
        assert status == EXIT_STATUS[number], errors
        if number != signal.SIGKILL:
            last = saved_steps(workdir)[-1]
            assert f"{number.name} at step {last}, which is saved" in errors


def test_a_run_survives_kill_sigterm_and_ctrl_c(tmp_path, command):
    plan = [
        (signal.SIGKILL, "during"),
        (signal.SIGTERM, "before"),
        (signal.SIGINT, "before"),
    ]
    interrupt_all(tmp_path / "run", plan)
    ends_as_if_never_stopped(tmp_path / "run", command)


@pytest.mark.slow
def test_a_run_survives_twenty_kills(tmp_path, command):
    """Five rounds of a kill at each kind of moment, with signals that ask to stop in between."""
    plan = []
    for round_ in range(5):
        plan += [(signal.SIGKILL, moment) for moment in MOMENTS]
        plan += [((signal.SIGTERM, signal.SIGINT)[round_ % 2], "before")]
    interrupt_all(tmp_path / "run", plan)
    assert sum(figures[f"SIGKILL {moment}"] for moment in MOMENTS) >= 20
    ends_as_if_never_stopped(tmp_path / "run", command)


@pytest.mark.slow
def test_a_signal_before_the_first_step_loses_nothing(tmp_path):
    """Whatever the moment, the next command starts or resumes the run."""
    rng = random.Random(1)
    for number in EXIT_STATUS:
        workdir = tmp_path / number.name
        process = start(workdir, *flags(training__steps=100_000), "--ni")
        wait_for_moment(process, workdir, "start", rng)
        process.send_signal(number)
        _, errors = process.communicate(timeout=600)
        # SIGTERM before there is anything to save is left to the system.
        assert process.returncode in (EXIT_STATUS[number], -number) and "Traceback" not in errors
        figures[f"{number.name} start"] += 1
        known = saved_steps(workdir)
        how = "--resume_training" if (workdir / "config.json").exists() else "--ni"
        process = start(workdir, *flags(training__steps=2), how)
        assert finish(process)[0] == 0
        # A fast machine may be past the second step when the signal comes; then nothing is done.
        expected = known if known and known[-1] >= 2 else [*known, 2]
        assert saved_steps(workdir) == expected


def test_a_second_process_is_refused(tmp_path, command):
    workdir = tmp_path / "run"
    process = start(workdir, *flags(training__steps=100_000), "--ni")
    try:
        wait_for_moment(process, workdir, "after", random.Random(0))
        place = ("--run", tmp_path, "--doc", "run")
        for how in ("--resume_training", "--ni"):
            status, errors = command(*place, *flags(training__steps=100_000), how)
            assert status == 2 and f"in use by another process (id {process.pid})" in errors
        assert process.poll() is None and workdir.is_dir()
        assert [path.name for path in tmp_path.iterdir()] == ["run"]
    finally:
        process.kill()
        process.communicate()
    # The lock has died with the process.
    total = saved_steps(workdir)[-1]
    status, errors = command(*place, *flags(training__steps=total), "--resume_training")
    assert status == 0, errors
