"""From the arguments of the command line to flags, and from flags to a config."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from hos_jax.config.named import find_config
from hos_jax.errors import UserError

EXAMPLES = """\
Train scores of order one and two by denoising, and test what was trained.

  hos-jax --runner LowRankHybridRunner --config demo --doc my_run --noise 0.5 --ni
  hos-jax --runner LowRankHybridRunner --config demo --doc my_run --resume_training
  hos-jax --runner LowRankHybridRunner --config demo --doc my_run --test
  hos-jax --doc my_run --test    # with the settings that the run was made with

What else it does (--help of each says more): a picture with error bars by a run; the second order
of a denoiser of your own; what causes what in a table; what the published code saved as a run, and
parameters for others.

  hos-jax denoise picture.png --doc my_run
  hos-jax second_order --denoiser my_denoiser.py:denoise --data my_photos --sigma 25/255
  hos-jax causal_order table.csv
  hos-jax import_checkpoint checkpoint.pth --doc my_run --noise 0.5
  hos-jax export_parameters --doc my_run --output my_run.safetensors

runners:"""


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """The published flags, with what they mean here; `argv` may override keys of the config."""
    define = {"flag_values": values}
    flags.DEFINE_string("runner", None, "What to train; see the list above.", **define)
    config_flags.DEFINE_config_file(
        "config",
        None,
        "A config by name (with or without .py or .yml), of the folder configs or the package, or "
        "the path of one. Its keys are set with --config.group.key=value, for example "
        "--config.data.name=mnist5k --config.training.steps=1000.",
        sys_argv=argv,
        **define,
    )
    flags.DEFINE_string("run", "runs", "Folder of all runs.", **define)
    flags.DEFINE_string("doc", "default", "Name of this run: its folder is RUN/DOC.", **define)
    flags.DEFINE_string("comment", "", "A remark, saved with the config.", **define)
    flags.DEFINE_float(
        "noise", None, "sigma, the noise level, in data units; the config's if left out.", **define
    )
    flags.DEFINE_integer("rank", None, "Columns of the low-rank factor of s2.", **define)
    flags.DEFINE_integer("seed", None, "Seed of everything random.", **define)
    flags.DEFINE_bool("test", False, "Test a run: table, figures, samples.", **define)
    flags.DEFINE_bool("resume_training", False, "Go on with a run.", **define)
    flags.DEFINE_bool(
        "ni",
        False,
        "No interaction: a run of the same name is moved aside, with a time stamp. Without it you "
        "are asked. Nothing is ever deleted.",
        **define,
    )
    flags.DEFINE_string(
        "image_folder",
        "figures",
        "Folder inside the run that receives the figures of --test.",
        short_name="i",
        **define,
    )
    flags.DEFINE_enum(
        "verbose", "info", ["debug", "info", "warning", "critical"], "Log level.", **define
    )
    flags.DEFINE_string(
        "compilation_cache",
        None,
        "Folder that keeps compiled programs, so that the next start need not compile them; if "
        "left out hos_jax in the user's cache folder, with 2 GiB at most; empty to keep none.",
        **define,
    )
    flags.DEFINE_string(
        "coordinator",
        None,
        "For a run of several processes: address:port of process 0. Each is started with the same "
        "command but its own --process_index; see docs/scaling.md.",
        **define,
    )
    flags.DEFINE_integer("processes", None, "How many processes the run has.", **define)
    flags.DEFINE_integer("process_index", None, "Which of them this is, from 0.", **define)
    flags.DEFINE_bool(
        "cluster",
        False,
        "Ask the cluster (Slurm, Open MPI, Kubernetes, a TPU slice) for these three.",
        **define,
    )
    flags.DEFINE_bool("help", False, "Show this.", short_name="h", **define)


def usage(values: flags.FlagValues) -> str:
    """The text of --help."""
    from hos_jax.config.runners import RUNNERS

    runners = [f"  {name:<28} {runner.description}" for name, runner in RUNNERS.items()]
    return "\n".join([EXAMPLES, *runners, "", "flags:", describe_flags(values)])


def describe_flags(values: flags.FlagValues) -> str:
    """One paragraph for each flag, by name."""
    lines = []
    for name in sorted(values):
        flag = values[name]
        if len(name) == 1:
            continue
        short = f"-{flag.short_name}, " if flag.short_name else ""
        shown = isinstance(flag.default, str | int | float) and flag.default not in (False, "")
        default = f" [{flag.default}]" if shown else ""
        lines.append(f"  {short}--{name}")
        lines.append(textwrap.indent(textwrap.fill(f"{flag.help}{default}", 90), " " * 6))
    return "\n".join(lines)


def _with_config_path(argv: list[str]) -> list[str]:
    """The arguments with the value of --config replaced by the path of its file."""
    result, arguments = [], iter(argv)
    for argument in arguments:
        name, given, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "config":
            if not given:
                value = next(arguments, "-")
                if value.startswith("-"):
                    raise UserError("--config needs the name of a config")
            argument = f"--config={find_config(value)}"
        result.append(argument)
    return result


def _with_saved_config(arguments: list[str]) -> list[str]:
    """The arguments, with the config of the run where --test or --resume_training lacks one."""
    early = flags.FlagValues()
    for name, default in (("run", "runs"), ("doc", "default"), ("runner", None)):
        flags.DEFINE_string(name, default, "", flag_values=early)
    for name in ("test", "resume_training"):
        flags.DEFINE_bool(name, False, "", flag_values=early)
    try:
        early(arguments, known_only=True)
    except flags.Error as error:
        raise UserError(f"{error} (see --help)") from error
    if (
        _has_config(arguments)
        or early.runner is not None
        or not (early.test or early.resume_training)
    ):
        return arguments
    from hos_jax.config import saved_config

    workdir = Path(early.run) / early.doc
    saved_config.get_config(str(workdir))
    # First, as overrides of its keys have to come after it.
    return [arguments[0], f"--config={saved_config.__file__}:{workdir}", *arguments[1:]]


def _has_config(argv: list[str]) -> bool:
    return any(
        argument.startswith("-") and argument.lstrip("-").startswith("config=") for argument in argv
    )


def _override_of(argument: str) -> str | None:
    """KEY of `--config.KEY...`, or None for other arguments."""
    path = argument.lstrip("-").partition("=")[0]
    is_override = argument.startswith("-") and path.startswith("config.")
    return path.removeprefix("config.") if is_override else None


def check_override_names(argv: list[str]) -> None:
    """Refuse `--config.a.b` for a key that no config has, and say which was probably meant."""
    from hos_jax.config import default_config
    from hos_jax.config.keys import all_keys, check_key

    known = list(all_keys(default_config()))
    for argument in argv:
        if (key := _override_of(argument)) is not None:
            check_key(key, known, "--config.")


def _meant_key(flag: str) -> str:
    """A question for who gives a key of the config as a flag."""
    from hos_jax.config import default_config
    from hos_jax.config.keys import all_keys, nearest

    key = nearest(flag, list(all_keys(default_config()))) if "." in flag else None
    return f"; did you mean --config.{key}?" if key else ""


def without_unset(argv: list[str]) -> tuple[list[str], dict[str, None]]:
    """The arguments without `--config.KEY=None`, which absl cannot read, and these keys with None,
    for `set_to_none`. Of several arguments for one key the last counts."""
    kept: list[str] = []
    unset: dict[str, None] = {}
    for argument in argv:
        if (key := _override_of(argument)) is not None:
            unset.pop(key, None)
            if argument.partition("=")[2] == "None":
                unset[key] = None
                continue
        kept.append(argument)
    return kept, unset


def set_to_none(values: flags.FlagValues, unset: dict[str, None]) -> None:
    """Add what `without_unset` took out to the overrides of the config."""
    if unset:
        config_flags.get_override_values(values["config"]).update(unset)


def _without_traceback(message: str) -> str:
    """What ml-collections says of a config file that raises, without the traceback in it."""
    before, traceback, after = message.partition("Traceback (most recent call last):\n")
    lines = [line for line in after.splitlines() if not line.startswith(" ")]
    return " ".join([before.strip(), *lines]) if traceback else message


def _unusable(files: list[str], why: str) -> UserError:
    """The error for config files, which a file of flags may name in place of the arguments."""
    hint = "get_config() in it must return a ConfigDict, as hos_jax.config.default_config() does"
    return UserError(f"{' '.join(['the config', *files])} cannot be used: {why} ({hint})")


def parse(
    argv: list[str], hint_of: Callable[[str], str] = lambda word: "see --help"
) -> flags.FlagValues | None:
    """Flags from arguments, the program's name first; None if only help was wanted; or UserError.

    `hint_of` says what to do about a word that is no flag.
    """
    values = flags.FlagValues()
    if {"-h", "--help", "-help", "--helpfull"} & set(argv):
        define_flags(values, argv)
        print(usage(values))
        return None
    original = _with_config_path(argv)
    arguments = _with_saved_config(original)
    check_override_names(arguments)
    overrides = [key for key in map(_override_of, arguments) if key is not None]
    if overrides and not _has_config(arguments):
        key = f"--config.{overrides[0]}"
        raise UserError(f"--config is needed, of which {key} is a key (see --help)")
    readable, unset = without_unset(arguments)
    define_flags(values, readable)
    try:
        rest = values(readable)
    except flags.UnrecognizedFlagError as error:
        raise UserError(f"{error}{_meant_key(error.flagname)} (see --help)") from error
    except flags.Error as error:
        raise UserError(f"{_without_traceback(str(error))} (see --help)") from error
    except (Exception, SystemExit) as error:
        # The config is a file of Python, which may be the user's own: whatever is wrong in there.
        files = [each.partition("=")[2] for each in arguments if _has_config([each])]
        raise _unusable(files, f"{type(error).__name__}: {error}") from error
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r} ({hint_of(rest[1])})")
    for name in ("runner", "config"):
        # A config read back from a run names its runner.
        if not values[name].present and arguments == original:
            raise UserError(f"--{name} is needed (see --help)")
    set_to_none(values, unset)
    return values


def make_config(values: flags.FlagValues):
    """The config that flags describe: the file, then the runner, the flags, the overrides.

    A share of the Jacobian that the file has goes with its loss, not with a published one that is
    asked for in its place.
    """
    from hos_jax.config import default_config
    from hos_jax.config.checks import leave_out_marginal_weight
    from hos_jax.config.keys import check_keys_and_types
    from hos_jax.config.runners import apply_runner
    from hos_jax.losses.objective import RESIDUAL

    config = values.config
    if not isinstance(config, ConfigDict):
        file = config_flags.get_config_filename(values["config"])
        raise _unusable([file], f"it gives {type(config).__name__}")
    check_keys_and_types(config, default_config())
    overrides = config_flags.get_override_values(values["config"])
    if "model.head" in overrides:
        # The file's does not count then, and nobody need hear that the runner has another.
        config.model.head = default_config().model.head
    if values.runner is not None:
        apply_runner(config, values.runner)
    for key in ("noise", "seed", "rank", "comment"):
        if values[key].present:
            (config.model if key == "rank" else config)[key] = values[key].value
    config.update_from_flattened_dict(overrides)
    if config.loss.second_order not in RESIDUAL and "loss.jacobian_weight" not in overrides:
        config.loss.jacobian_weight = 0.0
    leave_out_marginal_weight(config, overrides)
    return config
