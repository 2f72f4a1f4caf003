"""The table of IPv4 flows.

Everywhere else keys are ``struct m2m_key``, as wide as IPv6 needs; in the table, where every packet
looks its own up, they are ``struct m2m_key4``, without the prefixes of mapped addresses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from m2m.datapath._bpf import Map
from m2m.datapath.layout import KEY4_SIZE, narrow, widen

__all__ = ["FlowTable"]

_BATCH = 4096


class FlowTable:
    """``flows`` of ``m2m/bpf/maps.h``, by wide keys; values are ``struct m2m_entry``.

    A key whose addresses are not both IPv4's raises :exc:`~m2m.datapath.DatapathError`.
    """

    def __init__(self, table: Map) -> None:
        self._table = table

    @property
    def max_entries(self) -> int:
        return self._table.max_entries

    def lookup(self, key: bytes) -> bytes | None:
        return self._table.lookup(narrow(key))

    def lookup_each(self, keys: Iterable[bytes]) -> list[bytes | None]:
        return self._table.lookup_each([narrow(key) for key in keys])

    def add(self, key: bytes, value: bytes) -> bool:
        """Insert; False when the key is there already."""
        return self._table.add(narrow(key), value)

    def update(self, key: bytes, value: bytes, flags: int = 0) -> None:
        self._table.update(narrow(key), value, flags)

    def delete(self, key: bytes) -> bool:
        """Whether the key was there."""
        return self._table.delete(narrow(key))

    def batches(self) -> Iterator[list[tuple[bytes, bytes]]]:
        """All keys and values, some thousand at a time."""
        size = self._table.value_size
        cursor, more = None, True
        while more:
            cursor, keys, values = self._table.lookup_batch(cursor, _BATCH)
            more = cursor is not None
            yield [
                (widen(key), value)
                for key, value in zip(_cut(keys, KEY4_SIZE), _cut(values, size), strict=True)
            ]


def _cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]
