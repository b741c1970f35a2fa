"""Damaged checkpoints, a full disk, a folder that cannot be written to: nothing is lost."""

import os
import random
import shutil
import subprocess

import pytest
from fault_runs import damage, figures, final_state, flags, same_bits, saved_steps

pytestmark = [
    # ml-collections 1.1 loads config files with a deprecated method of importlib.
    pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning"),
    # A read that fails closes orbax's event loop before tensorstore's other reads report to it.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of 30 steps with checkpoints at 20 and 30."""
    from hos_jax.cli import main as cli

    folder = tmp_path_factory.mktemp("trained")
    place = ["--run", str(folder), "--doc", "run", "--ni"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hos_jax.evaluation.evaluate.log_panel", lambda *arguments: None)
        assert cli.main(["main.py", *place, *flags(training__steps=30)]) == 0
    assert saved_steps(folder / "run")[-2:] == [20, 30]
    return folder / "run"


def copy_of(trained, tmp_path):
    workdir = tmp_path / trained.name
    shutil.copytree(trained, workdir)
    return workdir, ("--run", tmp_path, "--doc", trained.name)


@pytest.mark.parametrize("kind", ["truncated", "bit flipped", "half written"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(trained, tmp_path, command, kind):
    workdir, place = copy_of(trained, tmp_path)
    damage(workdir / "checkpoints" / "30", kind)
    status, errors = command(*place, *flags(training__steps=30), "--resume_training")
    assert status == 0 and "Traceback" not in errors, errors
    assert f"{workdir}/checkpoints/30 cannot be read" in errors
    assert "trying the one before it" in errors and "resumed from step 20" in errors
    assert same_bits(final_state(workdir).state, final_state(trained).state)
    assert [path.name.split(".")[0] for path in (workdir / "corrupt_checkpoints").iterdir()] == [
        "30"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_any_damaged_file_gives_the_right_state_or_the_one_before(trained, tmp_path, command, seed):
    rng = random.Random(seed)
    workdir, place = copy_of(trained, tmp_path)
    kind = rng.choice(["truncated", "bit flipped", "half written"])
    damage(workdir / "checkpoints" / "30", kind, rng)
    status, errors = command(*place, *flags(training__steps=30), "--resume_training")
    figures["corruptions noticed"] += "30 cannot be read" in errors
    figures["lost runs"] += status != 0
    assert status == 0 and "Traceback" not in errors, errors
    same = same_bits(final_state(workdir).state, final_state(trained).state)
    figures["wrong ends"] += not same
    assert same


def test_when_all_checkpoints_are_damaged_it_says_so_and_moves_nothing(trained, tmp_path, command):
    workdir, place = copy_of(trained, tmp_path)
    for step in saved_steps(workdir):
        damage(workdir / "checkpoints" / str(step), "truncated")
    before = saved_steps(workdir)
    status, errors = command(*place, *flags(training__steps=40), "--resume_training")
    assert status == 2 and "error: no readable checkpoint" in errors.splitlines()[-1]
    assert saved_steps(workdir) == before


@pytest.fixture
def mount(tmp_path):
    """Mount a tmpfs of a size, and mount it again read-only; where the system allows it."""
    folder = tmp_path / "mounted"
    folder.mkdir()

    def run(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
        return folder

    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("only root can mount a tmpfs")
    yield run
    subprocess.run(["umount", "--lazy", str(folder)], check=False, capture_output=True)


def test_a_full_disk_keeps_the_checkpoint_before(mount, command):
    folder = mount("size=2m")
    arguments = ("--run", folder, "--doc", "run", *flags(model__ngf=24))
    status, errors = command(*arguments, "--config.training.steps=10", "--ni")
    assert status == 0, errors
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    (folder / "ballast").write_bytes(bytes(max(free - 30_000, 0)))
    status, errors = command(*arguments, "--config.training.steps=40", "--resume_training")
    assert status == 2 and "Traceback" not in errors
    said = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and "No space left on device" in said[0]
    assert errors.rstrip().endswith(said[0]) and "kept" in said[0]
    (folder / "ballast").unlink()
    assert 10 in saved_steps(folder / "run")
    status, errors = command(*arguments, "--config.training.steps=40", "--resume_training")
    assert status == 0, errors
    figures["full disks"] += 1


def test_a_read_only_run_folder_is_one_line(trained, mount, tmp_path, command):
    folder = mount("size=8m")
    shutil.copytree(trained, folder / "run")
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    said = {"--resume_training": "are kept", "--ni": "was not begun", "--test": "a copy of the run"}
    for how, why in said.items():
        status, errors = command("--run", folder, "--doc", "run", *flags(training__steps=40), how)
        assert status == 2 and "Read-only file system" in errors.splitlines()[-1], errors
        assert errors.splitlines()[-1].startswith("error: ") and "Traceback" not in errors
        assert why in errors.splitlines()[-1]
    assert saved_steps(folder / "run") == saved_steps(trained)
    figures["read-only folders"] += 1


def test_a_diverging_learning_rate_stops_with_one_line(trained, tmp_path, command):
    workdir, place = copy_of(trained, tmp_path)
    wild = {"optim__lr": 1e30, "optim__clip": 0.0, "training__steps": 60}
    status, errors = command(*place, *flags(**wild), "--resume_training")
    said = errors.splitlines()[-1]
    assert status == 2 and "Traceback" not in errors
    assert said.startswith("error: the") and "is not finite at step" in said
    assert "the checkpoint of step 30 is kept" in said and "optim.lr" in said
    assert saved_steps(workdir) == saved_steps(trained)
    figures["divergences"] += 1


def test_nan_in_the_data_is_refused_by_name(tmp_path, command):
    """Images are bytes; the only way for a NaN to come in is a file of floating-point numbers."""
    import numpy as np
    from PIL import Image

    pixels = np.zeros((8, 8), np.float32)
    pixels[3, 4] = np.nan
    for name in "ab":
        Image.fromarray(pixels).save(tmp_path / f"{name}.tiff")
    data = {"data__name": "image_folder", "data__root": tmp_path, "data__crop": 0}
    status, errors = command("--run", tmp_path / "runs", *flags(**data), "--ni")
    assert status == 2 and f"{tmp_path}/a.tiff is not an 8-bit image" in errors
    assert not (tmp_path / "runs").exists()
    status, errors = command("--run", tmp_path / "runs", *flags(), "--ni", "--noise", "nan")
    assert status == 2 and "noise must be positive" in errors
