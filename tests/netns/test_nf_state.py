"""A stateful nftables firewall's entries move from one middlebox to another; real packets.

                    ┌── fw1 ──┐
    client 10.9.0.1 ┤         ├ server 10.9.0.2
                    └── fw2 ──┘

Both firewalls let established traffic pass and new sessions to two ports, and pick nothing up in
mid-connection. Routes say which of them a direction goes through.
"""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio
from pyroute2.netlink import NLM_F_ACK, NLM_F_REQUEST
from pyroute2.netlink.nfnetlink.nfctsocket import IPS_ASSURED, IPS_CONFIRMED, IPS_SEEN_REPLY

from m2m.errors import UnsupportedHost
from m2m.protocol.flow import Flow, Proto
from nf_adapters.state import BadState, Immovable, NoState, NotLocked, StateError, ctnetlink
from nf_adapters.state.conntrack import ConntrackState
from nf_adapters.state.ctnetlink import Conntrack
from nf_adapters.state.entry import Entry, decode, encode
from nf_adapters.state.lock import TABLE
from nf_adapters.state.netlink import Netfilter
from tests.support.namespaces import Namespace, NamespaceFactory

pytestmark = pytest.mark.needs("root", "netns", "nft")

CLIENT, SERVER = "10.9.0.1", "10.9.0.2"
WEB, DNS = 80, 53
ESTABLISHED = 3  # TCP_CONNTRACK_ESTABLISHED
PATIENCE = 30.0  # s
STALLED = 1000  # ms without an acknowledgement, after which a connection is given up
BULK = 4 << 20  # bytes

RULES = f"""\
flush ruleset
table inet filter {{
    counter invalid {{}}
    counter refused {{}}
    chain forward {{
        type filter hook forward priority filter; policy drop
        ct state invalid counter name invalid drop
        ct state established,related accept
        ct state new tcp dport {WEB} accept
        ct state new udp dport {DNS} accept
        counter name refused drop
    }}
}}
"""


class Firewall:
    """A middlebox, and the adapter its agent would have."""

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace
        self.state: ConntrackState
        self.table: Conntrack

    def load(self, rules: str) -> None:
        self.namespace.run("sh", "-c", f"nft -f - <<'END'\n{rules}END")

    def counted(self, name: str) -> int:
        listed = self.namespace.run("nft", "list", "counter", "inet", "filter", name).stdout
        return _packets(listed)

    def dropped_by_lock(self) -> int:
        return _packets(self.namespace.run("nft", "list", "table", "ip", TABLE).stdout)

    def entry(self, flow: Flow) -> Entry | None:
        found = self.table.get(flow, 0)
        return found.entry if found is not None else None

    def has(self, entry: Entry | None) -> bool:
        """Whether the table has this very entry, but for the seconds it has left."""
        assert entry is not None
        mine = self.table.get(entry.flow, entry.zone)
        return mine is not None and changed(mine.entry, timeout=entry.timeout) == entry


def changed(entry: Entry, **fields: object) -> Entry:
    return msgspec.structs.replace(entry, **fields)


def _packets(listed: str) -> int:
    found = re.search(r"packets (\d+)", listed)
    assert found is not None, listed
    return int(found[1])


