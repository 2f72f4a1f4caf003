"""Live sessions held, redirected and let go under real traffic; nothing lost, nothing out of order.

The line of :mod:`tests.support.line`, where the middlebox has two legs to the server: every change
leads the session from one to the other.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import NamedTuple, Self

import pytest
import trio

from m2m.datapath import Acked, Reason, layout
from m2m.datapath._bpf import Map
from m2m.datapath.pins import directory_of
from m2m.protocol.flow import Flow, Proto
from m2m.protocol.translation import Action, Entry, Hook, Position, Toward
from tests.support import line as on
from tests.support import packets
from tests.support.line import (
    CLIENT,
    CLIENT_PORT,
    PATIENCE,
    SERVER,
    SERVICE,
    Host,
    Line,
    line,
    udp_socket,
)
from tests.support.namespaces import Namespace, NamespaceFactory
from tests.support.rig import Listener

pytestmark = [
    pytest.mark.needs("netns", "bpffs", "nfqueue", "ethtool"),
    pytest.mark.usefixtures("kind"),
]

_SO_RCVBUFFORCE = 33
_IP_MTU_DISCOVER, _IP_PMTUDISC_DONT = 10, 0
_CHUNK = bytes(range(251)) * 4177  # 1 MB, whose period is no power of two
_PACKET_OUTGOING, _ETH_P_ALL = 4, 3
_SOL_PACKET, _PACKET_VNET_HDR = 263, 15


@asynccontextmanager
async def changing_line(netns: NamespaceFactory) -> AsyncIterator[Line]:
    """The line with an agent's ear at each host."""
    async with line(netns) as there, trio.open_nursery() as nursery:
        for host in there.hosts:
            nursery.start_soon(Listener().run, host.datapath)
        yield there
        nursery.cancel_scope.cancel()


class Way(NamedTuple):
    """One direction of a session at one host, and the two ways it can take from there."""

    host: Host
    entries: tuple[Entry, Entry]

    @property
    def key(self) -> tuple[Hook, Flow]:
        return self.entries[0].key


async def two_ways(host: Host, onward: Host, toward: Toward) -> Way:
    """Let *onward* accept what *host* sends there from other ports as well."""
    (row,) = [
        row.entry
        for row in await host.rows()
        if row.entry.toward is toward and row.entry.action is Action.SEND
    ]
    (accepts,) = [
        each.entry
        for each in await onward.rows()
        if (each.entry.hook, each.entry.match) == (Hook.IN, row.rewrite)
    ]
    other = row.rewrite._replace(sport=row.rewrite.sport + 99, dport=row.rewrite.dport + 99)
    await onward.install([accepts._replace(match=other)])
    return Way(host, (row, row._replace(rewrite=other)))


async def held(host: Host, more_than: int) -> None:
    """Return when that many packets have been held since the start."""
    with trio.fail_after(PATIENCE):
        while (await host.datapath.reasons())[Reason.HELD] <= more_than:
            await trio.lowlevel.checkpoint()


@contextmanager
def one_processor() -> Iterator[None]:
    """Virtual links have a queue for each processor, so two of them put packets out of order
    without anybody's help. On one, what leaves in order arrives in order."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def out_of_order(host: Host) -> int:
    """TCP segments that the host's stack has got before those in front of them."""
    lines = host.namespace.run("cat", "/proc/net/netstat").stdout.splitlines()
    names, numbers = (text.split() for text in lines if text.startswith("TcpExt:"))
    return int(numbers[names.index("TCPOFOQueue")])


@contextmanager
def thread(target: object, *arguments: object) -> Iterator[threading.Thread]:
    runs = threading.Thread(target=target, args=arguments)  # type: ignore[arg-type]
    runs.start()
    try:
        yield runs
    finally:
        runs.join(PATIENCE)


