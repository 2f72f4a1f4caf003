"""Tests of the datapaths in the kernel under real traffic: each of those that are there."""

from __future__ import annotations

import pytest

from m2m.datapath.kmod import is_loaded
from tests.support import line


@pytest.fixture(params=["ebpf", "kmod"] if is_loaded() else ["ebpf"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The datapath of the hosts of :mod:`tests.support.line`."""
    monkeypatch.setattr(line, "KIND", request.param)
    return str(request.param)


@pytest.fixture
def only_ebpf(kind: str) -> None:
    """What is looked at is part of the tc programs."""
    if kind != "ebpf":
        pytest.skip("there are no tc programs in this datapath")
