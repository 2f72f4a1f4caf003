"""Two TCP connections read as one (``docs/splicing.md``): what is added between them.

:func:`splice_of` makes a splice of two sockets at rest, :meth:`Splice.and_then` one of two hops'
splices. The packed form, and what becomes of packets, is the core's (``kmod/core/splice.h``).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from m2m.errors import M2MError

__all__ = ["NotSpliceable", "Socket", "Splice", "both", "splice_of"]

_PACKED = struct.Struct("=4I2b2x")
_WIRE = struct.Struct("!4I2b")
_MOST_SCALE = 14  # RFC 7323, 2.3
_WRAP = 1 << 32
_LEAST_UNITS = 4  # of windows, in the largest that an end has had


class NotSpliceable(M2MError):
    """The two connections cannot become one; the message says why."""


class Splice(NamedTuple):
    """What is added to numbers of packets, each to the right and to the left
    (:class:`~m2m.protocol.translation.Toward`), modulo 2**32."""

    seq: tuple[int, int]
    stamp: tuple[int, int]  # to TSval
    window: tuple[int, int]  # bits that windows are shifted left by; negative: right

    @classmethod
    def of_sums(cls, right: int, left: int) -> Splice | None:
        """What has become of a function that has added so many octets to the stream to the right,
        and to the one to the left (negative: taken out). None: nothing."""
        seq = right % _WRAP, left % _WRAP
        return cls(seq, (0, 0), (0, 0)) if any(seq) else None

    def and_then(self, right: Splice) -> Splice:
        """This hop's splice when it has taken over that of its right neighbour, too."""
        return Splice(
            _sums(self.seq, right.seq), _sums(self.stamp, right.stamp),
            (self.window[0] + right.window[0], self.window[1] + right.window[1]),
        )  # fmt: skip

    def pack(self) -> bytes:
        """``struct m2m_splice``, 20 octets."""
        return _PACKED.pack(*self.seq, *self.stamp, *self.window)

    def wire(self) -> bytes:
        """As messages have it, 18 octets."""
        return _WIRE.pack(*self.seq, *self.stamp, *self.window)

    @classmethod
    def of_wire(cls, packed: bytes) -> Splice:
        """Raises :exc:`ValueError` as :meth:`unpack`."""
        right, left, stamp_right, stamp_left, *window = _WIRE.unpack(packed)
        return cls((right, left), (stamp_right, stamp_left), _windows(window))

    @classmethod
    def unpack(cls, packed: bytes) -> Splice:
        """Raises :exc:`ValueError` for windows that no two scales can be apart."""
        right, left, stamp_right, stamp_left, *window = _PACKED.unpack(packed)
        return cls((right, left), (stamp_right, stamp_left), _windows(window))


def both(one: Splice | None, right: Splice | None) -> Splice | None:
    """The sum of two hops' splices, either of which may be none."""
    if one is None or right is None:
        return right if one is None else one
    return one.and_then(right)


class Socket(NamedTuple):
    """One of a proxy's two connections when everything has been read, sent and acknowledged."""

    sends: int  # the next sequence number that it would send
    receives: int  # and the next that it would get
    clock: int | None  # TSval of whatever it would send now; None: no timestamps were agreed
    peer_clock: int | None  # TSval of what its peer sends next, at least
    scale: int  # by which its peer reads its windows
    peer_scale: int  # by which it reads its peer's
    peer_window: int  # octets: the largest that its peer has announced
    sack: bool
    ecn: bool


def splice_of(left: Socket, right: Socket) -> Splice:
    """The splice by which the peers of a proxy's two sockets talk to each other: *left* is that
    towards the client. Raises :exc:`NotSpliceable`."""
    for what, ours, other in (
        ("timestamps", left.clock is not None, right.clock is not None),
        ("SACK", left.sack, right.sack),
        ("ECN", left.ecn, right.ecn),
    ):
        if ours != other:
            end = "client" if ours else "server"
            raise NotSpliceable(f"{what}: agreed with the {end} only")
    for reader, announcer in ((left, right), (right, left)):
        # The peer of one reads windows that the peer of the other announces, in these units.
        unit = 1 << reader.scale
        if unit > 1 and unit * _LEAST_UNITS > announcer.peer_window:
            raise NotSpliceable(
                f"windows would be read in units of {unit} octets, and have had"
                f" {announcer.peer_window} at most"
            )
    return Splice(
        (_less(right.sends, left.receives), _less(left.sends, right.receives)),
        (_less(right.clock, left.peer_clock), _less(left.clock, right.peer_clock)),
        (left.peer_scale - right.scale, right.peer_scale - left.scale),
    )  # fmt: skip


def _windows(window: list[int]) -> tuple[int, int]:
    if any(abs(bits) > _MOST_SCALE for bits in window):
        raise ValueError(f"windows cannot be shifted by {window} bits")
    return window[0], window[1]


def _less(a: int | None, b: int | None) -> int:
    return 0 if a is None or b is None else (a - b) & 0xFFFFFFFF


def _sums(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return (a[0] + b[0]) & 0xFFFFFFFF, (a[1] + b[1]) & 0xFFFFFFFF
