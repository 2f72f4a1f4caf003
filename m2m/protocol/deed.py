"""Deeds: what makes a session's end another host's (``docs/mobility.md``), and the bytes of a file
of them.

A deed says everything that a host has to know of a session whose client or server it is to be, and
holds the key by which the host that it comes from would prove a move to the hop. Whoever has it can
have the session; the hop lets it be used once.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from m2m._hmac import Hmac
from m2m.identity import DEVICE_SIZE, KEY_SIZE
from m2m.protocol.codec import MAC_SIZE, Malformed, WireError
from m2m.protocol.flow import Address, Flow, Proto
from m2m.protocol.rebind import End

__all__ = ["MAX_DEEDS", "Deed", "pack_deeds", "unpack_deeds"]

MAX_DEEDS: Final = 65535
"""Deeds of one file."""


class Deed(NamedTuple):
    """One session's end, on its way from a host to another."""

    session: int
    end: End
    supersession: Flow
    leg: Flow  # as the hop calls it
    mss: int
    mtu: int
    policy: int
    generation: int
    client: bytes
    server: bytes
    moves: tuple[int, int]  # the numbers of the last moves of client and server
    key: bytes  # of the session, between the host it comes from and the hop

    @property
    def number(self) -> int:
        """That of the move by which it is used: the hop takes no number twice."""
        return self.moves[self.end] + 1

    @property
    def device(self) -> bytes:
        """Of the host that it comes from."""
        return self.client if self.end is End.CLIENT else self.server

    @property
    def address(self) -> Address:
        """The address that sockets at this end use."""
        return self.supersession.src if self.end is End.CLIENT else self.supersession.dst

    @property
    def hop(self) -> Address:
        """The neighbour on the chain."""
        return self.leg.dst if self.end is End.CLIENT else self.leg.src


_HEAD = struct.Struct("!4sHH")  # magic, version, how many
_MAGIC, _VERSION = b"M2MD", 1
_DEED = struct.Struct(f"!QB40s40sHHII{DEVICE_SIZE}s{DEVICE_SIZE}sII{KEY_SIZE}s")
_PROTOS = frozenset(map(int, Proto))


def pack_deeds(key: Hmac, deeds: Sequence[Deed]) -> bytes:
    """The file of these deeds, sealed with the domain's *key*."""
    if not 1 <= len(deeds) <= MAX_DEEDS:
        raise WireError(Malformed.OVERSIZED, f"{len(deeds)} deeds, allowed are 1 to {MAX_DEEDS}")
    data = _HEAD.pack(_MAGIC, _VERSION, len(deeds)) + b"".join(
        _DEED.pack(
            one.session, one.end, one.supersession.pack(), one.leg.pack(), one.mss,
            one.mtu, one.policy, one.generation, one.client, one.server, *one.moves, one.key,
        )
        for one in deeds
    )  # fmt: skip
    return data + key.mac(data)


def unpack_deeds(key: Hmac, data: bytes) -> list[Deed]:
    """The inverse of :func:`pack_deeds`. Raises :exc:`WireError`."""
    body, mac = data[:-MAC_SIZE], data[-MAC_SIZE:]
    if len(body) < _HEAD.size:
        raise WireError(Malformed.TRUNCATED, f"a file of deeds has more than {len(data)} bytes")
    magic, version, count = _HEAD.unpack_from(body)
    if magic != _MAGIC:
        raise WireError(Malformed.MAGIC, "this is no file of deeds")
    if not key.verify(body, mac):
        raise WireError(Malformed.BAD_MAC, "the deeds are not sealed with this domain's key")
    if version != _VERSION:
        raise WireError(Malformed.VERSION, f"deeds of version {version}, known is {_VERSION}")
    if not count or len(body) != _HEAD.size + count * _DEED.size:
        raise WireError(Malformed.VALUE, f"{len(data)} bytes are not {count} deeds")
    return [_unpack(body, start) for start in range(_HEAD.size, len(body), _DEED.size)]


def _unpack(data: bytes, start: int) -> Deed:
    (
        session, end, supersession, leg, mss, mtu, policy, generation, client, server,
        first, second, key,
    ) = _DEED.unpack_from(data, start)  # fmt: skip
    flow, named = Flow.unpack(supersession), Flow.unpack(leg)
    if not session or end not in End._value2member_map_ or {flow.proto, named.proto} - _PROTOS:
        raise WireError(Malformed.VALUE, f"a deed of session {session}, end {end}, flow {flow}")
    return Deed(
        session, End(end), flow, named, mss, mtu, policy, generation, client, server,
        (first, second), key,
    )  # fmt: skip
