"""The architecture that CONTRIBUTING describes: who may import whom, and what is known where."""

import ast
import itertools
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[2] / "hos_jax"
# A unit is a file or a folder of the top level. It imports units of lower layers alone.
LAYERS = {
    0: "types errors _names",
    1: "files noise linops",
    2: "data tweedie autodiff adapters distributions losses models samplers",
    3: "uncertainty config",
    4: "pointwise training",
    5: "fit evaluation migrate",
    6: "uses",
    7: "cli",
    8: "__init__ __main__",
}
LAYER_OF = {unit: layer for layer, units in LAYERS.items() for unit in units.split()}
UPPER = {unit for unit, layer in LAYER_OF.items() if layer >= 4}
FLAX_ALLOWED = {"models", *UPPER}
CONFIG_ALLOWED = {"config", "data", *UPPER}
# `jax.device_get`, which only brings numbers to the host, may stand anywhere.
PROCESSES = {
    *("pmap", "shard_map", "distributed", "multihost", "multihost_utils"),
    *("process_index", "process_count", "process_indices", "pmean", "psum", "axis_index"),
}
DEVICES = {
    *("devices", "local_devices", "device_count", "local_device_count", "default_backend"),
    *("device_put", "device_put_sharded", "device_put_replicated", "default_device"),
    *("Mesh", "make_mesh", "NamedSharding", "PartitionSpec", "SingleDeviceSharding", "sharding"),
}
OF_ARRAYS = {"addressable_data", "addressable_shards", "devices", "sharding"}
KNOWS_PROCESSES = {"training/parallel.py"}
KNOWS_DEVICES = {"training/parallel.py", "samplers/devices.py"}
KNOWS_DEVICES |= {f"models/winograd/{file}.py" for file in ("__init__", "convolution")}


class Import(NamedTuple):
    """An import of one file of the package by another, paths below the package."""

    file: str
    line: int
    imported: str


def files(package):
    return {path.relative_to(package).as_posix(): path for path in package.rglob("*.py")}


def unit(file):
    """The file or folder of the top level that a file belongs to."""
    return file.partition("/")[0].removesuffix(".py")


def module_names(tree):
    """Every module that is imported, with what is taken from it as a module of its own.

    Wherever the import stands: in functions too, and for type checkers alone.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide what is imported"
            yield from ((node.lineno, node.module, alias.name) for alias in node.names)


def imports(package):
    """All imports within a package; one from a package's face is one of its `__init__.py`."""
    known = files(package)

    def place(parts):
        path = "/".join(parts)
        candidates = (f"{path}.py", f"{path}/__init__.py".lstrip("/"))
        return next((file for file in candidates if file in known), None)

    for file, path in known.items():
        tree = ast.parse(path.read_text())
        for line, module, name in module_names(tree):
            root, *parts = module.split(".")
            if root != package.name:
                continue
            found = (place([*parts, name]) if name else None) or place(parts)
            assert found, f"{file}:{line} imports {module}, which is not there"
            yield Import(file, line, found)
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("lazily"):
                for loaded in call.keywords:
                    found = place([*Path(file).parent.parts, loaded.arg])
                    yield Import(file, loaded.value.lineno, found or loaded.arg)


def upward(package):
    """Imports of a unit of the same layer or a higher one."""
    wrong = []
    for file, line, imported in imports(package):
        me, other = unit(file), unit(imported)
        if me == other:
            continue
        if LAYER_OF[other] >= LAYER_OF[me]:
            wrong.append(
                f"{file}:{line} imports {imported}: layer {LAYER_OF[me]} imports {LAYER_OF[other]}"
            )
    return wrong


def circles(package):
    """Each circle of files that import one another, as a chain."""
    graph = {file: {} for file in files(package)}
    for file, line, imported in imports(package):
        graph[file].setdefault(imported, line)
    found, done = [], set()

    def visit(file, chain):
        if file in chain:
            circle = [*chain[chain.index(file) :], file]
            steps = (f"{a}:{graph[a][b]}" for a, b in itertools.pairwise(circle))
            found.append(" -> ".join([*steps, file]))
        elif file not in done:
            for imported in graph[file]:
                visit(imported, [*chain, file])
            done.add(file)

    for file in sorted(graph):
        visit(file, [])
    return found


def outsiders(package, library, allowed):
    """Imports of a library by units that should not know it."""
    wrong = []
    for file, path in files(package).items():
        for line, module, _ in module_names(ast.parse(path.read_text())):
            if module.split(".")[0] == library and unit(file) not in allowed:
                wrong.append(f"{file}:{line} imports {library}")
    return wrong


def uses(package, names, of_arrays=frozenset()):
    """Where names of JAX and orbax are used, as `file:line`, by import or as attributes."""
    found = []
    for file, path in files(package).items():
        tree = ast.parse(path.read_text())
        roots = {}
        for line, module, name in module_names(tree):
            taken = {*module.split("."), name}
            if taken & {"jax", "orbax"} and taken & names:
                found.append(f"{file}:{line}")
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                module = getattr(node, "module", None)
                for alias in node.names:
                    bound = alias.asname or alias.name.split(".")[0]
                    roots[bound] = f"{module or alias.name}".split(".")[0]
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                library = roots.get(ast.unparse(node).partition(".")[0])
                known = names if library in ("jax", "orbax") else of_arrays
                if node.attr in known and library != package.name:
                    found.append(f"{file}:{node.lineno}")
    return found


