"""The package as a stranger meets it: `import hos_jax`, its names, and the names of version 0.1."""

import importlib
import os
import pkgutil
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import pytest

import hos_jax
from hos_jax import _names
from hos_jax.config import find_config, named_config

MEMBERS = {name for name in _names.MOVED if name.rpartition(".")[0] in _names.MOVED}
OLD_MODULES = sorted(set(_names.MOVED) - MEMBERS)


def in_a_new_process(script, *flags):
    done = subprocess.run([sys.executable, *flags, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def test_the_import_loads_nothing_and_every_name_is_there_when_used():
    in_a_new_process(
        "import sys\n"
        "import hos_jax\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "assert not {'jax', 'numpy', 'flax', 'absl', 'ml_collections'} & loaded, loaded\n"
        "assert callable(hos_jax.losses.dsm) and callable(hos_jax.uncertainty.posterior)\n"
        "assert callable(hos_jax.samplers.diagnostics.effective_sample_size)\n"
        "assert callable(hos_jax.load_run) and callable(hos_jax.train_and_evaluate)\n"
        "assert callable(hos_jax.evaluation.evaluate_run)\n"
        "assert issubclass(hos_jax.UserError, ValueError)\n"
        "assert hos_jax.__version__.count('.') == 2\n",
        "-W",
        "error",
    )


def test_the_command_is_the_module_and_main(tmp_path):
    project = Path(__file__).parents[2] / "pyproject.toml"
    module, _, name = tomllib.loads(project.read_text())["project"]["scripts"]["hos-jax"].partition(
        ":"
    )
    assert getattr(importlib.import_module(module), name) is hos_jax.cli.run
    for command in (["-m", "hos_jax"], [str(project.with_name("main.py"))]):
        done = subprocess.run(
            [sys.executable, *command, "--help"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(project.parent)},
        )
        assert done.returncode == 0 and "hos-jax --runner" in done.stdout


def test_named_configs_are_found_everywhere_and_a_users_own_come_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("demo", "demo.yml", "demo.py", "configs/demo.py"):
        assert find_config(name) == Path(__file__).parents[2] / "configs/demo.py"
    own = Path("configs/demo.py")
    own.parent.mkdir()
    own.touch()
    assert find_config("demo") == find_config("demo.yml") == own
    Path("mine.yml").touch()
    with pytest.raises(hos_jax.UserError, match=r"its name ends in \.py"):
        find_config("mine.yml")
    Path("mine.py").touch()
    for name in ("mine.py", "mine.yml", str(tmp_path / "mine")):
        assert find_config(name).resolve() == (tmp_path / "mine.py").resolve()
    for name in ("mine", "demos", "other/demo.py", "", "."):
        with pytest.raises(hos_jax.UserError, match="known are"):
            find_config(name)


def test_a_config_is_found_and_read_by_name():
    assert named_config("unet_mnist").training.batch_size == 40


def test_the_wheel_has_every_package_and_the_named_configs():
    project = Path(__file__).parents[2]
    setuptools = tomllib.loads((project / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent.relative_to(project) for path in project.glob("hos_jax/**/__init__.py")}
    expected = {".".join(folder.parts) for folder in folders} | {"hos_jax.config.experiments"}
    assert set(setuptools["packages"]) == expected
    assert setuptools["package-dir"] == {"hos_jax.config.experiments": "configs"}


def test_dir_lists_what_is_public():
    listed = set(dir(hos_jax))
    assert {"UserError", "load_run", "train_and_evaluate", "__version__"} <= listed
    found = {module.name for module in pkgutil.iter_modules(hos_jax.__path__)}
    public = {name for name in found if not name.startswith("_")}
    assert public <= listed
    for name in public:
        assert isinstance(getattr(hos_jax, name), types.ModuleType)
    assert not {name for name in OLD_MODULES if "." not in name} & listed


def test_the_version_is_that_of_the_package():
    assert importlib.import_module("importlib.metadata").version("hos_jax") == hos_jax.__version__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'posteriors'"):
        _ = hos_jax.posteriors
    with pytest.raises(ImportError):
        importlib.import_module("hos_jax.posteriors")


@pytest.mark.parametrize("name", OLD_MODULES)
def test_an_old_module_leads_to_the_new_one(name):
    new = importlib.import_module(f"hos_jax.{_names.MOVED[name]}")
    old = importlib.import_module(f"hos_jax.{name}")
    here = [
        key
        for key, value in vars(new).items()
        if not key.startswith("_") and getattr(value, "__module__", None) == new.__name__
    ]
    assert here
    for key in here:
        with pytest.warns(DeprecationWarning, match=rf"is now hos_jax\.{_names.MOVED[name]}"):
            assert getattr(old, key) is getattr(new, key)
    with pytest.raises(AttributeError):
        _ = old.no_such_name


@pytest.mark.parametrize("name", sorted(MEMBERS))
def test_a_member_that_left_its_old_module_is_found(name):
    module, _, member = name.rpartition(".")
    place, _, new = _names.MOVED[name].rpartition(".")
    expected = getattr(importlib.import_module(f"hos_jax.{place}"), new)
    with pytest.warns(DeprecationWarning, match=new):
        assert getattr(importlib.import_module(f"hos_jax.{module}"), member) is expected


def test_every_form_of_import_of_an_old_name_works_and_is_warned_of_where_it_stands():
    done = in_a_new_process(
        "import sys\n"
        "from hos_jax.config import runners as new\n"
        "from hos_jax.runners import apply_runner\n"
        "from hos_jax import runners\n"
        "import hos_jax.runners as again\n"
        "import hos_jax\n"
        "from hos_jax.models import registry\n"
        "assert apply_runner is new.apply_runner is runners.apply_runner is again.apply_runner\n"
        "assert hos_jax.runners.RUNNERS is new.RUNNERS and 'jax' not in sys.modules\n"
        "assert registry.make_model.__module__ == 'hos_jax.config.networks'\n",
        "-W",
        "always::DeprecationWarning",
    )
    where = "<string>:{}: DeprecationWarning: hos_jax.{} is now hos_jax.{}"
    assert where.format(3, "runners.apply_runner", "config.runners.apply_runner") in done.stderr
    for line in (4, 5, 9):
        assert where.format(line, "runners", "config.runners") in done.stderr
    assert where.format(10, "models.registry.make_model", "config.networks") in done.stderr
