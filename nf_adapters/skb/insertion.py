"""Octets that are put into one direction of a TCP connection, and what that makes of its packets.

Before the receiver has acknowledged them, numbers are translated by what they count: what comes
before the place stays, what comes behind it is shifted, and the segment that reaches the place
gets them anew whenever it is repeated. Afterwards all is a shift: that is when the function that
has put them in can leave (``docs/splicing.md``, "Functions that change lengths").
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from nf_adapters.skb.packet import ACK, Layout, remade

__all__ = ["Insertion"]

_WRAP = 1 << 32
_END, _NOP, _SACK = 0, 1, 5  # options of TCP


class Insertion:
    """*octets* behind the one of the stream that has the number *at* - 1, as the sender counts. The
    segment that carries that one carries them."""

    def __init__(self, at: int, octets: bytes) -> None:
        self._at = at
        self._octets = octets
        self.settled = False
        """Whether the receiver has acknowledged them."""

    def onward(self, packet: bytes, at: Layout) -> bytes:
        """A packet that travels the same way, as it goes on."""
        headers, payload = bytearray(packet[: at.payload]), packet[at.payload :]
        (seq,) = struct.unpack_from("!I", headers, at.transport + 4)
        before = 0 if self.settled else -_ahead(seq, self._at)  # octets up to the place
        if before <= 0:
            struct.pack_into("!I", headers, at.transport + 4, (seq + len(self._octets)) % _WRAP)
        elif before <= len(payload):
            payload = payload[:before] + self._octets + payload[before:]
        return remade(packet, at, headers, payload)

    def back(self, packet: bytes, at: Layout) -> bytes:
        """One that travels the other way."""
        headers = bytearray(packet[: at.payload])
        if headers[at.transport + 13] & ACK:
            (ack,) = struct.unpack_from("!I", headers, at.transport + 8)
            self.settled = self.settled or _ahead(ack, self._at) >= len(self._octets)
            struct.pack_into("!I", headers, at.transport + 8, self._as_sent(ack))
            _edges(headers, at, self._as_sent)
        return remade(packet, at, headers, packet[at.payload :])

    def _as_sent(self, number: int) -> int:
        """What the receiver counts, as the sender does; of what was put in, the sender knows the
        place."""
        ahead = _ahead(number, self._at)
        if not self.settled and ahead < len(self._octets):
            return number if ahead <= 0 else self._at
        return (number - len(self._octets)) % _WRAP


def _ahead(number: int, other: int) -> int:
    """How far *number* is beyond the *other* one, at most 2**31 octets either way (RFC 1982)."""
    return (number - other + _WRAP // 2) % _WRAP - _WRAP // 2


def _edges(headers: bytearray, at: Layout, changed: Callable[[int], int]) -> None:
    """Change the edges of SACK blocks (RFC 2018)."""
    place = at.transport + 20
    while place < at.payload and headers[place] != _END:
        if headers[place] == _NOP:
            place += 1
            continue
        if place + 1 == at.payload or (length := headers[place + 1]) < 2:
            return  # no option that can be read
        if headers[place] == _SACK and place + length <= at.payload:
            for edge in range(place + 2, place + length - 3, 4):
                struct.pack_into(
                    "!I", headers, edge, changed(*struct.unpack_from("!I", headers, edge))
                )
        place += length
