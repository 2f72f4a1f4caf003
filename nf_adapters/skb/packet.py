"""IPv4 packets of TCP and UDP as netfilter queues have them: where things are, and checksums that
follow what is changed."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

__all__ = ["ACK", "FIN", "RST", "SYN", "TCP", "UDP", "Layout", "layout", "remade"]

TCP: Final = 6
UDP: Final = 17
FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10

_FRAGMENT = 0x3FFF  # more fragments, or an offset


class Layout(NamedTuple):
    """Where things are in a packet: offsets."""

    transport: int
    checksum: int
    payload: int


def layout(packet: bytes) -> Layout | None:
    """None for anything but a whole IPv4 packet of TCP or UDP."""
    if len(packet) < 20 or packet[0] >> 4 != 4:
        return None
    length, _, fragment = struct.unpack_from("!HHH", packet, 2)
    at = (packet[0] & 15) * 4
    if length != len(packet) or at < 20 or fragment & _FRAGMENT:
        return None
    room = length - at
    if packet[9] == UDP and room >= 8:
        (told,) = struct.unpack_from("!H", packet, at + 4)
        return Layout(at, at + 6, at + 8) if told == room else None
    if packet[9] == TCP and room >= 20:
        header = (packet[at + 12] >> 4) * 4
        return Layout(at, at + 16, at + header) if 20 <= header <= room else None
    return None


def remade(packet: bytes, at: Layout, headers: bytearray, payload: bytes) -> bytes:
    """*packet* with other *headers*, as long as its own, and another *payload*. Lengths are put
    right here, and checksums by the difference: a wrong one stays wrong (RFC 1624). Of the
    header of IP only the first two octets may have been changed."""
    old, new = (
        struct.pack("!H", size - at.transport) for size in (len(packet), at.payload + len(payload))
    )
    struct.pack_into("!H", headers, 2, at.payload + len(payload))
    _adjust(headers, 10, packet[:4], bytes(headers[:4]))
    if packet[9] == UDP:
        headers[at.transport + 4 : at.transport + 6] = new
        if headers[at.checksum : at.checksum + 2] == b"\0\0":
            return bytes(headers) + payload  # it has none
    # The length is in the pseudo-header, too. The checksum itself is still the same in both.
    before, behind = packet[at.transport :], bytes(headers[at.transport :]) + payload
    _adjust(headers, at.checksum, old + before, new + behind)
    if packet[9] == UDP and headers[at.checksum : at.checksum + 2] == b"\0\0":
        headers[at.checksum : at.checksum + 2] = b"\xff\xff"
    return bytes(headers) + payload


def _adjust(made: bytearray, at: int, old: bytes, new: bytes) -> None:
    """Change the checksum at an offset by what has changed under it."""
    (checksum,) = struct.unpack_from("!H", made, at)
    struct.pack_into("!H", made, at, (checksum + _sum(old) - _sum(new)) % 0xFFFF)


def _sum(data: bytes) -> int:
    """The ones' complement sum of 16 bit words is the number itself, modulo 2**16 - 1."""
    return int.from_bytes(data + b"\0" * (len(data) % 2), "big") % 0xFFFF
