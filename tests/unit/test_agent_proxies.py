"""A proxy in a chain of agents in memory: two halves, one supersession."""

from __future__ import annotations

import grp
import os
import socket
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from m2m.agent.api import Role, SessionState, format_session
from m2m.agent.openings import Fate, Outcome
from m2m.agent.proxies import Proxies
from m2m.agent.unix import bind
from m2m.datapath.fake_kernel import Fate as PacketFate
from m2m.datapath.fake_packets import Tcp
from m2m.errors import ConfigError
from m2m.protocol.events import Ended
from m2m.protocol.flow import Flow
from m2m.protocol.translation import Hook, Position
from m2m.protocol.wire import FinAck
from nf_adapters.sockets import Kind, Message, decode, encode
from tests.support.agents import pass_time, policy_set
from tests.support.proxying import CLOSED, OPEN, POLICY, PROXY, ProxyChain, proxying

STEERED = Outcome(Fate.STEERED)


async def stitched(chain: ProxyChain, port: int = 50000) -> Flow:
    """A session with both halves; the flow of the proxy's own socket."""
    outgoing = chain.outgoing(port)
    assert await chain.go_on(await chain.come(), outgoing) == STEERED
    await wait_all_tasks_blocked()
    return outgoing


async def test_hosts_behind_the_proxy_see_the_clients_session(autojump_clock: MockClock) -> None:
    """I3"""
    async with proxying() as chain:
        came = await chain.come()
        assert came.position is Position.PROXY
        assert chain.halves(chain.ids) == chain.halves(chain.server) == 0
        (first,) = chain.client.kernel.released
        assert chain.walk(first) == (chain.proxy, chain.client.flow(CLOSED))
        outgoing = chain.outgoing()
        assert await chain.go_on(came, outgoing) == STEERED
        await wait_all_tasks_blocked()
        flow = chain.client.flow(CLOSED)
        for host in (chain.ids, chain.server):
            ((session, _),) = [(view, state) async for view, state, _ in host.sessions.all_rows()]
            assert session.supersession == flow
        assert chain.opens(outgoing) == (chain.server, flow)
        back = chain.server.datapath.packet(Hook.OUT, flow.reverse())
        assert chain.walk(back) == (chain.proxy, outgoing.reverse())


async def test_each_half_ends_by_itself(autojump_clock: MockClock) -> None:
    """I9"""
    async with proxying() as chain:
        outgoing = await stitched(chain)
        chain.client.datapath.packet(Hook.OUT, chain.client.flow(CLOSED), flags=Tcp.RST)
        await pass_time(6)
        assert chain.halves(chain.client) == chain.halves(chain.firewall) == 0
        assert [chain.halves(host) for host in (chain.proxy, chain.ids, chain.server)] == [1] * 3
        chain.proxy.datapath.packet(Hook.OUT, outgoing, flags=Tcp.RST)
        await pass_time(6)
        assert chain.left_over() == {}


async def test_a_cache_that_answers_by_itself_leaves_nothing(autojump_clock: MockClock) -> None:
    async with proxying() as chain:
        await chain.come()
        chain.client.datapath.packet(Hook.OUT, chain.client.flow(CLOSED), flags=Tcp.RST)
        await pass_time(6)
        assert chain.left_over() == {}


async def test_what_was_not_used_goes(autojump_clock: MockClock) -> None:
    """Revoked, or given up by itself; what is used stays."""
    async with proxying() as chain, trio.open_nursery() as nursery:
        nursery.start_soon(chain.proxies._give_up_unused)
        came = await chain.come()
        for number in (1, 2, 3):
            outgoing = chain.outgoing(50000 + number)
            assert await chain.go_on(came, outgoing) == STEERED
            if number == 1:
                await chain.proxies.revoke_half(outgoing)
                await wait_all_tasks_blocked()
                assert chain.halves(chain.server) == 0
            elif number == 2:
                await pass_time(5.5)
                assert chain.halves(chain.server) == 0
            else:
                chain.proxy.datapath.packet(Hook.OUT, outgoing, flags=Tcp.SYN)
                await pass_time(5.5)
                assert chain.halves(chain.server) == 1
        await chain.proxies.revoke_half(chain.outgoing(50009))  # of none: nothing
        assert chain.halves(chain.server) == 1
        nursery.cancel_scope.cancel()


