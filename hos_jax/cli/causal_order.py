"""The command `causal_order`: which variables of a table come before which, causes first."""

from __future__ import annotations

import csv
import io
import json
import logging
from pathlib import Path

import numpy as np
from absl import flags

from hos_jax.errors import UserError, reason
from hos_jax.files import expanded, try_to_write, write_atomically

logger = logging.getLogger(__name__)

FEW_ROWS = 100
# What stands for no value, beside `nan`, which is a number to Python.
_MISSING = ("", "na", "n/a", "#n/a", "<na>", "n.a.", "null", "none", "missing", "?", "-")
# How the evidence begins.
_FIRST = b"step,leaf,"
USAGE = """\
causal_order TABLE: an order of the columns of a .csv or .npy file, causes first, and for each step
how much the second derivative of every column varies, which chose the leaf. It is right for
additive noise models with nonlinear mechanisms, Gaussian noise and no hidden common causes.
"""


def define(values: flags.FlagValues, argv: list[str]) -> None:
    """The flags of the command."""
    define = {"flag_values": values}
    flags.DEFINE_string("output", None, "A .csv file for the evidence.", **define)
    flags.DEFINE_bool(
        "same_noise",
        False,
        "The noises of all columns are about equally large in the units of the table: compare in "
        "these units.",
        **define,
    )
    flags.DEFINE_float("sigma", 1.0, "Noise level, in standard deviations of a column.", **define)
    flags.DEFINE_integer("steps", 6000, "Steps of training of each of 8 networks.", **define)
    flags.DEFINE_integer("seed", 0, "Seed of everything random.", 0, 2**32 - 1, **define)


def _check_commas(path: Path, rows: list[list[str]]) -> None:
    """Raise UserError where something else than commas parts the columns, in two rows."""
    for mark, what in ((";", "semicolons"), ("\t", "tabs"), (" ", "blanks")):
        # A name may have blanks, so that they part columns only where there are no commas.
        known = [row for row in rows[:2] if mark != " " or len(row) == 1]
        parted = [any(mark in value.strip() for value in row) for row in known]
        if len(parted) == 2 and all(parted):
            remedy = f"save it with commas (pandas: read_csv({str(path)!r}, sep={mark!r}), with "
            remedy += "decimal=',' for decimal commas, and to_csv of another name, index=False)"
            raise UserError(f"{path}: columns are parted by {what}: {remedy}")


def read_table(path: Path) -> tuple[list[str], np.ndarray]:
    """Names of the columns and the numbers of a table, (N, D).

    A `.npy` file holds an array (N, D); any other is text with commas, whose first row may be one
    of names: of numbers only if it is 0, 1, ..., with a warning. Columns without names are called
    so too.

    Raises:
      UserError: for a file that cannot be read or holds something else.
    """
    try:
        if path.suffix == ".npy":
            table = np.load(path)
            if table.ndim != 2 or table.dtype.kind not in "iuf":
                raise UserError(f"{path} holds {table.dtype} {table.shape}, not numbers (N, D)")
            return [str(j) for j in range(table.shape[1])], table
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            lines = [(reader.line_num, row) for row in reader if row]
    except UserError:
        raise
    except UnicodeDecodeError as error:
        remedy = "save it as CSV in UTF-8, or an array as .npy"
        raise UserError(f"{path} is no text in UTF-8: {remedy}") from error
    except (OSError, ValueError, EOFError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {reason(error)}") from error
    if not lines:
        raise UserError(f"{path} is empty")
    _check_commas(path, [row for _, row in lines])
    names = [str(j) for j in range(len(lines[0][1]))]
    if not all(map(_is_number, lines[0][1])):
        names = [name.strip() for name in lines.pop(0)[1]]
        _check_header(path, names)
        if "" in names:
            column = names.index("") + 1
            remedy = "leave it out if it numbers the rows (pandas: to_csv(index=False)), or name it"
            raise UserError(f"{path}: column {column} has no name: {remedy}")
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"{path}: several columns are called {twice[0]!r}: rename them")
    elif len(lines) > 1 and lines[0][1] == names:
        logger.warning(
            "%s: the first row, 0 to %d, is taken for names of the columns", path, len(names) - 1
        )
        lines = lines[1:]
    elif len(lines) > 1 and _may_be_names(*(row for _, row in lines[:2])):
        logger.warning(
            "%s: the first row, %s, is taken for numbers of the table: if it names the columns, "
            "give them names that are no numbers",
            path,
            ", ".join(lines[0][1]),
        )
    for number, row in lines:
        if len(row) != len(names):
            what = f"line {number} has {len(row)} values for {len(names)} columns"
            raise UserError(f"{path}: {what}")
        for name, value in zip(names, row, strict=True):
            if not value.strip():
                what = f"line {number}, column {name!r} is empty: leave such lines out"
                raise UserError(f"{path}: {what}")
            if not _is_number(value):
                raise UserError(f"{path}: line {number}, column {name!r}: {value!r} is no number")
        if not np.isfinite(values := np.array(row, dtype=float)).all():
            lost = row[int(np.argmin(np.isfinite(values)))]
            raise UserError(f"{path}: line {number} has {lost!r}, not finite: leave such lines out")
    return names, np.array([row for _, row in lines], float).reshape(len(lines), len(names))


