"""A netlink socket to netfilter, for requests that the kernel answers inside the send call."""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import Final

from pyroute2.netlink import NETLINK_NETFILTER, NLMSG_ERROR

_HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence number, port id
_RECEIVE: Final = 1 << 16


class Refused(Exception):
    """The kernel's answer is an error number; for the callers in this package alone."""

    def __init__(self, number: int) -> None:
        super().__init__(f"{errno.errorcode.get(number, number)} ({os.strerror(number)})")
        self.number = number


class Netfilter:
    """A socket in the calling thread's network namespace, in which it stays."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER
        )
        self._socket.bind((0, 0))
        self._socket.setblocking(False)
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def next_sequence(self) -> int:
        """For the header of the next request's message."""
        self._sequence += 1
        return self._sequence

    def ask(self, request: bytes) -> bytes:
        """Send a message, or a batch, and return the message that answers the last sequence.

        Empty for an acknowledgement. Raises :exc:`Refused`.
        """
        self._send(request)
        while True:
            data = self._receive()
            length, kind, _, sequence, _ = _HEADER.unpack_from(data)
            if sequence != self._sequence:  # of a request whose answer nobody waited for
                continue
            if kind != NLMSG_ERROR:
                return data[:length]
            (code,) = struct.unpack_from("=i", data, _HEADER.size)
            if code:
                raise Refused(-code)
            return b""

    def _send(self, request: bytes) -> None:
        try:
            self._socket.send(request)
        except OSError as error:
            raise Refused(error.errno or errno.EIO) from error

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(_RECEIVE)
        except OSError as error:  # EAGAIN, too: the answer to what was sent is there, or never
            raise Refused(error.errno or errno.EIO) from error
