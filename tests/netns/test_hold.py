"""Real packets, held by the real programs and a real netfilter queue.

    client (10.9.0.1, held here) ────── server (10.9.0.2)

No tc program is attached: what an entry would translate goes out as it is.
"""

from __future__ import annotations

import errno
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path

import pytest
import trio

import m2m.datapath
from m2m.datapath import Reason, Verdict, layout
from m2m.datapath.flow_table import FlowTable
from m2m.datapath.hold import HoldQueue
from m2m.datapath.hold_rules import CHAIN
from m2m.datapath.hold_tables import HoldTables, Settled
from m2m.datapath.pins import Pins
from m2m.policy.rules import EMPTY, Fail, FlatRule, Policy, PolicySet
from m2m.protocol.flow import Flow, Proto, parse_address
from m2m.protocol.translation import Action, Entry, Hook, Position, Toward
from tests.support.namespaces import Namespace, NamespaceFactory, run_prefix

pytestmark = pytest.mark.needs("root", "netns", "bpffs", "nfqueue")

ROOT = Path(m2m.datapath.__file__).parents[2]
BPF_OBJECT = ROOT / "m2m" / "bpf" / "hold.bpf.o"
CLIENT, SERVER = "10.9.0.1", "10.9.0.2"
HELD_PORT, FREE_PORT = 5001, 5002
UDP_SEGMENT = 103
MTU = 1500


def policy(fail: Fail = Fail.CLOSED) -> PolicySet:
    """Everything to HELD_PORT goes through a chain."""
    any_lo, any_hi = bytes(16), b"\xff" * 16
    server = parse_address(SERVER)
    return PolicySet(
        generation=1,
        policies=(Policy(id=0, text="", line=1, chain=("firewall",), fail=fail),),
        rules=(
            FlatRule(0, any_lo, any_hi, server, server, 0, 65535, HELD_PORT, HELD_PORT, 0, 255),
        ),
        nfs=(),
    )


class Host:
    """The client's kernel side, as an agent would set it up."""

    def __init__(self, client: Namespace, limit: int = 1024, name: str = "") -> None:
        self.client = client
        name = name or run_prefix() + "hold"
        self.pins = Pins(name)
        self.object = self.pins.load(BPF_OBJECT, {})
        self.settle = self.object.program("settle")
        for program in ("hold", "refuse"):
            self.pins.replace(program, self.object.program(program))
        self.flows = FlowTable(self.object.map("flows"))
        self.holds = self.object.map("holds")
        self.tables = HoldTables(
            flows=self.flows,
            holds=self.holds,
            hold_state=self.object.map("hold_state"),
            settle=self.settle,
        )
        self.config = bytearray(layout.CONFIG_SIZE)
        self.set(layout.HEARTBEAT_LIMIT, 3_000_000_000)
        self.load(policy())
        self.alive()
        with client.entered():
            self.queue = HoldQueue.open(
                name,
                self.tables,
                hold=self.pins.path("hold"),
                refuse=self.pins.path("refuse"),
                limit=limit,
            )
            self.queue.watch(["eth0"])

    def set(self, field: layout.Field, value: int) -> None:
        struct.pack_into("=" + field.format, self.config, field.offset, value)
        self.object.map("config").update(bytes(4), bytes(self.config))

    def load(self, rules: PolicySet) -> None:
        rows = layout.pack_rules(rules)
        for row in range(len(rules.rules)):
            at = row * layout.RULE_SIZE
            self.object.map("rules").update(
                row.to_bytes(4, sys.byteorder), rows[at : at + layout.RULE_SIZE]
            )
        self.set(layout.RULE_COUNT[0], len(rules.rules))

    def alive(self) -> None:
        """A heartbeat far enough ahead that no test outlives it."""
        self.set(layout.HEARTBEAT, time.monotonic_ns() + 10**12)

    def away(self) -> None:
        self.set(layout.HEARTBEAT, 0)

    def entry(self, flow: Flow, action: Action = Action.SEND) -> None:
        entry = Entry(
            1, Hook.OUT, flow, flow, action, Toward.RIGHT, Position.CLIENT, flow
        )  # fmt: skip
        self.flows.update(*layout.pack_entry(entry, layout.now_ticks()))

    def count(self, reason: Reason) -> int:
        value = self.object.map("reasons").lookup(int(reason).to_bytes(4, sys.byteorder))
        assert value is not None
        return sum(struct.unpack(f"={len(value) // 8}Q", value))

    def rules(self) -> str:
        return self.client.run("iptables", "-t", "mangle", "-S").stdout

    def close(self, *, keep: bool = False) -> None:
        self.away()
        with self.client.entered():
            self.queue.close(keep=keep)
        self.tables.close()
        self.object.close()
        self.pins.release(keep=keep)


