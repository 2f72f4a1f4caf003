"""Packets before and after their translation: what each implementation of it is held to.

User space, BPF_PROG_RUN and each datapath in the kernel run the same ones. Both packets are built
from scratch by :mod:`tests.support.packets`, which has none of M2M's arithmetic.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from m2m.protocol.flow import Flow, Proto
from m2m.protocol.translation import Action, Entry, Hook, Position, Toward
from tests.support import packets
from tests.support.rig import CLIENT, HOST_LEFT, HOST_RIGHT, LEFT, RIGHT, SERVER

MSS = 1360
_MSS_OPTIONS = [
    (b"\x02\x04\x05\xb4", b"\x02\x04\x05\x50"),
    (b"\x01\x02\x04\x05\xb4", b"\x01\x02\x04\x05\x50"),  # at an odd offset
    (b"\x04\x02\x08\x0a12345678\x02\x04\x05\xb4", b"\x04\x02\x08\x0a12345678\x02\x04\x05\x50"),
    (b"\x02\x04\x02\x18", b"\x02\x04\x02\x18"),  # small enough
    (b"\x04\x02", b"\x04\x02"),  # none there
    (b"\x00\x02\x04\x05\xb4", b"\x00\x02\x04\x05\xb4"),  # after the end of the options
    (b"\x08\x00\x02\x04\x05\xb4", b"\x08\x00\x02\x04\x05\xb4"),  # a size that cannot be
    (b"\x01" * 36 + b"\x02\x04\x05\xb4", b"\x01" * 36 + b"\x02\x04\x05\x50"),  # the last
    (b"\x01" * 38 + b"\x02\x04", b"\x01" * 38 + b"\x02\x04"),  # cut short
]
_ROUTER_ALERT = b"\x94\x04\x00\x00"


class Vector(NamedTuple):
    """A packet that meets *entry*, which has no next hop yet, and what leaves of it."""

    name: str
    entry: Entry
    before: bytes
    after: bytes


def vectors() -> list[Vector]:
    """All of them, those of the same entry in a row."""
    return [vector for proto in Proto for entry in _entries(proto) for vector in _meeting(entry)]


def _entries(proto: Proto) -> Iterator[Entry]:
    """On its way through the host of the bench, out of it and into it."""
    left, right = (
        Flow(proto, LEFT, 61001, HOST_LEFT, 64001),
        Flow(proto, HOST_RIGHT, 62001, RIGHT, 65001),
    )
    arriving, leaving = (
        Flow(proto, CLIENT, 40001, HOST_LEFT, 80),
        Flow(proto, HOST_RIGHT, 40001, SERVER, 80),
    )
    for number, (hook, match, rewrite, action, position) in enumerate(
        (
            (Hook.IN, left, right, Action.SEND, Position.TAP),
            (Hook.OUT, leaving, right, Action.SEND, Position.CLIENT),
            (Hook.IN, left, arriving, Action.DELIVER, Position.SERVER),
        ), 1,
    ):  # fmt: skip
        yield Entry(number, hook, match, rewrite, action, Toward.RIGHT, position, match, mss=MSS)


def _meeting(entry: Entry) -> Iterator[Vector]:
    hop = entry.hook is Hook.IN and entry.action is Action.SEND

    def vector(name: str, before: bytes, after: bytes) -> Vector:
        return Vector(f"{entry.hook.name} {entry.action.name} {name}", entry, before, after)

    old, new = entry.match, entry.rewrite
    ttl = {"ttl": 64 - hop}
    for payload in (b"", b"x", b"even", b"odd" * 333):
        name = f"{len(payload)} octets"
        if old.proto == Proto.TCP:
            yield vector(f"TCP, {name}", packets.tcp(old, payload=payload, ident=7),
                         packets.tcp(new, payload=payload, ident=7, **ttl))  # fmt: skip
            continue
        for summed in (True, False):
            yield vector(
                f"UDP, {name}, {'with a' if summed else 'no'} checksum",
                packets.udp(old, payload=payload, with_checksum=summed, ident=7),
                packets.udp(new, payload=payload, with_checksum=summed, ident=7, **ttl),
            )
    if old.proto == Proto.UDP:
        for flow, when in ((old, "before"), (new, "after")):
            zero = _summed_to_zero(flow)
            yield vector(f"UDP, a sum of zero {when}", packets.udp(old, payload=zero, ident=7),
                         packets.udp(new, payload=zero, ident=7, **ttl))  # fmt: skip
        return
    for number, (options, clamped) in enumerate(_MSS_OPTIONS):
        for flags in (packets.SYN, packets.SYN | packets.ACK):
            yield vector(
                f"TCP, flags {flags:#x}, options {number}",
                packets.tcp(old, flags=flags, options=options, ident=7),
                packets.tcp(new, flags=flags, options=clamped, ident=7, **ttl),
            )
    options = _MSS_OPTIONS[0][0]
    yield vector("TCP, no SYN", packets.tcp(old, options=options, ident=7),
                 packets.tcp(new, options=options, ident=7, **ttl))  # fmt: skip
    if not hop:
        yield vector("TCP, TTL 1", packets.tcp(old, ttl=1, ident=7),
                     packets.tcp(new, ttl=1, ident=7))  # fmt: skip
    else:
        segments = [packets.tcp(flow, payload=b"data")[20:] for flow in (old, new)]
        yield vector(
            "TCP, IP options",
            packets.ipv4(old, segments[0], options=_ROUTER_ALERT, ident=7),
            packets.ipv4(new, segments[1], options=_ROUTER_ALERT, ident=7, **ttl),
        )


def _summed_to_zero(flow: Flow) -> bytes:
    """The payload by which a datagram's checksum comes out as zero, which is sent as 0xffff."""
    bare = packets.udp(flow, payload=b"\0\0")
    covered = bare[12:20] + struct.pack("!BBH", 0, Proto.UDP, 10) + bare[20:26] + b"\0\0\0\0"
    return struct.pack("!H", packets.checksum(covered))
