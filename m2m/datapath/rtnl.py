"""Requests to rtnetlink, answered by the kernel before ``send`` returns. No waiting, no codecs."""

from __future__ import annotations

import os
import socket
import struct

_NLMSG = struct.Struct("=IHHII")  # length, type, flags, sequence number, port id
_ATTRIBUTE = struct.Struct("=HH")
_NLM_F_REQUEST, _NLM_F_ACK = 0x001, 0x004
_NLMSG_ERROR = 2
_ANSWER = 1 << 16

REPLACE, EXCLUSIVE, CREATE = 0x100, 0x200, 0x400
NESTED = 0x8000


def attribute(kind: int, value: bytes) -> bytes:
    """``struct nlattr`` with its padding."""
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


class Rtnl:
    """A socket in the network namespace of the thread that makes it."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.bind((0, 0))
        self._socket.setblocking(False)
        self._sequence = 0

    def ask(self, kind: int, body: bytes, flags: int = 0) -> None:
        """Raises :exc:`OSError` with the kernel's answer."""
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        head = _NLMSG.pack(
            _NLMSG.size + len(body), kind, _NLM_F_REQUEST | _NLM_F_ACK | flags, self._sequence, 0
        )
        self._socket.send(head + body)
        while True:
            answer = self._socket.recv(_ANSWER)
            _, found, _, sequence, _ = _NLMSG.unpack_from(answer)
            if found == _NLMSG_ERROR and sequence == self._sequence:
                break
        (error,) = struct.unpack_from("=i", answer, _NLMSG.size)
        if error:
            raise OSError(-error, os.strerror(-error))

    def close(self) -> None:
        self._socket.close()