@pytest.fixture
def ends(netns: NamespaceFactory) -> tuple[Namespace, Namespace]:
    client, server = netns("client"), netns("server")
    netns.link(client, ("eth0", f"{CLIENT}/24"), server, ("eth0", f"{SERVER}/24"))
    return client, server


@pytest.fixture
def client(ends: tuple[Namespace, Namespace]) -> Namespace:
    return ends[0]


@pytest.fixture
def server(ends: tuple[Namespace, Namespace]) -> Namespace:
    return ends[1]


@pytest.fixture
def host(client: Namespace) -> Iterator[Host]:
    host = Host(client)
    yield host
    host.close()
    assert CHAIN not in host.rules()
    assert not host.pins.directory.exists()


@pytest.fixture
def tcp_server(server: Namespace) -> Iterator[socket.socket]:
    with server.entered():
        listener = socket.create_server((SERVER, HELD_PORT))
    with listener:
        yield listener


@pytest.fixture
def udp_server(server: Namespace) -> Iterator[socket.socket]:
    with bound_udp(server, HELD_PORT) as receiver:
        yield receiver


@pytest.fixture
def wire(server: Namespace) -> Iterator[Wire]:
    with server.entered():
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
        tap.bind(("eth0", 0x0800))
    with tap, bound_udp(server, FREE_PORT) as marks:
        yield Wire(tap, marks)


class Wire:
    """What reaches the server. A packet that nothing holds tells that all before it is there."""

    def __init__(self, tap: socket.socket, marks: socket.socket) -> None:
        self._tap = tap
        self._marks = marks
        tap.settimeout(5)

    def seen(self, client: Namespace) -> list[tuple[int, int]]:
        """Protocol and destination port of the packets that have come from the client."""
        with client.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"mark", (SERVER, FREE_PORT))
        found = []
        while True:
            packet, address = self._tap.recvfrom(2048)
            if address[2] == socket.PACKET_OUTGOING:
                continue
            proto, (dport,) = packet[9], struct.unpack_from("!H", packet, 22)
            if (proto, dport) == (Proto.UDP, FREE_PORT):
                return found
            found.append((proto, dport))


def bound_udp(namespace: Namespace, port: int) -> socket.socket:
    receiver = namespace.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
    receiver.bind((SERVER, port))
    receiver.settimeout(5)
    return receiver


def start_connect(client: Namespace, port: int = HELD_PORT) -> socket.socket:
    sock = client.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    assert sock.connect_ex((SERVER, port)) == errno.EINPROGRESS
    return sock


def udp_client(client: Namespace) -> socket.socket:
    sock = client.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((CLIENT, 0))
    sock.connect((SERVER, HELD_PORT))
    return sock


def send(sock: socket.socket, through: bool) -> None:
    """Send a datagram that the client's own netfilter lets through or refuses."""
    with nullcontext() if through else pytest.raises(PermissionError):
        sock.send(b"x")


def flow_of(sock: socket.socket, port: int = HELD_PORT) -> Flow:
    proto = Proto.TCP if sock.type == socket.SOCK_STREAM else Proto.UDP
    return Flow.of(proto, CLIENT, sock.getsockname()[1], SERVER, port)


async def next_held(host: Host) -> Flow:
    with trio.fail_after(5):
        async for flow in host.queue.held():
            return flow
    raise AssertionError


async def connected(sock: socket.socket) -> None:
    with trio.fail_after(5):
        await trio.lowlevel.wait_writable(sock)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


