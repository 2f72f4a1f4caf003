"""Three hosts in a line, each with its datapath, entries put in by hand; no agents.

::

    client 10.9.1.1 ───── 10.9.1.254 middlebox 10.9.2.254 ───── 10.9.2.1 server
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import trio

from m2m.datapath import Datapath, Limits, Reason, Row
from m2m.datapath.bpf import EbpfDatapath
from m2m.datapath.kmod import KmodDatapath
from m2m.protocol.flow import Flow, parse_address
from m2m.protocol.translation import (
    Action,
    Entry,
    NextHop,
    Position,
    SessionView,
    Toward,
    entries_for,
)
from tests.support.namespaces import Namespace, NamespaceFactory

CLIENT, SERVER = "10.9.1.1", "10.9.2.1"
MIDDLE_LEFT, MIDDLE_RIGHT = "10.9.1.254", "10.9.2.254"
SERVICE = 7000  # the port a session is for
CLIENT_PORT = 40000
PATIENCE = 20.0  # s
_LIMITS = Limits(sessions=64)
_ETH_P_ALL, _ETH_P_IP = 3, 0x0800


KIND = "ebpf"
"""Which datapath the hosts have; a test that is for several sets it."""


class Host:
    """A namespace and the datapath in it."""

    def __init__(self, namespace: Namespace, interfaces: list[str], addresses: list[str]) -> None:
        self.namespace = namespace
        self.interfaces = interfaces
        self.addresses = addresses
        self.datapath: Datapath

    async def open(self) -> None:
        with self.namespace.entered():
            if KIND == "kmod":
                self.datapath = await KmodDatapath.open(_LIMITS)
            else:
                self.datapath = await EbpfDatapath.open(self.namespace.name, _LIMITS)
            await self.datapath.set_addresses(map(parse_address, self.addresses))
            await self.datapath.attach(map(self.namespace.ifindex, self.interfaces))

    async def close(self, *, keep: bool = False) -> None:
        with self.namespace.entered():
            await self.datapath.close(keep=keep)

    async def install(self, entries: Iterable[Entry]) -> None:
        with self.namespace.entered():
            await self.datapath.install(list(entries))

    async def rows(self) -> list[Row]:
        return [row async for row in self.datapath.dump()]

    async def counted(self) -> dict[Reason, int]:
        return {reason: n for reason, n in (await self.datapath.reasons()).items() if n}


class Line:
    """The three of them."""

    def __init__(self, client: Host, middle: Host, server: Host) -> None:
        self.client, self.middle, self.server = client, middle, server
        self.hosts = (client, middle, server)

    async def steer(
        self,
        proto: int,
        position: Position,
        *,
        mtu: int = 1500,
        mss: int = 0,
        service: int = SERVICE,
    ) -> Flow:
        """Lead one session, whose flow is returned, through the middlebox."""
        flow = Flow.of(proto, CLIENT, CLIENT_PORT, SERVER, SERVICE)
        left = Flow.of(proto, CLIENT, 61001, MIDDLE_LEFT, 63001)
        right = Flow.of(proto, MIDDLE_RIGHT, 61002, SERVER, 63002)
        # (host, what it is, left and right leg, neighbours that way)
        for host, place, legs, hops in (
            (self.server, Position.SERVER, (right, None), (("eth0", MIDDLE_RIGHT), None)),
            (self.middle, position, (left, right), (("eth0", CLIENT), ("eth1", SERVER))),
            (self.client, Position.CLIENT, (None, left), (None, ("eth0", MIDDLE_LEFT))),
        ):
            view = SessionView(1, place, flow, *legs, mss=mss)
            await host.install(self._routed(host, entry, hops, mtu) for entry in entries_for(view))
        return flow

    def _routed(
        self, host: Host, entry: Entry, hops: tuple[tuple[str, str] | None, ...], mtu: int
    ) -> Entry:
        to = hops[entry.toward is Toward.RIGHT]
        if entry.action is not Action.SEND or to is None:
            return entry
        interface, neighbour = to
        ifindex = host.namespace.ifindex(interface)
        return entry._replace(hop=NextHop(ifindex, parse_address(neighbour), mtu))


@asynccontextmanager
async def line(netns: NamespaceFactory, *, mtu: int = 1500) -> AsyncIterator[Line]:
    """*mtu* is that of the link between middlebox and server."""
    client = Host(netns("client"), ["eth0"], [CLIENT])
    middle = Host(netns("middle"), ["eth0", "eth1"], [MIDDLE_LEFT, MIDDLE_RIGHT])
    server = Host(netns("server"), ["eth0"], [SERVER])
    netns.link(
        client.namespace, ("eth0", f"{CLIENT}/24"), middle.namespace, ("eth0", f"{MIDDLE_LEFT}/24")
    )
    netns.link(
        middle.namespace, ("eth1", f"{MIDDLE_RIGHT}/24"), server.namespace, ("eth0", f"{SERVER}/24")
    )
    for namespace, interface in ((middle.namespace, "eth1"), (server.namespace, "eth0")):
        namespace.run("ip", "link", "set", interface, "mtu", str(mtu))
    middle.namespace.sysctl("net.ipv4.ip_forward", 1)
    for interface in ("all", "eth0", "eth1"):
        middle.namespace.sysctl(f"net.ipv4.conf.{interface}.rp_filter", 0)
    client.namespace.route("default", "via", MIDDLE_LEFT)
    server.namespace.route("default", "via", MIDDLE_RIGHT)
    # A thread for blocking calls stays in the namespace it was made in: let one be made here.
    await trio.to_thread.run_sync(lambda: None)
    opened: list[Host] = []
    try:
        for host in (client, middle, server):
            await host.open()
            opened.append(host)
        yield Line(client, middle, server)
    finally:
        with trio.CancelScope(shield=True):
            for host in opened:
                await host.close()


def offloads(host: Host, state: str) -> None:
    """All of an interface's segmentation and checksum offloads ``on`` or ``off``."""
    for interface in host.interfaces:
        host.namespace.run(
            "ethtool", "-K", interface, "tx", state, "gso", state, "tso", state, "gro", state
        )


