"""A descriptor that becomes readable at a steady pace.

Trio's own timeouts cost 12 us at every wait, even at those that end before the time is up; a timer
that is one more descriptor costs nothing until it rings.
"""

from __future__ import annotations

import ctypes
import os
import sys

_CLOCK_MONOTONIC = 1
_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC  # TFD_NONBLOCK and TFD_CLOEXEC are these

_libc = ctypes.CDLL(None, use_errno=True)


class _Interval(ctypes.Structure):
    """``struct itimerspec``, from and to when; seconds and nanoseconds each."""

    _fields_ = (
        ("interval", ctypes.c_long * 2),
        ("first", ctypes.c_long * 2),
    )


class Ticker:
    """Rings every *seconds*, for the first time after as many."""

    def __init__(self, seconds: float) -> None:
        self._fd: int = _libc.timerfd_create(_CLOCK_MONOTONIC, _FLAGS)
        if self._fd < 0:
            raise _error("timerfd_create")
        whole = int(seconds)
        pause = (ctypes.c_long * 2)(whole, int((seconds - whole) * 1e9))
        if _libc.timerfd_settime(self._fd, 0, ctypes.byref(_Interval(pause, pause)), None) < 0:
            error = _error("timerfd_settime")
            self.close()
            raise error

    def fileno(self) -> int:
        return self._fd

    def rings(self) -> int:
        """How often it has rung since the last call."""
        try:
            return int.from_bytes(os.read(self._fd, 8), sys.byteorder)
        except BlockingIOError:
            return 0

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _error(call: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")
