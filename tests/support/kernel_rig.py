"""The test bench of :mod:`tests.support.rig` in the kernel: three network namespaces.

Packets enter the host as frames sent by its neighbours, and leave it through a raw socket; what
comes out is read where it arrives. All of this runs on one CPU, where the kernel handles packets
first come, first served: once a packet sent last has arrived, so has every other.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import struct
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import trio
import trio.testing

from m2m.datapath import Datapath, Limits
from m2m.datapath._core import PROXY_MARK
from m2m.datapath.bpf import EbpfDatapath
from m2m.datapath.fake_packets import Tcp
from m2m.datapath.kmod import KmodDatapath
from m2m.protocol.flow import Address, Flow, Proto, format_address
from m2m.protocol.translation import Hook, NextHop
from tests.support import packets
from tests.support.namespaces import Namespace, NamespaceFactory, run_prefix
from tests.support.rig import (
    CLIENT,
    HOST_LEFT,
    HOST_RIGHT,
    LEFT,
    PATIENCE,
    PORTS,
    RIGHT,
    Place,
    Rig,
    Seen,
)

_ETH_P_IP = 0x0800
_SO_RCVBUFFORCE = 33
_OUR_MARK = 7  # of packets that a test lets leave; the host's own answers lack it
_sentinels = itertools.count(1)
_DISCARD = 9  # the port of packets that only show that nothing is under way any more


class Bench:
    """The namespaces and sockets: made once, since that takes longer than most tests."""

    def __init__(self) -> None:
        self._clean_up = ExitStack()
        namespaces = NamespaceFactory()
        self._clean_up.callback(namespaces.remove_all)
        with ExitStack() as undo:
            undo.push(self._clean_up)
            self._build(namespaces)
            undo.pop_all()

    def _build(self, netns: NamespaceFactory) -> None:
        host, left, right = netns("rig-host"), netns("rig-left"), netns("rig-right")
        netns.link(left, ("eth0", "10.9.1.2/24"), host, ("left", "10.9.1.1/24"))
        netns.link(right, ("eth0", "10.9.2.2/24"), host, ("right", "10.9.2.1/24"))
        host.sysctl("net.ipv4.ip_forward", 1)
        host.sysctl("net.ipv4.conf.all.rp_filter", 0)
        host.route("203.0.113.0/24", "via", "10.9.1.2")
        host.route("198.51.100.0/24", "via", "10.9.2.2")
        # The host has no sockets for these flows; what it would answer is none of our packets.
        host.run(
            "iptables", "-A", "OUTPUT", "-m", "mark", "!", "--mark", str(_OUR_MARK), "-j", "DROP"
        )
        self.links = [host.ifindex("left"), host.ifindex("right")]
        self.left = _Neighbour(left, host, "left", "10.9.1.2")
        self.right = _Neighbour(right, host, "right", "10.9.2.2")
        self.out = host.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self.out.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, _OUR_MARK)
        self.stack = {proto: host.socket(socket.AF_INET, socket.SOCK_RAW, proto) for proto in Proto}
        for sock in (self.left.wire, self.right.wire, self.out, *self.stack.values()):
            self._clean_up.callback(sock.close)
        for sock in self.heard():
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 22)
        self.host = host

    def heard(self) -> list[socket.socket]:
        return [self.left.wire, self.right.wire, *self.stack.values()]

    def remove(self) -> None:
        self._clean_up.close()


class KernelRig(Rig):
    """One host whose kernel carries the packets."""

    def __init__(self, limits: Limits, bench: Bench) -> None:
        self._limits = limits
        self._bench = bench
        self._clean_up = ExitStack()
        self._is_open = False
        self._left, self._right = bench.left, bench.right
        self._out, self._stack = bench.out, bench.stack
        self.to_left = NextHop(bench.links[0], LEFT, 1500)
        self.to_right = NextHop(bench.links[1], RIGHT, 1500)
        for sock in bench.heard():  # of the test before
            for _ in _read(sock):
                pass

    def links(self) -> list[int]:
        return list(self._bench.links)

    async def enter(self) -> None:
        """Live in the host's namespace, on one CPU, until :meth:`remove`."""
        # A thread for blocking calls inherits both, unless it is there already.
        await trio.to_thread.run_sync(lambda: None)
        cpus = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(cpus)})
        self._clean_up.callback(os.sched_setaffinity, 0, cpus)
        self._clean_up.enter_context(self._bench.host.entered())

    @abstractmethod
    async def _opened(self, limits: Limits, ports: tuple[int, int]) -> Datapath:
        """The datapath that is held to the tests, opened in the calling thread's namespace."""

    async def open(self) -> None:
        self.datapath: Datapath = await self._opened(self._limits, (PORTS[0], PORTS[-1]))
        self._is_open = True
        await self.datapath.set_addresses([HOST_LEFT, HOST_RIGHT])
        await self.datapath.attach(self.links())

    async def close(self, *, keep: bool) -> None:
        self._is_open = False
        await self.datapath.close(keep=keep)

    async def remove(self) -> None:
        try:
            if self._is_open:
                await self.close(keep=False)
        finally:
            self._clean_up.close()

    @contextmanager
    def stops_marked(self) -> Iterator[None]:
        # Before connection tracking, of which no other test is to see anything.
        rule = ["PREROUTING", "-m", "mark", "--mark", hex(PROXY_MARK), "-j", "DROP"]
        self._bench.host.run("iptables", "-t", "raw", "-A", *rule)
        yield
        self._bench.host.run("iptables", "-t", "raw", "-D", *rule)

    # -- packets ------------------------------------------------------------------------

    async def packet(
        self, hook: Hook, flow: Flow, payload: bytes = b"", *, seq: int = 0, ack: int = 0,
        flags: Tcp = Tcp.ACK, ttl: int = 64,
    ) -> None:  # fmt: skip
        await trio.lowlevel.checkpoint()
        if flow.proto == Proto.TCP:
            data = packets.tcp(
                flow, payload=payload, seq=seq, ack=ack, flags=flags, ttl=ttl, ident=1
            )
        else:
            data = packets.udp(flow, payload=payload, ttl=ttl, ident=1)
        self.send(hook, data)

    def send(self, hook: Hook, data: bytes) -> None:
        """Let one packet enter the host, or leave it, as it is."""
        flow = packets.flow_of(data)
        if hook is Hook.OUT:
            with suppress(PermissionError):  # what iptables drops, its sender is told
                self._out.sendto(data, (format_address(flow.dst), 0))
        else:
            (self._left if flow.src in (LEFT, CLIENT) else self._right).send(data)

    async def seen(self) -> list[Seen]:
        return [_seen(place, data) for place, data in await self.arrived()]

    async def numbers(self) -> list[tuple[int, int]]:
        arrived = [data for _, data in await self.arrived() if data[9] == Proto.TCP]
        assert all(map(packets.has_right_checksums, arrived))
        return [struct.unpack_from("!II", data, (data[0] & 15) * 4 + 4) for data in arrived]

    async def arrived(self) -> list[tuple[Place, bytes]]:
        """As :meth:`seen`, whole packets."""
        # The agent may have yet to read, and to let go, packets of flows that are released.
        await trio.testing.wait_all_tasks_blocked()
        mark = b"nothing is under way %d" % next(_sentinels)

        def sentinel(src: Address, dst: Address) -> bytes:
            return packets.udp(Flow(Proto.UDP, src, _DISCARD, dst, _DISCARD), payload=mark)

        # Through the host, the longest way, and into it, from both sides.
        self._left.send(sentinel(LEFT, RIGHT))
        self._right.send(sentinel(RIGHT, LEFT))
        self._left.send(sentinel(LEFT, HOST_LEFT))
        arrived = []
        with trio.fail_after(PATIENCE):
            for sock, place in (
                (self._right.wire, Place.WIRE),
                (self._left.wire, Place.WIRE),
                (self._stack[Proto.UDP], Place.STACK),
            ):
                before = await _read_until(sock, mark)
                arrived += [(place, data) for data in before]
        # The last one above came after every TCP packet too.
        arrived += [(Place.STACK, data) for data in _read(self._stack[Proto.TCP])]
        return arrived