class Bulk:
    """A TCP session that carries data in both directions at once until it is told to end."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self._enough = threading.Event()
        self.results: list[bool] = []  # whether all that came was what had been sent
        self._threads = [
            threading.Thread(target=work, args=(end,))
            for end in (client, server)
            for work in (self._send, self._receive)
        ]

    def _send(self, sock: socket.socket) -> None:
        while not self._enough.is_set():
            sock.sendall(_CHUNK)
        sock.shutdown(socket.SHUT_WR)

    def _receive(self, sock: socket.socket) -> None:
        expected, at, right = _CHUNK * 2, 0, True
        while data := sock.recv(len(_CHUNK)):
            right = right and data == expected[at : at + len(data)]
            at = (at + len(data)) % len(_CHUNK)
        self.results.append(right and at == 0)

    def __enter__(self) -> Self:
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        self._enough.set()
        for each in self._threads:
            each.join(PATIENCE)


def connected(there: Line) -> tuple[socket.socket, socket.socket]:
    listener = there.server.namespace.socket(socket.AF_INET, socket.SOCK_STREAM)
    client = there.client.namespace.socket(socket.AF_INET, socket.SOCK_STREAM)
    for sock in (listener, client):
        sock.settimeout(PATIENCE)
        # A virtual link takes a thousand packets; what does not fit there is lost by its own fault.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 250_000)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with listener:
        listener.bind((SERVER, SERVICE))
        listener.listen()
        client.bind((CLIENT, CLIENT_PORT))
        client.connect((SERVER, SERVICE))
        server, _ = listener.accept()
    server.settimeout(PATIENCE)
    return client, server


@pytest.mark.parametrize("off", [False, True], ids=["offloads", "plain"])
@pytest.mark.parametrize(
    ("position", "where"),
    # A tap has a row for each way that leads to it: not changes beside and at it in one test.
    [(Position.TAP, "ends"), (Position.TAP, "middle"), (Position.INLINE, "ends and middle")],
    ids=["ends", "tap", "inline"],
)
async def test_i4_tcp_is_held_and_redirected_again_and_again(
    netns: NamespaceFactory, position: Position, where: str, off: bool
) -> None:
    """In both directions at once, at full load."""
    with one_processor():
        await held_and_redirected(netns, position, where, off)


async def held_and_redirected(
    netns: NamespaceFactory, position: Position, where: str, off: bool
) -> None:
    async with changing_line(netns) as there:
        for host in there.hosts if off else ():
            on.offloads(host, "off")
        await there.steer(Proto.TCP, position)
        client, server = await trio.to_thread.run_sync(connected, there)
        ways: list[Way] = []
        if "middle" in where:
            ways.append(await two_ways(there.middle, there.server, Toward.RIGHT))
            ways.append(await two_ways(there.middle, there.client, Toward.LEFT))
        if "ends" in where:
            ways.append(await two_ways(there.client, there.middle, Toward.RIGHT))
            ways.append(await two_ways(there.server, there.middle, Toward.LEFT))
        with client, server, Bulk(client, server) as bulk:
            for number in range(1, 13):
                for way in ways:
                    host, datapath = way.host, way.host.datapath
                    before = (await datapath.reasons())[Reason.HELD]
                    await datapath.hold([way.key])
                    await held(host, before)
                    await datapath.redirect([way.entries[number % 2]])
                    await datapath.resume([way.key])
            await trio.to_thread.run_sync(bulk.end)
        assert bulk.results == [True, True]
        assert [out_of_order(host) for host in (there.client, there.server)] == [0, 0]
        for host in there.hosts:
            assert on.bad_checksums(host) == 0
            assert (await host.counted()).keys() <= {Reason.HELD}


@pytest.mark.parametrize("holds", [False, True], ids=["lf", "op"])
@pytest.mark.parametrize("place", ["client", "middle"])
async def test_i4_numbered_datagrams_through_many_changes(
    netns: NamespaceFactory, place: str, holds: bool
) -> None:
    """The sender never stops, on another processor: none is lost, none overtakes another as they
    leave the host that changes."""
    changes = 200
    async with changing_line(netns) as there:
        flow = await there.steer(Proto.UDP, Position.TAP)
        if place == "client":
            way = await two_ways(there.client, there.middle, Toward.RIGHT)
        else:
            way = await two_ways(there.middle, there.server, Toward.RIGHT)
        sender = there.client.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sender.bind((CLIENT, flow.sport))
        sender.connect((SERVER, flow.dport))
        receiver = there.server.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM)
        receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 28)
        receiver.bind((SERVER, flow.dport))
        receiver.settimeout(PATIENCE)
        wire = leaving(way)
        enough = threading.Event()
        sent: list[int] = []
        got: list[int] = []
        left: list[int] = []

        def send() -> None:
            for number in itertools.count(1):
                sender.send(struct.pack("=Q", number))
                if enough.is_set():
                    sent.append(number)
                    sender.send(struct.pack("=Q", 0))
                    return

        def receive() -> None:
            while number := struct.unpack("=Q", receiver.recv(8))[0]:
                got.append(number)

        def watch() -> None:
            while number := struct.unpack("=Q", next_payload(wire))[0]:
                left.append(number)

        # Of what comes faster than neighbours are found, the first is thrown away.
        sender.send(struct.pack("=Q", 0))
        await trio.to_thread.run_sync(receive)
        await trio.to_thread.run_sync(watch)
        assert got == left == []
        counted = 0
        datapath = way.host.datapath
        with sender, receiver, wire, thread(receive), thread(watch), thread(send):
            try:
                for number in range(1, changes + 1):
                    if holds:
                        before = (await datapath.reasons())[Reason.HELD]
                        await datapath.hold([way.key])
                        await held(way.host, before + number % 7)
                    (packets,) = await datapath.redirect([way.entries[number % 2]])
                    assert packets >= counted
                    counted = packets
                    if holds:
                        await datapath.resume([way.key])
                    await trio.lowlevel.checkpoint()
            finally:
                enough.set()
            await trio.to_thread.run_sync(lambda: None)
        assert left == list(range(1, sent[0] + 1))
        assert sorted(got) == left  # virtual links mix up what two processors send


def leaving(way: Way) -> socket.socket:
    """Sees what leaves the host that way, in the order in which it does."""
    namespace, hop = way.host.namespace, way.entries[0].hop
    assert hop is not None
    wire = namespace.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
    wire.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 28)
    with namespace.entered():
        wire.bind((socket.if_indextoname(hop.ifindex), _ETH_P_ALL))
    wire.settimeout(PATIENCE)
    return wire


def next_payload(wire: socket.socket) -> bytes:
    """Of the next UDP datagram that leaves."""
    while True:
        data, where = wire.recvfrom(100)
        if where[2] == _PACKET_OUTGOING and where[1] == 0x0800 and data[9] == Proto.UDP:
            return data[28:36]


async def test_fragments_wait_in_order(netns: NamespaceFactory) -> None:
    async with changing_line(netns) as there:
        flow = await there.steer(Proto.UDP, Position.TAP)
        way = await two_ways(there.middle, there.server, Toward.RIGHT)
        client = udp_socket(there.client, CLIENT, flow.sport)
        server = udp_socket(there.server, SERVER, flow.dport)
        client.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DONT)
        datapath = there.middle.datapath
        with client, server, trio.fail_after(PATIENCE):
            await datapath.hold([way.key])
            for size in (4000, 10, 9000):
                await client.sendto(_CHUNK[:size], (SERVER, flow.dport))
            await held(there.middle, 3 + 1 + 7 - 1)
            await datapath.redirect([way.entries[1]])
            assert await datapath.resume([way.key]) == [3 + 1 + 7]
            got = [await server.recv(65536) for _ in range(3)]
        assert got == [_CHUNK[:4000], _CHUNK[:10], _CHUNK[:9000]]


class Segment(NamedTuple):
    """A TCP packet on a wire."""

    sport: int
    seq: int
    ack: int
    length: int  # of its payload


class Watcher:
    """Sees the TCP packets that come to a host, from when it is made."""

    def __init__(self, host: Host) -> None:
        self._socket = host.namespace.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 28)
        with host.namespace.entered():
            self._socket.bind((host.interfaces[0], _ETH_P_ALL))
        self._socket.setblocking(False)

    def seen(self) -> list[Segment]:
        found = []
        while True:
            try:
                data, where = self._socket.recvfrom(100)
            except BlockingIOError:
                return found
            if where[2] == _PACKET_OUTGOING or where[1] != 0x0800 or data[9] != Proto.TCP:
                continue
            (total,) = struct.unpack_from("!H", data, 2)
            sport, _, seq, ack, offset = struct.unpack_from("!HHIIB", data, 20)
            found.append(Segment(sport, seq, ack, total - 20 - (offset >> 4) * 4))

    def close(self) -> None:
        self._socket.close()


async def test_substreams_go_their_own_ways(netns: NamespaceFactory) -> None:
    """Algorithm 2, in both directions at once: on the old way nothing beyond the checkpoint, on
    the new one nothing before it."""
    async with line(netns) as there, trio.open_nursery() as nursery:
        agent = Listener()
        nursery.start_soon(agent.run, there.middle.datapath)
        await there.steer(Proto.TCP, Position.TAP)
        client, server = await trio.to_thread.run_sync(connected, there)
        ways = [
            await two_ways(there.middle, there.server, Toward.RIGHT),
            await two_ways(there.middle, there.client, Toward.LEFT),
        ]
        keys = [way.key for way in ways]
        watchers = [Watcher(there.server), Watcher(there.client)]
        datapath = there.middle.datapath
        with client, server, Bulk(client, server) as bulk:
            for number in range(1, 21):
                new = [way.entries[number % 2] for way in ways]
                for watcher in watchers:
                    watcher.seen()
                holding = await datapath.hold(keys, substream=True)
                checkpoints = [each.checkpoint for each in holding]
                for opposite, checkpoint in zip(reversed(keys), checkpoints, strict=True):
                    assert checkpoint is not None
                    await datapath.watch_ack([opposite], checkpoint)
                told = {await agent.next(), await agent.next()}
                assert told == {Acked(1, Toward.LEFT), Acked(1, Toward.RIGHT)}
                again = await datapath.hold(keys)
                await datapath.redirect(new)
                await datapath.resume(keys)
                assert all(each.checkpoint is None for each in again)
                for watcher, entry, checkpoint in zip(watchers, new, checkpoints, strict=True):
                    check_substreams(watcher.seen(), entry.rewrite.sport, checkpoint or 0)
            await trio.to_thread.run_sync(bulk.end)
        for watcher in watchers:
            watcher.close()
        nursery.cancel_scope.cancel()
        assert bulk.results == [True, True]
        assert not any(on.bad_checksums(host) for host in there.hosts)


def check_substreams(seen: list[Segment], new_port: int, checkpoint: int) -> None:
    for segment in seen:
        if not segment.length:
            continue
        beyond = (segment.seq - checkpoint) & 0xFFFFFFFF
        end = (beyond + segment.length) & 0xFFFFFFFF
        if segment.sport == new_port:
            assert beyond < 1 << 31, f"{segment}: before {checkpoint}, on the new way"
        else:
            assert end == 0 or end >= 1 << 31, f"{segment}: beyond {checkpoint}, on the old way"


def burst(way: Way, payload: bytes, seq: int, segment: int) -> bytes:
    """A TCP burst as one frame that the middlebox gets, its checksum left to a device."""
    row = way.entries[0]
    packet = packets.tcp(row.match, payload=payload, seq=seq, ident=1)
    pseudo = packet[12:20] + struct.pack("!BBH", 0, Proto.TCP, len(packet) - 20)
    check = ~packets.checksum(pseudo) & 0xFFFF
    packet = packet[:36] + struct.pack("!H", check) + packet[38:]
    return struct.pack("=BBHHHH", 1, 1, 54, segment, 34, 16) + packet


async def test_a_burst_across_the_checkpoint_is_split(netns: NamespaceFactory) -> None:
    """Neither part loses a byte, its segments or its checksum's completion by the device."""
    async with changing_line(netns) as there:
        await there.steer(Proto.TCP, Position.TAP)
        way = await two_ways(there.middle, there.server, Toward.RIGHT)
        (shown,) = json.loads(there.middle.namespace.run("ip", "-j", "link", "show", "eth0").stdout)
        link = bytes.fromhex(shown["address"].replace(":", ""))
        frames = there.client.namespace.socket(socket.AF_PACKET, socket.SOCK_RAW)
        frames.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        with there.client.namespace.entered():
            frames.bind(("eth0", 0))
        on.offloads(there.middle, "off")  # bursts leave as they would by a wire
        wire = leaving(way)

        def send(seq: int, size: int) -> None:
            data = burst(way, _CHUNK[seq : seq + size], seq, 1000)
            frames.send(data[:10] + link + bytes(6) + b"\x08\x00" + data[10:])

        async def left(size: int) -> tuple[set[int], int, bytes]:
            """Source ports, first number and payload of what leaves, so many bytes of it."""
            ports, first, payload = set(), None, b""
            while len(payload) < size:
                await trio.lowlevel.wait_readable(wire)
                data, where = wire.recvfrom(1 << 16)
                if where[2] == _PACKET_OUTGOING and where[1] == 0x0800 and data[9] == Proto.TCP:
                    sport, _, seq = struct.unpack_from("!HHI", data, 20)
                    first = seq if first is None else first
                    assert seq == first + len(payload)
                    ports.add(sport)
                    payload += data[40:]
            assert first is not None
            return ports, first, payload

        old, new = (entry.rewrite.sport for entry in way.entries)
        watcher = Watcher(there.server)
        with frames, wire, trio.fail_after(PATIENCE):
            send(0, 4500)
            assert await left(4500) == ({old}, 0, _CHUNK[:4500])
            holding = await there.middle.datapath.hold([way.key], substream=True)
            assert holding[0].checkpoint == 4500
            send(1000, 9000)
            assert await left(3500) == ({old}, 1000, _CHUNK[1000:4500])
            await there.middle.datapath.redirect([way.entries[1]])
            assert await there.middle.datapath.resume([way.key]) == [1]
            assert await left(5500) == ({new}, 4500, _CHUNK[4500:10_000])
        lengths = [segment.length for segment in watcher.seen() if segment.length]
        watcher.close()
        assert lengths == [1000] * 4 + [500] + [1000] * 3 + [500] + [1000] * 5 + [500]
        assert on.bad_checksums(there.server) == 0


