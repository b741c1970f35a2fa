"""Compiled programs are kept between starts, where the user keeps such things, and not for ever."""

import os
import subprocess
import sys

import jax
import pytest
from command_line import ROOT
from small_runs import runner_in

from hos_jax.cli.compiled import LARGEST, cache_folder, keep_compiled
from hos_jax.errors import UserError

RUN = ("--runner", "LowRankHybridRunner", "--config", "demo", "--config.training.steps=1", "--ni")
NAMES = [f"jax_compilation_cache_{name}" for name in ("dir", "max_size")]
NAMES.append("jax_enable_compilation_cache")


@pytest.fixture
def settings():
    """What JAX is told, put back afterwards."""
    before = {name: getattr(jax.config, name) for name in NAMES}
    jax.config.update("jax_compilation_cache_dir", None)
    yield jax.config
    for name, value in before.items():
        jax.config.update(name, value)


def test_a_command_keeps_what_it_compiles_in_the_users_cache(tmp_path, environment):
    unset = {k: v for k, v in environment.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    unset |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
    unset |= {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = runner_in(tmp_path / "runs", unset)(*RUN, "--doc", "a")
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "cache" / "hos_jax").iterdir()
    assert any(path.name.endswith("-cache") for path in folder.iterdir())


def test_the_users_folder_is_bounded_and_one_that_was_named_is_as_it_is(
    settings, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "of_another_project-cache").touch()
    keep_compiled(str(shared))
    assert settings.jax_compilation_cache_dir == str(shared) and any(shared.iterdir())
    assert settings.jax_compilation_cache_max_size == -1
    jax.config.update("jax_compilation_cache_dir", None)
    keep_compiled(None)
    assert settings.jax_compilation_cache_dir == str(cache_folder())
    assert settings.jax_compilation_cache_max_size == LARGEST


def test_what_a_kill_left_unfinished_is_removed(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = cache_folder()
    folder.mkdir(parents=True)
    for name in ("whole-cache", "whole-atime", "cut-cache", "half-cache"):
        (folder / name).write_bytes(b"12345678")
    (folder / "half-atime").touch()
    keep_compiled(None)
    assert {path.name for path in folder.glob("*-cache")} == {"whole-cache"}


def test_without_a_home_nothing_is_kept(settings, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setattr("pathlib.Path.home", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # what is relative does not count
        cache_folder()

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.home", homeless)
    keep_compiled(None)
    assert settings.jax_compilation_cache_dir is None


def test_what_jax_was_told_stays(settings, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    keep_compiled(None)
    assert settings.jax_compilation_cache_dir == str(tmp_path)
    assert settings.jax_compilation_cache_max_size == -1


def test_nothing_is_kept_if_so_asked(settings):
    keep_compiled("")
    assert settings.jax_compilation_cache_dir is None
    assert not settings.jax_enable_compilation_cache


def test_a_home_that_cannot_be_written_does_not_matter(settings, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    keep_compiled(None)
    assert settings.jax_compilation_cache_dir is None
    with pytest.raises(UserError, match="cannot be made: Not a directory"):
        keep_compiled("/dev/null/a")


def test_the_library_keeps_nothing(tmp_path):
    """Only the command line does: a user's own process is left as it is."""
    text = "import hos_jax, jax; hos_jax.train_and_evaluate; hos_jax.cli; hos_jax.load_run; "
    text += "assert jax.config.jax_compilation_cache_dir is None"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    subprocess.run([sys.executable, "-c", text], env=environment, check=True)
    assert not any(tmp_path.iterdir())


def test_other_machines_have_another_folder(monkeypatch):
    here = cache_folder()
    monkeypatch.setattr("hos_jax.cli.compiled._processor", lambda: "another")
    assert cache_folder() != here and cache_folder().parent == here.parent