def _check_header(path: Path, row: list[str]) -> None:
    """Of a first row that is not of numbers alone: UserError where what is none is missing, and a
    warning where there are numbers too."""
    others = [name for name in row if not _is_number(name)]
    # A first name that is empty is that of the numbers of rows.
    if len(others) == len(row) or not row[0]:
        return
    if missing := [name for name in others if name.lower() in _MISSING]:
        remedy = "leave such lines out, and give the columns names"
        raise UserError(f"{path}: the first row has {missing[0]!r} among numbers: {remedy}")
    logger.warning("%s: the first row, %s, is taken for names of the columns", path, ", ".join(row))


def _may_be_names(first: list[str], second: list[str]) -> bool:
    """Whether a row of numbers looks like years or other counts above a table of measurements."""
    counted = [all(x.strip().lstrip("+-").isdecimal() for x in row) for row in (first, second)]
    return counted[0] and (not counted[1] or first == [str(j + 1) for j in range(len(first))])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text  # Python's own grouping of digits


def _quoted(name: str) -> str:
    """A name as it stands in a list with blanks."""
    parted = '"' in name or any(map(str.isspace, name))
    return json.dumps(name, ensure_ascii=False) if parted else name


def _name_odd_columns(path: Path, names: list[str], table: np.ndarray) -> None:
    """Warnings for columns that number the rows, or take two values."""
    for name, column in zip(names, table.T, strict=True):
        if len(column) > 2 and np.all(np.diff(column) == 1):
            logger.warning(
                "%s: column %r numbers the rows: leave it out if it measures nothing", path, name
            )
        elif len(column) > 2 and len(np.unique(column)) == 2:
            logger.warning("%s: column %r has two values, the method is for many", path, name)


def _check_output(output: Path, table: Path) -> None:
    """Raise UserError where the evidence cannot be written, or something else would be lost."""
    same = output.exists() and table.exists() and output.samefile(table)
    if output.suffix != ".csv" or same:
        raise UserError(f"--output={output} must be another file that ends in .csv")
    if not output.parent.is_dir():
        raise UserError(f"--output={output}: there is no folder {output.parent}")
    if output.exists() and not output.is_file():
        raise UserError(f"--output={output} is no file: choose another name")
    begins = _FIRST
    try:
        try_to_write(output.parent)
        if output.exists():
            with output.open("rb") as file:
                begins = file.read(len(_FIRST)) or _FIRST
    except OSError as error:
        where = f"nothing can be written in {output.parent}"
        raise UserError(f"--output={output}: {where} ({reason(error)})") from error
    if begins != _FIRST:
        what = "another file, no earlier evidence: choose another name"
        raise UserError(f"--output={output} is {what}")


def run(values: flags.FlagValues, rest: list[str]) -> None:
    """Read the table, and print the order and the evidence."""
    if values.steps < 1:
        raise UserError(f"--steps must be positive, got {values.steps}")
    if not 0.001 <= values.sigma <= 1000:
        raise UserError(f"--sigma must be between 0.001 and 1000, got {values.sigma}")
    path = expanded(rest[0])
    output = values.output and expanded(values.output)
    if output:
        _check_output(output, path)
    names, table = read_table(path)
    unnamed = names == [str(j) for j in range(len(names))]
    print(f"{len(table)} rows, {len(names)} columns{', without names' if unnamed else ''}")
    import jax

    from hos_jax.uses import causal

    try:
        causal.standardized(table, names)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    _name_odd_columns(path, names, table)
    if len(table) < FEW_ROWS:
        logger.warning(
            "an order of %d rows may be one of chance: what is known of the method was measured "
            "with 1,000 rows and more",
            len(table),
        )
    found = causal.causal_order(
        jax.random.key(values.seed),
        table,
        same_noise=values.same_noise,
        sigma=values.sigma,
        steps=values.steps,
    )
    print("order, causes first:", " ".join(_quoted(names[j]) for j in found.order))
    rows = found.table(names)
    print("variation of the second derivative (smallest: the leaf of the step, removed after it)")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)))
    if output:
        text = io.StringIO()
        # Nine digits tell all numbers of single precision apart.
        csv.writer(text, lineterminator="\n").writerows(found.table(names, digits=9))
        write_atomically(output, text.getvalue())
        print(f"evidence: {output}")
