"""No command line, however wrong, shows a user a traceback: one line and a failing status."""

import contextlib
import json
import random

import pytest
from fault_runs import RUNNER, flags
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hos_jax.config import default_config
from hos_jax.config.keys import all_keys

# ml-collections 1.1 loads config files with a deprecated method of importlib.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

KEYS = list(all_keys(default_config()))
FLAG_NAMES = "noise rank seed doc run comment verbose image_folder i runner config test ni"
FLAGS = FLAG_NAMES.split()
WORDS = (
    "0 -1 1 2 3 7 64 65 1e400 nan inf -inf 1.5 1e-300 1e300 99999999999 True False None mlp digits "
    "photos image_folder none dense diagonal residual_nll d2sm_vr score shared per_output () (1,2) "
    "(0,) (1.5,) ((1,),) [1] {} -- ../x /dev/null bfloat16 cosine ozaki annealed_ozaki é ~ . .."
)
VALUES = WORDS.split()
VALUES += ["", " ", "\n", "__import__('os')"]
# Networks that take long to compile, for where nothing is compiled.
NETWORKS = ["unet", "refinenet"]


def texts(longest):
    """What a shell can pass."""
    return st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=longest)


def arguments(values):
    keys, flag_names = st.sampled_from(KEYS), st.sampled_from(FLAGS)
    return st.one_of(
        st.builds("--config.{}={}".format, keys, st.sampled_from(values)),
        st.builds("--config.{}={}".format, keys, texts(4)),
        st.builds("--{}={}".format, flag_names, st.sampled_from(values)),
        st.sampled_from(values),
        st.builds("--{}".format, texts(8)),
    )


def check(status, errors):
    assert "Traceback" not in errors, errors
    if status:
        said = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert status == 2 and len(said) == 1 and errors.rstrip().endswith(said[0]), errors


def fuzzed(examples):
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def run(command, tmp_path, arguments):
    with contextlib.suppress(SystemExit):  # of --help
        check(*command("--run", tmp_path / "runs", "--ni", *arguments))


@fuzzed(150)
@given(st.lists(arguments(VALUES + NETWORKS), min_size=1, max_size=3))
def test_any_arguments_are_taken_or_refused_in_one_line(command, tmp_path, given_):
    """Up to the point where training would begin."""

    class Done:
        step = 0

    def only_prepare(config, workdir, **others):
        from hos_jax.training.problem import Problem

        Problem.from_config(config).abstract_state()
        return Done

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setattr("hos_jax.training.loop.train_and_evaluate", only_prepare)
        run(command, tmp_path, [*flags(), *given_])


@pytest.mark.slow
@fuzzed(80)
@given(st.lists(arguments(VALUES), min_size=1, max_size=3))
def test_any_arguments_train_or_are_refused_in_one_line(command, tmp_path, given_):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        run(command, tmp_path, [*flags(training__steps=1), *given_])


BAD_CONFIGS = {
    "syntax": ("def get_config(:\n", "SyntaxError"),
    "import": ("import no_such_module\n", "no_such_module"),
    "none": ("def get_config():\n    return None\n", "it gives NoneType"),
    "raises": ("def get_config():\n    raise ValueError('first\\nsecond')\n", "first second"),
    "empty_config": (
        "import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict()\n",
        "is missing",
    ),
    "mistyped": (
        "from hos_jax.config import default_config\n"
        "def get_config():\n    c = default_config()\n    c.model.nfg = 3\n    return c\n",
        "did you mean model.ngf",
    ),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_a_config_file_that_cannot_be_used_is_one_line(command, tmp_path, name):
    content, message = BAD_CONFIGS[name]
    path = tmp_path / f"{name}.py"
    path.write_text(content)
    status, errors = command("--run", tmp_path / "runs", *RUNNER[:2], "--config", path, "--ni")
    check(status, errors)
    assert status == 2 and message in errors


@pytest.mark.parametrize("doc", ["", ".", "..", "../x", "/tmp/x", "a/../../x", "a\0b", "a\nb"])
def test_a_run_stays_inside_the_folder_of_runs(command, tmp_path, doc):
    (tmp_path / "runs" / "old").mkdir(parents=True)
    (tmp_path / "runs" / "old" / "precious").write_text("x")
    for flag in ("--doc", "--image_folder"):
        how = "--ni" if flag == "--doc" else "--test"
        status, errors = command("--run", tmp_path / "runs", *flags(), f"{flag}={doc}", how)
        check(status, errors)
        assert status == 2 and flag in errors
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert (tmp_path / "runs" / "old" / "precious").exists()


@pytest.mark.parametrize("mistake", ["--rank=65", "--config.training.batch_size=5000"])
def test_a_mistake_found_in_the_data_leaves_the_old_run_where_it_is(command, tmp_path, mistake):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "precious").write_text("x")
    runner = ("--runner", "LowRankHybridRunner")
    place = ("--run", tmp_path, "--doc", "a", *flags()[2:], *runner, "--ni")
    status, errors = command(*place, mistake)
    check(status, errors)
    assert status == 2 and [path.name for path in tmp_path.iterdir()] == ["a"]
    (tmp_path / "b").write_text("a file")
    status, errors = command("--run", tmp_path, "--doc", "b", *flags(), "--ni")
    assert status == 2 and "is a file" in errors


def test_another_model_noise_or_data_is_refused_with_the_difference(command, tmp_path):
    place = ("--run", tmp_path, "--doc", "a")
    assert command(*place, *flags(training__steps=1), "--ni")[0] == 0
    changes = {
        "--noise=0.25": "noise: 0.5 -> 0.25",
        "--config.model.ngf=5": "model.ngf: 4 -> 5",
        "--config.data.name=mnist5k": "data.name: digits -> mnist5k",
        "--seed=7": "seed: 1234 -> 7",
        "--runner=DoubleDiagonalHybridRunner": "model.head: none -> diagonal",
    }
    for how in ("--resume_training", "--test"):
        for change, difference in changes.items():
            status, errors = command(*place, *flags(training__steps=1), change, how)
            check(status, errors)
            assert status == 2 and difference in errors


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_run_folder_never_gives_a_traceback(command, tmp_path, seed):
    """Any file of a run, cut short, overwritten or replaced by a folder."""
    rng = random.Random(seed)
    place = ("--run", tmp_path, "--doc", "a")
    assert command(*place, *flags(training__steps=1), "--ni")[0] == 0
    files = sorted(path for path in (tmp_path / "a").rglob("*") if path.is_file())
    victim = rng.choice([*files, tmp_path / "a" / "config.json", tmp_path / "a" / "history.jsonl"])
    content = victim.read_bytes()
    kind = rng.choice(["cut", "noise", "number", "list", "folder"])
    victim.unlink()
    if kind == "folder":
        victim.mkdir()
    else:
        new = {"cut": content[: len(content) // 2], "noise": rng.randbytes(50)}
        new |= {"number": b"3", "list": json.dumps([{"step": "x"}]).encode()}
        victim.write_bytes(new[kind])
    for how in ("--resume_training", "--ni"):
        check(*command(*place, *flags(training__steps=2), how))
