"""What unit tests of several files use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.iptables import Iptables


@pytest.fixture
def iptables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iptables:
    """Instead of the host's own."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return Iptables(tmp_path)
