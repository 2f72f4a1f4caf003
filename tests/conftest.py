"""Capabilities, network namespaces and the leak check, for all tests.

A test that needs more than Python says so: ``@pytest.mark.needs("netns", "bpffs", "nginx")``.
Where that is missing it is skipped, telling why; with ``CI=true`` it fails instead.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from m2m.lab.pace import SLOWNESS
from tests.support import namespaces, processes
from tests.support.capabilities import missing

IN_CI = os.environ.get("CI") == "true"

# No deadline: the machine is shared, and no test asserts on wall-clock time.
settings.register_profile(
    "m2m", deadline=None, derandomize=IN_CI, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("m2m")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*names): privileges, features and programs needed")
    os.environ[namespaces.RUN_VARIABLE] = str(os.getpid())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Limits of time are for a processor that is not emulated."""
    for item in items if SLOWNESS > 1 else ():
        limit = item.get_closest_marker("timeout")
        seconds = float(limit.args[0] if limit else item.config.getini("timeout"))
        item.add_marker(pytest.mark.timeout(seconds * SLOWNESS), append=False)


def require(*needs: str) -> None:
    """Go on only where all *needs* are met (see :mod:`tests.support.capabilities`)."""
    reasons = dict.fromkeys(reason for need in needs if (reason := missing(need)))
    if reasons and IN_CI:
        pytest.fail("; ".join(reasons), pytrace=False)
    if reasons:
        pytest.skip("; ".join(reasons))


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        require(*mark.args)


@pytest.fixture(scope="session", autouse=True)
def _nothing_leaks() -> Iterator[None]:
    """I9: what the tests started is gone when they are done."""
    if missing("root") is None:
        namespaces.remove_leftovers()
    yield
    processes.end_fork_server()
    assert not namespaces.leaks(), "left behind by the tests"


@pytest.fixture
def netns() -> Iterator[namespaces.NamespaceFactory]:
    """Makes network namespaces (see :mod:`tests.support.namespaces`); removed after the test."""
    require("netns")
    factory = namespaces.NamespaceFactory()
    try:
        yield factory
    finally:
        factory.remove_all()
