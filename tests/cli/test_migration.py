"""The commands that open published checkpoints and give parameters away."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import command_line
import jax
import numpy as np
import pytest
from command_line import ROOT
from safetensors.numpy import load_file, save_file
from small_runs import SMALL

from hos_jax import migrate
from hos_jax.cli import main as cli
from hos_jax.cli.arguments import make_config, parse
from hos_jax.config import default_config
from hos_jax.config import load as load_config
from hos_jax.config.networks import make_model
from hos_jax.config.runners import apply_runner
from hos_jax.errors import UserError
from hos_jax.migrate import importing, tensor_files
from hos_jax.migrate.refinenet_weights import refinenet_params
from hos_jax.training.loop import train_and_evaluate
from hos_jax.training.problem import Problem
from hos_jax.training.runs import load_run

GOLDEN = ROOT / "tests" / "golden"
# ml-collections 1.1 loads config files with a deprecated method of importlib.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.fixture
def main(tmp_path, capsys, monkeypatch):
    """Run the command line in this process; returns (status, output, errors)."""
    monkeypatch.setattr("builtins.input", lambda question: "")

    def run(*arguments):
        status = cli.main(["main.py", arguments[0], "--run", str(tmp_path), *arguments[1:]])
        return status, *capsys.readouterr()

    with command_line.logging_as_before():
        yield run


@pytest.fixture(scope="module")
def stored():
    with np.load(GOLDEN / "refinenet_mnist_ngf16.npz") as file:
        return {n.removeprefix("state/"): file[n] for n in file if n.startswith("state/")}


@pytest.fixture
def small_run(tmp_path):
    """A run of no steps with averages: its folder, and its state."""
    config = default_config()
    config.update_from_flattened_dict({**SMALL, "optim.ema": 0.9, "model.rank": 3})
    apply_runner(config, "LowRankHybridRunner")
    problem = Problem.from_config(config)
    params = problem.init().params["params"]
    averages = jax.tree.map(lambda leaf: leaf + 1.0, params)
    images = problem.identity()
    importing._write_run(problem, tmp_path / "a", params, averages, 40, images=images)
    return tmp_path / "a", averages


def same(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def one_line(status, out, errors):
    assert status == 2 and not out
    assert len(errors.strip().splitlines()) == 1 and errors.startswith("error: ")
    return errors


def test_import_makes_a_run(main, stored, tmp_path):
    save_file({f"module.{name}": array for name, array in stored.items()}, tmp_path / "s1.st")
    arguments = [str(tmp_path / "s1.st"), "--doc", "a", "--config.data.name=mnist5k"]
    arguments += ["--noise", "0.3", "--checked_images", "0", "--ni"]
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "precious").write_text("x")
    status, out, errors = main("import_checkpoint", *arguments)
    assert status == 0, errors
    assert "found s1, RefineNets of 16 channels" in out and "--test" in out
    config = load_config(tmp_path / "a")
    assert config.noise == 0.3 and config.model.ngf == 16
    same(load_run(tmp_path / "a").params["params"], {"score1": refinenet_params(stored)})
    (moved,) = tmp_path.glob("a.*")
    assert (moved / "precious").read_text() == "x"


def test_export_reads_back_and_becomes_the_same_run(main, small_run, tmp_path):
    workdir, averages = small_run
    status, out, _ = main("export_parameters", "--doc", "a", "--output", str(tmp_path / "p.st"))
    assert status == 0 and "step 40" in out
    (tmp_path / "of_this_user").touch()
    modes = [(tmp_path / name).stat().st_mode for name in ("p.st", "of_this_user")]
    assert modes[0] == modes[1]
    back = migrate.read_parameters(tmp_path / "p.st")
    same(back.params, averages)
    assert back.config == load_config(workdir) and back.step == 40
    assert back.image_shape == (8, 8, 1)
    noisy = np.zeros((2, 64), np.float32)
    scores = make_model(back.config.model).apply({"params": back.params}, noisy, 0.5)
    assert scores.score1.shape == (2, 64)
    assert "choose another name" in one_line(
        *main("export_parameters", "--doc", "a", "--output", str(tmp_path / "p.st"))
    )
    assert main("export_parameters", "--doc", "a")[0] == 0
    same(load_file(workdir / "parameters.safetensors"), load_file(tmp_path / "p.st"))
    assert main("import_checkpoint", str(tmp_path / "p.st"), "--doc", "b")[0] == 0
    config = load_config(tmp_path / "b")
    for key in ("images", "image_form"):
        begun, imported = (
            json.loads((folder / "config.json").read_text())[key]
            for folder in (workdir, tmp_path / "b")
        )
        assert begun == imported and begun
    run = load_run(tmp_path / "b")
    assert run.step == 40 and "exported parameters of LowRankHybridRunner" in config.comment
    same(run.params["params"], averages)
    values = parse(["main.py", "--run", str(tmp_path), "--doc", "b", "--test", "--rank=4"])
    assert make_config(values).model.rank == 4
    assert make_config(values).comment == config.comment


def test_parameters_of_other_images_are_named(small_run, tmp_path, caplog):
    migrate.export_parameters(small_run[0], tmp_path / "p.st")
    content, metadata = tensor_files.read(tmp_path / "p.st")
    other = metadata | {"images": json.dumps({"train": 1, "held_out": 1, "checksum": "0"})}
    for name, known, kept in (("p", metadata, True), ("other", other, False)):
        caplog.clear()
        tensor_files.write(tmp_path / f"{name}.safetensors", content, known)
        migrate.import_checkpoint(tmp_path / f"{name}.safetensors", tmp_path / name)
        saved = json.loads((tmp_path / name / "config.json").read_text())
        assert (saved["images"] is not None) == ("image_form" in saved) == kept
        assert ("the images here are not those that these" in caplog.text) == (not kept)
    # To go on does not make them those that it began with.
    config = load_config(tmp_path / "other")
    config.training.update(steps=41, batch_size=8)
    train_and_evaluate(config, tmp_path / "other", resume=True)
    assert json.loads((tmp_path / "other" / "config.json").read_text())["images"] is None


def test_an_export_is_a_run_without_its_folder_and_images(main, small_run, tmp_path):
    workdir, averages = small_run
    path = tmp_path / "p.st"
    arguments = ("export_parameters", "--doc", "a", "--output", str(path), "--half", "--examples=3")
    assert main(*arguments)[0] == 0
    exact = load_run(workdir)
    run = migrate.load_exported(path)
    assert run.step == 40 and run.problem.data.value_range == exact.problem.data.value_range
    np.testing.assert_array_equal(run.problem.data.held_out, exact.problem.data.held_out[:3])
    for kept, true in zip(*map(jax.tree.leaves, (run.params["params"], averages)), strict=True):
        assert kept.dtype == np.float32
        np.testing.assert_allclose(kept, true, rtol=2**-11, atol=1e-7)
    noisy = run.problem.data.to_float(run.problem.data.held_out)
    scores = [each.model.apply(each.params, noisy, 0.5).score1 for each in (run, exact)]
    np.testing.assert_allclose(*scores, rtol=1e-3)


def test_what_float16_has_no_room_for_is_refused(small_run, tmp_path, monkeypatch):
    workdir, _ = small_run
    with pytest.raises(ValueError, match="whole number examples >= 0, got -1"):
        migrate.export_parameters(workdir, tmp_path / "p.st", examples=-1)
    monkeypatch.setattr("hos_jax.migrate.parameters._LARGEST_HALF", 1e-9)
    with pytest.raises(UserError, match="too large for float16"):
        migrate.export_parameters(str(workdir), str(tmp_path / "p.st"), half=True)
    assert not any(tmp_path.glob("p.st*"))


def test_a_file_of_the_first_version_tells_the_shape_alone(small_run, tmp_path):
    workdir, averages = small_run
    migrate.export_parameters(workdir, tmp_path / "p.st")
    arrays, metadata = tensor_files.read(tmp_path / "p.st")
    del metadata["image_form"]
    tensor_files.write(tmp_path / "old.st", arrays, metadata)
    run = migrate.load_exported(tmp_path / "old.st")
    same(run.params["params"], averages)
    assert run.problem.data.form == load_run(workdir).problem.data.form


def test_a_changed_export_is_refused(small_run, tmp_path):
    workdir, _ = small_run
    migrate.export_parameters(workdir, tmp_path / "p.st")
    arrays, metadata = tensor_files.read(tmp_path / "p.st")
    name = next(iter(arrays))
    changes = {
        "was not written by": (arrays, {**metadata, "format": "other"}),
        f"lacks the array {name}": ({k: a for k, a in arrays.items() if k != name}, metadata),
        "an array more, of which the model": ({**arrays, "more": np.zeros(3)}, metadata),
        "metadata of": (arrays, {**metadata, "config": "{"}),
        "held-out ones": ({**arrays, "images/held_out": np.zeros((1, 9, 9, 1), "u1")}, metadata),
        "cannot be read: shape": (arrays, {**metadata, "image_shape": "[9, 9, 1]"}),
        "no finite number": ({**arrays, name: np.full_like(arrays[name], np.nan)}, metadata),
        f"array {name} of": ({**arrays, name: arrays[name].astype(int)}, metadata),
        "has no attribute 'get'": ({**arrays, "images": np.zeros(3)}, metadata),
    }
    form = json.loads(metadata["image_form"])
    for key, wrong in {
        "value_range": [[1, 0], ["a", "b"], [None, 1], [0, 0], 3],
        "shape": [[10**7, 10**7, 1], "x"],
        "dtype": ["float64", "what"],
    }.items():
        for value in wrong:
            said = {**metadata, "image_form": json.dumps({**form, key: value})}
            changes[f"metadata of .* cannot be read(?#{key}{value})"] = (arrays, said)
    for i, (message, (some, about)) in enumerate(changes.items()):
        path = tmp_path / f"{i}.st"
        tensor_files.write(path, some, about)
        with pytest.raises(UserError, match=message):
            migrate.read_parameters(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("import_checkpoint",), "--doc is needed"),
        (("import_checkpoint", "--doc", "a"), "the path of one checkpoint"),
        (("densoise", "a.png", "--sigma=0.1"), "'densoise' (did you mean denoise?"),
        (("import_checkpoint", "none.pth", "--doc", "a"), "no file none.pth"),
        (("import_checkpoint", "demoo", "--doc", "a"), "no file demoo: did you mean demo?"),
        (("import_checkpoint", "x", "--doc", "a", "--config.model.nfg=3"), "--config.model.ngf"),
        (("import_checkpoint", "x", "--doc", "a", "--noize=3"), "noize"),
        (("export_parameters", "--doc", "none"), "no run in"),
        (("export_parameters", "stray", "--doc", "a"), "unexpected argument 'stray'"),
        (("--doc", "none", "--test"), "no run in"),
    ],
)
def test_a_mistake_is_one_line(main, tmp_path, arguments, message):
    assert message in one_line(*main(*arguments))
    assert not any(tmp_path.iterdir())


def test_help_of_a_command(main):
    status, out, _ = main("import_checkpoint", "--help")
    assert status == 0 and "--noise\n" in out and "safetensors" in out
    assert max(len(line) for line in out.splitlines()) <= 100


def test_a_missing_torch_is_one_line(main, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "x.pth").write_bytes(b"PK\x03\x04 something")
    errors = one_line(*main("import_checkpoint", str(tmp_path / "x.pth"), "--doc", "a"))
    assert 'pip install "hos_jax[import]"' in errors


def test_a_damaged_zip_is_left_to_torch(main, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("a/data.pkl", b"something")
    content = (tmp_path / "x.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(content.replace(b"PK\x01\x02", b"PK\x01\x09"))
    errors = one_line(*main("import_checkpoint", str(tmp_path / "x.pth"), "--doc", "a"))
    assert 'pip install "hos_jax[import]"' in errors


@pytest.mark.parametrize("kind", ["text", "arrays", "picture"])
def test_nobody_is_sent_for_torch_by_what_is_no_checkpoint(main, tmp_path, monkeypatch, kind):
    monkeypatch.setitem(sys.modules, "torch", None)
    path = tmp_path / "x.pth"
    if kind == "arrays":
        with path.open("wb") as file:
            np.savez(file, weights=np.zeros(3))
    else:
        path.write_bytes(b"hello, hello" if kind == "text" else b"\x89PNG\r\n\x1a\n" + bytes(9))
    errors = one_line(*main("import_checkpoint", str(path), "--doc", "a"))
    assert "x.pth is neither a PyTorch checkpoint nor a safetensors file" in errors


def test_a_damaged_safetensors_file_is_one_line(main, stored, tmp_path):
    path = tmp_path / "s1.st"
    save_file(stored, path)
    path.write_bytes(path.read_bytes()[:-100])
    errors = one_line(*main("import_checkpoint", str(path), "--doc", "a", "--noise=1"))
    assert "cannot be read as safetensors" in errors


class TestTorch:
    """What needs PyTorch itself."""

    @pytest.fixture(autouse=True)
    def torch(self):
        return pytest.importorskip("torch")

    def test_a_checkpoint_reads_as_arrays(self, torch, stored, tmp_path):
        state = {f"module.{name}": torch.tensor(array) for name, array in stored.items()}
        network = torch.nn.Linear(2, 3)
        optimizer = torch.optim.Adam(network.parameters(), amsgrad=True)
        network(torch.ones(2)).sum().backward()
        optimizer.step()
        half = {name: tensor.to(torch.bfloat16) for name, tensor in state.items()}
        for legacy in (True, False):
            path = tmp_path / f"checkpoint_{legacy}.pth"
            torch.save(
                [state, optimizer.state_dict(), 3, 700, half],
                path,
                _use_new_zipfile_serialization=not legacy,
            )
            (content, _) = tensor_files.read(path)
            assert content[1:4] == [{}, 3, 700]
            assert all(a.dtype == np.float32 for a in content[4].values())
            found = migrate.recognise(content)
            assert (found.step, found.averaged) == (700, ("s1",))
            same(found.params, {"score1": refinenet_params(stored)})

    def test_a_pickle_that_would_run_code_is_refused(self, torch, main, tmp_path):
        marker = tmp_path / "ran"

        class Hostile:
            def __reduce__(self):
                return Path.touch, (marker,)

        path = tmp_path / "checkpoint.pth"
        torch.save([{"begin_conv.weight": torch.zeros(1)}, Hostile()], path)
        errors = one_line(*main("import_checkpoint", str(path), "--doc", "a", "--noise=1"))
        assert "is refused" in errors and not marker.exists() and not (tmp_path / "a").exists()
        torch.load(path, weights_only=False)
        assert marker.exists(), "the file is not hostile"

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"", "is empty or cut off"),
            (b"text", "is empty or cut off"),
            (b"PK\x03\x04 no zip", "cannot be read"),
            (b"\x80\x02garbage", "cannot be read"),
        ],
    )
    def test_a_damaged_checkpoint_is_one_line(self, main, tmp_path, content, said):
        path = tmp_path / "checkpoint.pth"
        path.write_bytes(content)
        errors = one_line(*main("import_checkpoint", str(path), "--doc", "a", "--noise=1"))
        assert said in errors


@pytest.mark.slow
def test_an_imported_run_is_tested_and_resumed(command, stored, tmp_path):
    save_file(stored, tmp_path / "s1.st")

    def first(*arguments):
        path = [sys.executable, str(ROOT / "main.py"), *arguments, "--run", str(tmp_path)]
        return subprocess.run(path, capture_output=True, text=True, cwd=ROOT)

    arguments = [str(tmp_path / "s1.st"), "--doc", "a", "--noise", "0.5"]
    arguments += ["--config.data.name=mnist5k", "--config.training.batch_size=20"]
    done = first("import_checkpoint", *arguments)
    assert done.returncode == 0, done.stderr
    assert "warning: s1 removes no noise" in done.stdout
    done = command("--doc", "a", "--resume_training", "--config.training.steps=2", small=False)
    assert done.returncode == 0 and "2 steps done" in done.stdout, done.stderr
    small = [f"--config.sampling.{name}=2" for name in ("steps", "chains", "images")]
    done = command("--doc", "a", "--test", *small, small=False)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert metrics["step"] == 2 and metrics["denoise_mse"] > 0
    name = tmp_path / "a" / "parameters.safetensors"
    done = command("export_parameters", "--doc", "a", small=False)
    assert "unexpected argument 'export_parameters' (it goes first)" in done.stderr
    assert first("export_parameters", "--doc", "a").returncode == 0
    assert "score1/end/conv/kernel" in load_file(name)
