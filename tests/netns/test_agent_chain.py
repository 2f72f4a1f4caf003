"""Real agents, real kernels: a chain is set up, used, broken, and leaves nothing behind."""

import signal
import socket
import struct
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from m2m.agent.api import SessionState
from m2m.agent.dialogue import Snapshot
from tests.support.chain import CLOSED, OPEN, TAPPED, LiveChain, live_chain
from tests.support.document import counted, load
from tests.support.live import PATIENCE
from tests.support.namespaces import NamespaceFactory

pytestmark = [pytest.mark.needs("netns", "bpffs", "nfqueue"), pytest.mark.timeout(120)]


@pytest.fixture
async def chain(netns: NamespaceFactory, tmp_path: Path) -> AsyncIterator[LiveChain]:
    async with live_chain(
        netns, tmp_path, "--linger", "0.5", "--udp-idle", "1", "--log-level", "debug"
    ) as made:
        yield made


@pytest.mark.needs("nft")
async def test_a_session_goes_through_the_chain_and_nobody_notices(chain: LiveChain) -> None:
    """I3, I9; the path is told hop by hop. A stateful firewall knows it by the applications'
    addresses, and by conntrack that minds sequence numbers."""
    load(chain.fw, "firewall.nft")
    for setting in ("tcp_loose", "tcp_be_liberal"):
        chain.fw.namespace.sysctl(f"net.netfilter.nf_conntrack_{setting}", 0)
    here, there = await chain.connect(CLOSED)
    with here, there:
        assert here.getpeername() == ("10.9.4.2", CLOSED)
        assert there.getpeername() == here.getsockname()
        await here.send(b"question")
        assert await there.recv(100) == b"question"
        await there.send(b"answer")
        assert await here.recv(100) == b"answer"

        (session,) = chain.client.sessions()
        assert session.chain == ("firewall", "ids")
        path = await trio.to_thread.run_sync(chain.ids.path, session.id)
        assert (path.complete, path.problem) == (True, "")
        assert [hop.position for hop in path.hops] == ["client", "inline", "tap", "server"]
        assert [hop.nf for hop in path.hops] == [None, "firewall/fw1", "ids/ids1", None]
        assert {str(hop.supersession) for hop in path.hops} == {str(session.supersession)}
        for left, right in zip(path.hops, path.hops[1:], strict=False):
            assert left.right == right.left != left.supersession
            assert left.to_server and right.to_server
            assert left.to_server.bytes == right.to_server.bytes > 0
        seen = counted(chain.fw)
        assert (seen["opened"], seen["invalid"], seen["refused"]) == (1, 0, 0)
        assert seen["going_on"] >= 4
    with trio.fail_after(PATIENCE):
        await chain.until_empty()
    assert {host.label: host.entries() for host in chain.hosts.values()} == dict.fromkeys(
        chain.hosts, 0
    )


async def test_a_reset_ends_the_session_everywhere(chain: LiveChain) -> None:
    """I9"""
    here, there = await chain.connect(TAPPED)
    there.close()
    here.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    here.close()
    with trio.fail_after(PATIENCE):
        await chain.until_empty()
    assert [host.entries() for host in chain.hosts.values()] == [0, 0, 0, 0]
    assert chain.fw.stats().setups == {"policy": 1, "server": 1}  # not on this chain


async def test_udp_goes_through_and_ends_when_idle(chain: LiveChain) -> None:
    """I9"""
    with (
        chain.client.socket(socket.SOCK_DGRAM) as here,
        chain.server.socket(socket.SOCK_DGRAM) as there,
        trio.fail_after(PATIENCE),
    ):
        await there.bind(("0.0.0.0", CLOSED))
        await here.connect((chain.server.address, CLOSED))
        for number in range(5):
            await here.send(b"%d" % number)
        for number in range(5):  # in order, though some were held
            data, peer = await there.recvfrom(100)
            assert (data, peer) == (b"%d" % number, here.getsockname())
        await there.sendto(b"answer", peer)
        assert await here.recv(100) == b"answer"
        await chain.until_empty()
    assert [host.entries() for host in chain.hosts.values()] == [0, 0, 0, 0]


