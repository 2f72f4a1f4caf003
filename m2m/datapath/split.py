"""Cutting TCP packets where one substream ends and the next begins (§5.3).

Few packets need it: those whose retransmission lies across the checkpoint, and those that wait but
acknowledge something. They come here whole, as one frame with what the kernel knows of its
checksum and segmentation in front (``struct virtio_net_hdr``), and go back the same way; a burst
stays a burst, and a checksum that a device was to complete still is.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from m2m.protocol.flow import PACKED_SIZE, V4_PREFIX, Flow, Proto

__all__ = ["Frame", "acknowledgement", "lies_across", "parse", "split"]

_VNET = struct.Struct("=BBHHHH")  # flags, kind, headers, segment size, sum from, sum at
_NEEDS_SUM, _SUM_IS_RIGHT = 1, 2
_ETHERNET, _IP, _TCP = 14, 20, 20
_KIND, _HOOK = 9, 11  # of the octets of an Ethernet header (m2m/bpf/change.h)
_AGAIN, _COPY = bytes.fromhex("024d32000000"), 2
_FIN, _ACK, _ECE, _CWR = 0x01, 0x10, 0x40, 0x80
_FLAGS, _CHECK = 13, 16  # in a TCP header


class Frame(NamedTuple):
    """A TCP packet as the device where packets wait hands it over."""

    vnet: bytes
    ethernet: bytes
    ip: bytes
    tcp: bytes
    payload: bytes

    @property
    def key(self) -> bytes:
        """The key of its entry."""
        flow = Flow(
            Proto.TCP, V4_PREFIX + self.ip[12:16], int.from_bytes(self.tcp[:2], "big"),
            V4_PREFIX + self.ip[16:20], int.from_bytes(self.tcp[2:4], "big"),
        )  # fmt: skip
        return flow.pack()[: PACKED_SIZE - 3] + bytes((self.ethernet[_HOOK], 0, 0))

    @property
    def is_copy(self) -> bool:
        """Whether it is only to be looked at: the packet itself waits."""
        return self.ethernet[_KIND] == _COPY

    @property
    def seq(self) -> int:
        return int.from_bytes(self.tcp[4:8], "big")

    def pack(self) -> bytes:
        """As it is put back: by its source address, to meet its hook again."""
        ethernet = self.ethernet[:6] + _AGAIN[:5] + self.ethernet[_HOOK:]
        return self.vnet + ethernet + self.ip + self.tcp + self.payload


def parse(data: bytes) -> Frame | None:
    """None for what is no whole IPv4 TCP packet."""
    at = _VNET.size + _ETHERNET
    if len(data) < at + _IP or data[at] >> 4 != 4 or data[at + 9] != Proto.TCP:
        return None
    tcp = at + (data[at] & 15) * 4
    end = at + int.from_bytes(data[at + 2 : at + 4], "big")
    if len(data) < max(end, tcp + _TCP):
        return None
    payload = tcp + (data[tcp + 12] >> 4) * 4
    if not tcp + _TCP <= payload <= end:
        return None
    return Frame(
        data[: _VNET.size], data[_VNET.size : at], data[at:tcp], data[tcp:payload],
        data[payload:end],
    )  # fmt: skip


def split(frame: Frame, number: int) -> tuple[Frame, Frame] | None:
    """The parts before and from sequence *number* on, which lies within the payload.

    None when the packet was damaged on its way: its parts would not show it any more.
    """
    if not _is_whole(frame):
        return None
    size = (number - frame.seq) & 0xFFFFFFFF
    flags = frame.tcp[_FLAGS]
    parts = 1
    if segment := _VNET.unpack(frame.vnet)[3]:
        parts = -(-size // segment)
    ident = (int.from_bytes(frame.ip[4:6], "big") + parts) & 0xFFFF
    return (
        _made(frame, frame.payload[:size], flags=flags & ~_FIN),
        _made(
            frame, frame.payload[size:], flags=flags & ~_CWR, seq=number,
            ip=frame.ip[:4] + ident.to_bytes(2, "big") + frame.ip[6:],
        ),
    )  # fmt: skip


def acknowledgement(frame: Frame) -> Frame | None:
    """What *frame* acknowledges, without its payload.

    At its own sequence number, beyond what the receiver has got: were it the next one, the
    receiver would take over its timestamp, and discard what waits and is older (RFC 7323 §5.3).
    """
    flags = _ACK | frame.tcp[_FLAGS] & _ECE
    return _made(frame, b"", flags=flags) if _is_whole(frame) else None


def lies_across(frame: Frame, number: int) -> bool:
    """Whether :func:`split` can be asked."""
    size = (number - frame.seq) & 0xFFFFFFFF
    return 0 < size <= len(frame.payload)


def _is_whole(frame: Frame) -> bool:
    if frame.vnet[0] & (_NEEDS_SUM | _SUM_IS_RIGHT):
        return True
    segment = frame.tcp + frame.payload
    return _sum(_pseudo(frame.ip, len(segment)) + segment) == 0xFFFF


def _made(
    frame: Frame, payload: bytes, *, flags: int, seq: int | None = None, ip: bytes = b""
) -> Frame:
    head, tcp = ip or frame.ip, frame.tcp
    start = tcp[4:8] if seq is None else (seq & 0xFFFFFFFF).to_bytes(4, "big")
    tcp = tcp[:4] + start + tcp[8:_FLAGS] + bytes((flags,)) + tcp[_FLAGS + 1 :]
    total = len(head) + len(tcp) + len(payload)
    head = head[:2] + total.to_bytes(2, "big") + head[4:10] + b"\0\0" + head[12:]
    head = head[:10] + (~_sum(head) & 0xFFFF).to_bytes(2, "big") + head[12:]
    summed, kind, headers, segment, start_at, at = _VNET.unpack(frame.vnet)
    if len(payload) <= segment:
        kind = segment = 0
    pseudo = _pseudo(head, len(tcp) + len(payload))
    tcp = tcp[:_CHECK] + b"\0\0" + tcp[_CHECK + 2 :]
    check = _sum(pseudo) if summed & _NEEDS_SUM else ~_sum(pseudo + tcp + payload) & 0xFFFF
    tcp = tcp[:_CHECK] + check.to_bytes(2, "big") + tcp[_CHECK + 2 :]
    vnet = _VNET.pack(summed & _NEEDS_SUM, kind, headers, segment, start_at, at)
    return Frame(vnet, frame.ethernet, head, tcp, payload)


def _pseudo(ip: bytes, length: int) -> bytes:
    return ip[12:20] + struct.pack("!BBH", 0, Proto.TCP, length)


def _sum(data: bytes) -> int:
    """The one's complement sum (RFC 1071), not inverted."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total