async def test_one_half_after_the_other_has_the_name(autojump_clock: MockClock) -> None:
    async with proxying() as chain:
        came = await chain.come()
        flow = chain.client.flow(CLOSED)
        for port in (50001, 50002):
            outgoing = chain.outgoing(port)
            assert await chain.go_on(came, outgoing) == STEERED
            assert chain.opens(outgoing) == (chain.server, flow)
            chain.proxy.datapath.packet(Hook.OUT, outgoing, flags=Tcp.FIN | Tcp.ACK)
            await wait_all_tasks_blocked()
        await pass_time(60)
        assert chain.halves(chain.server) <= 1


async def test_two_at_once_cannot_have_one_name(autojump_clock: MockClock) -> None:
    """The server could not tell them apart; both take the chain."""
    async with proxying() as chain:
        came = await chain.come()
        first, second = chain.outgoing(50001), chain.outgoing(50002)
        assert await chain.go_on(came, first) == STEERED
        assert await chain.go_on(came, second) == STEERED
        await wait_all_tasks_blocked()
        assert chain.opens(first) == (chain.server, chain.client.flow(CLOSED))
        assert chain.opens(second) == (chain.server, second)
        assert chain.halves(chain.ids) == 2
        assert chain.proxy.journal.counts["named after the proxy"] == 1


async def test_a_proxy_can_show_its_own_connections(autojump_clock: MockClock) -> None:
    async with proxying(POLICY.replace("port=3129", "port=3129 shows=proxy")) as chain:
        came = await chain.come()
        for port in (50001, 50002):
            outgoing = chain.outgoing(port)
            assert await chain.go_on(came, outgoing) == STEERED
            await wait_all_tasks_blocked()
            assert chain.opens(outgoing) == (chain.server, outgoing)
        assert chain.halves(chain.ids) == 2
        assert chain.proxy.journal.counts["named after the proxy"] == 0


async def test_a_balancer_goes_on_to_another_server(autojump_clock: MockClock) -> None:
    async with proxying() as chain:
        backend = chain.host("10.0.0.7", Role.SERVER)
        await wait_all_tasks_blocked()
        outgoing = chain.outgoing(server="10.0.0.7", dport=8080)
        assert await chain.go_on(await chain.come(), outgoing) == STEERED
        flow = chain.client.flow(CLOSED)._replace(dst=backend.address, dport=8080)
        assert chain.opens(outgoing) == (backend, flow)
        left, right = [row async for row in chain.proxy.sessions.all_rows()]
        register = chain.proxy.sessions.node.register
        assert [one.id for one in register.other_halves(left[0])] == [right[0].session]
        assert [one.id for one in register.other_halves(right[0])] == [left[0].session]


@pytest.mark.parametrize(("port", "fate"), [(CLOSED, Fate.REFUSED), (OPEN, Fate.PASSED)])
async def test_what_cannot_be_set_up_meets_the_policys_fail(
    autojump_clock: MockClock, port: int, fate: Fate
) -> None:
    async with proxying() as chain:
        came = await chain.come(port)
        chain.kill(chain.ids)
        outcome = await chain.go_on(came, chain.outgoing(dport=port))
        assert outcome.fate is fate
        assert "does not answer" in outcome.why
        await pass_time(20)
        assert chain.halves(chain.proxy) == 1
        assert len(chain.proxy.kernel.rows()) == 2
        assert chain.proxy.sessions.node.ports.in_use == 0
        # Nothing is decided in the kernel: the program has been told.
        outcome = chain.proxy.datapath.packet(Hook.OUT, chain.outgoing(dport=port))
        assert outcome.fate is PacketFate.UNTOUCHED


async def test_who_asks_twice_gets_one_half(autojump_clock: MockClock) -> None:
    async with proxying() as chain:
        came, outgoing = await chain.come(), chain.outgoing()
        outcomes: list[Outcome] = []

        async def ask() -> None:
            outcomes.append(await chain.go_on(came, outgoing))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            nursery.start_soon(ask)
        assert outcomes == [STEERED, STEERED]
        assert chain.halves(chain.server) == 1


