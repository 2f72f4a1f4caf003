"""MPTCP as the peer of M2M's mobility: the kernel's path manager is told of each address at once.

What a phone's network manager does by ``ip mptcp endpoint``, by generic netlink without the time
that it takes to start a program.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from m2m.datapath.rtnl import NESTED, attribute
from m2m.lab.handover import SERVER, UE, Place
from m2m.lab.lab import Lab
from m2m.lab.netns import LabError, inside

_GENERIC = 16  # NETLINK_GENERIC
_NLMSG = struct.Struct("=IHHII")
_GENL = struct.Struct("=BBxx")  # command, version
_REQUEST_ACK = 0x005
_NLMSG_ERROR = 2
_CONTROL, _GET_FAMILY, _FAMILY_ID, _FAMILY_NAME = 16, 3, 1, 2
_ADD_ADDR, _DEL_ADDR, _SET_LIMITS = 1, 2, 5  # MPTCP_PM_CMD_*
_ADDR, _RECEIVED, _SUBFLOWS = 1, 2, 3  # MPTCP_PM_ATTR_*
_FAMILY, _ID, _ADDR4, _FLAGS = 1, 2, 3, 6  # MPTCP_PM_ADDR_ATTR_*
_SUBFLOW = 2  # MPTCP_PM_ADDR_FLAG_SUBFLOW: open one from this address
_MOST = 8  # subflows of a connection; the kernel allows no more


class PathManager:
    """MPTCP's endpoints in one namespace. Raises :exc:`OSError` with the kernel's answer."""

    def __init__(self, namespace: Path) -> None:
        self._socket = inside(
            namespace, lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _GENERIC)
        )
        self._socket.bind((0, 0))
        name = attribute(_FAMILY_NAME, b"mptcp_pm\0")
        self._family = _family_of(self._ask(_CONTROL, _GET_FAMILY, 1, name))

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()

    def allow(self) -> None:
        """Let connections have as many subflows as the kernel can."""
        most = struct.pack("=I", _MOST)
        self._do(_SET_LIMITS, attribute(_RECEIVED, most) + attribute(_SUBFLOWS, most))

    def add(self, number: int, place: Place) -> None:
        """Have every connection open a subflow from a place's address."""
        body = _described(number) + attribute(_ADDR4, place.address.ip.packed)
        body += attribute(_FLAGS, struct.pack("=I", _SUBFLOW))
        self._do(_ADD_ADDR, attribute(_ADDR | NESTED, body))

    def remove(self, number: int, place: Place) -> None:
        """Have every connection close its subflows from a place's address, and tell its peer."""
        body = _described(number) + attribute(_ADDR4, place.address.ip.packed)
        self._do(_DEL_ADDR, attribute(_ADDR | NESTED, body))

    def _do(self, command: int, body: bytes) -> None:
        self._ask(self._family, command, 1, body)

    def _ask(self, family: int, command: int, version: int, body: bytes) -> bytes:
        """What the kernel says before it acknowledges, if anything."""
        body = _GENL.pack(command, version) + body
        self._socket.send(_NLMSG.pack(_NLMSG.size + len(body), family, _REQUEST_ACK, 1, 0) + body)
        said = b""
        while True:
            answer = self._socket.recv(1 << 16)
            if _NLMSG.unpack_from(answer)[1] == _NLMSG_ERROR:
                break
            said = answer
        (error,) = struct.unpack_from("=i", answer, _NLMSG.size)
        if error:
            raise OSError(-error, f"MPTCP's path manager: {os.strerror(-error)}")
        return said


def _described(number: int) -> bytes:
    return attribute(_FAMILY, struct.pack("=H", socket.AF_INET)) + attribute(_ID, bytes([number]))


def _family_of(answer: bytes) -> int:
    """The number of a generic netlink family."""
    at = _NLMSG.size + _GENL.size
    while at + 4 <= len(answer):
        length, kind = struct.unpack_from("=HH", answer, at)
        if kind == _FAMILY_ID:
            return int(struct.unpack_from("=H", answer, at + 4)[0])
        at += (length + 3) & ~3
    raise LabError("this kernel has no MPTCP; it needs CONFIG_MPTCP=y")


class Following:
    """Tells the UE's path manager of each place that is lost and gained; a listener of moves.

    If *warned* it is told before the loss, so that it can still say goodbye by the old link.
    """

    def __init__(self, manager: PathManager, places: Sequence[str], warned: bool) -> None:
        self._manager = manager
        self._gone = "leaving" if warned else "lost"
        self._numbers = {router: number for number, router in enumerate(places, start=1)}

    def __call__(self, event: str, place: Place) -> None:
        if event == self._gone:
            self._manager.remove(self._numbers[place.router], place)
        elif event == "usable":
            self._manager.add(self._numbers[place.router], place)


@asynccontextmanager
async def following(
    lab: Lab, places: Sequence[str], *, warned: bool = False
) -> AsyncIterator[Following]:
    """MPTCP between the UE and the server of *lab*; for moves between *places* (their routers)."""

    def open_both() -> tuple[PathManager, PathManager]:
        found = PathManager(lab.namespace(UE)), PathManager(lab.namespace(SERVER))
        for manager in found:
            manager.allow()
        return found

    managers = await trio.to_thread.run_sync(open_both)
    try:
        yield Following(managers[0], places, warned)
    finally:
        for manager in managers:
            manager.close()
