"""A load that runs until it is told to stop."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from m2m.lab.traffic.ending import asked_to_end


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_sigterm_is_noted() -> None:
    asked = asked_to_end()
    assert not asked()
    os.kill(os.getpid(), signal.SIGTERM)
    assert asked()
