"""The command line: flags, the run folder, and what happens when something is wrong."""

from __future__ import annotations

import difflib
import logging
import sys
import textwrap
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from hos_jax.errors import UserError

EXAMPLES = """\
Train scores of order one and two by denoising, and test what was trained.

  python main.py --runner LowRankHybridRunner --config unet_mnist --doc my_run --noise 0.5 --ni
  python main.py --runner LowRankHybridRunner --config unet_mnist --doc my_run --resume_training
  python main.py --runner LowRankHybridRunner --config unet_mnist --doc my_run --test

runners:"""

CONFIG_FOLDER = "configs"


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """The published flags, with what they mean here; `argv` may override keys of the config."""
    define = {"flag_values": values}
    flags.DEFINE_string("runner", None, "What to train; see the list above.", **define)
    config_flags.DEFINE_config_file(
        "config",
        None,
        "A config in configs/ by name (with or without .py or .yml), or the path of one. Its keys "
        "are set with --config.group.key=value, for example --config.data.name=mnist5k "
        "--config.training.steps=1000.",
        sys_argv=argv,
        **define,
    )
    flags.DEFINE_string("run", "runs", "Folder of all runs.", **define)
    flags.DEFINE_string("doc", "default", "Name of this run: its folder is RUN/DOC.", **define)
    flags.DEFINE_string("comment", "", "A remark, saved with the config.", **define)
    flags.DEFINE_float("noise", None, "sigma, the noise level, in data units.", **define)
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
        "Folder that keeps compiled programs, so that the next start need not compile them again.",
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
    from hos_jax.runners import RUNNERS

    lines = [EXAMPLES]
    lines += [f"  {name:<28} {runner.description}" for name, runner in RUNNERS.items()]
    lines += ["", "flags:"]
    for name in sorted(values):
        flag = values[name]
        if len(name) == 1:
            continue
        short = f"-{flag.short_name}, " if flag.short_name else ""
        default = "" if flag.default in (None, False, "") else f" [{flag.default}]"
        lines.append(f"  {short}--{name}")
        lines += textwrap.wrap(
            f"{flag.help}{default}", 96, initial_indent=" " * 6, subsequent_indent=" " * 6
        )
    return "\n".join(lines)


def find_config(name: str) -> Path:
    """The file of a config given by path, or by name with or without .py or .yml.

    Raises:
      UserError: if there is none; lists those that there are.
    """
    given = Path(name)
    if given.suffix == ".py" and given.is_file():
        return given
    folders = [Path(CONFIG_FOLDER), Path(__file__).parents[1] / CONFIG_FOLDER]
    stem = given.stem if given.suffix in (".py", ".yml", ".yaml") else given.name
    for folder in folders:
        path = folder / f"{stem}.py"
        if path.is_file():
            return path
    known = sorted({path.stem for folder in folders for path in folder.glob("[!_]*.py")})
    near = difflib.get_close_matches(stem, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"no config {name!r}: {hint}known are {', '.join(known)}")


def _with_config_path(argv: list[str]) -> list[str]:
    """The arguments with the value of --config replaced by the path of its file."""
    result, index = [], 0
    while index < len(argv):
        argument = argv[index]
        name, _, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "config":
            if "=" not in argument:
                index += 1
                if index == len(argv) or argv[index].startswith("-"):
                    raise UserError("--config needs the name of a config")
                value = argv[index]
            argument = f"--config={find_config(value)}"
        result.append(argument)
        index += 1
    return result


def _check_override_names(argv: list[str]) -> None:
    """Refuse `--config.a.b` for a key that no config has, and say which was probably meant."""
    from hos_jax.config import default_config

    known = []

    def collect(group, prefix):
        for key, value in group.items():
            known.append(prefix + key)
            if hasattr(value, "items"):
                collect(value, f"{prefix}{key}.")

    collect(default_config(), "")
    for argument in argv:
        path = argument.lstrip("-").partition("=")[0]
        if argument.startswith("-") and path.startswith("config."):
            key = path.removeprefix("config.")
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f": did you mean --config.{near[0]}?" if near else ""
                raise UserError(f"unknown config key {key!r}{hint}")