class Net:
    """The four of them."""

    def __init__(self, client: Namespace, fw1: Firewall, fw2: Firewall, server: Namespace) -> None:
        self.client, self.fw1, self.fw2, self.server = client, fw1, fw2, server

    def lead(self, number: int, *, forward: bool = True, back: bool = True) -> None:
        """Send a direction, or both, through this firewall."""
        if forward:
            self.client.route(SERVER, "via", f"10.9.1{number}.254", "src", CLIENT)
        if back:
            self.server.route(CLIENT, "via", f"10.9.2{number}.254", "src", SERVER)

    async def move(self, flow: Flow) -> Entry:
        """As agents do it: from the first firewall to the second. Returns what was moved."""
        await self.fw1.state.quiesce(flow)
        state = await self.fw1.state.export(flow)
        await self.fw2.state.import_(flow, state)
        moved = decode(state, flow)
        assert self.fw2.has(moved)
        self.lead(2)
        await self.fw1.state.release(flow, keep=False)
        assert self.fw1.entry(flow) is None
        return moved

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[trio.SocketStream, trio.SocketStream, Flow]]:
        """A TCP session: the client's end, the server's end, and its flow."""
        listener = trio.socket.from_stdlib_socket(
            self.server.socket(socket.AF_INET, socket.SOCK_STREAM)
        )
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        await listener.bind((SERVER, WEB))
        listener.listen()
        here = trio.socket.from_stdlib_socket(
            self.client.socket(socket.AF_INET, socket.SOCK_STREAM)
        )
        await here.connect((SERVER, WEB))
        there, _ = await listener.accept()
        listener.close()
        flow = Flow.of(Proto.TCP, CLIENT, here.getsockname()[1], SERVER, WEB)
        async with trio.SocketStream(here) as client, trio.SocketStream(there) as server:
            yield client, server, flow

    async def datagrams(self) -> tuple[trio.socket.SocketType, trio.socket.SocketType, Flow]:
        """A UDP session: both ends, connected, and its flow. Nothing was sent yet."""
        here, there = (
            trio.socket.from_stdlib_socket(host.socket(socket.AF_INET, socket.SOCK_DGRAM))
            for host in (self.client, self.server)
        )
        there.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        await there.bind((SERVER, DNS))
        await here.connect((SERVER, DNS))
        port = here.getsockname()[1]
        await there.connect((CLIENT, port))
        return here, there, Flow.of(Proto.UDP, CLIENT, port, SERVER, DNS)


@pytest.fixture
async def net(netns: NamespaceFactory) -> AsyncIterator[Net]:
    client, server = netns("client"), netns("server")
    client.address("lo", f"{CLIENT}/32")
    server.address("lo", f"{SERVER}/32")
    firewalls = []
    async with AsyncExitStack() as stack:
        for number in (1, 2):
            box = netns(f"fw{number}")
            for host, side, address in ((client, 1, CLIENT), (server, 2, SERVER)):
                link = f"10.9.{side}{number}"
                eth = f"eth{number}"
                netns.link(host, (eth, f"{link}.1/24"), box, (f"eth{side}", f"{link}.254/24"))
                host.sysctl(f"net.ipv4.conf.{eth}.rp_filter", 0)
                host.sysctl("net.ipv4.conf.all.rp_filter", 0)
                box.sysctl(f"net.ipv4.conf.eth{side}.rp_filter", 0)
                box.route(address, "via", f"{link}.1")
            box.sysctl("net.ipv4.conf.all.rp_filter", 0)
            box.sysctl("net.ipv4.ip_forward", 1)
            firewall = Firewall(box)
            firewall.load(RULES)
            box.sysctl("net.netfilter.nf_conntrack_tcp_loose", 0)
            box.sysctl("net.netfilter.nf_conntrack_tcp_be_liberal", 0)
            with box.entered():
                firewall.state = await ConntrackState.open()
                firewall.table = Conntrack()
            stack.push_async_callback(firewall.state.close)
            stack.callback(firewall.table.close)
            firewalls.append(firewall)
        net = Net(client, *firewalls, server)
        net.lead(1)
        with trio.fail_after(PATIENCE):
            yield net


async def pour(source: trio.SocketStream, sink: trio.SocketStream, size: int) -> None:
    """Send *size* bytes that differ from each other, and see that they arrive."""
    block = hashlib.shake_256(b"m2m").digest(65537)
    text = (block * (size // len(block) + 1))[:size]
    received = bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.send_all, text)
        while len(received) < size:
            part = await sink.receive_some()
            assert part, "the connection ended too early"
            received += part
    assert received == text


async def both_ways(client: trio.SocketStream, server: trio.SocketStream, size: int) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pour, client, server, size)
        nursery.start_soon(pour, server, client, size)


async def assert_stalls(client: trio.SocketStream, server: trio.SocketStream) -> None:
    """What the client sends is never acknowledged."""
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED)
    await client.send_all(b"lost")
    with pytest.raises(trio.BrokenResourceError) as caught:
        await client.receive_some()
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ETIMEDOUT


async def test_a_tcp_session_goes_on_through_the_other_firewall(net: Net) -> None:
    async with net.connection() as (client, server, flow):
        await both_ways(client, server, 65536)
        moved = await net.move(flow)
        assert moved.status == IPS_SEEN_REPLY | IPS_ASSURED | IPS_CONFIRMED
        await both_ways(client, server, BULK)
        await pour(server, client, BULK)
        assert (net.fw2.counted("invalid"), net.fw2.counted("refused")) == (0, 0)

        await client.aclose()
        assert await server.receive_some() == b""
        await server.aclose()
    closed = net.fw2.entry(flow)
    assert closed is not None
    assert closed.tcp is not None
    assert closed.tcp.state > ESTABLISHED  # the firewall has followed


