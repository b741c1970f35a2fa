"""Every config key refuses what it cannot be, by name; what is valid survives its file."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hos_jax import config as run_config
from hos_jax.config import check_same_run, default_config, differences, to_plain, validate
from hos_jax.config.keys import all_keys, nearest
from hos_jax.errors import UserError
from hos_jax.linops import KRYLOV_VECTORS

KEYS = list(all_keys(default_config()))
GROUPS = [key for key in KEYS if any(other.startswith(f"{key}.") for other in KEYS)]
LEAVES = [key for key in KEYS if key not in GROUPS]
CHECKED = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.one_of(st.integers(-2, 2), st.floats(), st.text(max_size=2)), max_size=3),
)


def test_a_runner_says_which_head_it_replaces(caplog):
    for head, name, kept, warned in (
        ("low_rank", "DoubleDiagonalHybridRunner", "diagonal", ""),
        ("local_low_rank", "LowRankHybridRunner", "local_low_rank", ""),
        ("dense", "UnetDSMRunner", "none", ""),
        ("dense", "LowRankHybridRunner", "low_rank", "model.head to low_rank in place of dense"),
    ):
        config = default_config()
        config.model.head = head
        caplog.clear()
        run_config.apply_runner(config, name)
        assert config.model.head == kept and bool(caplog.text) == bool(warned)
        assert warned in caplog.text


def parts(config, path):
    group, _, name = path.rpartition(".")
    return (config[group] if group else config), name


def assigned(path, value):
    """The default config with one value put in past all checks, as a user's file may do."""
    config = default_config()
    group, name = parts(config, path)
    with group.ignore_type():
        group[name] = value
    return config


def refusal(config):
    """What `validate` says against a config, or None."""
    try:
        validate(config)
    except UserError as error:
        return str(error)
    return None


@CHECKED
@given(st.sampled_from(LEAVES), JUNK)
def test_whatever_a_key_holds_it_is_taken_or_refused_by_name(path, value):
    config = assigned(path, value)
    said = refusal(config)
    if said is None:
        group, name = parts(default_config(), path)
        held = parts(config, path)[0][name]
        assert held is None or isinstance(held, bool) == (group.get_type(name) is bool)
    else:
        assert path.rpartition(".")[2] in said and "\n" not in said


@pytest.mark.parametrize("path", LEAVES)
def test_every_key_refuses_another_type(path):
    group, name = parts(default_config(), path)
    wrong = {bool: 1, int: 1.5, float: "much", str: 3, tuple: (1.5,)}[group.get_type(name)]
    with pytest.raises(UserError, match=f"^{path} must be"):
        validate(assigned(path, wrong))
    if group[name] is not None:
        with pytest.raises(UserError, match=f"^{path} must be"):
            validate(assigned(path, None))


@CHECKED
@given(st.sampled_from(KEYS), st.data())
def test_a_mistyped_key_is_refused_and_the_right_one_suggested(path, data):
    group, _, name = path.rpartition(".")
    place = data.draw(st.integers(0, len(name) - 1))
    typo = name[:place] + data.draw(st.sampled_from(["", "x", name[place] * 2])) + name[place + 1 :]
    mistyped = f"{group}.{typo}" if group else typo
    if not typo or mistyped in KEYS:
        return
    config = default_config()
    (config[group] if group else config)[typo] = 1
    with pytest.raises(UserError) as error:
        validate(config)
    assert f"unknown config key {mistyped!r}" in str(error.value)
    if len(name) > 4:
        assert "did you mean" in str(error.value)


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("model.nfg", "model.ngf"),
        ("ngf", "model.ngf"),
        ("training.batchsize", "training.batch_size"),
        ("optim.learning_rate", None),
        ("data.batch_size", "batch_size"),
        ("loss.second_oder", "loss.second_order"),
    ],
)
def test_the_nearest_key_is_the_one_that_was_meant(wrong, meant):
    found = nearest(wrong, KEYS)
    assert found is None if meant is None else meant in str(found)


@CHECKED
@given(
    st.fixed_dictionaries(
        {
            "noise": st.floats(1e-3, 10.0),
            "seed": st.integers(0, 2**32 - 1),
            "comment": st.text(max_size=20),
            "model.ngf": st.integers(1, 512),
            "model.multipliers": st.lists(st.integers(1, 8), min_size=1, max_size=5).map(tuple),
            "optim.lr": st.floats(1e-8, 1.0),
            "optim.ema": st.floats(0.0, 1.0, exclude_max=True),
            "data.image_size": st.one_of(st.none(), st.integers(1, 512)),
        }
    )
)
def test_a_valid_config_is_read_back_as_it_was_saved(tmp_path, values):
    config = default_config()
    config.update_from_flattened_dict(values)
    assert refusal(config) is None
    run_config.save(config, tmp_path)
    again = run_config.load(tmp_path)
    assert again.to_dict() == config.to_dict() and refusal(again) is None
    assert differences(to_plain(again), to_plain(config)) == []
    check_same_run(again, config)