class EbpfRig(KernelRig):
    """tc programs carry them."""

    async def _opened(self, limits: Limits, ports: tuple[int, int]) -> Datapath:
        return await EbpfDatapath.open(f"{run_prefix()}rig", limits, ports=ports)


class KmodRig(KernelRig):
    """The module does."""

    async def _opened(self, limits: Limits, ports: tuple[int, int]) -> Datapath:
        return await KmodDatapath.open(limits, ports=ports)


class _Neighbour:
    """The far end of one of the host's links: sends and sees frames, has no stack of its own."""

    def __init__(self, there: Namespace, host: Namespace, interface: str, address: str) -> None:
        there.run("iptables", "-t", "raw", "-A", "PREROUTING", "-j", "DROP")
        mine, its = _mac(there, "eth0"), _mac(host, interface)
        host.run(
            "ip", "neigh", "replace", address, "lladdr", _text(mine), "dev", interface,
            "nud", "permanent",
        )  # fmt: skip
        self._header = its + mine + struct.pack("!H", _ETH_P_IP)
        self.wire = there.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_IP))
        self._frames = there.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self.wire.bind(("eth0", _ETH_P_IP))
        self._frames.bind(("eth0", 0))

    def send(self, packet: bytes) -> None:
        self._frames.send(self._header + packet)


def _mac(namespace: Namespace, interface: str) -> bytes:
    (shown,) = json.loads(namespace.run("ip", "-j", "link", "show", interface).stdout)
    return bytes.fromhex(shown["address"].replace(":", ""))


def _text(mac: bytes) -> str:
    return mac.hex(":")


def _read(sock: socket.socket) -> Iterator[bytes]:
    while True:
        try:
            data, where = sock.recvfrom(65536)
        except BlockingIOError:
            return
        is_ours_to_see = sock.family != socket.AF_PACKET or where[2] != socket.PACKET_OUTGOING
        if is_ours_to_see and data[9] in (Proto.TCP, Proto.UDP):
            yield data


def _seen(place: Place, data: bytes) -> Seen:
    assert packets.has_right_checksums(data), data.hex(" ", 2)
    return Seen(place, packets.flow_of(data), packets.payload_of(data))


async def _read_until(sock: socket.socket, mark: bytes) -> list[bytes]:
    before: list[bytes] = []
    while True:
        for data in _read(sock):
            if packets.payload_of(data) == mark:
                return before
            before.append(data)
        await trio.lowlevel.wait_readable(sock)