async def test_a_syn_waits_for_its_release(
    host: Host, client: Namespace, tcp_server: socket.socket, wire: Wire
) -> None:
    with start_connect(client) as sock:
        flow = await next_held(host)
        assert flow == flow_of(sock)
        assert wire.seen(client) == []
        host.entry(flow)
        host.queue.release(flow, Verdict.STEER)
        await connected(sock)
    assert host.count(Reason.HELD) == 1
    assert host.queue.packets == 0


async def test_a_passed_flow_is_not_held_again(
    host: Host, client: Namespace, tcp_server: socket.socket
) -> None:
    with start_connect(client) as sock:
        flow = await next_held(host)
        host.entry(flow, Action.PASS)
        host.queue.release(flow, Verdict.PASS)
        await connected(sock)
        sock.send(b"data")
        accepted, _ = tcp_server.accept()
        with accepted:
            assert accepted.recv(10) == b"data"
    assert host.count(Reason.HELD) == 1


async def test_a_refused_flow_never_reaches_the_wire(
    host: Host, client: Namespace, wire: Wire
) -> None:
    with start_connect(client) as sock, udp_client(client) as datagrams:
        await next_held(host)
        datagrams.send(b"x")
        await next_held(host)
        for each in (sock, datagrams):
            host.entry(flow_of(each), Action.DROP)
            host.queue.release(flow_of(each), Verdict.DROP)
        assert wire.seen(client) == []
    assert host.count(Reason.REFUSED) == 2


async def test_a_refusal_that_is_over_is_none(host: Host, client: Namespace) -> None:
    with udp_client(client) as sock:
        entry = Entry(
            0, Hook.OUT, flow_of(sock), flow_of(sock), Action.DROP, Toward.RIGHT,
            Position.CLIENT, flow_of(sock),
        )  # fmt: skip
        two_seconds_ago = layout.now_ticks() - layout.ticks(2.0)
        host.flows.update(*layout.pack_entry(entry, two_seconds_ago & 0xFFFFFFFF))
        sock.send(b"x")
        assert await next_held(host) == flow_of(sock)


async def test_what_no_policy_matches_is_untouched(
    host: Host, client: Namespace, server: Namespace, wire: Wire
) -> None:
    """I7."""
    with server.entered():
        listener = socket.create_server((SERVER, FREE_PORT))
    with listener, start_connect(client, FREE_PORT) as sock:
        await connected(sock)
        assert (Proto.TCP, FREE_PORT) in wire.seen(client)
    assert [host.count(reason) for reason in Reason] == [0] * len(Reason)
    assert host.holds.next_key() is None
    assert host.queue.receive() == []


async def test_traffic_on_other_interfaces_is_untouched(host: Host, client: Namespace) -> None:
    client.run("ip", "address", "add", f"{SERVER}/32", "dev", "lo")
    with client.entered():
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        receiver.bind((SERVER, HELD_PORT))
        receiver.settimeout(5)
    with receiver, client.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", (SERVER, HELD_PORT))
        assert receiver.recv(10) == b"x"
    assert host.count(Reason.HELD) == 0


async def test_an_exempt_rule_lets_its_flows_alone(
    host: Host, client: Namespace, udp_server: socket.socket
) -> None:
    rules = policy()
    exempt = Policy(id=1, text="", line=2, chain=(), fail=Fail.OPEN)
    host.load(
        PolicySet(
            generation=2,
            policies=(*rules.policies, exempt),
            rules=(FlatRule(1, *_bounds(rules.rules[0])), *rules.rules),
            nfs=(),
        )
    )
    with udp_client(client) as sock:
        sock.send(b"x")
        assert udp_server.recv(10) == b"x"
    host.load(EMPTY)
    with udp_client(client) as sock:
        sock.send(b"y")
        assert udp_server.recv(10) == b"y"
    assert host.count(Reason.HELD) == 0


def _bounds(rule: FlatRule) -> tuple[bytes, bytes, bytes, bytes, int, int, int, int, int, int]:
    return (
        rule.src_lo, rule.src_hi, rule.dst_lo, rule.dst_hi, rule.sport_lo, rule.sport_hi,
        rule.dport_lo, rule.dport_hi, rule.proto_lo, rule.proto_hi,
    )  # fmt: skip


