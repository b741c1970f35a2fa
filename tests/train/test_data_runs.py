"""Where data meets runs: few images, images that are not square, arrays, and other images."""

import base64
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hos_jax.errors import UserError
from hos_jax.evaluation.evaluate import evaluate_run, table
from hos_jax.training.checkpoint import Checkpoints
from hos_jax.training.loop import train_and_evaluate
from hos_jax.training.problem import Problem
from hos_jax.training.runs import load_run, load_run_as

FIRST_ORDER = {"model__head": "none", "loss__second_order": "none"}


def _pictures(folder, count, shape=(8, 8, 3), seed=0):
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    for index in range(count):
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03}.png")
    return folder


@pytest.fixture(name="config_of")
def _config_of(small_config):
    def make(root, **options):
        if root.is_dir():
            folder = {"data__image_size": 8, "data__crop": 0}
            options = {"data__name": "image_folder", **folder, **options}
        else:
            options = {"data__name": "arrays", **options}
        steps = {"training__checkpoint_every": 6, "training__evaluate_every": 6}
        return small_config(data__root=str(root), **steps, **options)

    return make


def _without_nan(text):
    """JSON whose numbers are numbers."""

    def refuse(constant):
        raise AssertionError(f"{constant} in JSON")

    return json.loads(text, parse_constant=refuse)


def _numbers(workdir):
    return _without_nan((workdir / "metrics.json").read_text())


def _page(workdir):
    """The data of the report."""
    page = (workdir / "report.html").read_text()
    return _without_nan(re.search(r'type="application/json">(.*?)</script>', page, re.S)[1])


@pytest.mark.parametrize(
    ("count", "batch_size", "head"),
    [
        (2, 1, "none"),
        pytest.param(2, 1, "low_rank", marks=pytest.mark.slow),
        (3, 2, "diagonal"),
        pytest.param(39, 8, "none", marks=pytest.mark.slow),
        pytest.param(39, 8, "low_rank", marks=pytest.mark.slow),
        pytest.param(40, 8, "low_rank", marks=pytest.mark.slow),
    ],
)
def test_of_few_images_there_are_the_numbers_that_exist(
    config_of, tmp_path, count, batch_size, head
):
    options = {"training__batch_size": batch_size, "model__head": head}
    options |= FIRST_ORDER if head == "none" else {}
    config = config_of(_pictures(tmp_path / "images", count), **options)
    train_and_evaluate(config, tmp_path / "run")
    result = evaluate_run(config, tmp_path / "run")
    assert "denoise_mse" in table(result)
    found = _numbers(tmp_path / "run")
    held_out = 2 if count == 40 else 1
    assert found["held_out_images"] == held_out and found["denoise_mse"] > 0
    assert (found["standard_error"]["denoise_mse"] is None) == (held_out == 1)
    assert len(found["sampling"]["distance"]) == (0 if count == 2 else 5)
    if head != "none":
        assert ("recalibrated" in found) == (held_out == 2)
        assert ("pca" in found["directions"]) == (count > 2)
        assert len(found["directions"]["model"]) == max(1, min(count - held_out - 1, 12))
    page = _page(tmp_path / "run")
    said = "Measured on 1 image that" if held_out == 1 else "Measured on 2 images that"
    assert said in page["summary"]
    assert len(page["images"]) == (0 if head == "none" else held_out)
    for image in page["images"]:
        for encoded in image.values():
            assert np.isfinite(np.frombuffer(base64.b64decode(encoded), "<f4")).all()


def test_too_few_images_are_refused_before_training(config_of, tmp_path):
    for count, message in ((1, "at least 2 are needed"), (5, "exceeds the 4 training images")):
        config = config_of(_pictures(tmp_path / "images", count))
        with pytest.raises(UserError, match=message):
            train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


NETWORKS = {
    "mlp": {},
    "unet": {"model__name": "unet", "model__multipliers": (1, 2), "model__ngf": 4, **FIRST_ORDER},
    "refinenet": {"model__name": "refinenet", "model__ngf": 4, **FIRST_ORDER},
}