@pytest.mark.usefixtures("only_ebpf")
async def test_a_lost_packet_holds_nobody_up(netns: NamespaceFactory) -> None:
    """One that was given its number and never came: those behind it come out of turn."""
    async with changing_line(netns) as there:
        flow = await there.steer(Proto.UDP, Position.TAP)
        way = await two_ways(there.middle, there.server, Toward.RIGHT)
        client = udp_socket(there.client, CLIENT, flow.sport)
        server = udp_socket(there.server, SERVER, flow.dport)
        changes = Map.pinned(directory_of(there.middle.namespace.name) / "changes")
        key = layout.pack_key(*way.key)
        datapath = there.middle.datapath
        with client, server, trio.fail_after(PATIENCE):
            for _ in range(2):
                await datapath.hold([way.key])
                before = (await datapath.reasons())[Reason.HELD]
                for number in range(6):
                    if number == 3:
                        await held(there.middle, before + 2)
                        record = changes.lookup(key)
                        assert record is not None
                        (queued,) = struct.unpack_from("=Q", record, 40)
                        changes.update(
                            key, record[:40] + struct.pack("=Q", queued + 1) + record[48:]
                        )
                    await client.sendto(b"%d" % number, (SERVER, flow.dport))
                await held(there.middle, before + 5)
                assert await datapath.resume([way.key]) == [7]
                assert [await server.recv(9) for _ in range(6)] == [b"%d" % n for n in range(6)]
        changes.close()


