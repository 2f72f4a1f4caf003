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

import zlib
from typing import Final

from m2m.errors import M2MError
from nf_adapters.skb.packet import FIN, RST, SYN, TCP, Layout, layout, remade

__all__ = ["Garbled", "MARK", "is_squeezed", "restore", "squeeze"]

MARK: Final = 0x2B
"""The DSCP of a squeezed packet."""

_LONGEST = 0xFFFF  # octets of a packet


class Garbled(M2MError):
    """A packet with the mark that :func:`squeeze` has not made like this."""


def is_squeezed(packet: bytes) -> bool:
    """Whether an IPv4 packet has the mark."""
    return len(packet) > 1 and packet[1] >> 2 == MARK


def squeeze(packet: bytes) -> bytes | None:
    """An IPv4 packet made smaller; None for one that is to go as it is.

    That is any but a whole packet of TCP or UDP that gets smaller, and SYN, FIN and RST.
    """
    at = layout(packet)
    if at is None or is_squeezed(packet):
        return None
    if packet[9] == TCP and packet[at.transport + 13] & (SYN | FIN | RST):
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
    at = layout(packet)
    if at is None or not is_squeezed(packet):
        raise Garbled("not a whole IPv4 packet of TCP or UDP that was squeezed")
    if at.payload == len(packet):
        if packet[9] == TCP:
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


def _with_payload(packet: bytes, at: Layout, dscp: int, payload: bytes) -> bytes:
    headers = bytearray(packet[: at.payload])
    headers[1] = dscp << 2 | headers[1] & 3  # the other two bits are ECN's
    return remade(packet, at, headers, payload)
