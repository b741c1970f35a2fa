"""The examples of the README and of the documentation: Python runs, command lines parse."""

import ast
import inspect
import re
import shlex
import shutil
import tomllib
import traceback

import pages
import pytest
from pages import DEMO_RUN, FENCE, PAGES, PYTHON_PAGES, ROOT, blocks, name_of

import hos_jax
from hos_jax import config as run_config
from hos_jax.cli import arguments
from hos_jax.cli import commands as commands_of_main


def command_lines():
    """Every command of every page: those of shell blocks, and `python ...` within the text."""
    for path in PAGES:
        text = path.read_text()
        lines = [code.replace("\\\n", " ") for code, _ in blocks(path, "bash", "sh", "shell")]
        lines = [line for code in lines for line in code.splitlines()]
        prose = FENCE.sub("", text)
        found = re.findall(r"`((?:python|hos-jax|make|pip) [^`]+)`", prose)
        lines += [" ".join(code.split()) for code in found]
        for line in lines:
            if line.strip() and not line.lstrip().startswith("#"):
                yield name_of(path), line.strip()


COMMANDS = sorted(set(command_lines()))


def commands(*words):
    found = [(page, line) for page, line in COMMANDS if any(word in line for word in words)]
    assert found
    return found


def without_environment(line):
    """The words of a command, without a comment and without leading VARIABLE=value."""
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    # Slurm's launcher, with its options.
    return words[2:] if words[0] == "srun" else words


@pytest.fixture(scope="module")
def demo_run(small_config, tmp_path_factory):
    """A run in the place of the quick start's."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    hos_jax.train_and_evaluate(small_config(), folder)
    return folder


# The pages that take longest; of these the names and the arguments are looked up every time.
LONG = {"diffusion", "dimension", "inverse-problem", "likelihood", "measure-next", "own-data"}
LONG |= {"unusual-images"}


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=pytest.mark.slow if path.stem in LONG else ())
        for path in PYTHON_PAGES
    ],
    ids=name_of,
)
def test_python_of_a_page_runs(path, demo_run, tmp_path, monkeypatch):
    """In order, in one namespace, in a folder with nothing but the run of the quick start."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    shutil.copytree(demo_run, DEMO_RUN)
    try:
        pages.run_python(path)
    except Exception:
        pytest.fail(f"{name_of(path)}:\n{traceback.format_exc()}")


def test_the_pages_with_python_are_found():
    assert {*LONG, "README", "quick-start"} <= {path.stem for path in PYTHON_PAGES}


def imported_by(tree):
    """The names that a page imports from the package."""
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    namespace = {}
    exec(compile(ast.Module(imports, type_ignores=[]), "imports", "exec"), namespace)
    return {name: value for name, value in namespace.items() if "hos_jax" in _home_of(value)}


def _home_of(value):
    return str(getattr(value, "__module__", None) or getattr(value, "__name__", ""))


def found_in(namespace, node):
    """What a dotted name of imported names means, None for another; AttributeError without it."""
    if isinstance(node, ast.Name):
        return namespace.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = found_in(namespace, node.value)
        return None if owner is None else getattr(owner, node.attr)
    return None


@pytest.mark.parametrize("path", PYTHON_PAGES, ids=name_of)
def test_the_calls_of_a_page_fit_the_package(path):
    """Every name of the package exists, and takes as many arguments, of these names."""
    tree = ast.parse("".join(code for code, _ in blocks(path, "python")))
    namespace, calls = imported_by(tree), 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            found_in(namespace, node)
        if not isinstance(node, ast.Call):
            continue
        called = found_in(namespace, node.func)
        given = [arg for arg in node.args if not isinstance(arg, ast.Starred)]
        names = {keyword.arg: None for keyword in node.keywords if keyword.arg}
        if callable(called):
            calls += 1
            whole = len(given) == len(node.args) and len(names) == len(node.keywords)
            signature = inspect.signature(called)
            (signature.bind if whole else signature.bind_partial)(*given, **names)
    assert calls


# ml_collections loads config files in the way that Python has deprecated.
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize(("page", "line"), commands("main.py", "hos-jax "))
def test_command_line_parses(page, line, monkeypatch):
    """Flags, config, keys and values are known; nothing is trained."""
    monkeypatch.chdir(ROOT)
    words = without_environment(line)
    if words[:2] == ["python", "main.py"]:
        words.pop(0)
    assert words[0] in ("hos-jax", "main.py"), line
    if "--help" in words:
        assert words[1:] == ["--help"]  # it prints and exits; tests/cli runs it
        return
    if words[1] in commands_of_main.COMMANDS:
        commands_of_main.parse(words[1:])
        return
    if "--runner" not in words and ("--test" in words or "--resume_training" in words):
        # The run decides; tests/cli runs such a line with one.
        config = "diffusion_mnist5k" if "diffusion" in words else "demo"
        words[1:1] = ["--runner", "LowRankHybridRunner", "--config", config]
    run_config.validate(arguments.make_config(arguments.parse(words)))


@pytest.mark.parametrize(("page", "line"), commands("benchmarks/"))
def test_benchmark_exists_with_its_flags(page, line):
    script, *arguments = without_environment(line)[1:]
    source = (ROOT / script).read_text()
    # A part of a script may be in a file of its own, which adds its arguments.
    for name in re.findall(r"(\w+)\.add_arguments\(", source):
        source += (ROOT / script).with_name(f"{name}.py").read_text()
    for argument in arguments:
        if argument.startswith("--"):
            assert f'"{argument.partition("=")[0]}"' in source, f"{page}: {argument}"


@pytest.mark.parametrize(("page", "line"), commands("make "))
def test_make_target_exists(page, line):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(without_environment(line)[1:]) <= set(targets), page


@pytest.mark.parametrize(("page", "line"), commands("pip install"))
def test_what_pip_installs_has_these_extras(page, line):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extras in re.findall(r"(?:hos_jax|\.|\.whl)\[([\w,-]+)\]", line):
        assert set(extras.split(",")) <= set(project["optional-dependencies"]), page


def handed_on(package):
    """The names that a package gives."""
    return set(getattr(package, "__all__", None) or dir(package))


def in_the_reference():
    text = "".join(path.read_text() for path in (ROOT / "docs" / "reference").glob("*.md"))
    return re.findall(r"automodule:: hos_jax\.([\w.]+)", text)


def test_the_reference_lists_what_the_face_gives():
    """All of it, once; but for the command line, which has a page, and what it is made of."""
    listed = in_the_reference()
    assert len(listed) == len(set(listed))
    units = {name.partition(".")[0] for name in listed}
    public = {path.stem for path in (ROOT / "hos_jax").glob("[!_]*") if path.suffix != ".typed"}
    assert units == public - {"cli", "files"}


@pytest.mark.parametrize("name", in_the_reference())
def test_the_reference_lists_nothing_inside(name):
    """A file of a folder only if the folder hands it on."""
    package, _, file = name.partition(".")
    assert package in dir(hos_jax)
    assert not file or file in handed_on(getattr(hos_jax, package))
