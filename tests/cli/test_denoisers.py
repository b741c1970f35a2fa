"""Error bars for a denoiser of the user's own, as the page on it says: train, test, one picture."""

import json
import os
import subprocess
import sys

import chex
import numpy as np
import pytest
from PIL import Image
from small_runs import MAIN, quickly, runner_in

from hos_jax import load_run
from hos_jax.errors import UserError
from hos_jax.migrate import export_parameters, import_checkpoint, load_exported, read_parameters

DENOISER = """
import numpy as np

def blur(noisy, sigma):
    assert noisy.dtype == np.float32 and sigma.shape == noisy.shape[:1]
    padded = np.pad(noisy, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    height, width = noisy.shape[1:3]
    shifted = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return np.mean(shifted, axis=0)

def crashes(noisy, sigma):
    raise OSError("the licence server is down")
"""
OTHER = """
def blur(noisy, sigma):
    return 0.5 * other(noisy, sigma)
"""
# Runs Python with its arguments on these CPUs alone.
PINNED = """
import os, sys
os.sched_setaffinity(0, {})
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
SMALL = (
    "--config.training.steps=4",
    "--config.training.evaluate_every=2",
    "--config.training.checkpoint_every=2",
    "--config.training.batch_size=4",
    "--config.model.ngf=8",
    "--config.model.multipliers=(1,)",
    "--config.model.rank=2",
    "--config.model.reach=1",
    "--config.data.image_size=16",
    "--config.sampling.images=2",
)


def smooth_picture(seed, width, height):
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def place(tmp_path_factory, environment):
    """A folder with a denoiser, photographs, and a run that has learned for four steps."""
    folder = tmp_path_factory.mktemp("denoisers")
    (folder / "mine.py").write_text(DENOISER)
    (folder / "photographs" / "held_out").mkdir(parents=True)
    for number in range(4):
        part = folder / "photographs" / ("held_out" if number == 3 else "")
        smooth_picture(number, 70, 50).save(part / f"{number}.png")
    smooth_picture(9, 41, 30).save(folder / "one.png")
    done = second_order(folder, environment, "--sigma", "25/255", "--doc", "a")
    assert done.returncode == 0, done.stderr
    return folder


def second_order(folder, environment, *arguments, denoiser="mine.py:blur", cpus=None):
    flags = ["--denoiser", denoiser, "--data", "photographs", "--ni", *SMALL, *arguments]
    return run(folder, environment, "second_order", *flags, cpus=cpus)


def run(folder, environment, *arguments, cpus=None):
    if cpus is None:
        return quickly(arguments, folder, environment)
    return subprocess.run(
        [sys.executable, "-c", PINNED.format(cpus), MAIN, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_a_run_is_resumed_and_tested_as_all_are(place, environment):
    saved = json.loads((place / "runs" / "a" / "config.json").read_text())
    assert saved["model"]["denoiser"] == f"{place}/mine.py:blur"
    assert saved["noise"] == pytest.approx(25 / 255)
    assert saved["data"]["root"] == f"{place}/photographs"
    done = run(place, environment, "--doc", "a", "--resume_training", "--config.training.steps=6")
    assert done.returncode == 0 and "resumed from step 4" in done.stderr, done.stderr
    # On one CPU, where what waits for a callback and what it waits for share a thread.
    done = run(place, environment, "--doc", "a", "--test", cpus={min(os.sched_getaffinity(0))})
    assert done.returncode == 0 and "recalibrated_90" in done.stdout, done.stderr
    assert (place / "runs" / "a" / "figures" / "posterior_samples.png").exists()


def test_parameters_are_given_away_without_the_denoiser(place, tmp_path, caplog, monkeypatch):
    """It is code: nothing of it is executed before the user says where it is."""
    file, marker = tmp_path / "a.safetensors", tmp_path / "executed"
    mine = place / "mine.py"
    text = mine.read_text()
    export_parameters(place / "runs" / "a", file)
    mine.write_text(f"open({str(marker)!r}, 'w')\n{text}")
    with pytest.raises(UserError, match="which is code and not in the file: name it yourself"):
        load_exported(file)
    with pytest.raises(UserError, match="which is code and not in the file: name it yourself"):
        import_checkpoint(file, tmp_path / "b")
    monkeypatch.setenv("HOME", str(tmp_path))
    found = read_parameters(f"~/{file.name}")
    assert found.image_shape == (16, 16, 1) and not marker.exists()
    mine.write_text(text)
    (tmp_path / "moved.py").write_text(text)
    named = {"model.denoiser": f"{tmp_path}/moved.py:blur"}
    loaded = load_exported(str(file), denoiser=named["model.denoiser"])
    exact = load_run(place / "runs" / "a").params
    chex.assert_trees_all_equal(loaded.params, exact)
    import_checkpoint(file, tmp_path / "b", named)
    chex.assert_trees_all_equal(load_run(tmp_path / "b").params, exact)
    assert "does not say what it said" not in caplog.text
    (tmp_path / "moved.py").write_text(text.replace("def blur", "def other") + OTHER)
    load_exported(file, denoiser=named["model.denoiser"])
    assert "does not say what it said" in caplog.text


def test_a_picture_of_another_size_and_all_that_is_known_of_it(place, environment):
    done = run(place, environment, "denoise", "one.png", "--doc", "a", "--add_noise")
    assert done.returncode == 0, done.stderr
    for name in ("psnr", "coverage_90", "predicted_rmse"):
        assert name in done.stdout
    folder = place / "one_denoised"
    for name in ("noisy", "denoised", "lower", "upper"):
        with Image.open(folder / f"{name}.png") as written:
            assert written.size == (41, 30)
    values = np.load(folder / "values.npz")
    assert {values[name].shape for name in ("noisy", "mean", "deviation")} == {(30, 41, 1)}
    assert values["samples"].shape == values["directions"].shape == (4, 30, 41, 1)
    assert np.all(values["lower"] < values["mean"]) and np.all(values["mean"] < values["upper"])
    page = (folder / "page.html").read_text()
    assert "one.png" in page and "error.png" not in page and page.count("data:image/png") == 9
    # What the run was trained on need not be there any more.
    (place / "photographs").rename(place / "elsewhere")
    flags = ("--doc", "a", "--output", "other", "--samples=2", "--tile=24")
    done = run(place, environment, "denoise", "one.png", *flags)
    (place / "elsewhere").rename(place / "photographs")
    assert done.returncode == 0 and "psnr" not in done.stdout, done.stderr
    assert not {"error.png", "directions.png"} & {path.name for path in (place / "other").iterdir()}
    parts = np.load(place / "other" / "values.npz")
    assert parts["samples"].shape == (2, 30, 41, 1) and len(parts["directions"]) == 0
    assert parts["deviation"].shape == (30, 41, 1) and np.all(parts["deviation"] > 0)


def test_a_range_of_levels_is_one_model(place, environment):
    flags = ("--sigma", "15/255:50/255", "--doc", "range", "--config.model.head=diagonal")
    done = second_order(place, environment, *flags)
    assert done.returncode == 0, done.stderr
    for sigma, fits in (("50/255", True), ("0.3", False)):
        done = run(place, environment, "denoise", "one.png", "--doc", "range", "--sigma", sigma)
        assert (done.returncode == 0) == fits, done.stderr
    assert "the run was trained at sigma 0.05882 to 0.1961, not 0.3" in done.stderr
    done = run(place, environment, "denoise", "one.png", "--doc", "range")
    assert done.returncode == 2 and "say which one the picture has (--sigma)" in done.stderr


def test_sigma_is_of_white_whatever_the_units_of_the_data(place, environment):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 16), dtype=np.uint8)
    np.save(place / "bytes.npy", pixels)
    flags = ("--sigma", "25/255", "--doc", "bytes", "--data", "bytes.npy")
    done = second_order(place, environment, *flags)
    assert done.returncode == 0, done.stderr
    saved = json.loads((place / "runs" / "bytes" / "config.json").read_text())
    # Bytes in a file are from -1 to 1.
    assert saved["noise"] == pytest.approx(50 / 255) and saved["model"]["data_std"] == 0.5
    done = run(place, environment, "--doc", "bytes", "--test")
    assert done.returncode == 0, done.stderr
    # One held-out image tells no widths of intervals.
    smooth_picture(3, 20, 20).save(place / "two.png")
    done = run(place, environment, "denoise", "two.png", "--doc", "bytes", "--sigma", "25/255")
    assert done.returncode == 0 and "model's 90% intervals" in done.stdout, done.stderr


def test_nothing_of_the_users_is_overwritten(place, environment):
    (place / "mixed").mkdir()
    (place / "mixed" / "error.png").write_text("mine")
    smooth_picture(5, 20, 20).save(place / "mixed" / "picture.png")
    for name in ("site", "numbers"):
        (place / name).mkdir()
    (place / "site" / "page.html").write_text("mine")
    with (place / "numbers" / "values.npz").open("wb") as file:
        np.save(file, np.arange(3))  # has no names, though the file's says that it has
    for output, said in (
        ("mixed", "mixed holds other files"),
        ("site", "site holds other files"),
        ("numbers", "numbers holds other files"),
        (".", "holds other files"),
        ("photographs/made", "is within the images of the run"),
    ):
        flags = ("denoise", "mixed/picture.png", "--doc", "a", "--output", output)
        done = run(place, environment, *flags)
        assert done.returncode == 2 and said in done.stderr
    assert (place / "mixed" / "error.png").read_text() == "mine"
    assert [path.read_text() for path in (place / "site").iterdir()] == ["mine"]
    # What a full disk or a kill left half-written makes room, and what was written is whole.
    flags = ("denoise", "one.png", "--doc", "a", "--samples=1", "--directions=1", "--output", "cut")
    assert run(place, environment, *flags).returncode == 0
    (place / "cut" / "page.html").unlink()
    (place / "cut" / "samples.png").unlink()
    assert run(place, environment, *flags).returncode == 0
    assert (place / "cut" / "samples.png").exists() and (place / "cut" / "page.html").exists()
    flags = ("denoise", "one.png", "--doc", "a", "--output", "/proc/made")
    done = run(place, environment, *flags)
    assert done.returncode == 2 and "/proc/made cannot be written" in done.stderr
    # Another picture of the same name.
    flags = "--doc", "a", "--samples=1", "--directions=1", "--output", "made"
    for picture, said in (("two", 0), ("mixed/../two", 0), ("mixed/picture", 2)):
        smooth_picture(3, 20, 20).save(place / "two.png")
        done = run(place, environment, "denoise", f"{picture}.png", *flags)
        assert done.returncode == said, done.stderr
    assert f"holds what was made of {place}/two.png: choose another" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["second_order", "--sigma=0.1", "--doc=x"], "--denoiser is needed"),
        (["second_order", "--denoiser=mine.py:blur", "--doc=x"], "--sigma is needed"),
        (["second_order", "--denoiser=mine.py:blur", "--sigma=0.1"], "--doc is needed"),
        (
            ["second_order", "--denoiser=mine.py:blur", "--sigma=25/0", "--doc=x"],
            "must be a number, as 25/255",
        ),
        (
            ["second_order", "--denoiser=mine.py:blur", "--sigma=0", "--doc=x"],
            "must be one positive number",
        ),
        (
            [
                "second_order",
                "--denoiser=mine.py:blu",
                "--sigma=.1",
                "--data=photographs",
                "--doc=x",
                "--config.data.image_size=16",
            ],
            "did you mean blur?",
        ),
        (
            ["second_order", "--denoiser=mine.py:blur", "--sigma=.1", "--data=nowhere", "--doc=x"],
            "--data=nowhere is no folder, no .npy or .npz file, and none of mnist",
        ),
        (
            ["second_order", "--denoiser=mine.py:blur", "--sigma=25", "--doc=x"],
            "did you mean 25/255?",
        ),
        (
            ["second_order", "--denoiser=mine.py:blur", "--sigma=15:50/255", "--doc=x"],
            "did you mean 15/255:50/255?",
        ),
        (
            [
                "second_order",
                "--denoiser=mine.py:blur",
                "--sigma=.1",
                "--doc=x",
                "--config.data.name=digits",
            ],
            "--config.data.name is what --data says here",
        ),
        (["denoise", "--doc=a"], "denoise needs the path of one picture"),
        (["denoise", "none.png", "--doc=a"], "there is no picture none.png"),
        (["denoise", "runs", "--doc=a"], "runs is a folder: give one picture in it"),
        (["denoise", "mine.py", "--doc=a"], "mine.py is not a readable image"),
        (["denoise", "one.png", "--doc=b"], "no run in runs/b"),
        (["denoise", "one.png", "--doc=a", "--sigma=0.2"], "the run was trained at sigma 0.09804"),
        (["denoise", "one.png", "--doc=a", "--samples=0"], "--samples must be positive"),
        (["denoise", "one.png", "--doc=a", "--tile=-1"], "--tile must be positive, or 0"),
        (["denoise", "one.png", "--doc=a", "--output=mine.py"], "mine.py is a file"),
    ],
)
def test_every_mistake_is_one_line(place, environment, arguments, said):
    done = run(place, environment, *arguments)
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and said in lines[0], done.stderr


def test_what_the_function_raises_ends_the_run_with_its_words(place, environment):
    flags = ("--sigma=0.1", "--doc", "crash")
    done = second_order(place, environment, *flags, denoiser="mine.py:crashes")
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    line = DENOISER.splitlines().index('    raise OSError("the licence server is down")') + 1
    said = f"crashes fails at sigma 0.1: OSError: the licence server is down (line {line} of it)"
    assert said in done.stderr
    assert not (place / "runs" / "crash").exists()


def test_a_run_of_one_size_refuses_another(tmp_path, environment):
    command = runner_in(tmp_path, environment, quickly)
    flags = ("--runner", "DoubleDiagonalHybridRunner", "--config", "demo", "--doc", "small", "--ni")
    assert command(*flags).returncode == 0
    smooth_picture(0, 41, 30).save(tmp_path / "one.png")
    flags = ("denoise", "one.png", "--run", str(tmp_path), "--doc", "small")
    done = run(tmp_path, environment, *flags)
    assert done.returncode == 2
    assert "is 41 x 30 and the model is one of 8 x 8: model.local=True" in done.stderr
