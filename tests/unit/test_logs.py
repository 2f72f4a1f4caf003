"""Logs: one line per event, from the level asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import structlog
from m2m import logs
log = structlog.get_logger()
logs.configure({level!r})
log.debug("quiet")
log.warning("policy refused", file="a b", rules=3, why=None)
"""


def logged(level: str) -> list[str]:
    """Logging is set up once per process: this is done in one of its own."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(level=level)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_an_event_is_one_line_of_keys_and_values() -> None:
    (line,) = logged("info")
    stamp, *rest = line.split(" ", 1)
    assert stamp.startswith("timestamp=20")
    assert rest == ['level=warning event="policy refused" file="a b" rules=3 why=']


@pytest.mark.parametrize(("level", "count"), [("debug", 2), ("warning", 1), ("error", 0)])
def test_what_is_below_the_level_is_left_out(level: str, count: int) -> None:
    assert len(logged(level)) == count
