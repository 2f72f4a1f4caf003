"""The bytes of a checked stream: blocks in which a wrong, lost, doubled or moved byte shows.

A block begins with its kind, its flow and its number; what follows is cut from a fixed pattern at
a place that both give, so the right bytes of another flow or another block are wrong bytes here.
"""

from __future__ import annotations

import random
import struct
from enum import IntEnum

import msgspec

SIZE = 1 << 16
"""Bytes of a block."""

_HEADER = struct.Struct("!HHQ")
_SHIFTS = 1021  # a prime: neighbours in number or flow never share a place
_PATTERN = random.Random(0).randbytes(SIZE + _SHIFTS)


class Kind(IntEnum):
    """What a block is."""

    HELLO = 1  # the first one from the client: a msgpack object
    DATA = 2
    END = 3  # the last one: a msgpack object


def data(flow: int, number: int) -> bytes:
    """The one right block of data with this number in this flow."""
    start = (flow * 61 + number * 7) % _SHIFTS
    return _HEADER.pack(Kind.DATA, flow, number) + _PATTERN[start : start + SIZE - _HEADER.size]


def said(kind: Kind, flow: int, what: object) -> bytes:
    """A block that says something; *what* is anything msgspec can encode in less than a block."""
    text = msgspec.msgpack.encode(what)
    return (_HEADER.pack(kind, flow, len(text)) + text).ljust(SIZE, b"\0")


def kind_of(block: bytearray) -> int:
    """The kind that a whole block says it is of; any number, if it is wrong."""
    return int(_HEADER.unpack_from(block)[0])


def heard(block: bytearray) -> tuple[int, bytes]:
    """Flow and encoded object of a block that :func:`said` made."""
    _, flow, length = _HEADER.unpack_from(block)
    return flow, bytes(block[_HEADER.size : _HEADER.size + length])


def wrong_bytes(got: bytearray, flow: int, number: int) -> int:
    """How many bytes of *got*, possibly cut short, differ from block *number* of *flow*."""
    right = data(flow, number)
    if got == right:
        return 0
    return sum(one != other for one, other in zip(got, right, strict=False))
