"""What the kernel says about this host's network: interfaces, own addresses, ways to others.

Two rtnetlink sockets with pyroute2's codecs (its own calls would block Trio or run asyncio).
One hears of changes; the other asks for routes. The kernel answers a route request inside the
send call, so :meth:`Network.way_to` needs no waiting and answers from a cache that every change
of links, addresses, routes or rules empties.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Any, NamedTuple, Self

import trio
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from m2m.errors import M2MError
from m2m.protocol.flow import Address, format_address, is_ipv4, parse_address
from m2m.protocol.translation import NextHop

_NLMSG = struct.Struct("=IHHII")  # length, type, flags, sequence number, port id
_NLM_F_REQUEST, _NLM_F_DUMP = 0x001, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NEWLINK, _DELLINK, _GETLINK = 16, 17, 18
_NEWADDR, _DELADDR, _GETADDR = 20, 21, 22
_NEWROUTE, _GETROUTE = 24, 26
_GROUPS = 0x1 | 0x10 | 0x40 | 0x80  # link, IPv4 address, IPv4 route, IPv4 rule
_RTN_UNICAST = 1
_IFF_UP = 0x1
_ARPHRD_ETHER, _ARPHRD_LOOPBACK = 1, 772

_RECEIVE = 1 << 18
_CACHED_WAYS = 65536


class NoRoute(M2MError):
    """There is no way from this host to an address; the message says why."""


class Link(NamedTuple):
    """A network interface."""

    ifindex: int
    name: str
    mtu: int
    up: bool
    ethernet: bool  # by its link layer, which is what the datapath can read
    loopback: bool = False


class Way(NamedTuple):
    """How packets leave this host for some other one."""

    source: Address  # the address of ours that the other one sees
    hop: NextHop


class Network:
    """This host's network as the kernel tells it; use as an async context manager.

    ``links`` and addresses are filled when the context is entered and kept up to date while
    :meth:`changes` is iterated.
    """

    def __init__(self) -> None:
        self.links: dict[int, Link] = {}
        self._interfaces: dict[Address, list[int]] = {}  # that have an address, in that order
        self._ways: dict[Address, Way] = {}
        self._sequence = 0
        self._news: socket.socket | None = None
        self._questions: socket.socket | None = None

    async def __aenter__(self) -> Self:
        self._news = _netlink(_GROUPS)
        self._questions = _netlink(0)
        await self._read_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for sock in (self._news, self._questions):
            assert sock is not None
            sock.close()

    @property
    def addresses(self) -> dict[Address, int]:
        """This host's own addresses, and of each the interface, whatever its state: one that is not
        loopback, if there is such a one."""
        return {
            address: min(interfaces, key=self._is_loopback)
            for address, interfaces in self._interfaces.items()
        }

    def has(self, address: Address) -> bool:
        """Whether some interface has *address*, whatever its state."""
        return address in self._interfaces

    def home(self, address: Address) -> int | None:
        """The interface by which others can reach *address* here: it is up, and not loopback."""
        for ifindex in self._interfaces.get(address, ()):
            link = self.links.get(ifindex)
            if link is not None and link.up and not link.loopback:
                return ifindex
        return None

    def way_to(self, destination: Address) -> Way:
        """How to reach *destination*. Never waits.

        Raises :exc:`NoRoute`.
        """
        way = self._ways.get(destination)
        if way is None:
            if len(self._ways) >= _CACHED_WAYS:
                self._ways.clear()
            way = self._ways[destination] = self._ask(destination)
        return way

    async def changes(self) -> AsyncIterator[None]:
        """Each burst of notifications, once links, addresses and ways reflect it.

        A burst is what has come by the time that somebody looks: the first news is told at once,
        and what comes while it is acted upon is the next burst.
        """
        sock = self._news
        assert sock is not None
        while True:
            await trio.lowlevel.wait_readable(sock)
            try:
                for kind, body in _drain(sock):
                    _learn(kind, body, self.links, self._interfaces)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                await self._read_all()  # notifications were lost: start afresh
            self._ways.clear()
            yield

    async def _read_all(self) -> None:
        """Ask for all links and addresses over the socket that also hears of changes.

        What was known before stays known until all of it has come: an address that is missing for a
        moment would be taken for one that has gone.
        """
        while True:
            links: dict[int, Link] = {}
            interfaces: dict[Address, list[int]] = {}
            try:
                await self._read(links, interfaces)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
            else:
                break
        self.links, self._interfaces = links, interfaces
        self._ways.clear()

    async def _read(self, links: dict[int, Link], interfaces: dict[Address, list[int]]) -> None:
        """Raises :exc:`OSError` (``ENOBUFS``) when something was lost meanwhile."""
        sock = self._news
        assert sock is not None
        for _ in _drain(sock):  # what is older than the answers
            pass
        for message in (_request(ifinfmsg, _GETLINK), _request(ifaddrmsg, _GETADDR)):
            sock.send(self._sealed(message, _NLM_F_REQUEST | _NLM_F_DUMP))
            done = False
            while not done:
                await trio.lowlevel.wait_readable(sock)
                for kind, body in _drain(sock):
                    if kind == _NLMSG_ERROR:
                        code = _error_of(body)
                        raise OSError(code, f"the kernel does not tell: {os.strerror(code)}")
                    done |= kind == _NLMSG_DONE
                    _learn(kind, body, links, interfaces)

    def _is_loopback(self, ifindex: int) -> bool:
        link = self.links.get(ifindex)
        return link is not None and link.loopback

    def _ask(self, destination: Address) -> Way:
        name = format_address(destination)
        if not is_ipv4(destination):
            raise NoRoute(f"{name} is an IPv6 address; sessions are IPv4 in this version")
        sock = self._questions
        assert sock is not None
        question = _request(rtmsg, _GETROUTE, family=socket.AF_INET, dst_len=32)
        question["attrs"] = [("RTA_DST", name)]
        try:
            sock.send(self._sealed(question, _NLM_F_REQUEST))
            kind, body = next(_drain(sock))
        except (BlockingIOError, StopIteration) as error:
            raise NoRoute(f"the kernel did not answer a route request for {name}") from error
        if kind == _NLMSG_ERROR:
            code = _error_of(body)
            raise NoRoute(f"no route to {name}: {errno.errorcode.get(code, code)}")
        route = _decode(rtmsg, body)
        if route["type"] != _RTN_UNICAST:
            raise NoRoute(
                f"{name} cannot be a next hop: it is this host itself, or its packets are dropped"
            )
        index: int = route.get_attr("RTA_OIF")
        gateway = route.get_attr("RTA_GATEWAY") or name
        metrics = route.get_attr("RTA_METRICS")
        mtu = metrics.get_attr("RTAX_MTU") if metrics is not None else None
        link = self.links.get(index)
        if mtu is None:
            mtu = link.mtu if link is not None else 1500
        source = parse_address(route.get_attr("RTA_PREFSRC"))
        return Way(source, NextHop(index, parse_address(gateway), mtu))

    def _sealed(self, message: Any, flags: int) -> bytes:
        self._sequence += 1
        message["header"]["flags"] = flags
        message["header"]["sequence_number"] = self._sequence
        message.encode()
        return bytes(message.data)


def _learn(
    kind: int, body: bytes, links: dict[int, Link], interfaces: dict[Address, list[int]]
) -> None:
    """What a message says is from now on in *links*, and in the *interfaces* of addresses."""
    if kind in (_NEWLINK, _DELLINK):
        link = _decode(ifinfmsg, body)
        if link["family"] != socket.AF_UNSPEC:  # a bridge port's notification, not a link's
            return
        if kind == _DELLINK:
            links.pop(link["index"], None)
        else:
            links[link["index"]] = Link(
                link["index"],
                link.get_attr("IFLA_IFNAME"),
                link.get_attr("IFLA_MTU"),
                bool(link["flags"] & _IFF_UP),
                link["ifi_type"] == _ARPHRD_ETHER,
                link["ifi_type"] == _ARPHRD_LOOPBACK,
            )
    elif kind in (_NEWADDR, _DELADDR):
        found = _decode(ifaddrmsg, body)
        if found["family"] != socket.AF_INET:
            return
        address = parse_address(found.get_attr("IFA_LOCAL") or found.get_attr("IFA_ADDRESS"))
        having = interfaces.setdefault(address, [])
        if kind == _NEWADDR:
            if found["index"] not in having:
                having.append(found["index"])
        elif found["index"] in having:
            having.remove(found["index"])
        if not having:
            del interfaces[address]


def _netlink(groups: int) -> socket.socket:
    sock = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
    )
    sock.bind((0, groups))
    sock.setblocking(False)
    return sock


def _request(codec: Any, kind: int, **fields: int) -> Any:
    message = codec()
    for name, value in fields.items():
        message[name] = value
    message["header"] = {"type": kind, "pid": 0}
    return message


def _decode(codec: Any, body: bytes) -> Any:
    message = codec(body)
    message.decode()
    return message


def _error_of(body: bytes) -> int:
    (code,) = struct.unpack_from("=i", body, _NLMSG.size)
    return -int(code)


def _drain(sock: socket.socket) -> Iterator[tuple[int, bytes]]:
    """Type and whole text of each netlink message that is waiting."""
    while True:
        try:
            data = sock.recv(_RECEIVE)
        except BlockingIOError:
            return
        offset = 0
        while offset + _NLMSG.size <= len(data):
            length, kind, *_ = _NLMSG.unpack_from(data, offset)
            yield kind, data[offset : offset + length]
            offset += (length + 3) & ~3
