"""A module imports only from lower layers or from its own folder; flax and configs stay up."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "hos_jax"
LAYERS = {
    0: "types errors files interruption",
    1: "linops lanczos matrix_functions noise",
    2: "tweedie autodiff distributions",
    3: "losses models samplers diagnostics uncertainty calibration metrics objective inverse",
    4: "parallel train_state checkpoint event_log run_log data",
    5: "fit problem train evaluate held_out generate report classify figures runners config "
    "config_keys arguments cli malloc saved_config tensor_files published migrate commands",
}
LAYERS = {layer: names.split() for layer, names in LAYERS.items()}
LAYER_OF = {name: layer for layer, names in LAYERS.items() for name in names}
FLAX_ALLOWED = {"models", *LAYERS[4], *LAYERS[5]}
CONFIG_ALLOWED = {"data", *LAYERS[5]}
FILES = sorted(PACKAGE.rglob("*.py"))


def unit(path):
    """The file or folder directly under the package that a module belongs to."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path):
    """Imported module names, without those under `if TYPE_CHECKING`."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_module_has_a_layer():
    assert {unit(path) for path in FILES} - {"__init__"} <= set(LAYER_OF)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    me = unit(path)
    if me == "__init__":
        return
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "hos_jax" and len(parts) > 1 and parts[1] in LAYER_OF:
            other = parts[1]
            subpackages = {"losses", "models", "samplers"}
            if other == me:
                continue
            assert LAYER_OF[other] <= LAYER_OF[me], f"{me} imports {other} from above"
            assert not (me in subpackages and other in subpackages), f"{me} imports {other}"
        assert parts[0] != "flax" or me in FLAX_ALLOWED, f"{me} imports flax"
        assert parts[0] != "ml_collections" or me in CONFIG_ALLOWED, f"{me} imports ml_collections"
        assert parts[0] not in ("tensorflow", "pickle"), f"{me} imports {parts[0]}"


def test_devices_and_processes_are_known_in_one_file():
    names = ("jax.pmap(", "jax.shard_map(", "multihost", "jax.distributed")
    users = [path.name for path in FILES if any(name in path.read_text() for name in names)]
    assert users == ["parallel.py"]
