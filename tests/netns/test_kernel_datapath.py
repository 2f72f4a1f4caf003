"""Real traffic through the datapaths in the kernel: bulk, fragments, small links, takeover."""

from __future__ import annotations

import errno
import hashlib
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from m2m.datapath import Reason
from m2m.datapath.pins import directory_of
from m2m.protocol.flow import Proto
from m2m.protocol.translation import Hook, Position, Toward
from tests.support import line as on
from tests.support.line import (
    CLIENT,
    CLIENT_PORT,
    MIDDLE_LEFT,
    MIDDLE_RIGHT,
    PATIENCE,
    SERVER,
    SERVICE,
    Line,
    Wire,
    line,
    tcp_socket,
    udp_socket,
)
from tests.support.namespaces import NamespaceFactory

pytestmark = [
    pytest.mark.needs("netns", "bpffs", "nfqueue", "ethtool"),
    pytest.mark.usefixtures("kind"),
]

_IP_MTU_DISCOVER, _IP_PMTUDISC_DONT, _IP_PMTUDISC_PROBE = 10, 0, 3
_SO_NO_CHECK = 11
_IP_RECVTTL = 12
_BULK = bytes(range(251)) * 16_384  # 4 MB, whose period is no power of two

Transfer = Callable[[Line], Awaitable[None]]


async def _send_all_and_close(stream: trio.SocketStream, data: bytes) -> None:
    await stream.send_all(data)
    await stream.send_eof()


async def _receive_all(stream: trio.SocketStream) -> bytes:
    digest, length = hashlib.sha256(), 0
    async for chunk in stream:
        digest.update(chunk)
        length += len(chunk)
    return digest.digest() + length.to_bytes(8, "big")


async def both_ways(there: Line, data: bytes = _BULK) -> None:
    """A TCP session that carries *data* in both directions at once, seen by both ends."""
    expected = hashlib.sha256(data).digest() + len(data).to_bytes(8, "big")

    async def serve() -> None:
        accepted, peer = await listener.accept()
        assert peer == (CLIENT, CLIENT_PORT)  # I3: the application sees the supersession
        async with trio.SocketStream(accepted) as stream, trio.open_nursery() as nursery:
            nursery.start_soon(_send_all_and_close, stream, data)
            assert await _receive_all(stream) == expected

    with trio.fail_after(PATIENCE), tcp_socket(there.server, SERVER, SERVICE) as listener:
        listener.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            connecting = tcp_socket(there.client, CLIENT, CLIENT_PORT)
            await connecting.connect((SERVER, SERVICE))
            async with trio.SocketStream(connecting) as stream:
                nursery.start_soon(_send_all_and_close, stream, data)
                assert await _receive_all(stream) == expected


@pytest.mark.parametrize("position", [Position.TAP, Position.INLINE], ids=lambda p: p.name)
@pytest.mark.parametrize("off", ["nowhere", "everywhere", "middlebox", "ends"])
async def test_i1_tcp_bulk(netns: NamespaceFactory, position: Position, off: str) -> None:
    """Full and partial checksums, one packet or a burst at a time; every sum is verified."""
    async with line(netns) as there:
        chosen = {"nowhere": (), "everywhere": there.hosts, "middlebox": (there.middle,)}
        for host in chosen.get(off, (there.client, there.server)):
            on.offloads(host, "off")
        await there.steer(Proto.TCP, position)
        before, after = Wire(there.middle, "eth0"), Wire(there.middle, "eth1")
        await both_ways(there)
        # I2: on each link, neighbours talk to neighbours.
        assert before.seen() == {(CLIENT, MIDDLE_LEFT), (MIDDLE_LEFT, CLIENT)}
        assert after.seen() == {(MIDDLE_RIGHT, SERVER), (SERVER, MIDDLE_RIGHT)}
        before.close()
        after.close()
        for host in there.hosts:
            assert on.bad_checksums(host) == 0
            assert not await host.counted()
            for row in await host.rows():
                assert row.counters.fin
                assert row.counters.bytes >= len(_BULK)
                # 40 bytes of headers and 12 of timestamps on each of these
                assert row.counters.packets >= len(_BULK) // 1448


async def test_bursts_count_as_their_segments(netns: NamespaceFactory) -> None:
    """The same packets are counted where they travel as bursts and where they do not."""
    async with line(netns) as there:
        on.offloads(there.server, "off")
        await there.steer(Proto.TCP, Position.INLINE)
        await both_ways(there)
        counts = {
            (row.counters.packets, row.counters.bytes, row.counters.max_seq)
            for host in there.hosts
            for row in await host.rows()
            if row.entry.toward is Toward.RIGHT
        }
        assert len(counts) == 1