@pytest.mark.parametrize(
    "network",
    ["unet", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mlp", "refinenet"))],
)
def test_images_that_are_not_square_go_all_the_way(config_of, tmp_path, network):
    root = _pictures(tmp_path / "images", 44, (30, 50))
    options = {**NETWORKS[network], "data__image_size": 8, "data__image_width": 16}
    config = config_of(root, **options)
    train_and_evaluate(config, tmp_path / "run")
    result = evaluate_run(config, tmp_path / "run")
    assert result["held_out_images"] == 2
    page = _page(tmp_path / "run")
    assert page["shape"] == [8, 16, 1]
    assert len(page["figures"]) == (8 if network == "mlp" else 5)


def test_a_run_finds_its_images_from_another_folder(config_of, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.random.default_rng(0).integers(0, 256, (60, 4, 8), np.uint8))
    train_and_evaluate(config_of(Path("x.npy"), training__steps=1), tmp_path / "run")
    # A run that was begun before roots were written in full goes on.
    saved = tmp_path / "run" / "config.json"
    saved.write_text(saved.read_text().replace(f"{tmp_path}/x.npy", "x.npy"))
    train_and_evaluate(config_of(Path("x.npy"), training__steps=2), tmp_path / "run", resume=True)
    assert "data.root" not in caplog.text
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert load_run(tmp_path / "run").step == 2


@pytest.mark.parametrize(("largest", "warns"), [(1, True), (16, True), (255, False)])
def test_bytes_that_do_not_reach_white_are_named(config_of, tmp_path, caplog, largest, warns):
    images = np.random.default_rng(0).integers(0, largest, (60, 4, 8), np.uint8, endpoint=True)
    np.save(tmp_path / "x.npy", images)
    Problem.from_config(config_of(tmp_path / "x.npy"))
    assert ("whole numbers of 8 bits are taken as 0 to 255" in caplog.text) == warns


@pytest.mark.parametrize("kind", ["bytes", "real"])
def test_arrays_are_a_data_set_of_a_run(config_of, tmp_path, kind, caplog):
    images = np.random.default_rng(0).integers(0, 256, (60, 4, 8), dtype=np.uint8)
    root, options = tmp_path / "x.npy", {}
    if kind == "bytes":
        np.save(root, images)
    else:
        root, options = tmp_path / "x.npz", {"noise": 50.0}
        np.savez(root, images=images * 4.0, labels=np.arange(60))
    config = config_of(root, **options)
    train_and_evaluate(config, tmp_path / "run")
    result = evaluate_run(config, tmp_path / "run")
    assert np.isfinite(result["denoise_mse"]) and _numbers(tmp_path / "run")
    assert _page(tmp_path / "run")["range"] == ([0, 1020] if kind == "real" else [-1, 1])
    assert ("set it, and a noise in the same units" in caplog.text) == (kind == "real")


@pytest.fixture(name="trained")
def _trained(config_of, tmp_path):
    config = config_of(_pictures(tmp_path / "images", 60))
    train_and_evaluate(config, tmp_path / "run")
    return config


def _one_more(folder):
    shutil.copy(folder / "005.png", folder / "00 one more.png")


def _one_other(folder):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "007.png")


def _other_order(folder):
    (folder / "007.png").rename(folder / "zzz.png")


@pytest.mark.parametrize("change", [_one_more, _one_other, _other_order])
def test_a_run_is_not_tested_or_continued_on_other_images(trained, tmp_path, change):
    change(tmp_path / "images")
    trained.training.steps = 8
    for go_on in (
        lambda: evaluate_run(trained, tmp_path / "run"),
        lambda: train_and_evaluate(trained, tmp_path / "run", resume=True),
    ):
        with pytest.raises(UserError, match="not those that this run was trained on") as error:
            go_on()
        assert "57 to train on and 3 held out" in str(error.value)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [6]


def test_a_copied_run_finds_its_images_elsewhere(trained, tmp_path):
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    (tmp_path / "run").rename(tmp_path / "copy")
    with pytest.raises(UserError, match="is not a folder"):
        load_run_as(trained, tmp_path / "copy")
    trained.data.root = str(tmp_path / "elsewhere")
    assert len(load_run_as(trained, tmp_path / "copy").problem.data.held_out) == 3
    trained.training.steps = 8
    assert train_and_evaluate(trained, tmp_path / "copy", resume=True).step == 8


def test_a_run_that_does_not_say_what_it_was_trained_on_goes_on(trained, tmp_path):
    path = tmp_path / "run" / "config.json"
    content = json.loads(path.read_text())
    assert content.pop("images")["train"] == 57
    path.write_text(json.dumps(content))
    _one_more(tmp_path / "images")
    assert len(load_run_as(trained, tmp_path / "run").problem.data.train) == 58
    path.write_text(json.dumps({**content, "images": "many"}))
    with pytest.raises(UserError, match="cannot be read"):
        load_run_as(trained, tmp_path / "run")
