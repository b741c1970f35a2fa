"""The commands beside training and testing, by name."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Callable
from typing import NamedTuple

from absl import flags
from ml_collections import config_flags

from hos_jax.cli import causal_order, denoise, second_order
from hos_jax.cli.arguments import (
    check_override_names,
    describe_flags,
    set_to_none,
    without_unset,
)
from hos_jax.cli.compiled import keep_compiled
from hos_jax.cli.logs import start_logging
from hos_jax.cli.run_folder import ask_for_room, make_room, run_folder
from hos_jax.config import default_config
from hos_jax.errors import UserError
from hos_jax.files import expanded


class _Command(NamedTuple):
    usage: str
    define: Callable[[flags.FlagValues, list[str]], None]
    run: Callable[[flags.FlagValues, list[str]], int | None]
    # What the one argument without a flag is the path of; None for a command that has none.
    argument: str | None = None
    has_run: bool = True


def _define_import(values: flags.FlagValues, argv: list[str]) -> None:
    flags.DEFINE_float(
        "noise", None, "sigma of the training, which the file does not tell.", flag_values=values
    )
    flags.DEFINE_bool(
        "ni", False, "A run of the same name is moved aside unasked.", flag_values=values
    )
    flags.DEFINE_integer(
        "checked_images",
        16,
        "Held-out images to denoise as a check of a published checkpoint, or 0.",
        flag_values=values,
    )
    config_flags.DEFINE_config_dict(
        "config",
        default_config(),
        "Keys of the config, such as --config.data.name=mnist5k; the others follow from the file.",
        sys_argv=argv,
        flag_values=values,
    )


def _define_export(values: flags.FlagValues, argv: list[str]) -> None:
    flags.DEFINE_string(
        "output", None, "The file; RUN/DOC/parameters.safetensors if left out.", flag_values=values
    )
    flags.DEFINE_bool("half", False, "Keep numbers in float16, half the size.", flag_values=values)
    flags.DEFINE_integer(
        "examples", 0, "Held-out images that go into the file.", 0, flag_values=values
    )


def _import(values: flags.FlagValues, rest: list[str]) -> None:
    from hos_jax.migrate import import_checkpoint

    overrides = config_flags.get_override_values(values["config"])
    if values.noise is not None:
        overrides["noise"] = values.noise
    workdir = run_folder(values)

    def prepare():
        ask_for_room(workdir, values.ni)
        make_room(workdir)

    checked = values.checked_images
    if checked < 0:
        raise UserError(f"--checked_images must be 0 or more, got {checked}")
    imported = import_checkpoint(
        rest[0], workdir, overrides, checked_images=checked, prepare=prepare
    )
    print(f"found {imported.description}")
    if imported.denoise_mse is not None:
        sigma = imported.config.noise
        print(
            f"mean squared error of {imported.checked_images} held-out images, denoised: "
            f"{imported.denoise_mse:.4f}; noisy: {sigma**2:.4f}"
        )
        if imported.denoise_mse >= sigma**2:
            print(
                f"warning: s1 removes no noise of sigma {sigma} from {imported.config.data.name}: "
                "check --noise, --config.data.name and whether the network was trained"
            )
    run, doc = shlex.quote(values.run), shlex.quote(values.doc)
    print(f"{workdir}: test it with hos-jax --run {run} --doc {doc} --test")


def _export(values: flags.FlagValues, rest: list[str]) -> None:
    from hos_jax.migrate import export_parameters

    workdir = run_folder(values)
    output = expanded(values.output or workdir / "parameters.safetensors")
    options = {"half": values.half, "examples": values.examples}
    found = export_parameters(workdir, output, **options)
    images = f", {len(found.data.held_out)} held-out images" if values.examples else ""
    print(f"{output}: parameters of step {found.step}{images}")


COMMANDS = {
    "import_checkpoint": _Command(
        "import_checkpoint FILE --doc NAME --noise SIGMA: a run out of a checkpoint.pth of the "
        "published code, of the same state dictionaries as safetensors, of a file of "
        "export_parameters, or of the weights of the package: FILE is demo or diffusion.",
        _define_import,
        _import,
        "checkpoint",
    ),
    "export_parameters": _Command(
        "export_parameters --doc NAME: the parameters of a run, averaged where averages are kept, "
        "and its config, as a safetensors file.",
        _define_export,
        _export,
    ),
    "second_order": _Command(second_order.USAGE, second_order.define, second_order.run),
    "denoise": _Command(denoise.USAGE, denoise.define, denoise.run, "picture"),
    "causal_order": _Command(
        causal_order.USAGE, causal_order.define, causal_order.run, "table", has_run=False
    ),
}


def parse(argv: list[str]) -> tuple[flags.FlagValues, list[str]] | None:
    """The flags and other arguments of a command, or None if only help was wanted; or UserError."""
    command, values = COMMANDS[argv[0]], flags.FlagValues()
    check_override_names(argv)
    if command.has_run:
        flags.DEFINE_string("run", "runs", "Folder of all runs.", flag_values=values)
        doc = "Name of the run: its folder is RUN/DOC."
        flags.DEFINE_string("doc", None, doc, flag_values=values)
    command.define(values, argv)
    if {"-h", "--help"} & set(argv):
        print("\n".join(textwrap.wrap(f"hos-jax {command.usage}", 96)))
        print(describe_flags(values))
        return None
    readable, unset = without_unset(argv)
    try:
        rest = values(readable)[1:]
    except flags.Error as error:
        raise UserError(f"{error} (see --help)") from error
    if command.has_run and values.doc is None:
        raise UserError("--doc is needed (see --help)")
    if unset and "config" not in values:
        raise UserError(f"unknown flag --config.{next(iter(unset))} (see --help)")
    if command.argument is None and rest:
        raise UserError(f"unexpected argument {rest[0]!r} (see --help)")
    if command.argument is not None and len(rest) != 1:
        raise UserError(f"{argv[0]} needs the path of one {command.argument} (see --help)")
    set_to_none(values, unset)
    return values, rest


def run_command(argv: list[str]) -> int:
    """Run a command with its arguments; returns the exit status, or raises UserError."""
    if parsed := parse(argv):
        from hos_jax.training import parallel

        start_logging("info")
        keep_compiled(None)
        if argv[0] == "second_order":
            # It trains, as several processes may that the environment tells of one another.
            parallel.connect()
        parallel.find_devices()
        return COMMANDS[argv[0]].run(*parsed) or 0
    return 0
