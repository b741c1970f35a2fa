"""The examples of the README and of the documentation: Python runs, command lines parse."""

import re
import shlex
import traceback
from pathlib import Path

import pytest

from hos_jax import config as run_config
from hos_jax.cli import arguments
from hos_jax.cli import commands as commands_of_main

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "benchmarks" / "README.md",
    *sorted(path for path in ROOT.glob("docs/**/*.md") if "notebooks" not in path.parts),
]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def blocks(path, *languages):
    """The fenced blocks of a page, each with the number of lines above its code."""
    text = path.read_text()
    for match in FENCE.finditer(text):
        if match[1] in languages:
            yield match[2], text.count("\n", 0, match.start(2))


def command_lines():
    """Every command of every page: those of shell blocks, and `python ...` within the text."""
    for path in PAGES:
        text = path.read_text()
        lines = [code.replace("\\\n", " ") for code, _ in blocks(path, "bash", "sh", "shell")]
        lines = [line for code in lines for line in code.splitlines()]
        prose = FENCE.sub("", text)
        lines += [" ".join(code.split()) for code in re.findall(r"`(python [^`]+)`", prose)]
        lines += [" ".join(code.split()) for code in re.findall(r"`(make [^`]+)`", prose)]
        for line in lines:
            if line.strip() and not line.lstrip().startswith("#"):
                yield name_of(path), line.strip()


COMMANDS = sorted(set(command_lines()))


def commands(word):
    found = [(page, line) for page, line in COMMANDS if word in line]
    assert found
    return found


def without_environment(line):
    """The words of a command, without a comment and without leading VARIABLE=value."""
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    # Slurm's launcher, with its options.
    return words[words.index("python") :] if words[0] == "srun" else words


PYTHON_PAGES = [path for path in PAGES if any(blocks(path, "python"))]


@pytest.mark.parametrize("path", PYTHON_PAGES, ids=name_of)
def test_python_of_a_page_runs(path, tmp_path, monkeypatch):
    """In order, in one namespace, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    namespace = {"__name__": "__main__"}
    for code, above in blocks(path, "python"):
        try:
            exec(compile("\n" * above + code, name_of(path), "exec"), namespace)
        except Exception:
            pytest.fail(f"{name_of(path)}:\n{traceback.format_exc()}")


def test_the_pages_with_python_are_found():
    found = {name_of(path) for path in PYTHON_PAGES}
    assert {"README.md", "docs/how-to/own-data.md", "docs/how-to/inverse-problem.md"} <= found


# ml_collections loads config files in the way that Python has deprecated.
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize(("page", "line"), commands("main.py"))
def test_command_line_parses(page, line, monkeypatch):
    """Flags, config, keys and values are known; nothing is trained."""
    monkeypatch.chdir(ROOT)
    words = without_environment(line)
    assert words[:2] == ["python", "main.py"], line
    if "--help" in words:
        words.remove("--help")  # it prints and exits; tests/cli runs it
        assert words == ["python", "main.py"]
        return
    if words[2] in commands_of_main.COMMANDS:
        commands_of_main.parse(words[2:])
        return
    if "--runner" not in words and ("--test" in words or "--resume_training" in words):
        # The run decides; tests/cli runs such a line with one.
        words += ["--runner", "LowRankHybridRunner", "--config", "demo"]
    run_config.validate(arguments.make_config(arguments.parse(words[1:])))


@pytest.mark.parametrize(("page", "line"), commands("benchmarks/"))
def test_benchmark_exists_with_its_flags(page, line):
    script, *arguments = without_environment(line)[1:]
    source = (ROOT / script).read_text()
    for argument in arguments:
        if argument.startswith("--"):
            assert f'"{argument.partition("=")[0]}"' in source, f"{page}: {argument}"


@pytest.mark.parametrize(("page", "line"), commands("make "))
def test_make_target_exists(page, line):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(without_environment(line)[1:]) <= set(targets), page


def test_every_public_module_is_in_the_reference():
    text = "".join(path.read_text() for path in (ROOT / "docs" / "reference").glob("*.md"))
    listed = re.findall(r"automodule:: (hos_jax\.[\w.]+)", text)
    files = (ROOT / "hos_jax").rglob("*.py")
    parts = [path.relative_to(ROOT).with_suffix("").parts for path in files]
    modules = {".".join(part for part in each if part != "__init__") for each in parts}
    public = {name for name in modules if "._" not in name} - {"hos_jax"}
    assert sorted(listed) == sorted(public)
