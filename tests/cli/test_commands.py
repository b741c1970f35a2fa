"""What a user types: training, resuming, testing, and every mistake on one line."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from command_line import ROOT
from PIL import Image
from small_runs import runner_in

from hos_jax.cli.arguments import make_config, parse
from hos_jax.config import load as load_config
from hos_jax.errors import UserError
from hos_jax.training.checkpoint import Checkpoints
from hos_jax.training.problem import Problem

LOW_RANK = ("--runner", "LowRankHybridRunner", "--config", "demo", "--rank", "3")


def final_state(workdir):
    config = load_config(workdir)
    template = Problem.from_config(config).abstract_state()
    checkpoints = Checkpoints(workdir / "checkpoints")
    restored = checkpoints.restore(template)
    checkpoints.close()
    return restored


def test_runs_may_lie_in_the_home_of_the_user(command, environment, tmp_path, monkeypatch):
    monkeypatch.setitem(environment, "HOME", str(tmp_path))
    done = command(*LOW_RANK, "--doc", "a", "--run=~/mine", "--test")
    assert done.returncode == 2 and f"no run in {tmp_path}/mine/a" in done.stderr
    done = command("denoise", "~/a.png", "--run=~/mine", "--doc=a")
    assert done.returncode == 2 and "~" not in done.stderr


def test_train_resume_and_test(environment, tmp_path):
    """Started as users do."""
    command = runner_in(tmp_path, environment)
    done = command(*LOW_RANK, "--doc", "a", "--noise", "0.3", "--ni", "--comment", "first")
    assert done.returncode == 0, done.stderr
    saved = json.loads((tmp_path / "a" / "config.json").read_text())
    assert saved["noise"] == 0.3 and saved["model"]["rank"] == 3
    assert saved["runner"] == "LowRankHybridRunner" and saved["comment"] == "first"
    done = command(
        *LOW_RANK, "--doc", "a", "--noise", "0.3", "--resume_training", "--config.training.steps=8"
    )
    assert done.returncode == 0, done.stderr
    assert "resumed from step 6" in done.stderr and final_state(tmp_path / "a").step == 8
    done = command(*LOW_RANK, "--doc", "a", "--noise", "0.3", "--test", "-i", "pictures")
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "a" / "pictures").iterdir()}
    assert names == {
        "calibration.png",
        "covariance_rows.png",
        "denoising.png",
        "directions.png",
        "loss_curves.png",
        "mixing.png",
        "samples.png",
        "trajectories.png",
    }
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    for name in ("denoise_mse", "nll_per_dim", "calibration", "coverage_90"):
        assert np.isfinite(metrics[name]) and name in done.stdout
    assert metrics["training_seconds"] > 0 and metrics["versions"]["jax"]
    assert metrics["coverage_50"] < metrics["coverage_90"] < metrics["coverage_95"]
    assert sum(row["share"] for row in metrics["reliability"]) == pytest.approx(1.0)
    assert 0.8 < metrics["recalibrated"]["coverage_90"] < 0.97
    assert metrics["violations"] == {"count": 0, "largest": 0.0}
    assert len(metrics["directions"]["model"]) == len(metrics["directions"]["pca"]) == 12


@pytest.mark.slow
@pytest.mark.parametrize("second_order", ["d2sm_residual", "d2sm", "d2sm_vr"])
def test_every_second_order_loss_trains_by_flag(command, tmp_path, second_order):
    done = command(*LOW_RANK, "--doc", "a", "--ni", f"--config.loss.second_order={second_order}")
    assert done.returncode == 0, done.stderr
    assert load_config(tmp_path / "a").loss.second_order == second_order


def test_a_share_of_the_jacobian_beside_a_published_loss_is_refused(command):
    """One that is asked for; that of the config goes with the loss of the config."""
    loss = "--config.loss.second_order=d2sm", "--config.loss.jacobian_weight=0.3"
    done = command(*LOW_RANK, "--doc", "a", "--ni", *loss)
    assert done.returncode == 2 and "loss.jacobian_weight=0.3 needs" in done.stderr


def test_three_orders_train_and_are_tested_together(command, tmp_path):
    third = ("--config.model.third_order=diagonal", "--config.loss.third_order=d3sm_diagonal")
    done = command(*LOW_RANK, "--doc", "a", "--ni", *third)
    assert done.returncode == 0, done.stderr
    done = command(*LOW_RANK, "--doc", "a", "--test", *third)
    assert done.returncode == 0, done.stderr
    assert np.isfinite(json.loads((tmp_path / "a" / "metrics.json").read_text())["third_order"])
    done = command(*LOW_RANK, "--doc", "b", "--ni", third[0])
    assert done.returncode == 2 and "both or neither must be none" in done.stderr


MISTAKES = [
    ((), "--runner is needed"),
    (("--runner", "UnetDSMRuner", "--config", "demo"), "did you mean UnetDSMRunner"),
    (("--runner", "UnetDSMRunner", "--config", "demmo"), "did you mean demo"),
    (("--runner", "UnetDSMRunner", "--config"), "--config needs the name"),
    (("--doc", "a", "--ni", "--config.model.ngf=8"), "--config is needed"),
    ((*LOW_RANK, "--config.model.nfg=3"), "did you mean --config.model.ngf"),
    ((*LOW_RANK, "--config.model.ngf=wide"), "invalid literal"),
    ((*LOW_RANK, "--config.model.ngf=1.5"), "1.5"),
    ((*LOW_RANK, "--config.model.ngf=None"), "model.ngf must be an integer, got None"),
    ((*LOW_RANK, "--noize", "0.5"), "Unknown command line flag 'noize'"),
    ((*LOW_RANK, "--training.stps=5"), "did you mean --config.training.steps?"),
    ((*LOW_RANK, "--noise", "loud"), "noise"),
    ((*LOW_RANK, "--noise", "0"), "noise must be positive"),
    ((*LOW_RANK, "--noise=-1"), "noise must be positive"),
    ((*LOW_RANK, "--noise", "nan"), "noise must be positive"),
    ((*LOW_RANK, "--rank", "0"), "model.rank must be positive"),
    ((*LOW_RANK, "--rank", "65"), "exceeds the 64 values of an image: lower it, or set --config"),
    ((*LOW_RANK, "--config.data.name=minst"), "data.name is 'minst'"),
    ((*LOW_RANK, "stray"), "unexpected argument 'stray'"),
    (("densoise", "a.png"), "unexpected argument 'densoise' (did you mean denoise?"),
    ((*LOW_RANK, "--test", "--doc", "none"), "no run in"),
    ((*LOW_RANK, "--ni", "--doc", "rates[1,2]"), "cannot hold checkpoints, with [ ] in its path"),
    ((*LOW_RANK, "--test", "--processes=2"), "--test runs in one process"),
    ((*LOW_RANK, "--test", "--resume_training"), "two commands: give one of them"),
    ((*LOW_RANK, "--test", "--image_folder=checkpoints/5"), "'checkpoints/5' is the run's own"),
    ((*LOW_RANK, "--test", "--image_folder=metrics.json"), "'metrics.json' is the run's own"),
    ((*LOW_RANK, "--compilation_cache=/dev/null/a"), "cannot be made: Not a directory"),
    ((*LOW_RANK, "--resume_training", "--doc", "none"), "no run in"),
    (
        (*LOW_RANK, "--config.data.name=image_folder", "--config.data.root=/nonexistent"),
        "/nonexistent",
    ),
    ((*LOW_RANK, "--config.data.name=arrays"), "set --config.data.root=FILE"),
    (
        (*LOW_RANK, "--config.data.name=arrays", "--config.data.root=/nonexistent.npz"),
        "/nonexistent.npz cannot be read",
    ),
    ((*LOW_RANK, "--config.data.image_width=9"), "data.image_width needs data.image_size"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[m for _, m in MISTAKES])
def test_a_mistake_is_one_line_and_a_failing_status(command, tmp_path, arguments, message):
    done = command(*arguments, small=arguments[: len(LOW_RANK)] == LOW_RANK)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_a_config_that_ends_the_process_is_a_mistake(command, tmp_path):
    config = tmp_path / "mine.py"
    for how in ("0", "'no data'"):
        config.write_text(f"raise SystemExit({how})")
        done = command("--runner", "UnetDSMRunner", "--config", str(config), small=False)
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: the config {config} cannot be used: SystemExit")
    assert list(tmp_path.iterdir()) == [config]


RIGHT = "from hos_jax.config import default_config as get_config"


@pytest.mark.parametrize("overrides", [[], ["--config.training.steps=1"]])
@pytest.mark.parametrize(
    ("written", "why"),
    [
        (RIGHT, None),
        ("x = 1", "no attribute 'get_config'"),
        ("def get_config():\n    return None", "NoneType"),
        ("def get_config():\n    return {}", "it gives dict|KeyError"),
        ("import nothing_of_this_name", "ModuleNotFoundError"),
    ],
)
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # ml-collections
def test_a_config_file_without_a_config_is_named_with_what_it_needs(
    tmp_path, monkeypatch, written, why, overrides
):
    # Under this name ml-collections imports them all.
    monkeypatch.delitem(sys.modules, "config_config", raising=False)
    config = tmp_path / "mine.py"
    config.write_text(written)
    flags = ["", f"--config={config}", "--runner=UnetDSMRunner", *overrides]
    if why is None:
        assert bool(make_config(parse(flags)).training.steps == 1) == bool(overrides)
        return
    said = (
        rf"the config {re.escape(str(config))} cannot be used: .*({why}).*must return a ConfigDict"
    )
    with pytest.raises(UserError, match=said):
        make_config(parse(flags))


def test_no_run_is_part_of_another(command, tmp_path):
    """It would be moved aside with it, while a process works on it."""
    assert command(*LOW_RANK, "--doc", "all/a", "--ni").returncode == 0
    run = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    for doc, message in (("all", "has another run in it, a:"), ("all/a/b", "is itself a run:")):
        done = command(*LOW_RANK, "--doc", doc, "--ni")
        assert done.returncode == 2 and message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    assert run == {path: path.stat().st_mtime_ns for path in run}
    assert sum(path.is_file() for path in tmp_path.rglob("*")) == len(run)


def test_settings_with_which_no_step_is_taken_are_not_those_of_the_run(command, tmp_path):
    assert command(*LOW_RANK, "--doc", "a", "--ni").returncode == 0
    before = (tmp_path / "a" / "config.json").read_text()
    options = "--config.optim.lr=5.0", "--config.training.steps=3"
    done = command("--doc", "a", "--resume_training", *options, small=False)
    assert done.returncode == 0 and "already has 6 of 3 steps: it stays as it is" in done.stderr
    assert (tmp_path / "a" / "config.json").read_text() == before


def test_a_run_is_not_continued_as_another(command, tmp_path):
    assert command(*LOW_RANK, "--doc", "a", "--ni", "--noise", "0.5").returncode == 0
    for what in ("--resume_training", "--test"):
        done = command(*LOW_RANK, "--doc", "a", what, "--noise", "0.4")
        assert done.returncode == 2 and "noise: 0.5 -> 0.4" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_a_run_is_not_tested_on_a_folder_that_has_changed(tmp_path, environment):
    """Nor does it matter that neither the folder's name nor the locale is UTF-8."""
    folder = os.path.join(os.fsencode(tmp_path), b"caf\xe9 \xf0\x9f\x98\x80")
    os.mkdir(folder)
    for seed in range(24):
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(os.path.join(folder, b"\xe9 %02d.png" % seed))
    command = runner_in(tmp_path, {**environment, "LC_ALL": "C", "PYTHONUTF8": "0"})
    root = "--config.data.root=" + os.fsdecode(folder)
    options = "--config.data.name=image_folder", "--config.data.image_size=8", root
    done = command(*LOW_RANK, "--doc", "a", "--ni", "--config.data.crop=0", *options)
    assert done.returncode == 0, done.stderr
    Image.new("L", (8, 8)).save(os.path.join(folder, b"another.png"))
    done = command("--doc", "a", "--test", small=False)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert "23 to train on and 1 held out then, 24 to train on and 1 held out now" in done.stderr


def test_help_is_readable_and_complete(command):
    done = command("--help", small=False)
    assert done.returncode == 0 and not done.stderr
    published = "seed run doc comment verbose test resume_training image_folder ni noise rank"
    for name in [*published.split(), "runner", "config"]:
        assert f"--{name}\n" in done.stdout
    assert "LowRankHybridRunner" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 100


def test_help_loads_no_jax():
    script = (
        "import sys; from hos_jax.cli.main import main\n"
        "try:\n    main(['main.py', '--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'jax', 'flax', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, cwd=ROOT)
