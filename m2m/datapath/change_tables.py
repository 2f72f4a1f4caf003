"""The records of changing entries (``m2m/bpf/change.h``), and the program that alters them."""

from __future__ import annotations

import mmap
import secrets
import struct
from collections.abc import Sequence
from typing import NamedTuple

from m2m.datapath._bpf import Map, Object
from m2m.datapath.flow_table import FlowTable

# Of a record's state.
HOLD, SUBSTREAM, WATCH, REDIRECT, OVERFLOW, LET_GO, COUNT = 1, 2, 4, 8, 16, 32, 64
ALL = HOLD | SUBSTREAM | WATCH | REDIRECT | OVERFLOW | LET_GO | COUNT
# What to do (m2m/bpf/agent_change.h).
QUEUE, CHECKPOINT, MARK, SETTLE, LOST, FOLD, UNMARK, LATE, SURELY = 1, 2, 4, 8, 16, 32, 64, 128, 256

_CHANGE = struct.Struct("=IIII4s4sIIIIQQQQII")  # struct m2m_change
_REQUEST = struct.Struct("=40sIIIIII4s4sQIIIIIIQQQQQ")  # struct m2m_change_request
_KEY_SIZE, _ENTRY_SIZE = 40, 88
_SPLICING = struct.Struct("=20sI")  # of struct m2m_splice_request, behind keys and entries
_NAMING = struct.Struct("=40sQQ")  # struct m2m_naming
_COUNTED = struct.Struct("=104xQQ24x")  # of these, how many packets
_LIMIT, _IFINDEX = 4, 5  # in struct m2m_waiting, as 32-bit numbers
_QUEUED, _RELEASED = 0, 1  # as 64-bit numbers
_SEEN_ACK, _SEEN_SEQ = 8, 4

_ASKED = bytes(_REQUEST.size - _KEY_SIZE)
_REDIRECTED = struct.pack("=II", MARK, REDIRECT).ljust(len(_ASKED), b"\0")
_NOWHERE = bytes(4)  # of a record that has held nothing yet
_FIRST_ADDRESS, _LAST_ADDRESS = 0xF0000001, 0xFEFFFFFF  # class E


class Found(NamedTuple):
    """An entry and its record, as they were at one moment."""

    queue: bytes  # where packets waited until then, if that is another place now
    late: bytes
    known: bool
    state: int
    checkpoint: int
    flags: int
    max_ack: int
    packets: int  # of the entry
    redirected: int  # of these, by the present rewrite
    queued: int
    released: int
    settled: int

    @property
    def has_seq(self) -> bool:
        return bool(self.flags & _SEEN_SEQ)

    @property
    def acked(self) -> int | None:
        """The largest acknowledgement number seen."""
        return self.max_ack if self.flags & _SEEN_ACK else None