def parse(argv: list[str]) -> flags.FlagValues:
    """Flags from arguments.

    Raises:
      UserError: for whatever a user can get wrong in them.
    """
    values = flags.FlagValues()
    if {"-h", "--help", "-help", "--helpfull"} & set(argv):
        define_flags(values, argv)
        print(usage(values))
        raise SystemExit(0)
    arguments = _with_config_path(argv)
    _check_override_names(arguments)
    define_flags(values, arguments)
    try:
        rest = values(arguments)
    except flags.Error as error:
        raise UserError(f"{error} (see --help)") from error
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r} (see --help)")
    for name in ("runner", "config"):
        if getattr(values, name) is None:
            raise UserError(f"--{name} is needed (see --help)")
    return values


def make_config(values: flags.FlagValues):
    """The config that flags describe: the file, then the runner, the flags, the overrides."""
    from hos_jax.runners import apply_runner

    config = values.config
    apply_runner(config, values.runner)
    for flag, (group, key) in {
        "noise": (config, "noise"),
        "seed": (config, "seed"),
        "rank": (config.model, "rank"),
    }.items():
        if values[flag].present:
            group[key] = values[flag].value
    config.comment = values.comment
    config.update_from_flattened_dict(config_flags.get_override_values(values["config"]))
    return config


def _prepare_folder(workdir: Path, no_interaction: bool) -> None:
    """Make room for a new run: move an old one aside, after asking unless told not to."""
    from hos_jax.checkpoint import free_name

    if not workdir.exists() or not any(workdir.iterdir()):
        return
    if not no_interaction:
        question = f"{workdir} holds a run. Move it aside and start anew? [y/N] "
        try:
            answer = input(question)
        except EOFError:
            answer = ""
        if answer.strip().lower() not in ("y", "yes"):
            raise UserError(
                f"{workdir} is left as it is: choose another --doc, --resume_training or --ni"
            )
    target = free_name(workdir)
    workdir.rename(target)
    print(f"the run that was in {workdir} is now in {target}")


def _keep_compiled(folder: Path) -> None:
    """Let JAX read and write compiled programs in a folder."""
    import jax

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--compilation_cache={folder} cannot be made: {error.strerror}") from error
    jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))


def _connect(values: flags.FlagValues) -> None:
    """Join the other processes, where there are some; before what may start JAX's backend."""
    several = values.coordinator, values.processes, values.process_index
    if values.test:
        if values.cluster or any(value is not None for value in several):
            raise UserError("--test runs in one process: leave out the flags of several processes")
        return
    from hos_jax import parallel

    parallel.connect(*several, detect=values.cluster)


def run(values: flags.FlagValues) -> None:
    """Do what the flags say.

    Raises:
      UserError: for a mistake that the user can mend.
    """
    config = make_config(values)
    workdir = Path(values.run) / values.doc
    _connect(values)
    from hos_jax import config as run_config

    run_config.validate(config)
    if values.compilation_cache:
        _keep_compiled(Path(values.compilation_cache))
    if values.test:
        from hos_jax.evaluate import evaluate_run, table

        result = evaluate_run(config, workdir, values.image_folder)
        print(table(result))
        print(f"figures: {workdir / values.image_folder}   numbers: {workdir / 'metrics.json'}")
        return

    from hos_jax import parallel
    from hos_jax.evaluate import log_panel
    from hos_jax.train import train_and_evaluate

    if not values.resume_training:
        parallel.from_first_process(lambda: _prepare_folder(workdir, values.ni), lambda: None)
    state = train_and_evaluate(
        config, workdir, resume=values.resume_training, on_evaluation=log_panel
    )
    if parallel.is_first_process():
        print(f"{workdir}: {int(state.step)} steps done")


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit status: 0, 2 for a user's mistake, 130 for Ctrl-C."""
    try:
        values = parse(argv)
        logging.basicConfig(
            level=values.verbose.upper(), format="%(levelname).1s %(name)s: %(message)s", force=True
        )
        for noisy in ("jax", "orbax", "absl", "matplotlib", "PIL"):
            logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.root.level))
        run(values)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: --resume_training goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0