async def test_sessions_that_are_no_proxys(autojump_clock: MockClock) -> None:
    async with proxying() as chain:
        came = await chain.come()
        assert chain.proxies.find_accepted(chain.client.flow(CLOSED, 40001)) is None
        assert chain.proxies.find_accepted(chain.outgoing()) is None
        unknown = await chain.proxies.connect_half(12345, chain.outgoing())
        assert unknown.fate is Fate.PASSED
        # A server is no proxy, though it may have connections of its own.
        assert await chain.go_on(came, chain.outgoing()) == STEERED
        await wait_all_tasks_blocked()
        at_server = Proxies(chain.server.sessions)
        assert at_server.find_accepted(came.supersession) is None
        (session,) = chain.server.sessions.node.sessions
        own = chain.outgoing()._replace(src=chain.server.address)
        assert (await at_server.connect_half(session, own)).fate is Fate.PASSED
        await chain.proxies.revoke_half(chain.outgoing())
        await wait_all_tasks_blocked()
        # The fail of a policy that has no proxy here any more decides; without one, nothing does.
        without = POLICY.replace(PROXY, "10.0.0.9")
        await chain.proxy.sessions.load_policy(policy_set(without, 2))
        refused = await chain.go_on(came, chain.outgoing())
        assert (refused.fate, "no proxy at 10.0.0.5" in refused.why) == (Fate.REFUSED, True)
        await chain.proxy.sessions.load_policy(policy_set("", 3))
        assert (await chain.go_on(came, chain.outgoing())).fate is Fate.PASSED


async def test_a_restarted_agent_has_both_halves(autojump_clock: MockClock) -> None:
    """I6"""
    async with proxying() as chain:
        outgoing = await stitched(chain)
        views = {view async for view, _, _ in chain.proxy.sessions.all_rows()}
        kernel = chain.kill(chain.proxy)
        assert chain.opens(outgoing) == (chain.server, chain.client.flow(CLOSED))
        chain.proxy = chain.host(PROXY, Role.MIDDLEBOX, kernel)
        await chain.proxy.sessions.load_policy(policy_set(POLICY))
        await chain.proxy.sessions.adopt()
        chain.proxies = Proxies(chain.proxy.sessions)
        assert {view async for view, _, _ in chain.proxy.sessions.all_rows()} == views
        came = chain.proxies.find_accepted(chain.client.flow(CLOSED))
        assert came is not None
        chain.proxy.datapath.packet(Hook.OUT, outgoing, flags=Tcp.FIN | Tcp.ACK)
        another = chain.outgoing(50007)
        assert await chain.go_on(came, another) == STEERED
        assert chain.opens(another) == (chain.server, chain.client.flow(CLOSED))
        for session in list(chain.proxy.sessions.node.sessions):
            await chain.proxy.sessions.feed(Ended(session, "over"))
        await pass_time(60)
        assert chain.left_over() == {}


async def test_paths_are_told_half_by_half(autojump_clock: MockClock) -> None:
    async with proxying() as chain:
        outgoing = await stitched(chain)
        ((left, *_), (right, *_)) = [row async for row in chain.proxy.sessions.all_rows()]
        before = await chain.client.paths.path(left.session)
        assert before.complete
        assert [hop.position for hop in before.hops] == ["client", "inline", "proxy"]
        assert before.hops[-1].nf == "cache/squid"
        assert before.hops[-1].halves == (format_session(right.session),)
        behind = await chain.server.paths.path(right.session)
        assert behind.complete
        assert [hop.position for hop in behind.hops] == ["proxy", "tap", "server"]
        assert behind.hops[0].halves == (format_session(left.session),)
        assert behind.hops[0].local is not None
        assert behind.hops[0].local.flow() == outgoing
        assert chain.server.sessions.state(right.session) is SessionState.ESTABLISHED
        # Wherever it is asked, m2mctl shows both, the client's first.
        for host, session in ((chain.client, left.session), (chain.ids, right.session)):
            whole = await host.paths.joined(session)
            halves = (*whole.before, whole, *whole.behind)
            assert [half.session for half in halves] == [before.session, behind.session]


