"""The config of a run in its folder: written, read back, and compared."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import ml_collections

from hos_jax.config.defaults import default_config
from hos_jax.errors import NoRunError, OtherRunError, UserError
from hos_jax.files import CONFIG_FILE, expanded, write_atomically

logger = logging.getLogger(__name__)

# What a resumed or tested run must have in common with the run on disk.
IDENTITY = ("runner", "noise", "seed", "data", "model", "loss")
# How far apart two answers of one denoiser may be, in units of sigma: machines and libraries may
# differ in their last digits.
SAME_ANSWER = 0.01
# What stands beside the config in the file.
_BESIDE = ("versions", "images", "image_form", "denoiser_answer")
# What every version wrote of the model and its images: a default in its place would be another run.
_ALWAYS_THERE = {
    "": "noise seed",
    "data": "name image_size crop",
    "model": "name ngf multipliers blocks patch_size attention_size depth head rank networks "
    "positive_definite data_std output_units dtype",
    "loss": "first_order second_order",
}
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a run's numbers."""
    # Not at the top: they take a tenth of the time of --help.
    import importlib.metadata
    import platform

    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **found}


def differences(saved: dict, asked: dict, prefix: str = "") -> list[str]:
    """The keys in which two configs differ, as `key: saved -> asked` lines."""
    lines = []
    for key in sorted(set(saved) | set(asked)):
        old, new = saved.get(key), asked.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {old} -> {new}")
    return lines


def to_plain(config: ml_collections.ConfigDict) -> dict:
    """The config as JSON types."""
    return json.loads(json.dumps(config.to_dict()))


def _with_full_paths(config: ml_collections.ConfigDict) -> dict:
    plain = to_plain(config)
    if (root := plain["data"]["root"]) is not None:
        plain["data"]["root"] = str(expanded(root).absolute())
    if (denoiser := plain["model"]["denoiser"]) is not None:
        # Runs without one need not load what calls it.
        from hos_jax.config.denoiser import absolute_name

        plain["model"]["denoiser"] = absolute_name(denoiser)
    return plain


def save(
    config: ml_collections.ConfigDict,
    workdir: Path,
    images: dict[str, Any] | None = None,
    image_form: dict[str, Any] | None = None,
    denoiser: list[float] | None = None,
) -> None:
    """Write what makes the run to `config.json`: all keys, versions, `ImageData.identity`,
    `ImageData.form`, and what a denoiser from outside says of one image.

    `data.root` and the file of `model.denoiser` are written as full paths, which hold from any
    folder of this machine."""
    content = {**_with_full_paths(config), "versions": versions(), "images": images}
    beside = {"image_form": image_form, "denoiser_answer": denoiser}
    content |= {key: value for key, value in beside.items() if value is not None}
    write_atomically(workdir / CONFIG_FILE, json.dumps(content, indent=2) + "\n")


def load(workdir: Path) -> ml_collections.ConfigDict:
    """The config of the run in `workdir`; UserError if there is none, or it cannot be read."""
    path = workdir / CONFIG_FILE
    if not path.is_file():
        raise NoRunError(f"no run in {workdir}: {CONFIG_FILE} is missing")
    try:
        return from_plain(json.loads(path.read_bytes(), object_pairs_hook=_each_key_once))
    # Of JSON that is none, of settings that are none, and of thousands of brackets.
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise UserError(f"{path} cannot be read ({error}): restore it or start anew") from error


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; ValueError where a key stands twice, of which JSON takes the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)} stands there twice")
    return found


def _check_types(saved: Any, known: ml_collections.ConfigDict, place: str = "") -> None:
    """Raise TypeError for what ml_collections would take for something else, or does not name."""
    if not isinstance(saved, dict):
        raise TypeError(f"{place or 'the file'} is no group of keys")
    for name, value in saved.items():
        where = f"{place}.{name}" if place else name
        if name in known and isinstance(known[name], ml_collections.ConfigDict):
            _check_types(value, known[name], where)
        elif isinstance(value, bool) and name in known and known.get_type(name) is not bool:
            raise TypeError(f"{where} is {json.dumps(value)}, of another type than its own")


