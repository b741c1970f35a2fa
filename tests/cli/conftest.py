"""Tests drive the command line as users do: as a process, in a folder of their own."""

import os

import pytest
from small_runs import quickly, runner_in


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_user(tmp_path_factory):
    """What is kept for the user by default is kept elsewhere here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def environment():
    """That of the tests, to be added to."""
    return dict(os.environ)


@pytest.fixture
def command(tmp_path, environment):
    """Run `python main.py ...` with runs in `tmp_path`; returns the finished process."""
    return runner_in(tmp_path, environment, quickly)
