"""TCP segments as values, and what a splice makes of them, in whole numbers: none of M2M's own
arithmetic is used here. Packets are built from scratch (:mod:`tests.support.packets`)."""

from __future__ import annotations

import struct
from typing import NamedTuple

from m2m.protocol.flow import Flow
from tests.support import packets

STAMP, SACK = 8, 5


class Option(NamedTuple):
    """An option, or with kind 1 a NOP: of numbers of 32 bits, or of octets that are none."""

    kind: int
    fields: tuple[int, ...] = ()
    rest: bytes = b""

    def wire(self) -> bytes:
        if self.kind == 1:
            return b"\1"
        data = b"".join(struct.pack("!I", field % 2**32) for field in self.fields) + self.rest
        return bytes((self.kind, 2 + len(data))) + data


class Segment(NamedTuple):
    seq: int
    ack: int
    window: int
    flags: int = packets.ACK
    options: tuple[Option, ...] = ()
    tail: bytes = b""  # behind the options: the end of them, or what none can be
    payload: bytes = b""

    @property
    def end(self) -> int:
        """One past its last number."""
        return (self.seq + len(self.payload) + (self.flags & packets.FIN)) % 2**32

    def wire(self, flow: Flow, ttl: int = 64) -> bytes:
        return packets.tcp(
            flow, seq=self.seq % 2**32, ack=self.ack % 2**32, window=self.window, flags=self.flags,
            options=b"".join(option.wire() for option in self.options) + self.tail,
            payload=self.payload, ttl=ttl,
        )  # fmt: skip


class Added(NamedTuple):
    """A splice: seq, stamp and window, each to the right and to the left."""

    seq: tuple[int, int]
    stamp: tuple[int, int]
    window: tuple[int, int]

    def carry(self, segment: Segment, toward: int) -> Segment:
        """The segment on the other side."""
        back = 1 - toward
        acks = bool(segment.flags & packets.ACK)
        options = []
        for option in segment.options:
            fields = option.fields
            if option.kind == STAMP and fields:
                value, echo = fields
                fields = value + self.stamp[toward], echo - self.stamp[back] * acks
            elif option.kind == SACK:
                fields = tuple(edge - self.seq[back] for edge in fields)
            options.append(option._replace(fields=fields))
        scaled = segment.window * 2 ** self.window[toward]
        return segment._replace(
            seq=segment.seq + self.seq[toward],
            ack=segment.ack - self.seq[back] * acks,
            window=min(int(scaled), 65535),
            options=tuple(options),
        )


SEGMENTS = (
    Segment(1000, 2000, 500),
    Segment(2**32 - 1, 1, 65535, packets.ACK | packets.FIN, payload=b"odd"),
    Segment(7, 0, 9, 0, payload=b"no ACK"),
    Segment(3, 2**31, 0, packets.ACK | packets.RST),
    Segment(1, 2, 3, options=(Option(1), Option(1), Option(STAMP, (2**32 - 1, 5)))),
    Segment(7, 9, 9, 0, (Option(1), Option(1), Option(STAMP, (5, 6))), payload=b"no ACK, stamped"),
    Segment(1, 2, 3, options=(Option(30, rest=b"just as long"[:10]),)),
    Segment(1, 2, 3, options=(Option(1), Option(STAMP, (4, 5)), Option(SACK, (6, 7)))),
    Segment(
        1, 2, 3, options=(Option(STAMP, (4, 5)), Option(1), Option(1), Option(SACK, (6,) * 6)),
        payload=b"with all that there is room for",
    ),
    Segment(1, 2, 3, options=(Option(1), Option(SACK, tuple(range(8))))),
    Segment(1, 2, 3, options=(Option(1),) * 30 + (Option(STAMP, (4, 5)),)),  # the last
    Segment(1, 2, 3, options=(Option(30, rest=b"others"),), tail=b"\0\x08\x0a12345678"),
    Segment(1, 2, 3, tail=b"\x08\x0a12"),  # cut short
)  # fmt: skip
"""What each implementation of a splice is tried with."""