def from_plain(content: dict) -> ml_collections.ConfigDict:
    """The config that `save` wrote, from its JSON types.

    Raises:
      ValueError, KeyError, TypeError, AttributeError or ArithmeticError: for anything else.
    """
    config = default_config()
    _check_types(content, config)
    saved = {key: value for key, value in content.items() if key not in _BESIDE}
    for group, names in _ALWAYS_THERE.items():
        for name in names.split():
            if name not in (saved[group] if group else saved):
                raise KeyError(f"{group}.{name}" if group else name)
    if not isinstance(content.get("images"), dict | None):
        raise TypeError("images must be a group of keys")
    if not isinstance(saved["model"]["multipliers"], list):
        raise TypeError("model.multipliers is no list")
    multipliers = tuple(saved["model"]["multipliers"])
    step_size = saved["sampling"].pop("step_size", None)
    # Of runs before 0.2; the fraction of annealing was another key. 0.05 is what nobody had chosen.
    if step_size not in (None, 0.05) and "annealed" not in saved["sampling"].get("sampler", ""):
        saved["sampling"]["step_fraction"] = step_size / saved["noise"] ** 2
    config.update({**saved, "model": {**saved["model"], "multipliers": multipliers}})
    return config


def check_same_run(saved: ml_collections.ConfigDict, asked: ml_collections.ConfigDict) -> None:
    """Raise OtherRunError where settings of `IDENTITY` differ; what else differs is logged."""
    changed = differences(_with_full_paths(saved), _with_full_paths(asked))

    def refused(line: str) -> bool:
        key = line.partition(":")[0]
        if key == "optim.ema":
            return bool(saved.optim.ema) != bool(asked.optim.ema)
        # Where images and a denoiser lie may change between machines; what they are may not.
        if key == "model.denoiser":
            then, now = (str(config.model.denoiser) for config in (saved, asked))
            return Path(then).name != Path(now).name
        return key != "data.root" and key.partition(".")[0] in IDENTITY

    if reason := "; ".join(filter(refused, changed)):
        raise OtherRunError(f"this run was made with other settings ({reason})")
    for line in changed:
        logger.warning("another setting than the run's: %s", line)


def check_same_images(
    workdir: Path, images: dict[str, Any], form: dict[str, Any] | None = None
) -> None:
    """Raise OtherRunError for `images` (`ImageData.identity`) that the run was not trained on, or
    that are of another shape now (`ImageData.form`), as by another version.

    Those it was trained on could be among the held-out ones. A run that does not say, such as an
    imported one, goes on with any.
    """
    saved, known = image_identity(workdir), image_form(workdir)
    if saved is None or saved == images:
        if form and isinstance(known, dict) and known.get("shape", form["shape"]) != form["shape"]:
            shapes = f"{known['shape']} when this run was begun, and are {form['shape']} now"
            raise OtherRunError(f"the images were {shapes}")
        return
    then, now = (
        f"{counts.get('train')} to train on and {counts.get('held_out')} held out"
        for counts in (saved, images)
    )
    what = f"{then} then, {now} now" if then != now else f"{then} as then, with other content"
    raise OtherRunError(f"the images are not those that this run was trained on ({what})")


def image_identity(workdir: Path) -> dict[str, Any] | None:
    """The `ImageData.identity` of a run's images, or None of a run that does not say."""
    return _beside_config(workdir, "images")


def image_form(workdir: Path) -> dict[str, Any] | None:
    """The `ImageData.form` of a run's images, or None of a run that does not say."""
    return _beside_config(workdir, "image_form")


def saved_denoiser_answer(workdir: Path) -> list[float] | None:
    """What a denoiser from outside said when the run was begun, of a run that has one."""
    return _beside_config(workdir, "denoiser_answer")


def _beside_config(workdir: Path, key: str) -> Any:
    return json.loads((workdir / CONFIG_FILE).read_bytes()).get(key)


def check_same_denoiser(where: Path, saved: list[float] | None, answer: list[float] | None) -> None:
    """Warn of a denoiser that no longer says what it said when the run in `where` was begun.

    The values are in units of sigma.
    """
    if saved is None or answer is None:
        return
    pairs = zip(saved, answer, strict=False)
    if len(saved) == len(answer) and all(abs(then - now) <= SAME_ANSWER for then, now in pairs):
        return
    logger.warning(
        f"{where}: the denoiser does not say what it said when this run was begun; the run's "
        "covariance is that of the errors it made then"
    )