def elsewhere(places, allowed):
    return [place for place in places if place.partition(":")[0] not in allowed]


def test_every_file_has_a_layer():
    assert {unit(file) for file in files(PACKAGE)} == set(LAYER_OF)


def test_imports_point_downwards():
    assert not upward(PACKAGE), "\n".join(upward(PACKAGE))


def test_no_files_import_one_another():
    assert not circles(PACKAGE), "\n".join(circles(PACKAGE))


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("flax", FLAX_ALLOWED),
        ("ml_collections", CONFIG_ALLOWED),
        ("tensorflow", set()),
        ("pickle", set()),
    ],
)
def test_libraries_are_known_where_they_should_be(library, allowed):
    wrong = outsiders(PACKAGE, library, allowed)
    assert not wrong, "\n".join(wrong)


def test_configs_are_no_arguments_of_the_numerics():
    """Not even by name, as a type in quotes or of a parameter."""
    for file, path in files(PACKAGE).items():
        if unit(file) not in CONFIG_ALLOWED:
            assert "ConfigDict" not in path.read_text(), file


def test_processes_are_known_in_one_file():
    places = uses(PACKAGE, PROCESSES)
    assert places and not elsewhere(places, KNOWS_PROCESSES)


def test_devices_are_known_where_they_should_be():
    places = uses(PACKAGE, DEVICES, OF_ARRAYS)
    assert places and not elsewhere(places, KNOWS_DEVICES)


def test_the_top_level_can_be_taken_in_at_a_glance():
    listed = [path for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len(listed) <= 26


@pytest.fixture
def planted(tmp_path):
    """A small package with the names of this one, and a way to write files into it."""
    package = tmp_path / PACKAGE.name

    def write(file, text):
        path = package / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return package

    for file in ("__init__.py", "types.py", "fit.py", "losses/__init__.py", "losses/one.py"):
        write(file, "")
    return write


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("losses/one.py", "def f():\n    from hos_jax import fit", ":2 imports fit.py"),
        ("losses/one.py", "from hos_jax.models import x", ":1 imports models/__init__.py"),
        ("losses/one.py", "import hos_jax", ":1 imports __init__.py"),
        ("types.py", "if TYPE_CHECKING:\n    from hos_jax.fit import x", ":2 imports fit.py"),
    ],
)
def test_an_import_from_above_is_found(planted, file, text, expected):
    planted("models/__init__.py", "")
    package = planted("losses/two.py", "from hos_jax.types import Array")
    assert not upward(package)
    (wrong,) = upward(planted(file, text))
    assert wrong.startswith(file + expected)


def test_a_circle_is_found_and_printed(planted):
    planted("losses/two.py", "import hos_jax.losses.three")
    planted("losses/three.py", "def f():\n    from hos_jax.losses import one")
    package = planted("losses/__init__.py", "from hos_jax.losses.two import x")
    assert not circles(package)
    (chain,) = circles(planted("losses/one.py", "\n\nfrom hos_jax.losses.two import x"))
    one, two, three = "losses/one.py:3", "losses/two.py:1", "losses/three.py:2"
    assert chain in (
        f"{one} -> {two} -> {three} -> losses/one.py",
        f"{two} -> {three} -> {one} -> losses/two.py",
        f"{three} -> {one} -> {two} -> losses/three.py",
    )


def test_a_file_that_asks_its_own_package_is_in_a_circle(planted):
    planted("losses/two.py", "from hos_jax.losses import x")
    for face in ("from hos_jax.losses.two import x", "_ = lazily(__name__, two='x')"):
        (chain,) = circles(planted("losses/__init__.py", face))
        assert "losses/__init__.py:1 -> losses/two.py:1" in chain or "two.py:1 -> " in chain


@pytest.mark.parametrize(
    "text",
    [
        "import jax\njax.devices()",
        "import jax as j\nj.sharding.Mesh",
        "from jax.sharding import Mesh",
        "from jax import device_put",
        "def f(x):\n    return x.sharding",
        "import jax\nn = jax.local_device_count()",
    ],
)
def test_a_touch_of_devices_is_found(planted, text):
    found = elsewhere(uses(planted("losses/one.py", text), DEVICES, OF_ARRAYS), KNOWS_DEVICES)
    assert found and all(place.startswith("losses/one.py:") for place in found)


def test_other_libraries_are_found(planted):
    package = planted("losses/one.py", "from flax import linen")
    assert outsiders(package, "flax", FLAX_ALLOWED) == ["losses/one.py:1 imports flax"]
    package = planted("fit.py", "def f():\n    import jax\n    jax.distributed.initialize()")
    assert elsewhere(uses(package, PROCESSES), KNOWS_PROCESSES) == ["fit.py:3"]