async def test_talk_on_the_socket(tmp_path: Path) -> None:
    async with proxying() as chain, trio.open_nursery() as nursery:
        came, outgoing = await chain.come(), chain.outgoing()
        path = tmp_path / "agent.proxy"
        await nursery.start(chain.proxies.serve, path)
        assert path.stat().st_mode & 0o777 == 0o660

        async def ask(kind: Kind, session: int, flow: Flow) -> Message:
            await process.send(encode(Message(kind, 7, session, flow)))
            return decode(await process.recv(1000))

        with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_SEQPACKET) as process:
            await process.connect(str(path))
            found = await ask(Kind.ACCEPTED, 0, came.supersession)
            assert found == Message(Kind.FOUND, 7, came.id, came.supersession)
            ready = await ask(Kind.CONNECTING, found.session, outgoing)
            assert ready == Message(Kind.READY, 7, came.id, outgoing)
            assert (await ask(Kind.ACCEPTED, 0, outgoing)).kind is Kind.UNKNOWN
            assert (await ask(Kind.CONNECTING, 5, outgoing)).kind is Kind.UNKNOWN
            gone = await ask(Kind.REVOKED, came.id, outgoing)
            assert gone == Message(Kind.GONE, 7, came.id, outgoing)
            await wait_all_tasks_blocked()
            assert chain.halves(chain.server) == 0
            await process.send(b"nonsense")
            assert await process.recv(1000) == b""
        nursery.cancel_scope.cancel()
    assert not path.exists()


async def test_nobody_waits_for_the_answer(tmp_path: Path) -> None:
    """A process that has ended is not left with a half."""
    async with proxying() as chain, trio.open_nursery() as nursery:
        came = await chain.come()
        path = tmp_path / "agent.proxy"
        await nursery.start(chain.proxies.serve, path)
        with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_SEQPACKET) as process:
            await process.connect(str(path))
            await process.send(encode(Message(Kind.CONNECTING, 1, came.id, chain.outgoing())))
        with trio.fail_after(10):
            while not any(isinstance(message, FinAck) for *_, message in chain.seen):
                await wait_all_tasks_blocked(0.01)
        await wait_all_tasks_blocked()
        assert chain.halves(chain.server) == 0
        nursery.cancel_scope.cancel()


async def test_a_group_may_reach_the_socket(tmp_path: Path) -> None:
    place = tmp_path / "run"
    place.mkdir(mode=0o750)
    mine = grp.getgrgid(os.getgid()).gr_name
    with await bind(place / "a.proxy", socket.SOCK_SEQPACKET, mine):
        about = (place / "a.proxy").stat()
        assert (about.st_gid, about.st_mode & 0o777) == (os.getgid(), 0o660)
        assert place.stat().st_mode & 0o777 == 0o751
    with pytest.raises(ConfigError, match="no group nobody-has-this"):
        await bind(place / "b.proxy", socket.SOCK_SEQPACKET, "nobody-has-this")


async def test_a_chain_with_two_proxies(autojump_clock: MockClock) -> None:
    """The first one's right half is the second one's left half."""
    second = "10.0.0.6"
    text = f"nf balance proxy port=80 {{ b1 = {second} }}\n" + POLICY.replace(
        "-> ids", "-> balance"
    )
    async with proxying() as chain:
        balancer = chain.host(second, Role.MIDDLEBOX)
        for host in (*chain.all, balancer):
            await host.sessions.load_policy(policy_set(text, 2))
        there = Proxies(balancer.sessions)
        came, outgoing = await chain.come(), chain.outgoing()
        assert await chain.go_on(came, outgoing) == STEERED
        await wait_all_tasks_blocked()
        assert chain.opens(outgoing) == (balancer, came.supersession)
        assert chain.halves(chain.server) == 0
        middle = there.find_accepted(came.supersession)
        assert middle is not None
        last = outgoing._replace(src=balancer.address)
        assert await there.connect_half(middle.id, last) == STEERED
        await wait_all_tasks_blocked()
        sent = balancer.datapath.packet(Hook.OUT, last, flags=Tcp.SYN)
        assert chain.walk(sent) == (chain.server, came.supersession)
        whole = await chain.client.paths.joined(came.id)
        ends = [(half.hops[0].host, half.hops[-1].host) for half in (whole, *whole.behind)]
        assert ends == [("10.0.0.1", PROXY), (PROXY, second), (second, "10.0.0.4")]
        assert len({half.session for half in (whole, *whole.behind)}) == 3
