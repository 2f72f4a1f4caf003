"""``notes`` of ``m2m/bpf/notes.h``: what an agent keeps with its sessions for the next one."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

from m2m.datapath import NOTE_SIZE, DatapathError, DatapathFull
from m2m.datapath._bpf import BpfError, Map

__all__ = ["Notes"]

_SESSION = struct.Struct("=Q")
_BATCH = 4096
_TABLE_FULL = 7  # E2BIG


class Notes:
    """The table, opened by whoever loaded it."""

    def __init__(self, table: Map) -> None:
        self._table = table

    def keep(self, notes: Mapping[int, bytes]) -> None:
        try:
            if len(notes) == 1:  # what a batch needs costs several times as much
                ((session, note),) = notes.items()
                self._table.update(_SESSION.pack(session), note)
            else:
                keys = struct.pack(f"={len(notes)}Q", *notes)
                self._table.update_batch(keys, b"".join(notes.values()))
        except BpfError as error:
            if error.errno == _TABLE_FULL:
                raise DatapathFull(
                    f"no room for another session's note: there are {self._table.max_entries};"
                    " start the agent with room for more sessions (--sessions)"
                ) from error
            raise DatapathError(f"the kernel refuses a session's note: {error.strerror}") from error

    def forget(self, sessions: Iterable[int]) -> None:
        for session in sessions:
            self._table.delete(_SESSION.pack(session))

    def kept(self) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        cursor, more = None, True
        while more:
            cursor, keys, values = self._table.lookup_batch(cursor, _BATCH)
            more = cursor is not None
            for place, (session,) in enumerate(_SESSION.iter_unpack(keys)):
                found[session] = values[place * NOTE_SIZE : (place + 1) * NOTE_SIZE]
        return found