class ChangeTables:
    """The tables and the program ``m2m_change``, opened by whoever loaded them."""

    def __init__(self, loaded: Object) -> None:
        self._changes = loaded.map("changes")
        self._waiting_at = loaded.map("waiting_at")
        self._program = loaded.program("m2m_change")
        self._inherit = loaded.program("m2m_inherit")
        self._splice_rows = loaded.program("m2m_splice_rows")
        self._rename = loaded.program("m2m_rename")
        self.redirects: Map = loaded.map("redirects")
        self.flows = FlowTable(loaded.map("flows"))
        self._memory = mmap.mmap(loaded.map("waiting").fd, mmap.PAGESIZE)
        self._words = memoryview(self._memory)[:24].cast("I")
        self._counts = memoryview(self._memory)[:24].cast("Q")
        # Anywhere: a packet may still be on its way to an address of the last agent's.
        self._next = secrets.randbelow(_LAST_ADDRESS - _FIRST_ADDRESS)

    def begin(self, limit: int, ifindex: int) -> None:
        self._words[_LIMIT], self._words[_IFINDEX] = limit, ifindex

    def nothing_waits(self) -> None:
        """Whatever was lost on the way counts no longer."""
        self._counts[_RELEASED] = self._counts[_QUEUED]

    def add(self, key: bytes) -> None:
        """Make a record that does nothing yet, unless there is one."""
        self._changes.add(key, bytes(_CHANGE.size))

    def recorded(self) -> list[bytes]:
        """The keys of all records."""
        return _keys(self._changes)

    def delete(self, key: bytes) -> None:
        """Forget a record that no program can be looking at."""
        found = self._changes.lookup(key)
        if found is not None:
            self.give_up(*_CHANGE.unpack(found)[4:6])
        self._changes.delete(key)
        self.redirects.delete(key)

    def address(self, key: bytes) -> bytes:
        """A place for packets of *key* to wait at, where none has waited before."""
        span = _LAST_ADDRESS - _FIRST_ADDRESS + 1
        while True:
            self._next = (self._next + 1) % span
            address = struct.pack("!I", _FIRST_ADDRESS + self._next)
            if self._waiting_at.add(address, key):
                return address

    def place(self, key: bytes) -> bytes:
        """Where packets of *key* wait now."""
        found = self._changes.lookup(key)
        return _NOWHERE if found is None else bytes(_CHANGE.unpack(found)[4])

    def give_up(self, *addresses: bytes) -> None:
        """What comes to these places late must not wait there."""
        for address in addresses:
            if address != _NOWHERE:
                self._waiting_at.delete(address)

    def stale_addresses(self) -> list[bytes]:
        """Those that no record has."""
        records = (self._changes.lookup(key) for key in self.recorded())
        used = {address for record in records if record for address in _CHANGE.unpack(record)[4:6]}
        return [address for address in _keys(self._waiting_at) if address not in used]

    def run(
        self, key: bytes, steps: int = 0, *, put: int = 0, clear: int = 0, ack: int = 0,
        until: int = 0, serial: int = 0, queue: bytes = _NOWHERE, late: bytes = _NOWHERE,
        count: int = 0,
    ) -> Found:  # fmt: skip
        """Set and clear bits of the record's state, take *steps*, and look at it afterwards."""
        request = _REQUEST.pack(
            key, steps, put, clear, ack, until, serial, queue, late, count,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        )  # fmt: skip
        answer = self._program.run(ctx=request)[2]
        assert answer is not None
        _, _, _, _, _, _, _, queue, late, _, known, *rest = _REQUEST.unpack(answer)
        state, checkpoint, flags, max_ack, _, *counts = rest
        return Found(queue, late, bool(known), state, checkpoint, flags, max_ack, *counts)

    def redirect(self, rows: Sequence[tuple[bytes, bytes]]) -> list[int]:
        """Let the rows with these keys, which have records, go by their redirects from now on. For
        each, how many packets it had counted by then."""
        if len(rows) == 1:  # what a batch needs costs more than one
            self.redirects.update(*rows[0])
        else:
            self.redirects.update_batch(
                b"".join(key for key, _ in rows), b"".join(redirect for _, redirect in rows)
            )
        size = _REQUEST.size
        self._program.run_each(b"".join(key + _REDIRECTED for key, _ in rows), size)
        # A packet that met the entry before it was marked has been counted by now.
        found = self._program.run_each(b"".join(key + _ASKED for key, _ in rows), size)
        return [packets - redirected for packets, redirected in _COUNTED.iter_unpack(found)]

    def inherit(self, old: bytes, new: bytes) -> None:
        """What has passed under the key *old* counts as seen under *new*."""
        self._inherit.run(ctx=old + new)

    def splice(
        self,
        rows: Sequence[tuple[bytes, bytes]],
        silent: Sequence[tuple[bytes, bytes]],
        splice: bytes,
    ) -> bool:
        """Whether the *rows* that wait were there, and are what they are to be; what meets the
        *silent* ones is dropped."""
        keys = b"".join(key for key, _ in (*rows, *silent))
        values = b"".join(value for _, value in (*rows, *silent))
        answer = self._splice_rows.run(ctx=keys + values + _SPLICING.pack(splice, 0))[2]
        assert answer is not None
        return bool(_SPLICING.unpack_from(answer, 4 * (_KEY_SIZE + _ENTRY_SIZE))[1])

    def rename(self, key: bytes, session: int, name: int) -> None:
        """The row with this key, if it is of *session*, is of *name* from now on."""
        self._rename.run(ctx=_NAMING.pack(key, session, name))

    def close(self) -> None:
        self._words.release()
        self._counts.release()
        self._memory.close()


def _keys(table: Map) -> list[bytes]:
    found: list[bytes] = []
    key = None
    while (key := table.next_key(key)) is not None:
        found.append(key)
    return found