_HOLDER = """
import sys, trio
from m2m.datapath.bpf import EbpfDatapath
from m2m.datapath.kmod import KmodDatapath
from m2m.protocol.translation import Action, Toward

async def main():
    if sys.argv[2] == "kmod":
        datapath = await KmodDatapath.open()
    else:
        datapath = await EbpfDatapath.open(sys.argv[1])
    rows = [row async for row in datapath.dump()]
    keys = [row.entry.key for row in rows
            if row.entry.toward is Toward.RIGHT and row.entry.action is Action.SEND]
    async with trio.open_nursery() as nursery:
        async def listen():
            async for _ in datapath.events():
                pass
        nursery.start_soon(listen)
        await trio.testing.wait_all_tasks_blocked()
        await datapath.hold(keys)
        print("held", flush=True)

import trio.testing
trio.run(main)
"""


def start_holder(namespace: Namespace, name: str) -> subprocess.Popen[str]:
    command = namespace.command(sys.executable, "-c", _HOLDER, name, on.KIND)
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("restarted", [False, True], ids=["nobody comes", "restarted"])
async def test_i6_an_agent_is_killed_with_packets_held(
    netns: NamespaceFactory, restarted: bool
) -> None:
    """SIGKILL: the kernel keeps them, and lets them go when an agent is back, or none has been
    there for some seconds."""
    async with line(netns) as there:
        flow = await there.steer(Proto.UDP, Position.TAP)
        await there.middle.close(keep=True)
        holder = start_holder(there.middle.namespace, there.middle.namespace.name)
        assert holder.stdout is not None
        assert await trio.to_thread.run_sync(holder.stdout.readline) == "held\n"
        client = udp_socket(there.client, CLIENT, flow.sport)
        server = udp_socket(there.server, SERVER, flow.dport)
        with client, server, trio.fail_after(PATIENCE):
            for number in range(10):
                await client.sendto(b"%d" % number, (SERVER, flow.dport))
            holder.kill()
            await trio.to_thread.run_sync(holder.wait)
            holder.stdout.close()
            if restarted:
                await there.middle.open()
            assert [await server.recv(100) for _ in range(10)] == [b"%d" % n for n in range(10)]
            await client.sendto(b"after", (SERVER, flow.dport))
            assert await server.recv(100) == b"after"
        if not restarted:
            await there.middle.open()
