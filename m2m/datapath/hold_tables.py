"""The counts that :mod:`m2m.datapath.hold` shares with ``hold.bpf.c``."""

from __future__ import annotations

import mmap
import struct
from typing import NamedTuple

from m2m.datapath._bpf import Map, Program
from m2m.datapath.flow_table import FlowTable
from m2m.datapath.layout import now_ticks, says_nothing
from m2m.protocol.translation import Hook

_SETTLE = struct.Struct("=40sQQIIII")  # struct m2m_settle of m2m/bpf/hold.h
_QUEUED, _RELEASED, _LIMIT = range(3)  # struct m2m_hold_state, 64 bits each
_OUT_TAIL = bytes((Hook.OUT, 0, 0))  # of the key under which a packed flow leaves the host


class Settled(NamedTuple):
    """What ``hold.bpf.c`` knows of a UDP flow."""

    waiting: int  # packets it has counted that have not left the queue
    kept: bool  # whether it has a record of the flow


class HoldTables:
    """The tables and the program ``settle``, opened by whoever loaded them."""

    def __init__(self, *, flows: FlowTable, holds: Map, hold_state: Map, settle: Program) -> None:
        self._flows = flows
        self._holds = holds
        self._settle = settle
        self._memory = mmap.mmap(hold_state.fd, mmap.PAGESIZE)
        self._state = memoryview(self._memory)[:24].cast("Q")

    def begin(self, limit: int) -> None:
        """A new agent, with nothing in its queue, of which *limit* packets may wait."""
        self._state[_LIMIT] = limit
        self._state[_RELEASED] = self._state[_QUEUED]
        while (flow := self._holds.next_key()) is not None:
            self._holds.delete(flow)

    def has_entry(self, flow: bytes) -> bool:
        """Whether the table says where a packed flow that leaves the host goes.

        A refusal says so for its time only.
        """
        entry = self._flows.lookup(flow[:37] + _OUT_TAIL)
        return entry is not None and not says_nothing(entry, now_ticks())

    def left(self, packets: int) -> None:
        """These many packets, of whatever flow, have left the queue."""
        self._state[_RELEASED] += packets

    def settle(
        self, flow: bytes, *, released: int = 0, quiet: int = 0, refused: int = 0,
        overflowed: int = 0,
    ) -> Settled:  # fmt: skip
        """Tell BPF how many packets of *flow* have left; what it knows of the flow then.

        *refused* and *overflowed* packets are counted under their reasons. With *quiet* (ns) the
        record is removed when nothing waits and nothing was queued for so long.
        """
        request = _SETTLE.pack(flow[:37] + _OUT_TAIL, released, quiet, refused, overflowed, 0, 0)
        answer = self._settle.run(ctx=request)[2]
        assert answer is not None  # there is one to every context
        *_, waiting, kept = _SETTLE.unpack(answer)
        return Settled(waiting, bool(kept))

    def close(self) -> None:
        self._state.release()
        self._memory.close()
