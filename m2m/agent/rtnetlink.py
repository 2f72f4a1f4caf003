"""The few rtnetlink messages that tell an agent of its network, and their bytes.

Read by hand and not by pyroute2's codecs, which look at each of some sixty attributes of a link: a
host that moves would spend more on that than on moving (0.3 ms for each of several messages).
Layouts: linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from m2m.datapath.rtnl import attribute
from m2m.protocol.flow import V4_PREFIX, Address

__all__ = [
    "DELADDR", "DELLINK", "DONE", "ERROR", "LARGEST", "NEWADDR", "NEWLINK", "NEWROUTE", "Found",
    "Heading", "Link", "Message", "link", "local_address", "messages", "question_of_route",
    "questions_of_all", "route",
]  # fmt: skip

LARGEST: Final = 1 << 18
"""Octets that one datagram of the kernel's may have."""

NEWLINK, DELLINK, NEWADDR, DELADDR, NEWROUTE = 16, 17, 20, 21, 24
ERROR, DONE = 2, 3
_GETLINK, _GETADDR, _GETROUTE = 18, 22, 26
_REQUEST, _DUMP = 0x001, 0x300

_NLMSG = struct.Struct("=IHHII")  # length, type, flags, sequence number, port id
_ATTRIBUTE = struct.Struct("=HH")
_IFINFO = struct.Struct("=BxHiII")  # family, hardware type, index, flags, change
_IFADDR = struct.Struct("=BBBBI")  # family, length of the prefix, flags, scope, index
_RTMSG = struct.Struct("=BBBBBBBBI")  # family, lengths, tos, table, protocol, scope, type, flags
_U32 = struct.Struct("=I")
_ERROR = struct.Struct("=i")

_IFLA_IFNAME, _IFLA_MTU = 3, 4
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PREFSRC, _RTA_METRICS = 1, 4, 5, 7, 8
_RTAX_MTU = 2
_RTN_UNICAST = 1
_IFF_UP = 0x1
_ARPHRD_ETHER, _ARPHRD_LOOPBACK = 1, 772
_TYPE = 0x3FFF  # without the flags of nested attributes and byte order


class Link(NamedTuple):
    """A network interface."""

    ifindex: int
    name: str
    mtu: int
    up: bool
    ethernet: bool  # by its link layer, which is what the datapath can read
    loopback: bool = False


class Heading(NamedTuple):
    """A route to one destination: None where the kernel says nothing."""

    unicast: bool  # else it is this host itself, or packets are dropped
    ifindex: int | None
    gateway: Address | None
    source: Address | None
    mtu: int | None


class Found(NamedTuple):
    """An address of an interface."""

    ifindex: int
    address: Address


class Message(NamedTuple):
    """One netlink message: its type, and what follows the header."""

    kind: int
    body: bytes

    @property
    def error(self) -> int:
        """The error number that it tells of; 0: none."""
        if self.kind != ERROR or len(self.body) < _ERROR.size:
            return 0
        return -int(_ERROR.unpack_from(self.body)[0])


def messages(data: bytes) -> Iterator[Message]:
    """What one datagram of the kernel's holds; what is cut off is left out."""
    start = 0
    while start + _NLMSG.size <= len(data):
        length, kind, *_ = _NLMSG.unpack_from(data, start)
        if length < _NLMSG.size or start + length > len(data):
            return
        yield Message(kind, data[start + _NLMSG.size : start + length])
        start += (length + 3) & ~3


def link(body: bytes) -> Link | None:
    """What NEWLINK or DELLINK tell of; None: not of a link, but of a port of a bridge."""
    if len(body) < _IFINFO.size:
        return None
    family, hardware, index, flags, _ = _IFINFO.unpack_from(body)
    if family != socket.AF_UNSPEC:
        return None
    found = _attributes(body, _IFINFO.size)
    name = found.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode("utf-8", "surrogateescape")
    mtu = _number(found.get(_IFLA_MTU))
    return Link(
        index, name, 0 if mtu is None else mtu, bool(flags & _IFF_UP),
        hardware == _ARPHRD_ETHER, hardware == _ARPHRD_LOOPBACK,
    )  # fmt: skip


def local_address(body: bytes) -> Found | None:
    """What NEWADDR or DELADDR tell of; None: no IPv4 address."""
    if len(body) < _IFADDR.size:
        return None
    family, _, _, _, index = _IFADDR.unpack_from(body)
    found = _attributes(body, _IFADDR.size)
    address = _address(found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS))
    if family != socket.AF_INET or address is None:
        return None
    return Found(index, address)


def route(body: bytes) -> Heading | None:
    """What NEWROUTE answers to :func:`question_of_route`; None: nothing that can be read."""
    if len(body) < _RTMSG.size:
        return None
    kind = _RTMSG.unpack_from(body)[7]
    found = _attributes(body, _RTMSG.size)
    metrics = _attributes(found.get(_RTA_METRICS, b""), 0)
    return Heading(
        kind == _RTN_UNICAST,
        _number(found.get(_RTA_OIF)),
        _address(found.get(_RTA_GATEWAY)),
        _address(found.get(_RTA_PREFSRC)),
        _number(metrics.get(_RTAX_MTU)),
    )


def question_of_route(address: Address, sequence: int) -> bytes:
    """How would a packet to *address*, an IPv4 one, leave this host?"""
    body = _RTMSG.pack(socket.AF_INET, 32, 0, 0, 0, 0, 0, 0, 0)
    body += attribute(_RTA_DST, address[len(V4_PREFIX) :])
    return _message(_GETROUTE, _REQUEST, body, sequence)


def questions_of_all(sequence: int) -> tuple[bytes, bytes]:
    """Which links are there, and which IPv4 addresses? Each answer ends with :data:`DONE`."""
    links = _message(_GETLINK, _REQUEST | _DUMP, bytes(_IFINFO.size), sequence)
    family = _IFADDR.pack(socket.AF_INET, 0, 0, 0, 0)
    return links, _message(_GETADDR, _REQUEST | _DUMP, family, sequence + 1)


def _message(kind: int, flags: int, body: bytes, sequence: int) -> bytes:
    size = _NLMSG.size + len(body)
    return _NLMSG.pack(size, kind, flags, sequence & 0xFFFFFFFF, 0) + body


def _attributes(data: bytes, start: int) -> dict[int, bytes]:
    """The values by type, of a type that comes twice the last; what is cut off is left out."""
    found: dict[int, bytes] = {}
    end = len(data)
    while start + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, start)
        if length < 4 or start + length > end:
            break
        found[kind & _TYPE] = data[start + 4 : start + length]
        start += (length + 3) & ~3
    return found


def _number(value: bytes | None) -> int | None:
    return None if value is None or len(value) != _U32.size else int(_U32.unpack(value)[0])


def _address(value: bytes | None) -> Address | None:
    return None if value is None or len(value) != 4 else V4_PREFIX + value
