"""Generic netlink with the module (``kmod/uapi/m2m.h``): pyroute2's codecs over bare sockets.

The kernel carries a command out, and has answered, before ``send`` returns: nobody waits. The names
and numbers below are those of the header, which ``tests/unit/test_genl.py`` compares with them.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

from pyroute2.netlink import ctrlmsg, genlmsg

from m2m.errors import UnsupportedHost

__all__ = [
    "ARRAY", "COMMANDS", "Family", "Genl", "GenlError", "Message", "find_family", "heard", "listen",
]  # fmt: skip

NAME, VERSION, EVENTS = "m2m", 1, "events"
MAX_ROWS, MAX_KEYS, MAX_RULES_EACH, MAX_NOTES = 500, 2048, 800, 800

COMMANDS = (
    "UNSPEC", "OPEN", "CLOSE", "BEAT", "SET_LINKS", "SET_ADDRESSES", "SET_RULES", "SET_ROWS",
    "DEL_ROWS", "GET_ROWS", "REDIRECT", "HOLD", "RESUME", "WATCH_ACK", "WATCH_COUNT", "INHERIT",
    "RELEASE", "SET_NOTES", "DEL_NOTES", "GET_NOTES", "GET_REASONS", "EVENT",
)  # fmt: skip
_NUMBERS = {name: number for number, name in enumerate(COMMANDS)}

HELD, ENDED, OVERFLOW, ACKED, REACHED = 1, 2, 3, 4, 5  # enum m2m_event

ARRAY = 24
"""Where the elements of a command's first attribute begin, in octets from its beginning."""

Attributes: TypeAlias = Sequence[tuple[str, object]]


class Message(genlmsg):  # type: ignore[misc]
    """One command, answer or event; attributes by their names without ``M2M_A_``."""

    nla_map = (
        ("UNSPEC", "none"),
        ("PAD", "none"),
        ("VERSION", "uint32"),
        ("SESSIONS_MAX", "uint32"),
        ("LINGER", "uint32"),
        ("TCP_IDLE", "uint32"),
        ("UDP_IDLE", "uint32"),
        ("HOLD_PACKETS", "uint32"),
        ("HOLD_TIME", "uint32"),
        ("AWAY_AFTER", "uint32"),
        ("PORT_LO", "uint16"),
        ("PORT_HI", "uint16"),
        ("FORWARDED", "flag"),
        ("KEEP", "flag"),
        ("LINKS", "cdata"),
        ("ADDRESSES", "cdata"),
        ("GENERATION", "uint32"),
        ("RULES", "cdata"),
        ("KEYS", "cdata"),
        ("ROWS", "cdata"),
        ("RESULTS", "cdata"),
        ("SERIAL", "uint32"),
        ("NUMBER", "uint64"),
        ("SUBSTREAM", "flag"),
        ("VERDICT", "uint8"),
        ("NOTES", "cdata"),
        ("SESSIONS", "cdata"),
        ("REASONS", "cdata"),
        ("EVENT", "uint8"),
        ("SESSION", "uint64"),
        ("TOWARD", "uint8"),
        ("KEY", "cdata"),
        ("END", "uint8"),
    )


class GenlError(OSError):
    """The kernel refuses a command: *errno*, in its own words, and where in the command."""

    def __init__(self, number: int, why: str, where: int | None) -> None:
        super().__init__(number, why or os.strerror(number))
        self.where = where

    def element(self, size: int) -> int:
        """The number of the array's element that is refused; the first one if it is not said."""
        return 0 if self.where is None or self.where < ARRAY else (self.where - ARRAY) // size


class Family(NamedTuple):
    """What the kernel calls the module's family and its events just now."""

    number: int
    events: int


_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence number, port
_ERROR = struct.Struct("=i16x")
_ATTRIBUTE = struct.Struct("=HH")
_REQUEST, _ACK, _DUMP = 0x001, 0x004, 0x300
_IS_ERROR, _IS_DONE, _CONTROL = 2, 3, 16
_GETFAMILY = 3
_SOL_NETLINK, _ADD_MEMBERSHIP, _BROADCAST_ERROR, _NO_ENOBUFS, _CAP_ACK, _EXT_ACK = (
    270, 1, 4, 5, 10, 11,
)  # fmt: skip
_ERROR_TEXT, _ERROR_PLACE = 1, 2
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_BUFFER = 1 << 20
_GENERIC = 16  # NETLINK_GENERIC


