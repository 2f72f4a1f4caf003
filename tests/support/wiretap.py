"""Control messages taken off a wire, and put on it again, frame by frame."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from typing import NamedTuple

import trio

from m2m.agent.config import AGENT_PORT
from tests.support.namespaces import Namespace

_ETH_P_ALL, _ETH_P_IP = 0x0003, b"\x08\x00"
_PACKET_OUTGOING = 4
_ETHERNET, _UDP = 14, 8
_TYPE = 3  # offset in a message


class Frame(NamedTuple):
    """One control message with all its headers, as it left."""

    data: bytes
    receiver: str
    type: int  # of the message


class Wiretap:
    """Hears the control messages that leave by one interface, from when it is made."""

    def __init__(self, namespace: Namespace, interface: str) -> None:
        self._socket = namespace.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self._socket.setblocking(False)
        with namespace.entered():
            self._socket.bind((interface, _ETH_P_ALL))
        self._frames: list[Frame] = []

    async def until(self, *types: int) -> list[Frame]:
        """All that has left, once messages of each of these types have."""
        while not set(types) <= {frame.type for frame in self.frames()}:
            await trio.lowlevel.wait_readable(self._socket)
        return self.frames()

    def frames(self) -> list[Frame]:
        """All that has left so far."""
        while True:
            try:
                data, (_, _, kind, *_) = self._socket.recvfrom(1 << 16)
            except BlockingIOError:
                return list(self._frames)
            if kind == _PACKET_OUTGOING and (found := _message(data)) is not None:
                self._frames.append(found)

    def send(self, frames: Iterable[Frame]) -> None:
        """Put frames on the wire; those are not heard."""
        for frame in frames:
            self._socket.send(frame.data)

    def close(self) -> None:
        self._socket.close()


def _message(data: bytes) -> Frame | None:
    if data[12:14] != _ETH_P_IP or data[_ETHERNET + 9] != socket.IPPROTO_UDP:
        return None
    udp = _ETHERNET + (data[_ETHERNET] & 0xF) * 4
    if struct.unpack_from("!H", data, udp + 2) != (AGENT_PORT,):
        return None
    # Between two virtual interfaces nobody computes the checksum; none at all is 0 (RFC 768).
    whole = data[: udp + 6] + b"\0\0" + data[udp + _UDP :]
    return Frame(whole, socket.inet_ntoa(data[udp - 4 : udp]), data[udp + _UDP + _TYPE])
