"""What this host's own sockets tell of a session: segments they had to repeat (sock_diag(7))."""

from __future__ import annotations

import socket
import struct
from typing import Final

from m2m.protocol.flow import Flow, Proto, is_ipv4

__all__ = ["retransmissions"]

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLM_F_REQUEST: Final = 1
_INET_DIAG_INFO: Final = 2  # struct tcp_info is wanted, and is the attribute of this number
_ANY_STATE: Final = 0xFFFFFFFF

_NLMSG = struct.Struct("=IHHII")  # length, type, flags, sequence number, port id
# struct inet_diag_req_v2: family, protocol, extensions; states; ports, addresses, interface, cookie
_REQUEST = struct.Struct("=BBBxI2s2s16s16sI8s")
_ANSWER_SIZE = 72  # struct inet_diag_msg
_ATTRIBUTE = struct.Struct("=HH")
_U32 = struct.Struct("=I")
_TOTAL_RETRANS = 100  # offset of tcpi_total_retrans, a 32-bit number


def retransmissions(flow: Flow) -> int | None:
    """How many segments the local socket that sends *flow* has repeated; None without one.

    The kernel answers within the call: nothing waits. Works in the network namespace of the
    calling thread.
    """
    if flow.proto != Proto.TCP or not is_ipv4(flow.src):
        return None
    body = _REQUEST.pack(
        socket.AF_INET, Proto.TCP, 1 << (_INET_DIAG_INFO - 1), _ANY_STATE,
        flow.sport.to_bytes(2), flow.dport.to_bytes(2), flow.src[12:], flow.dst[12:], 0,
        b"\xff" * 8,
    )  # fmt: skip
    length = _NLMSG.size + len(body)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
            kernel.setblocking(False)
            kernel.send(_NLMSG.pack(length, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0) + body)
            answer = kernel.recv(8192)
    except OSError:
        return None
    return _total(answer)


def _total(answer: bytes) -> int | None:
    _, kind, *_ = _NLMSG.unpack_from(answer)
    if kind != _SOCK_DIAG_BY_FAMILY:
        return None
    at = _NLMSG.size + _ANSWER_SIZE
    while at + _ATTRIBUTE.size <= len(answer):
        size, kind = _ATTRIBUTE.unpack_from(answer, at)
        info = answer[at + _ATTRIBUTE.size : at + size]
        if kind == _INET_DIAG_INFO and len(info) >= _TOTAL_RETRANS + 4:
            (total,) = _U32.unpack_from(info, _TOTAL_RETRANS)
            return int(total)
        at += max(size + 3 & ~3, _ATTRIBUTE.size)
    return None