class Genl:
    """A socket for commands, in the network namespace of the thread that makes it."""

    def __init__(self) -> None:
        self._socket = _new_socket()
        self._sequence = 0
        for option in (_CAP_ACK, _EXT_ACK):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)

    def ask(self, family: Family, command: str, *attributes: tuple[str, object]) -> Message | None:
        """Carry out one command; its answer, if it has any. Raises :exc:`GenlError`."""
        self._send(family, command, attributes, _REQUEST | _ACK)
        answer: Message | None = None
        for body in self._answers():
            answer = _decoded(body)
        return answer

    def dump(self, family: Family, command: str) -> Iterator[Message]:
        """What there is, piece by piece. Raises :exc:`GenlError`."""
        self._send(family, command, (), _REQUEST | _DUMP)
        for body in self._answers():
            yield _decoded(body)

    def family(self) -> Family | None:
        """None where the module is neither loaded nor to be loaded."""
        message = ctrlmsg()
        message["cmd"], message["version"] = _GETFAMILY, 1
        message["attrs"] = [("CTRL_ATTR_FAMILY_NAME", NAME)]
        self._put(message, _CONTROL, _REQUEST | _ACK)
        found = None
        try:
            for body in self._answers():
                answer = ctrlmsg(body)
                answer.decode()
                groups = answer.get_attr("CTRL_ATTR_MCAST_GROUPS") or ()
                by_name = {
                    group.get_attr("CTRL_ATTR_MCAST_GRP_NAME"): group.get_attr(
                        "CTRL_ATTR_MCAST_GRP_ID"
                    )
                    for group in groups
                }
                found = Family(answer.get_attr("CTRL_ATTR_FAMILY_ID"), by_name[EVENTS])
        except GenlError as error:
            if error.errno != errno.ENOENT:
                raise
        return found

    def close(self) -> None:
        self._socket.close()

    def _send(self, family: Family, command: str, attributes: Attributes, flags: int) -> None:
        message = Message()
        message["cmd"], message["version"] = _NUMBERS[command], VERSION
        message["attrs"] = list(attributes)
        self._put(message, family.number, flags)

    def _put(self, message: genlmsg, kind: int, flags: int) -> None:
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        message["header"] = {
            "type": kind, "flags": flags, "sequence_number": self._sequence, "pid": 0,
        }  # fmt: skip
        message.encode()
        self._socket.send(message.data)

    def _answers(self) -> Iterator[bytes]:
        """The messages that answer the last one, up to the one that says that it is done."""
        while True:
            data = self._socket.recv(_BUFFER)
            at = 0
            while at + _HEADER.size <= len(data):
                length, kind, _, sequence, _ = _HEADER.unpack_from(data, at)
                body = data[at : at + length]
                at += (length + 3) & ~3
                if sequence != self._sequence:
                    continue  # of a dump that nobody listened to the end of
                if kind == _IS_ERROR:
                    _raise_if_refused(body)
                    return
                if kind == _IS_DONE:
                    return
                yield body


def find_family() -> Family:
    """Raises :exc:`~m2m.errors.UnsupportedHost` where the module is not there."""
    try:
        control = Genl()
        try:
            found = control.family()
        finally:
            control.close()
    except OSError as error:
        raise UnsupportedHost(
            f"the kernel module m2m cannot be asked for ({error.strerror}); run the agent as root"
        ) from error
    if found is None:
        raise UnsupportedHost(
            "the kernel module m2m is not loaded; run: modprobe m2m (make kmod builds it), or use"
            " --datapath=ebpf, which needs no module"
        )
    return found


def listen(family: Family) -> socket.socket:
    """A socket that hears the module's events. What finds no room there is told again later."""
    events = _new_socket()
    for option in (_BROADCAST_ERROR, _NO_ENOBUFS):
        events.setsockopt(_SOL_NETLINK, option, 1)
    events.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, family.events)
    return events


def heard(events: socket.socket) -> Iterator[Message]:
    """What has come, without waiting."""
    while True:
        try:
            data = events.recv(_BUFFER)
        except BlockingIOError:
            return
        yield _decoded(data)


def _new_socket() -> socket.socket:
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _GENERIC)
    for option in (_SO_SNDBUFFORCE, _SO_RCVBUFFORCE):
        made.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
    made.bind((0, 0))
    made.setblocking(False)
    return made


def _decoded(body: bytes) -> Message:
    message = Message(body)
    message.decode()
    return message


def _raise_if_refused(body: bytes) -> None:
    (number,) = _ERROR.unpack_from(body, _HEADER.size)
    if not number:
        return
    why, where = "", None
    at = _HEADER.size + _ERROR.size
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        value = body[at + _ATTRIBUTE.size : at + length]
        if kind == _ERROR_TEXT:
            why = value.rstrip(b"\0").decode(errors="replace")
        elif kind == _ERROR_PLACE:
            where = int.from_bytes(value, sys.byteorder)
        if length < _ATTRIBUTE.size:
            break
        at += (length + 3) & ~3
    raise GenlError(-number, why, where)
