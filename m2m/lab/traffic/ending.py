"""Ending in order: a load that runs until it is told to stop still says what became of it."""

from __future__ import annotations

import signal
from collections.abc import Callable


def asked_to_end() -> Callable[[], bool]:
    """From now on SIGTERM does not kill this process; the result tells whether it has come."""
    came = False

    def note(*_: object) -> None:
        nonlocal came
        came = True

    signal.signal(signal.SIGTERM, note)
    return lambda: came