@CHECKED
@given(
    st.sampled_from([key for key in LEAVES if key.partition(".")[0] in run_config.IDENTITY]),
    st.integers(2, 9),
)
def test_another_identity_is_refused_with_the_difference(path, number):
    group, name = parts(default_config(), path)
    kind, old = group.get_type(name), group[name]
    new = {bool: not old, int: number, float: number / 16, str: f"other{number}", tuple: (number,)}
    changed = assigned(path, new[kind])
    if changed.to_dict() == default_config().to_dict() or path == "data.root":
        check_same_run(default_config(), changed)
        return
    with pytest.raises(UserError, match="other settings") as error:
        check_same_run(default_config(), changed)
    shown = json.loads(json.dumps(new[kind]))
    assert f"{path}: {old if kind is not tuple else list(old)} -> {shown}" in str(error.value)


@CHECKED
@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_a_config_file_of_anything_is_read_or_refused_in_one_line(tmp_path, content):
    (tmp_path / run_config.CONFIG_FILE).write_bytes(content)
    with pytest.raises(UserError, match="cannot be read") as error:
        run_config.load(tmp_path)
    assert "\n" not in str(error.value).replace(str(tmp_path), "")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"noise": 0.5,', '"noise": true,', "noise is true"),
        ('"noise": 0.5,', '"noise": 0.5, "noise": 0.9,', "noise stands there twice"),
        ('"noise": 0.5,', "", "'noise'"),
        ('"rank": 16,', "", "'model.rank'"),
        ('"model": {', '"model": 5, "other": {', "model is no group of keys"),
        ('"multipliers": [', '"multipliers": "1,2", "other": [', "model.multipliers is no list"),
        ("{", "[{", "cannot be read"),
    ],
)
def test_a_config_file_changed_by_hand_is_not_taken_for_another(tmp_path, old, new, message):
    run_config.save(default_config(), tmp_path)
    file = tmp_path / run_config.CONFIG_FILE
    run_config.load(tmp_path)
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        run_config.load(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"runner": "X"}, "runner is 'X'; choose one of"),
        ({"optim.lr": float("inf")}, "optim.lr must be finite"),
        ({"model.head": "none"}, "both or neither must be none"),
        ({"model.positive_definite": False}, "residual_nll needs model.positive_definite=True"),
        ({"model.tails": "heavy"}, "model.tails is 'heavy'; choose one of gaussian, student"),
        (
            {"model.tails": "student", "loss.second_order": "d2sm_residual"},
            "model.tails=student needs loss.second_order=residual_nll",
        ),
        (
            {"model.tails": "student", "model.third_order": "diagonal"}
            | {"loss.third_order": "d3sm_diagonal"},
            "symmetric",
        ),
        ({"model.smallest_noise": 0.1}, "go together"),
        ({"model.smallest_noise": 0.6, "model.largest_noise": 5.0}, "smallest_noise <= noise"),
        ({"sampling.sampler": "annealed_ozaki"}, "needs a model of many noise levels"),
        ({"model.output_units": "score"}, "needs model.positive_definite=False"),
        ({"model.multipliers": (1, 0)}, "multipliers must be positive"),
        ({"optim.schedule": "cosine", "optim.final_lr": 1.0}, "exceeds optim.lr"),
        ({"seed": 2**32}, "seed must be below"),
        ({"training.steps": 2**31 - 1}, "training.steps must be below"),
        ({"model.depth": 10**11}, "model.depth must be at most 1000"),
        ({"model.ngf": 2**14 + 1}, "model.ngf must be at most 16384"),
        ({"sampling.chains": 10**20}, r"sampling.chains must be below 2\^31"),
        ({"model.blocks": 101}, "model.blocks must be at most 100"),
        ({"noise": 1e-9}, "noise must be between"),
        ({"loss.first_order_weight": float("nan")}, "loss.first_order_weight must be zero or"),
        ({"model.name": "mlp", "model.dtype": "bfloat16"}, "needs model.name=unet or refinenet"),
        ({"model.name": "mlp", "model.remat": True}, "model.remat=True needs model.name=unet"),
        ({"model.name": "refinenet", "model.blocks": 2}, "blocks=2 needs model.name=unet, got"),
        ({"model.name": "refinenet", "model.patch_size": 2}, "patch_size=2 needs model.name=unet"),
        ({"training.label_dropout": 0.5}, "label_dropout=0.5 needs model.classes"),
        ({"data.image_size": 0}, "data.image_size must be at least 1"),
    ],
)
def test_combinations_and_limits(overrides, message):
    config = default_config()
    config.update_from_flattened_dict(overrides)
    with pytest.raises(UserError, match=message):
        validate(config)


def test_krylov_vectors_have_one_default():
    assert default_config().sampling.krylov_vectors == KRYLOV_VECTORS