def bad_checksums(host: Host) -> int:
    """Packets that the host's stack has thrown away for a wrong checksum."""
    table = host.namespace.run("cat", "/proc/net/snmp").stdout.splitlines()
    lines = [words.split() for words in table if words.startswith(("Tcp:", "Udp:"))]
    return sum(
        int(numbers[names.index("InCsumErrors")])
        for names, numbers in zip(lines[::2], lines[1::2], strict=True)
    )


class Wire:
    """Who talks to whom on a link, as a tap sees it."""

    def __init__(self, host: Host, interface: str) -> None:
        # What asks for IPv4 alone sees incoming packets only, and those after the programs.
        self._socket = host.namespace.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
        self._socket.bind((interface, _ETH_P_ALL))
        self._socket.setblocking(False)

    def close(self) -> None:
        self._socket.close()

    def seen(self) -> set[tuple[str, str]]:
        """Pairs of addresses of TCP and UDP packets so far."""
        pairs = set()
        while True:
            try:
                data, (_, kind, *_) = self._socket.recvfrom(64)
            except BlockingIOError:
                return pairs
            if kind == _ETH_P_IP and data[9] in (6, 17):
                pairs.add((socket.inet_ntoa(data[12:16]), socket.inet_ntoa(data[16:20])))


def tcp_socket(host: Host, address: str, port: int) -> trio.socket.SocketType:
    sock = trio.socket.from_stdlib_socket(host.namespace.socket(socket.AF_INET, socket.SOCK_STREAM))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock._sock.bind((address, port))
    return sock


def udp_socket(host: Host, address: str, port: int) -> trio.socket.SocketType:
    sock = trio.socket.from_stdlib_socket(host.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM))
    sock._sock.bind((address, port))
    return sock