async def test_a_tcp_session_moves_while_data_flow_both_ways(net: Net) -> None:
    async with net.connection() as (client, server, flow), trio.open_nursery() as nursery:
        await both_ways(client, server, 65536)
        nursery.start_soon(both_ways, client, server, 4 * BULK)
        await net.move(flow)
    assert net.fw2.counted("invalid") == 0


async def test_without_the_move_a_session_stalls(net: Net) -> None:
    async with net.connection() as (client, server, _):
        await both_ways(client, server, 65536)
        net.lead(2)
        await assert_stalls(client, server)
    assert net.fw2.counted("invalid") > 0


async def test_only_what_was_moved_goes_on(net: Net) -> None:
    async with net.connection() as (client, server, flow), net.connection() as (other, its, _):
        await both_ways(client, server, 65536)
        await both_ways(other, its, 65536)
        await net.move(flow)
        await assert_stalls(other, its)
        await both_ways(client, server, BULK)


async def test_a_half_closed_session_goes_on(net: Net) -> None:
    async with net.connection() as (client, server, flow):
        await client.send_all(b"question")
        await client.send_eof()
        assert await server.receive_some() == b"question"
        assert await server.receive_some() == b""
        moved = await net.move(flow)
        assert moved.tcp is not None
        assert moved.tcp.state > ESTABLISHED
        await pour(server, client, BULK)
    assert net.fw2.counted("invalid") == 0


async def test_a_reset_follows_the_session(net: Net) -> None:
    async with net.connection() as (client, server, flow):
        await net.move(flow)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await client.aclose()
        with pytest.raises(trio.BrokenResourceError):
            await server.receive_some()
    assert net.fw2.counted("invalid") == 0


async def test_many_move_at_once_whoever_sent_first(net: Net) -> None:
    flows = [Flow.of(Proto.UDP, CLIENT, 20000 + n, SERVER, DNS) for n in range(50)]
    entries = [
        Entry(flow if n % 2 else flow.reverse(), IPS_CONFIRMED | IPS_SEEN_REPLY, 100 + n, mark=n)
        for n, flow in enumerate(flows)
    ]
    for entry in entries:
        net.fw1.table.create(entry)

    async def move(flow: Flow) -> None:
        await net.fw1.state.quiesce(flow)
        await net.fw2.state.import_(flow, await net.fw1.state.export(flow))
        await net.fw1.state.release(flow, keep=False)

    async with trio.open_nursery() as nursery:
        for flow in flows:
            nursery.start_soon(move, flow)
    assert all(net.fw2.has(entry) for entry in entries)
    assert all(net.fw1.entry(flow) is None for flow in flows)


async def test_a_session_moves_there_and_back(net: Net) -> None:
    async with net.connection() as (client, server, flow):
        await both_ways(client, server, 65536)
        stale = await exported(net.fw1, flow)
        await net.fw2.state.import_(flow, stale)  # what a change left behind that failed
        await net.move(flow)
        await both_ways(client, server, 65536)
        await net.fw2.state.quiesce(flow)
        await net.fw1.state.import_(flow, await net.fw2.state.export(flow))
        net.lead(1)
        await net.fw2.state.release(flow, keep=False)
        await both_ways(client, server, BULK)


async def exported(firewall: Firewall, flow: Flow) -> bytes:
    """The state of *flow*, which goes on here."""
    await firewall.state.quiesce(flow)
    state = await firewall.state.export(flow)
    await firewall.state.release(flow, keep=True)
    return state


@pytest.mark.parametrize("liberal", [True, False])
async def test_an_entry_that_insisted_on_windows_would_break_the_session(
    net: Net, liberal: bool
) -> None:
    """Why an imported entry is liberal: the new firewall sees what was sent before be acknowledged.

    Here one direction goes on past it, by a way without a firewall.
    """
    async with net.connection() as (client, server, flow):
        await both_ways(client, server, 65536)
        await net.fw2.state.import_(flow, await exported(net.fw1, flow))
        if not liberal:
            insist_on_windows(net.fw2, flow)
        net.fw1.load("flush ruleset\n")
        net.lead(2, forward=False)
        await server.send_all(b"the new firewall's first packet")
        await client.receive_some()
        await client.send_all(b"question")
        assert await server.receive_some() == b"question"
        if liberal:
            await pour(server, client, 65536)
            assert net.fw2.counted("invalid") == 0
        else:
            await assert_stalls(client, server)
            assert net.fw2.counted("invalid") > 0