@pytest.mark.parametrize("position", [Position.TAP, Position.INLINE], ids=lambda p: p.name)
@pytest.mark.parametrize("off", [False, True], ids=["offloads", "plain"])
async def test_udp_both_ways_and_in_fragments(
    netns: NamespaceFactory, position: Position, off: bool
) -> None:
    sizes = [0, 1, 2, 3, 1471, 1472, 1473, 4000, 20_001]
    async with line(netns) as there:
        for host in there.hosts if off else ():
            on.offloads(host, "off")
        flow = await there.steer(Proto.UDP, position)
        client = udp_socket(there.client, CLIENT, flow.sport)
        server = udp_socket(there.server, SERVER, flow.dport)
        with client, server, trio.fail_after(PATIENCE):
            for sock in (client, server):
                sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DONT)
            for no_checksum in (0, 1):
                client.setsockopt(socket.SOL_SOCKET, _SO_NO_CHECK, no_checksum)
                for size in sizes:
                    await client.sendto(_BULK[:size], (SERVER, flow.dport))
                    data, sender = await server.recvfrom(65536)
                    assert (data, sender) == (_BULK[:size], (CLIENT, flow.sport))
                    await server.sendto(data[::-1], sender)
                    data, sender = await client.recvfrom(65536)
                    assert (data, sender) == (_BULK[:size][::-1], (SERVER, flow.dport))
        for host in there.hosts:
            assert on.bad_checksums(host) == 0
            assert not await host.counted()


async def test_udp_segmentation_offload(netns: NamespaceFactory) -> None:
    """One send of many datagrams (UDP_SEGMENT) travels as one burst."""
    async with line(netns) as there:
        flow = await there.steer(Proto.UDP, Position.TAP)
        client = udp_socket(there.client, CLIENT, flow.sport)
        server = udp_socket(there.server, SERVER, flow.dport)
        with client, server, trio.fail_after(PATIENCE):
            client.setsockopt(socket.IPPROTO_UDP, 103, 1000)  # UDP_SEGMENT
            await client.sendto(_BULK[:9500], (SERVER, flow.dport))
            got = [await server.recv(65536) for _ in range(10)]
        assert b"".join(got) == _BULK[:9500]
        rows = [row for row in await there.middle.rows() if row.entry.toward is Toward.RIGHT]
        assert [(row.counters.packets, row.counters.bytes) for row in rows] == [(10, 9500 + 280)]


async def test_a_small_link_behind_is_met_by_smaller_segments(netns: NamespaceFactory) -> None:
    async with line(netns, mtu=1400) as there:
        await there.steer(Proto.TCP, Position.TAP, mtu=1400, mss=1360)
        await both_ways(there)
        assert not await there.middle.counted()


async def test_what_is_too_big_for_the_next_link_is_dropped_and_counted(
    netns: NamespaceFactory,
) -> None:
    async with line(netns, mtu=1400) as there:
        flow = await there.steer(Proto.UDP, Position.TAP, mtu=1400)
        client = udp_socket(there.client, CLIENT, flow.sport)
        server = udp_socket(there.server, SERVER, flow.dport)
        # The client's own entries know of the small link too; here only the middlebox does.
        rows = await there.client.datapath.rows([(Hook.OUT, flow)])
        entry = rows[0].entry
        assert entry.hop is not None
        await there.client.datapath.install([entry._replace(hop=entry.hop._replace(mtu=1500))])
        with client, server, trio.fail_after(PATIENCE):
            client.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE)
            await client.sendto(bytes(1373), (SERVER, flow.dport))
            await client.sendto(bytes(1372), (SERVER, flow.dport))
            assert len(await server.recv(65536)) == 1372
        assert await there.middle.counted() == {Reason.TOO_BIG: 1}


async def test_ttl_is_counted_down_once_by_a_tap_and_once_by_forwarding(
    netns: NamespaceFactory,
) -> None:
    async with line(netns) as there:
        for position in (Position.TAP, Position.INLINE):
            flow = await there.steer(Proto.UDP, position)
            client = udp_socket(there.client, CLIENT, flow.sport)
            server = udp_socket(there.server, SERVER, flow.dport)
            with client, server, trio.fail_after(PATIENCE):
                server.setsockopt(socket.IPPROTO_IP, _IP_RECVTTL, 1)
                client.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
                await client.sendto(b"too short", (SERVER, flow.dport))
                client.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 2)
                await client.sendto(b"just enough", (SERVER, flow.dport))
                data, found, _, _ = await server.recvmsg(100, 100)
            assert data == b"just enough"
            assert found[0][2][0] == 1
            for host in there.hosts:
                await host.datapath.remove([row.entry.key for row in await host.rows()])
        # The middlebox's own stack counts what it throws away itself.
        assert await there.middle.counted() == {Reason.TTL_EXPIRED: 1}


