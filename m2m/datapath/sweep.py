"""Running the sweeper program (``m2m/bpf/sweep.h``) again and again.

It has a thread of its own, started and joined by the datapath: a pass over two million entries
takes 0.2 s in one system call, for which neither held packets nor heartbeats may wait. What it
finds comes through the ring buffer, whose descriptor wakes the consumer of events.
"""

from __future__ import annotations

import struct
import threading
import time
from typing import NamedTuple

from m2m.datapath._bpf import BpfError, Program

INTERVAL = 1.0  # s between passes
_SHARE = 20  # a pass may take at most one in so many seconds of a processor ...
_LONGEST = 5.0  # s between passes; ... but ended sessions do not wait for longer
_REQUEST = struct.Struct("=IIIII")  # struct m2m_sweep


class Pass(NamedTuple):
    """What one pass over the table found."""

    entries: int
    reported: int  # sessions that are over
    deleted: int  # entries that no agent needs to know about
    postponed: int  # over, but to be reported at the next pass


class Sweeper:
    """Sweeps from :meth:`start` to :meth:`stop`."""

    def __init__(self, program: Program) -> None:
        self._program = program
        # The predecessor may have been told of ends it could not act upon any more.
        self._again = True
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="m2m-sweeper", daemon=True)
        self.failure: BpfError | None = None

    def start(self) -> None:
        self._thread.start()

    def sweep(self) -> Pass:
        """One pass, now."""
        request = _REQUEST.pack(self._again, 0, 0, 0, 0)
        self._again = False
        _, _, answer, _ = self._program.run(ctx=request)
        assert answer is not None
        _, *found = _REQUEST.unpack(answer)
        return Pass(*found)

    def stop(self) -> None:
        """Wait for the pass under way, if there is one; no other follows."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        pause = INTERVAL
        while not self._stop.wait(pause):
            # Not wall-clock time: on a busy machine a pass mostly waits for its turn.
            began = time.thread_time()
            try:
                self.sweep()
            except BpfError as error:
                self.failure = error
                return
            pause = min(max(INTERVAL, (time.thread_time() - began) * _SHARE), _LONGEST)