def insist_on_windows(firewall: Firewall, flow: Flow) -> None:
    clear = {"value": (0, 0x08)}  # IP_CT_TCP_FLAG_BE_LIBERAL
    tcp = ctnetlink._nest(
        CTA_PROTOINFO_TCP_FLAGS_ORIGINAL=clear, CTA_PROTOINFO_TCP_FLAGS_REPLY=clear
    )
    attributes = {
        "tuple_orig": ctnetlink._tuple(flow),
        "protoinfo": ctnetlink._nest(CTA_PROTOINFO_TCP=tcp),
    }
    with firewall.namespace.entered():
        kernel = Netfilter()
    number = kernel.next_sequence()
    kernel.ask(ctnetlink._encode(0, NLM_F_REQUEST | NLM_F_ACK, number, attributes))
    kernel.close()


async def test_a_udp_session_goes_on_and_one_without_state_is_refused(net: Net) -> None:
    here, there, flow = await net.datagrams()
    other_here, other_there, _ = await net.datagrams()
    for client, server in ((here, there), (other_here, other_there)):
        await client.send(b"question")
        assert await server.recv(100) == b"question"
        await server.send(b"answer")
        assert await client.recv(100) == b"answer"
    moved = await net.move(flow)
    assert moved.tcp is None
    assert moved.status & IPS_SEEN_REPLY
    await other_there.send(b"to a session nobody knows")
    await there.send(b"unasked")
    assert await here.recv(100) == b"unasked"
    assert net.fw2.counted("refused") == 1  # the one before it, on the same way
    for sock in (here, there, other_here, other_there):
        sock.close()


async def test_a_locked_entry_is_neither_changed_nor_used(net: Net) -> None:
    here, there, flow = await net.datagrams()
    other_here, other_there, _ = await net.datagrams()
    for client, server in ((here, there), (other_here, other_there)):
        await client.send(b"question")
        assert await server.recv(100) == b"question"
    await net.fw1.state.quiesce(flow)
    before = net.fw1.entry(flow)
    await there.send(b"answer")
    await other_there.send(b"answer")
    assert await other_here.recv(100) == b"answer"  # so the one before it has been there as well
    assert net.fw1.has(before)
    assert net.fw1.dropped_by_lock() == 1
    with pytest.raises(StateError, match="locked already"):
        await net.fw1.state.quiesce(flow)

    await net.fw1.state.release(flow, keep=True)
    await there.send(b"answer")
    assert await here.recv(100) == b"answer"
    after = net.fw1.entry(flow)
    assert after is not None
    assert after.status & IPS_SEEN_REPLY
    with pytest.raises(NotLocked, match="not locked"):
        await net.fw1.state.export(flow)
    for sock in (here, there, other_here, other_there):
        sock.close()


async def test_a_lock_ends_by_itself(net: Net) -> None:
    here, there, flow = await net.datagrams()
    await here.send(b"question")
    await there.recv(100)
    await net.fw1.state.quiesce(flow)
    listed = net.fw1.namespace.run("nft", "list", "set", "ip", TABLE, "locked").stdout
    assert listed.count("timeout 5s expires") == 2  # both directions; the kernel sees to it
    here.close()
    there.close()


async def test_the_next_agent_unlocks_what_a_killed_one_left(net: Net) -> None:
    here, there, flow = await net.datagrams()
    await here.send(b"question")
    await there.recv(100)
    await net.fw1.state.quiesce(flow)
    with net.fw1.namespace.entered():
        successor = await ConntrackState.open()
    await there.send(b"answer")
    assert await here.recv(100) == b"answer"
    await successor.close()
    tables = net.fw1.namespace.run("nft", "list", "tables").stdout
    assert tables.split() == ["table", "inet", "filter"]
    here.close()
    there.close()