@pytest.mark.parametrize("dead", ["fw", "server"])
async def test_the_policy_says_what_becomes_of_sessions_when_a_hop_is_dead(
    chain: LiveChain, dead: str
) -> None:
    """``fail=closed`` and ``fail=open``, of which the live hosts keep nothing (I9)."""
    agent = chain.hosts[dead].agent
    assert agent is not None
    await agent.stop(signal.SIGKILL)
    with trio.fail_after(PATIENCE):
        why, connected = await chain.refusal(CLOSED)
        assert not connected
        assert "dropped" in why and chain.hosts[dead].address in why
        why, connected = await chain.refusal(OPEN)
        assert connected
        assert "passed on unsteered" in why
        for host in chain.hosts.values():
            if host.label != dead:
                await host.until_empty()
                assert host.entries() == 0


async def test_an_inline_function_without_forwarding_says_what_to_do(chain: LiveChain) -> None:
    chain.ids.namespace.sysctl("net.ipv4.ip_forward", 0)  # a tap needs none
    here, there = await chain.connect(TAPPED)
    here.close()
    there.close()
    assert chain.fw.agent is not None
    await chain.fw.agent.stop()
    chain.fw.namespace.sysctl("net.ipv4.ip_forward", 0)
    await chain.fw.start()
    with trio.fail_after(PATIENCE):
        why, connected = await chain.refusal(CLOSED)
    assert not connected
    assert "sysctl -w net.ipv4.ip_forward=1" in why
    assert "sysctl -w net.ipv4.ip_forward=1" in chain.fw.agent.output


@pytest.mark.needs("iperf3")
async def test_killed_agents_do_not_stop_the_stream_and_take_over_again(
    chain: LiveChain,
) -> None:
    """I6"""
    bytes_at_kill = 0

    def carried(snapshot: Snapshot) -> int:
        return sum(one.to_server.bytes for one in snapshot.sessions if one.to_server)

    async with trio.open_nursery() as nursery:
        server = await nursery.start(_iperf3_server, chain)
        client = await trio.lowlevel.open_process(
            chain.client.namespace.command("iperf3", "-c", chain.server.address, "-t", "600"),
            stdout=subprocess.DEVNULL,
        )
        seen = await chain.server.until(lambda snapshot: carried(snapshot) > 10_000_000)
        before = {one.id for one in chain.server.sessions()}
        victims = (chain.client, chain.fw, chain.ids)
        for host in victims:
            assert host.agent is not None
            await host.agent.stop(signal.SIGKILL)
        bytes_at_kill = carried(seen)
        await chain.server.until(lambda snapshot: carried(snapshot) > bytes_at_kill + 50_000_000)
        for host in victims:
            await host.start()
            assert {one.id for one in host.sessions()} == before
            assert {one.state for one in host.sessions()} == {SessionState.ESTABLISHED}
        assert chain.server.agent is not None
        bytes_at_kill = carried(await chain.client.until(lambda snapshot: True))
        await chain.server.agent.stop(signal.SIGKILL)
        await chain.client.until(lambda snapshot: carried(snapshot) > bytes_at_kill + 50_000_000)
        await chain.server.start()
        assert {one.id for one in chain.server.sessions()} == before
        bytes_at_kill = carried(await chain.server.until(lambda snapshot: True))
        await chain.server.until(lambda snapshot: carried(snapshot) > bytes_at_kill + 50_000_000)
        client.terminate()
        with trio.fail_after(PATIENCE):
            await client.wait()
        await chain.until_empty()
        server.cancel()
    assert [host.entries() for host in chain.hosts.values()] == [0, 0, 0, 0]


async def _iperf3_server(
    chain: LiveChain, *, task_status: trio.TaskStatus[trio.CancelScope]
) -> None:
    """Started when it listens."""
    process = await trio.lowlevel.open_process(
        chain.server.namespace.command("iperf3", "-s", "--forceflush"), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    with trio.CancelScope() as scope:
        try:
            async for data in process.stdout:
                if b"listening" in data:
                    task_status.started(scope)
                    task_status = trio.TASK_STATUS_IGNORED
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()


async def test_a_stopped_agent_leaves_sessions_running_and_cleanup_takes_all_out(
    chain: LiveChain,
) -> None:
    here, there = await chain.connect(CLOSED)
    assert "61000-65535" in chain.fw.reserved_ports()
    with here, there, trio.fail_after(PATIENCE):
        assert chain.fw.agent is not None
        assert await chain.fw.agent.stop() == 0
        await here.send(b"still there?")
        assert await there.recv(100) == b"still there?"
        assert (chain.fw.entries(), chain.fw.reserved_ports()) == (4, "61000-65535")
        await chain.fw.clean_up()
        assert chain.fw.reserved_ports() == ""
        assert not list(chain.fw.run_dir.glob(f"{chain.fw.name}*"))
