"""IPv4 packets built from scratch, every checksum computed in full (RFC 1071).

Nothing of M2M's own arithmetic is used here: tests hold the incremental updates against it.
"""

from __future__ import annotations

import struct

from m2m.protocol.flow import Flow, Proto

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10


def checksum(data: bytes) -> int:
    """The Internet checksum of *data* (its own field being zero)."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def tcp(
    flow: Flow, *, payload: bytes = b"", seq: int = 0, ack: int = 0, flags: int = ACK,
    options: bytes = b"", ttl: int = 64, ident: int = 0, window: int = 65535,
) -> bytes:  # fmt: skip
    """A TCP segment in its IPv4 header; *options* is padded to whole words."""
    options += b"\0" * (-len(options) % 4)
    offset = (20 + len(options)) // 4 << 4
    header = struct.pack(
        "!HHIIBBHHH", flow.sport, flow.dport, seq, ack, offset, flags, window, 0, 0
    )  # fmt: skip
    segment = header + options + payload
    check = checksum(_pseudo(flow, len(segment)) + segment)
    segment = segment[:16] + struct.pack("!H", check) + segment[18:]
    return ipv4(flow, segment, ttl=ttl, ident=ident)


def udp(
    flow: Flow, *, payload: bytes = b"", with_checksum: bool = True, ttl: int = 64, ident: int = 0
) -> bytes:
    """A UDP datagram in its IPv4 header."""
    length = 8 + len(payload)
    datagram = struct.pack("!HHHH", flow.sport, flow.dport, length, 0) + payload
    if with_checksum:
        check = checksum(_pseudo(flow, length) + datagram) or 0xFFFF
        datagram = datagram[:6] + struct.pack("!H", check) + datagram[8:]
    return ipv4(flow, datagram, ttl=ttl, ident=ident)


def ipv4(
    flow: Flow, payload: bytes, *, ttl: int = 64, ident: int = 0, fragment: int = 0,
    options: bytes = b"",
) -> bytes:  # fmt: skip
    """*payload* behind an IPv4 header; *fragment* is the flags and offset field."""
    options += b"\0" * (-len(options) % 4)
    header = struct.pack(
        "!BBHHHBBH4s4s", 0x40 | (20 + len(options)) // 4, 0, 20 + len(options) + len(payload),
        ident, fragment, ttl, flow.proto, 0, flow.src[12:], flow.dst[12:],
    ) + options  # fmt: skip
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + payload


def flow_of(packet: bytes) -> Flow:
    """The flow of an IPv4 packet with TCP or UDP."""
    at = (packet[0] & 15) * 4
    sport, dport = struct.unpack_from("!HH", packet, at)
    prefix = b"\0" * 10 + b"\xff\xff"
    return Flow(packet[9], prefix + packet[12:16], sport, prefix + packet[16:20], dport)


def payload_of(packet: bytes) -> bytes:
    at = (packet[0] & 15) * 4
    at += (packet[at + 12] >> 4) * 4 if packet[9] == Proto.TCP else 8
    (total,) = struct.unpack_from("!H", packet, 2)
    return packet[at:total]


def has_right_checksums(packet: bytes) -> bool:
    """Whether IP and TCP or UDP checksums hold (a UDP checksum of zero holds)."""
    at = (packet[0] & 15) * 4
    (total,) = struct.unpack_from("!H", packet, 2)
    if checksum(packet[:at]) != 0:
        return False
    segment = packet[at:total]
    if packet[9] == Proto.UDP and segment[6:8] == b"\0\0":
        return True
    return checksum(_pseudo(flow_of(packet), len(segment)) + segment) == 0


def _pseudo(flow: Flow, length: int) -> bytes:
    return struct.pack("!4s4sBBH", flow.src[12:], flow.dst[12:], 0, flow.proto, length)