async def test_datagrams_keep_their_order_while_the_flow_is_let_go(
    client: Namespace, udp_server: socket.socket
) -> None:
    """The sender never stops: some wait, some meet the release, the rest goes straight."""
    before, total = 500, 20000
    host = Host(client, limit=total)
    held_enough = threading.Event()

    def send(sock: socket.socket) -> None:
        for number in range(total):
            sock.send(number.to_bytes(4, "big"))
            if number == before:
                held_enough.set()

    with closing(host), udp_client(client) as sock:
        sock.setsockopt(socket.SOL_SOCKET, 32, 64 << 20)  # SO_SNDBUFFORCE: all may wait
        flow = flow_of(sock)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, send, sock)
            assert await next_held(host) == flow
            await trio.to_thread.run_sync(held_enough.wait, 5)
            host.queue.receive()
            assert host.queue.packets >= before
            host.entry(flow)
            host.queue.release(flow, Verdict.STEER)
            nursery.start_soon(_serve, host, nursery.cancel_scope)
            got = await trio.to_thread.run_sync(_receive_numbers, udp_server, total)
            nursery.cancel_scope.cancel()
        assert got == list(range(total))
        assert before <= host.count(Reason.HELD) < total, "some must have gone straight"
        assert host.count(Reason.HOLD_OVERFLOW) == 0
        assert host.tables.settle(flow.pack()) == Settled(waiting=0, kept=True)


async def _serve(host: Host, scope: trio.CancelScope) -> None:
    async for flow in host.queue.held():
        raise AssertionError(f"{flow} is held again")


def _receive_numbers(sock: socket.socket, count: int) -> list[int]:
    return [int.from_bytes(sock.recv(4), "big") for _ in range(count)]


async def test_later_packets_queue_while_earlier_ones_wait(
    host: Host, client: Namespace, udp_server: socket.socket, wire: Wire
) -> None:
    """Entries alone do not open the straight way: that would let packets overtake."""
    with udp_client(client) as sock:
        sock.send(b"first")
        flow = await next_held(host)
        host.entry(flow)
        sock.send(b"second")
        assert wire.seen(client) == []
        assert host.queue.receive() == []
        host.queue.release(flow, Verdict.STEER)
        assert [udp_server.recv(10), udp_server.recv(10)] == [b"first", b"second"]
        sock.send(b"third")
        assert udp_server.recv(10) == b"third"
    assert host.count(Reason.HELD) == 2, "the third goes straight"


async def test_counts_of_a_flow_are_kept_while_packets_wait_and_then_forgotten(
    host: Host, client: Namespace, udp_server: socket.socket
) -> None:
    with udp_client(client) as sock:
        sock.send(b"first")
        flow = await next_held(host)
        assert host.tables.settle(flow.pack(), quiet=1) == Settled(waiting=1, kept=True)
        host.entry(flow)
        host.queue.release(flow, Verdict.STEER)
        assert udp_server.recv(10) == b"first"
        assert host.tables.settle(flow.pack()) == Settled(waiting=0, kept=True)
        assert host.tables.settle(flow.pack(), quiet=1) == Settled(waiting=0, kept=False)
    assert host.holds.next_key() is None


async def test_beyond_the_bound_packets_are_dropped_and_counted(
    client: Namespace, udp_server: socket.socket
) -> None:
    host = Host(client, limit=8)
    with closing(host), udp_client(client) as sock:
        for number in range(8):
            sock.send(bytes([number]))
        for _ in range(12):
            with pytest.raises(PermissionError):  # as with any firewall
                sock.send(b"too many")
        flow = await next_held(host)
        assert host.queue.packets == 8
        assert host.count(Reason.HELD) == 8
        assert host.count(Reason.HOLD_OVERFLOW) == 12
        host.entry(flow)
        host.queue.release(flow, Verdict.STEER)
        assert [udp_server.recv(1) for _ in range(8)] == [bytes([n]) for n in range(8)]
        sock.send(b"straight")
        assert udp_server.recv(10) == b"straight"


@pytest.mark.parametrize("fail", Fail)
async def test_without_an_agent_the_policy_decides(
    host: Host, client: Namespace, udp_server: socket.socket, wire: Wire, fail: Fail
) -> None:
    host.load(policy(fail))
    host.away()
    through = fail is Fail.OPEN
    with udp_client(client) as sock:
        for _ in range(2):
            send(sock, through)
    assert wire.seen(client) == [(Proto.UDP, HELD_PORT)] * 2 * through
    assert host.count(Reason.AGENT_AWAY_OPEN) == 2 * through
    assert host.count(Reason.AGENT_AWAY_CLOSED) == 2 * (not through)
    assert host.count(Reason.HELD) == 0


