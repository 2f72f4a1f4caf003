"""What the kernel says about this host's network: interfaces, own addresses, ways to others.

Two rtnetlink sockets. One hears of changes; the other asks for routes. The kernel answers a route
request inside the send call, so :meth:`Network.way_to` needs no waiting and answers from a cache
that every change of links, addresses, routes or rules empties.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import NamedTuple, Self

import trio

from m2m.agent import rtnetlink
from m2m.agent.rtnetlink import Link, Message
from m2m.errors import M2MError
from m2m.protocol.flow import Address, format_address, is_ipv4
from m2m.protocol.translation import NextHop

__all__ = ["Link", "Network", "NoRoute", "Way"]

_GROUPS = 0x1 | 0x10 | 0x40 | 0x80  # link, IPv4 address, IPv4 route, IPv4 rule
_CACHED_WAYS = 65536


class NoRoute(M2MError):
    """There is no way from this host to an address; the message says why."""


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

    def is_lost(self, address: Address) -> bool:
        """Whether no interface that is up has *address*; loopback would do."""
        links = map(self.links.get, self._interfaces.get(address, ()))
        return not any(link is not None and link.up for link in links)

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
                for message in _drain(sock):
                    _learn(message, self.links, self._interfaces)
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
        self._sequence += 2
        for question in rtnetlink.questions_of_all(self._sequence):
            sock.send(question)
            done = False
            while not done:
                await trio.lowlevel.wait_readable(sock)
                for message in _drain(sock):
                    if message.kind == rtnetlink.ERROR:
                        why = os.strerror(message.error)
                        raise OSError(message.error, f"the kernel does not tell: {why}")
                    done |= message.kind == rtnetlink.DONE
                    _learn(message, links, interfaces)

    def _on_interface(self, address: Address, ifindex: int) -> Address:
        """*address*, or if no interface has it, one that others can reach: that of the interface.

        A route may prefer a source that goes with the host, which nobody can answer to.
        """
        if address in self._interfaces:
            return address
        theirs = (one for one, having in self._interfaces.items() if ifindex in having)
        return next(theirs, address)

    def _is_loopback(self, ifindex: int) -> bool:
        link = self.links.get(ifindex)
        return link is not None and link.loopback

    def _ask(self, destination: Address) -> Way:
        name = format_address(destination)
        if not is_ipv4(destination):
            raise NoRoute(f"{name} is an IPv6 address; sessions are IPv4 in this version")
        sock = self._questions
        assert sock is not None
        self._sequence += 1
        try:
            sock.send(rtnetlink.question_of_route(destination, self._sequence))
            message = next(_drain(sock))
        except (BlockingIOError, StopIteration) as error:
            raise NoRoute(f"the kernel did not answer a route request for {name}") from error
        if message.error:
            code = errno.errorcode.get(message.error, message.error)
            raise NoRoute(f"no route to {name}: {code}")
        route = rtnetlink.route(message.body)
        if route is None or not route.unicast or route.ifindex is None or route.source is None:
            raise NoRoute(
                f"{name} cannot be a next hop: it is this host itself, or its packets are dropped"
            )
        mtu = route.mtu
        if mtu is None:
            link = self.links.get(route.ifindex)
            mtu = link.mtu if link is not None else 1500
        source = self._on_interface(route.source, route.ifindex)
        return Way(source, NextHop(route.ifindex, route.gateway or destination, mtu))


def _learn(message: Message, links: dict[int, Link], interfaces: dict[Address, list[int]]) -> None:
    """What a message says is from now on in *links*, and in the *interfaces* of addresses."""
    kind = message.kind
    if kind in (rtnetlink.NEWLINK, rtnetlink.DELLINK):
        link = rtnetlink.link(message.body)
        if link is None:
            return
        if kind == rtnetlink.DELLINK:
            links.pop(link.ifindex, None)
        else:
            links[link.ifindex] = link
    elif kind in (rtnetlink.NEWADDR, rtnetlink.DELADDR):
        found = rtnetlink.local_address(message.body)
        if found is None:
            return
        having = interfaces.setdefault(found.address, [])
        if kind == rtnetlink.NEWADDR:
            if found.ifindex not in having:
                having.append(found.ifindex)
        elif found.ifindex in having:
            having.remove(found.ifindex)
        if not having:
            del interfaces[found.address]


def _netlink(groups: int) -> socket.socket:
    sock = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
    )
    sock.bind((0, groups))
    sock.setblocking(False)
    return sock


def _drain(sock: socket.socket) -> Iterator[Message]:
    """The netlink messages that are waiting."""
    while True:
        try:
            data = sock.recv(rtnetlink.LARGEST)
        except BlockingIOError:
            return
        yield from rtnetlink.messages(data)