async def test_a_host_without_nft_is_told_so(
    net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nsenter = shutil.which("nsenter")
    assert nsenter is not None
    (tmp_path / "nsenter").symlink_to(nsenter)
    with monkeypatch.context() as patched, net.fw1.namespace.entered():
        patched.setenv("PATH", str(tmp_path))
        with pytest.raises(UnsupportedHost, match="install nftables"):
            await ConntrackState.open()


async def test_locking_survives_a_reload_of_the_firewall(net: Net) -> None:
    here, there, flow = await net.datagrams()
    await here.send(b"question")
    await there.recv(100)
    net.fw1.load(RULES)
    await net.fw1.state.quiesce(flow)
    assert net.fw1.dropped_by_lock() == 0
    here.close()
    there.close()


async def test_release_after_an_undone_import_leaves_nothing(net: Net) -> None:
    async with net.connection() as (client, server, flow):
        await net.fw1.state.quiesce(flow)
        await net.fw2.state.import_(flow, await net.fw1.state.export(flow))
        await net.fw2.state.release(flow, keep=False)
        await net.fw1.state.release(flow, keep=True)
        assert net.fw2.entry(flow) is None
        await both_ways(client, server, BULK)
        net.lead(2)
        await assert_stalls(client, server)


async def test_marks_labels_zones_and_helpers_move(net: Net) -> None:
    marking = f"""\
table ip marking {{
    ct helper ftp {{
        type "ftp" protocol tcp
    }}
    chain zones {{
        type filter hook prerouting priority raw
        ct zone set 7
    }}
    chain marks {{
        type filter hook forward priority mangle
        tcp dport {WEB} ct mark set 0xfedcba98
        tcp dport {WEB} ct label set 100
        tcp dport {WEB} ct helper set "ftp"
    }}
}}
"""
    states = []
    for firewall in (net.fw1, net.fw2):
        firewall.load(RULES + marking)
        with firewall.namespace.entered():
            states.append(await ConntrackState.open(zone=7))
    old, new = states
    async with net.connection() as (client, server, flow):
        with pytest.raises(NoState, match="in zone 0"):
            await net.fw1.state.quiesce(flow)
        await old.quiesce(flow)
        state = await old.export(flow)
        with pytest.raises(BadState, match="zone 7, and here the firewall tracks in zone 0"):
            await net.fw2.state.import_(flow, state)
        await new.import_(flow, state)
        net.lead(2)
        found = net.fw2.table.get(flow, 7)
        assert found is not None
        moved = found.entry
        assert (moved.mark, moved.zone, moved.helper) == (0xFEDCBA98, 7, "ftp")
        assert int.from_bytes(moved.labels, "little") == 1 << 100
        assert net.fw2.has(decode(state, flow))
        await both_ways(client, server, BULK)
    for adapter in states:
        await adapter.close()


async def test_labels_that_would_be_lost_are_refused(net: Net) -> None:
    async with net.connection() as (_, _, flow):
        entry = decode(await exported(net.fw1, flow), flow)
        state = encode(changed(entry, labels=bytes([1]) + bytes(15)))
        with pytest.raises(StateError, match="no rule of this firewall uses `ct label`"):
            await net.fw2.state.import_(flow, state)
        assert net.fw2.entry(flow) is None


async def test_an_unknown_helper_is_refused_and_the_former_entry_stays(net: Net) -> None:
    async with net.connection() as (_, _, flow):
        state = await exported(net.fw1, flow)
        await net.fw2.state.import_(flow, state)
        before = net.fw2.entry(flow)
        other = encode(changed(decode(state, flow), helper="no-such-helper"))
        with pytest.raises(StateError, match="load the module of its helper"):
            await net.fw2.state.import_(flow, other)
        assert net.fw2.has(before)


async def test_a_translated_session_is_refused(net: Net) -> None:
    net.fw1.load(
        RULES
        + """\
table ip nat {
    chain postrouting {
        type nat hook postrouting priority srcnat
        oifname eth2 masquerade
    }
}
"""
    )
    async with net.connection() as (_, _, flow):
        with pytest.raises(Immovable, match="this host translates its addresses"):
            await net.fw1.state.quiesce(flow)
        entry = net.fw1.entry(flow)
        assert entry is not None
        with pytest.raises(StateError, match="this host translates"):
            await net.fw1.state.import_(flow, encode(entry))


async def test_unknown_sessions_have_no_state(net: Net) -> None:
    for flow in (
        Flow.of(Proto.TCP, CLIENT, 1, SERVER, WEB),
        Flow.of(Proto.TCP, "2001:db8::1", 1, "2001:db8::2", WEB),
    ):
        with pytest.raises(NoState):
            await net.fw1.state.quiesce(flow)
        await net.fw1.state.release(flow, keep=False)
