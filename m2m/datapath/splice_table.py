"""The splices beside entries (``m2m/bpf/maps.h``): few, so that those who have none pay nothing."""

from __future__ import annotations

from m2m.datapath import DatapathError
from m2m.datapath._bpf import BpfError, Map

__all__ = ["SpliceTable"]


class SpliceTable:
    """Packed splices by the wide keys of their entries."""

    def __init__(self, table: Map) -> None:
        self._table = table
        self._keys: set[bytes] = set()  # that may be in it; most calls are about others
        key = None
        while (key := table.next_key(key)) is not None:
            self._keys.add(key)

    def get(self, key: bytes) -> bytes | None:
        return self._table.lookup(key)

    def put(self, key: bytes, splice: bytes) -> bytes | None:
        """What was there before. Raises :exc:`DatapathError` when there is no room."""
        before = self._table.lookup(key) if key in self._keys else None
        try:
            self._table.update(key, splice)
        except BpfError as error:
            raise DatapathError(f"the kernel refuses a splice: {error.strerror}") from error
        self._keys.add(key)
        return before

    def expect(self, key: bytes) -> None:
        """A program is about to put one there."""
        self._keys.add(key)

    def drop(self, key: bytes) -> None:
        """Take one out that no packet looks for any more, if there is one."""
        if key in self._keys:
            self._table.delete(key)
            self._keys.discard(key)