@pytest.mark.parametrize("fail", Fail)
@pytest.mark.parametrize("keep", [True, False])
async def test_an_agent_that_stops_leaves_held_packets_to_the_policy(
    client: Namespace, udp_server: socket.socket, wire: Wire, fail: Fail, keep: bool
) -> None:
    host = Host(client)
    host.load(policy(fail))
    with udp_client(client) as sock:
        sock.send(b"x")
        await next_held(host)
        sock.send(b"y")  # not read from the queue yet
        host.close(keep=keep)
        through = fail is Fail.OPEN
        assert wire.seen(client) == [(Proto.UDP, HELD_PORT)] * 2 * through
        assert (CHAIN in host.rules()) is keep
        through = fail is Fail.OPEN or not keep
        send(sock, through)
        assert wire.seen(client) == [(Proto.UDP, HELD_PORT)] * through
    if keep:
        Host(client).close()


async def test_the_next_agent_replaces_what_a_killed_one_left(
    client: Namespace, udp_server: socket.socket
) -> None:
    with udp_client(client) as sock:
        command = [sys.executable, "-c", _HOLD, client.name, run_prefix() + "hold"]
        async with trio.open_nursery() as nursery:
            killed = await nursery.start(
                partial(trio.run_process, command, stdout=subprocess.PIPE, check=False, cwd=ROOT)
            )
            await said(killed, b"ready\n")
            sock.send(b"lost with the agent")
            await said(killed, b"held\n")
            killed.kill()
        host = Host(client)
        with closing(host):
            rules = host.rules()
            assert rules.count("NFQUEUE") == 1
            assert rules.count(f"-j {CHAIN}") == 2, "of TCP and of UDP"
            assert rules.count("-o eth0") == 1
            assert host.holds.next_key() is None
            sock.send(b"again")
            flow = await next_held(host)
            host.entry(flow)
            host.queue.release(flow, Verdict.STEER)
            assert udp_server.recv(30) == b"again"
            assert host.tables.settle(flow.pack()) == Settled(waiting=0, kept=True)
    assert CHAIN not in host.rules()


async def said(process: trio.Process, line: bytes) -> None:
    assert process.stdout is not None
    with trio.fail_after(10):
        for octet in line:
            assert await process.stdout.receive_some(1) == bytes([octet])


_HOLD = """
import select, signal, sys
from tests.netns.test_hold import Host, Namespace
client = Namespace.__new__(Namespace)
client.name = sys.argv[1]
host = Host(client, name=sys.argv[2])
print("ready", flush=True)
select.select([host.queue], [], [])
assert host.queue.receive()
print("held", flush=True)
signal.pause()
"""


async def test_a_burst_for_the_device_to_cut_is_held_whole(
    host: Host, client: Namespace, udp_server: socket.socket
) -> None:
    """I1: generic segmentation goes on behind the hold."""
    with udp_client(client) as sock:
        sock.setsockopt(socket.SOL_UDP, UDP_SEGMENT, 1000)
        segments = [bytes([number]) * 1000 for number in range(5)]
        sock.send(b"".join(segments))
        flow = await next_held(host)
        assert host.count(Reason.HELD) == host.queue.packets == 1
        host.entry(flow)
        host.queue.release(flow, Verdict.STEER)
        assert [udp_server.recv(2000) for _ in segments] == segments


async def test_a_datagram_larger_than_the_mtu_is_held_whole(
    host: Host, client: Namespace, udp_server: socket.socket, wire: Wire
) -> None:
    """Fragmentation comes after the hold; later fragments carry no ports to know them by."""
    datagram = bytes(range(256)) * 32
    assert len(datagram) > MTU
    with udp_client(client) as sock:
        sock.send(datagram)
        flow = await next_held(host)
        assert host.count(Reason.HELD) == host.queue.packets == 1
        assert wire.seen(client) == []
        host.entry(flow)
        host.queue.release(flow, Verdict.STEER)
        assert udp_server.recv(10000) == datagram
