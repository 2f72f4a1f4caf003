"""Numbered datagrams, and the account of what became of them.

A datagram begins with a header of :data:`HEADER` bytes, which a capture of headers holds as well:
mark, size of the whole datagram, flow, number, and a checksum of all that. A fixed pattern
follows, so a byte changed anywhere shows.
"""

from __future__ import annotations

import random
import struct
import zlib
from typing import NamedTuple

import msgspec

MARK = b"m2mN"
_FIELDS = struct.Struct("!4sHHQ")
_CHECK = struct.Struct("!I")
HEADER = _FIELDS.size + _CHECK.size
LARGEST = 65507
_PATTERN = random.Random(1).randbytes(LARGEST)


class Number(NamedTuple):
    """What the header of a datagram says."""

    size: int  # bytes of the datagram
    flow: int
    number: int


def stamp(into: bytearray, at: int, header: Number) -> None:
    """Write a header into *into*; the rest of the datagram is left as it is."""
    _FIELDS.pack_into(into, at, MARK, *header)
    check = zlib.crc32(memoryview(into)[at : at + _FIELDS.size])
    _CHECK.pack_into(into, at + _FIELDS.size, check)


def burst(size: int, count: int) -> bytearray:
    """Room for *count* datagrams of *size* bytes each, to be stamped. At least the headers fit."""
    if not HEADER <= size <= LARGEST:
        raise ValueError(f"a numbered datagram has {HEADER} to {LARGEST} bytes, not {size}")
    return bytearray((bytes(HEADER) + _PATTERN[: size - HEADER]) * count)


def header_of(data: bytes | bytearray | memoryview) -> Number | None:
    """The header at the beginning of *data*; None if there is none, or a wrong one."""
    if len(data) < HEADER:
        return None
    mark, size, flow, number = _FIELDS.unpack_from(data)
    (check,) = _CHECK.unpack_from(data, _FIELDS.size)
    if mark != MARK or check != zlib.crc32(data[: _FIELDS.size]):
        return None
    return Number(size, flow, number)


def read(data: bytes) -> Number | None:
    """The header of a whole datagram; None when any byte of it is not as it was sent."""
    header = header_of(data)
    if header is None or header.size != len(data):
        return None
    return header if data[HEADER:] == _PATTERN[: len(data) - HEADER] else None


class Account(msgspec.Struct):
    """What came of numbered datagrams. Each counts once in each line that is true of it."""

    sent: int = 0
    arrived: int = 0  # different ones
    lost: int = 0
    duplicated: int = 0  # came again
    reordered: int = 0  # came after one with a higher number (RFC 4737)
    corrupted: int = 0  # not as sent, so not known which; it is among the lost as well
    overrun: int = 0  # of the lost: arrived, but the receiver was too slow to take it
    stall: float = 0.0  # s, the longest time in which nothing came

    def add(self, other: Account) -> None:
        """Count another flow in."""
        for field in self.__struct_fields__:
            join = max if field == "stall" else int.__add__
            setattr(self, field, join(getattr(self, field), getattr(other, field)))


class Ledger:
    """Keeps the account of one flow in one direction."""

    def __init__(self) -> None:
        self._seen = bytearray()  # 1 for each number that came
        self._account = Account()
        self._highest = -1
        self._last = 0.0

    def enter(self, data: bytes, now: float) -> Number | None:
        """Count a datagram that came at *now* (s); its header when it is sound."""
        header = read(data)
        if header is None:
            self._account.corrupted += 1
            return None
        self.count(header.number, now)
        return header

    def count(self, number: int, now: float) -> None:
        """Count the sound datagram with this *number*."""
        if self._account.arrived:
            self._account.stall = max(self._account.stall, now - self._last)
        self._last = now
        if number >= len(self._seen):
            self._seen.extend(bytes(number + 1 - len(self._seen) + 4096))
        if self._seen[number]:
            self._account.duplicated += 1
            return
        self._seen[number] = 1
        self._account.arrived += 1
        if number < self._highest:
            self._account.reordered += 1
        self._highest = max(self._highest, number)

    def account(self, sent: int) -> Account:
        """The account, of *sent* datagrams with the numbers from 0."""
        lost = sent - self._account.arrived
        return msgspec.structs.replace(self._account, sent=sent, lost=lost)
