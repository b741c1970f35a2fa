"""The published code has eight defects that end a run, lose it or endanger it; none is left.

One test each, under the published command line. An experiment is trained, resumed and tested once,
on packaged data and with a small network, and several tests look at what came of it.
"""

import ast
import functools
import json
import pickle
import re
import shutil

import pytest
from command_line import ROOT
from small_runs import quickly, runner_in
from test_published_commands import PUBLISHED, metrics_of, published_commands

LOW_RANK = ("--runner", "LowRankHybridRunner", "--config", "demo", "--rank", "3")
DOCS = {
    "first_order": "dsm_mnist_0.5",
    "low_rank": "low_rank_mnist_0.5",
    "diagonal": "diagonal_cifar10_0.5",
}


# One runner every time; `make test-slow` has the others, with the published networks too.
RUNNERS = [
    pytest.param(name, marks=() if name == "low_rank" else pytest.mark.slow) for name in PUBLISHED
]


@pytest.fixture(scope="module")
def published(tmp_path_factory, environment):
    """The folder of the runs, and a function that gives the finished process of a command."""
    folder = tmp_path_factory.mktemp("published")
    command = runner_in(folder, environment, quickly)

    @functools.cache
    def done(name, what):
        # Each goes on from the one before it.
        before = {"resume": "train", "test": "resume"}.get(what)
        if before is not None:
            done(name, before)
        return command(*published_commands(name, "mlp")[what], small=False)

    return folder, done


def test_1_the_cifar10_command_trains(published):
    _, done = published
    assert done("diagonal", "train").returncode == 0, done("diagonal", "train").stderr


@pytest.mark.parametrize("name", RUNNERS)
def test_2_every_runner_resumes(published, name):
    _, done = published
    resumed = done(name, "resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed from step 2" in resumed.stderr and "3 steps done" in resumed.stdout


@pytest.mark.parametrize("name", RUNNERS)
def test_3_every_runner_tests(published, name):
    folder, done = published
    assert done(name, "test").returncode == 0, done(name, "test").stderr
    metrics = metrics_of(folder, name)
    assert metrics["step"] == 3 and metrics["data"] == PUBLISHED[name][1]
    assert ("calibration" in metrics) == (name != "first_order")
    assert (folder / DOCS[name] / "figures" / "denoising.png").stat().st_size > 1000


def test_4_a_failure_has_a_failing_status(command):
    wild = ("--config.optim.lr=1e30", "--config.optim.clip=0.0", "--config.training.steps=20")
    done = command(*LOW_RANK, "--doc", "a", "--ni", *wild)
    assert done.returncode == 2 and "is not finite at step" in done.stderr
    done = command(*LOW_RANK, "--doc", "nothing", "--test")
    assert done.returncode == 2 and "no run in" in done.stderr


def test_5_ni_deletes_no_run(command, tmp_path):
    old = tmp_path / "a"
    old.mkdir()
    (old / "precious").write_text("x")
    done = command(*LOW_RANK, "--doc", "a", "--config.training.steps=1")
    assert done.returncode == 2 and "left as it is" in done.stderr
    assert (old / "precious").exists()
    done = command(*LOW_RANK, "--doc", "a", "--config.training.steps=1", stdin="n\n")
    assert done.returncode == 2 and (old / "precious").exists()
    done = command(*LOW_RANK, "--doc", "a", "--config.training.steps=1", "--ni")
    assert done.returncode == 0, done.stderr
    moved = [path for path in tmp_path.iterdir() if re.fullmatch(r"a\.\d{8}-\d{6}", path.name)]
    assert len(moved) == 1 and (moved[0] / "precious").read_text() == "x"
    done = command(*LOW_RANK, "--doc", "a", "--config.training.steps=1", stdin="yes\n")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", PUBLISHED)
def test_6_the_saved_config_has_the_noise_and_the_rank(published, name):
    folder, done = published
    assert done(name, "train").returncode == 0, done(name, "train").stderr
    saved = json.loads((folder / DOCS[name] / "config.json").read_text())
    assert saved["noise"] == 0.5
    assert saved["model"]["rank"] == (3 if name == "low_rank" else 50)


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_7_loading_a_checkpoint_executes_nothing(published, command, tmp_path):
    folder, done = published
    assert done("low_rank", "resume").returncode == 0
    workdir, fired = tmp_path / DOCS["low_rank"], tmp_path / "fired"
    shutil.copytree(folder / workdir.name, workdir)
    payload = pickle.dumps(Bomb(fired))
    pickle.loads(payload).close()
    assert fired.exists()  # the bomb works
    fired.unlink()
    # Where the published code looks, and in place of all that this one reads.
    (workdir / "checkpoint.pth").write_bytes(payload)
    for path in (workdir / "checkpoints" / "3").rglob("*"):
        if path.is_file():
            path.write_bytes(payload)
    done = command(*published_commands("low_rank", "mlp")["resume"], small=False)
    assert done.returncode == 0, done.stderr
    assert "checkpoints/3 cannot be read" in done.stderr and "resumed from step 2" in done.stderr
    assert not fired.exists()


def test_7_nothing_in_the_package_unpickles():
    """No module imports what unpickles, and no NumPy file is read with pickles allowed."""
    forbidden = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "torch"}
    for path in (ROOT / "hos_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module]
            else:
                names = []
            assert not forbidden & {name.partition(".")[0] for name in names}, path
            assert not (isinstance(node, ast.keyword) and node.arg == "allow_pickle"), path


def test_8_the_runner_is_a_name_and_never_code(command, tmp_path):
    fired = tmp_path / "fired"
    for code in (f"open({str(fired)!r}, 'w')", "__import__('os').getcwd()"):
        done = command("--runner", code, "--config", "demo", small=False)
        assert done.returncode == 2 and "unknown runner" in done.stderr
        assert not fired.exists()