async def test_a_lost_entry_does_not_end_the_session(netns: NamespaceFactory) -> None:
    """No reset and no ICMP error comes back for what is addressed to our subsession ports."""
    async with line(netns) as there:
        with trio.fail_after(PATIENCE):
            client = udp_socket(there.client, CLIENT, 61009)
            with client:
                await client.connect((MIDDLE_LEFT, 63009))
                await client.send(b"whose is it?")
                # The same from a port that is none of ours is answered, and after the first.
                other = udp_socket(there.client, CLIENT, 50000)
                with other:
                    await other.connect((MIDDLE_LEFT, 63009))
                    await other.send(b"nobody there?")
                    with pytest.raises(ConnectionRefusedError):
                        await other.recv(100)
                assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        assert await there.middle.counted() == {Reason.NO_ENTRY: 1}


async def test_i6_a_session_goes_on_without_agents_and_is_taken_over(
    netns: NamespaceFactory,
) -> None:
    async with line(netns) as there:
        await there.steer(Proto.TCP, Position.INLINE)
        listener = tcp_socket(there.server, SERVER, SERVICE)
        listener.listen()
        connecting = tcp_socket(there.client, CLIENT, CLIENT_PORT)
        with trio.fail_after(PATIENCE), listener:
            await connecting.connect((SERVER, SERVICE))
            accepted, _ = await listener.accept()
            async with trio.SocketStream(connecting) as left, trio.SocketStream(accepted) as right:

                async def exchange() -> None:
                    await left.send_all(_BULK[:100_000])
                    got = b""
                    while len(got) < 100_000:
                        got += bytes(await right.receive_some())
                    assert got == _BULK[:100_000]

                await exchange()
                before = [await host.rows() for host in there.hosts]
                for host in there.hosts:
                    await host.close(keep=True)
                await exchange()
                for host in there.hosts:
                    await host.open()
                for host, rows in zip(there.hosts, before, strict=True):
                    now = {row.entry.key: row for row in await host.rows()}
                    assert {row.entry for row in rows} == {row.entry for row in now.values()}
                    for row in rows:
                        if row.entry.toward is Toward.RIGHT:
                            grown = now[row.entry.key].counters.bytes - row.counters.bytes
                            assert grown > 100_000
                await exchange()


@pytest.mark.usefixtures("only_ebpf")
async def test_i9_nothing_is_left_after_closing(netns: NamespaceFactory) -> None:
    async with line(netns) as there:
        await there.steer(Proto.TCP, Position.INLINE)
        names = [host.namespace.name for host in there.hosts]
        assert all(directory_of(name).is_dir() for name in names)
    assert not any(directory_of(name).exists() for name in names)
    for host in there.hosts:
        for interface in host.interfaces:
            shown = host.namespace.run("tc", "qdisc", "show", "dev", interface).stdout
            assert "clsact" not in shown
        assert "M2M" not in host.namespace.run("iptables-save").stdout
    open_files = [Path(f"/proc/self/fd/{fd}") for fd in range(256)]
    held = {str(path.readlink()) for path in open_files if path.is_symlink()}
    assert not {kind for kind in held if "bpf-" in kind}


@pytest.mark.usefixtures("only_ebpf")
async def test_kernels_without_tcx_get_a_classifier(
    netns: NamespaceFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux before 6.6: the same programs, by way of a clsact queueing discipline."""
    from m2m.datapath import attach

    class NoLinks:
        @staticmethod
        def pinned(path: Path) -> None:
            raise attach.BpfError(errno.ENOENT, "not found")

        @staticmethod
        def create(program: object, ifindex: int, kind: int) -> None:
            raise attach.BpfError(errno.EINVAL, "an old kernel knows no such link")

    monkeypatch.setattr(attach, "Link", NoLinks)
    async with line(netns) as there:
        await there.steer(Proto.TCP, Position.TAP)
        shown = there.middle.namespace.run("tc", "filter", "show", "dev", "eth0", "ingress").stdout
        assert "m2m_in" in shown
        await both_ways(there, _BULK[:100_000])
        await there.middle.close(keep=True)
        await there.middle.open()  # replaces the programs where they are
        rows = await there.middle.rows()
        assert all(row.counters.packets for row in rows)
        await there.middle.datapath.remove([row.entry.key for row in rows])
    for host in there.hosts:
        assert "clsact" not in host.namespace.run("tc", "qdisc", "show").stdout
