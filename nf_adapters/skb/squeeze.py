"""Payloads that are smaller on the stretch between two hosts, packet by packet.

The first host squeezes what enters the stretch, the second restores it::

    IPv4, DSCP = MARK | TCP or UDP, its ports and numbers | DSCP before | zlib stream (RFC 1950)
                                                            1 octet

- **Each packet stands by itself.** Others may be lost, come twice or out of order, and any other
  pair may take over in between.
- **The mark tells**, not the payload: what would not get smaller goes as it is, and nothing ever
  grows. A DSCP means what its domain says it does (RFC 2474); this one is of those for local use.
- **TCP's numbers stay.** Between the two they do not fit the lengths, which no router minds; who
  counts octets (a stateful firewall, an IDS) has its place outside, or on the two hosts, where it
  sees packets whole.
- **Checksums change by the difference**: right stays right, and wrong stays wrong to the receiver.
- **Nothing that was not squeezed is restored.** zlib's own checksum refuses a packet that was cut
  in two on the way, as M2M does with one that lies across a checkpoint; TCP sends it again.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final, NamedTuple

from m2m.errors import M2MError

__all__ = ["Garbled", "MARK", "is_squeezed", "restore", "squeeze"]

MARK: Final = 0x2B
"""The DSCP of a squeezed packet."""

_TCP, _UDP = 6, 17
_SYN_FIN_RST = 0x07
_FRAGMENT = 0x3FFF  # more fragments, or an offset
_LONGEST = 0xFFFF  # octets of a packet


class Garbled(M2MError):
    """A packet with the mark that :func:`squeeze` has not made like this."""


class _Layout(NamedTuple):
    """Where things are in a packet: offsets."""

    transport: int
    checksum: int
    payload: int


def is_squeezed(packet: bytes) -> bool:
    """Whether an IPv4 packet has the mark."""
    return len(packet) > 1 and packet[1] >> 2 == MARK


def squeeze(packet: bytes) -> bytes | None:
    """An IPv4 packet made smaller; None for one that is to go as it is.

    That is any but a whole packet of TCP or UDP that gets smaller, and SYN, FIN and RST.
    """
    at = _layout(packet)
    if at is None or is_squeezed(packet):
        return None
    if packet[9] == _TCP and packet[at.transport + 13] & _SYN_FIN_RST:
        return None
    payload = packet[at.payload :]
    squeezed = bytes((packet[1] >> 2,)) + zlib.compress(payload)
    if len(squeezed) >= len(payload):
        return None
    return _with_payload(packet, at, MARK, squeezed)


def restore(packet: bytes) -> bytes:
    """The IPv4 packet that :func:`squeeze` was given. Raises :exc:`Garbled`.

    An acknowledgement with the mark is what M2M sends ahead of a squeezed segment that waits: it
    has that one's headers, and nothing in it. It loses the mark.
    """
    at = _layout(packet)
    if at is None or not is_squeezed(packet):
        raise Garbled("not a whole IPv4 packet of TCP or UDP that was squeezed")
    if at.payload == len(packet):
        if packet[9] == _TCP:
            return _with_payload(packet, at, 0, b"")
        raise Garbled("a datagram without a payload cannot have been squeezed")
    dscp, most = packet[at.payload], _LONGEST - at.payload
    if dscp >= 64 or dscp == MARK:
        raise Garbled(f"{dscp} was not the DSCP of a packet to be squeezed")
    inflater = zlib.decompressobj()
    try:
        payload = inflater.decompress(packet[at.payload + 1 :], most + 1)
    except zlib.error as error:
        raise Garbled(f"the squeezed payload is damaged: {error}") from error
    if not inflater.eof or inflater.unused_data or len(payload) > most:
        raise Garbled("the squeezed payload is cut, followed by something, or too long")
    return _with_payload(packet, at, dscp, payload)


def _layout(packet: bytes) -> _Layout | None:
    """None for anything but a whole IPv4 packet of TCP or UDP."""
    if len(packet) < 20 or packet[0] >> 4 != 4:
        return None
    length, _, fragment = struct.unpack_from("!HHH", packet, 2)
    at = (packet[0] & 15) * 4
    if length != len(packet) or at < 20 or fragment & _FRAGMENT:
        return None
    room = length - at
    if packet[9] == _UDP and room >= 8:
        (told,) = struct.unpack_from("!H", packet, at + 4)
        return _Layout(at, at + 6, at + 8) if told == room else None
    if packet[9] == _TCP and room >= 20:
        header = (packet[at + 12] >> 4) * 4
        return _Layout(at, at + 16, at + header) if 20 <= header <= room else None
    return None


def _with_payload(packet: bytes, at: _Layout, dscp: int, payload: bytes) -> bytes:
    made = bytearray(packet[: at.payload])
    made[1] = dscp << 2 | made[1] & 3  # the other two bits are ECN's
    struct.pack_into("!H", made, 2, at.payload + len(payload))
    _adjust(made, 10, packet[:4], bytes(made[:4]))
    old, new = (struct.pack("!H", len(whole) - at.transport) for whole in (packet, made + payload))
    if packet[9] == _UDP:
        made[at.transport + 4 : at.transport + 6] = new
        if made[at.checksum : at.checksum + 2] == b"\0\0":
            return bytes(made + payload)  # it has none
        old, new = old * 2, new * 2  # in the pseudo-header too
    _adjust(made, at.checksum, old + packet[at.payload :], new + payload)
    if packet[9] == _UDP and made[at.checksum : at.checksum + 2] == b"\0\0":
        made[at.checksum : at.checksum + 2] = b"\xff\xff"
    return bytes(made + payload)


def _adjust(made: bytearray, at: int, old: bytes, new: bytes) -> None:
    """Change the checksum at an offset by what has changed under it (RFC 1624)."""
    (checksum,) = struct.unpack_from("!H", made, at)
    struct.pack_into("!H", made, at, (checksum + _sum(old) - _sum(new)) % 0xFFFF)


def _sum(data: bytes) -> int:
    """The ones' complement sum of 16 bit words is the number itself, modulo 2**16 - 1."""
    return int.from_bytes(data + b"\0" * (len(data) % 2), "big") % 0xFFFF
