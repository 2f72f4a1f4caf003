"""Sessions over a chain of agents in memory: what packets do, what is left, what is told."""

import gc
import logging
import os
import sys
from collections import Counter

import msgspec
import pytest
import structlog
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from m2m.agent.api import EventKind, Role, SessionState
from m2m.datapath import Limits, Reason
from m2m.datapath.fake_kernel import FakeKernel, Fate, Outcome
from m2m.datapath.fake_packets import Tcp
from m2m.policy.rules import PolicySet
from m2m.protocol.events import Ended
from m2m.protocol.flow import Flow, parse_address
from m2m.protocol.translation import Action, Hook, Position
from m2m.protocol.wire import Ack, Fin, FinAck, Hop, Rst, Syn, SynAck
from tests.support.agents import (
    CLIENT,
    FIREWALL,
    IDS,
    SERVER,
    Chain,
    Host,
    Wire,
    pass_time,
    policy_set,
    running,
)

CLOSED, OPEN = 80, 81  # ports whose policies fail so


async def established(chain: Chain, dport: int = CLOSED, sport: int = 40000) -> int:
    """Open a session through the chain; its id."""
    before = set(chain.client.sessions.node.sessions)
    assert chain.client.open(dport, sport).fate is Fate.HELD
    await wait_all_tasks_blocked()
    (session,) = set(chain.client.sessions.node.sessions) - before
    for host in chain.all:
        assert host.sessions.state(session) is SessionState.ESTABLISHED
    return session


async def refused(chain: Chain, dport: int) -> Outcome:
    """Open a session that cannot be; what becomes of its first packet within the bound."""
    chain.client.open(dport)
    await pass_time(1.05)
    (outcome,) = chain.client.kernel.released
    await pass_time(20)  # for the neighbours to be told, or given up
    assert chain.left_over() == {}
    return outcome


async def test_packets_travel_the_chain_and_arrive_unchanged(autojump_clock: MockClock) -> None:
    """I3: the server sees the supersession; so does the client in what comes back."""
    async with running() as chain:
        await established(chain)
        (first,) = chain.client.kernel.released
        flow = chain.client.flow(CLOSED)
        assert chain.walk(first) == (chain.server, flow)
        back = chain.server.datapath.packet(Hook.OUT, flow.reverse())
        assert chain.walk(back) == (chain.client, flow.reverse())


async def test_a_set_up_takes_one_message_of_each_kind_per_leg(autojump_clock: MockClock) -> None:
    async with running() as chain:
        await established(chain)
        kinds = [type(message) for _, _, message in chain.seen]
        assert kinds == [Syn] * 3 + [SynAck] * 3 + [Ack] * 3


async def test_the_end_of_a_session_leaves_nothing_anywhere(autojump_clock: MockClock) -> None:
    """I9"""
    async with running() as chain:
        await established(chain)
        chain.client.datapath.packet(Hook.OUT, chain.client.flow(CLOSED), flags=Tcp.RST)
        await pass_time(6)  # the last retransmissions
        assert chain.left_over() == {}
        assert [host.journal.counts["closed"] for host in chain.all] == [1, 1, 1, 1]


async def test_an_operator_ends_a_session_from_the_middle(autojump_clock: MockClock) -> None:
    async with running() as chain:
        session = await established(chain)
        await chain.ids.sessions.feed(Ended(session, "ended by an operator"))
        await wait_all_tasks_blocked()
        assert chain.left_over() == {}


@pytest.mark.parametrize("victim", ["firewall", "ids", "server"])
async def test_a_dead_hop_and_fail_closed_drops_in_time(
    autojump_clock: MockClock, victim: str
) -> None:
    async with running() as chain:
        chain.kill(getattr(chain, victim))
        outcome = await refused(chain, CLOSED)
        assert (outcome.fate, outcome.reason) == (Fate.DROPPED, Reason.REFUSED)
        assert chain.client.journal.counts["refused"] == 1


async def test_a_dead_hop_and_fail_open_passes_unsteered(autojump_clock: MockClock) -> None:
    async with running() as chain:
        chain.kill(chain.ids)
        outcome = await refused(chain, OPEN)
        assert (outcome.fate, outcome.flow) == (Fate.UNTOUCHED, chain.client.flow(OPEN))


async def test_a_server_without_an_agent_is_waited_for_once_in_a_while(
    autojump_clock: MockClock,
) -> None:
    async with running() as chain:
        chain.kill(chain.server)
        for port in (CLOSED, OPEN):
            chain.client.open(port, port)
        await pass_time(1.05)
        counts = chain.client.journal.counts
        assert (counts["refused"], counts["no agent"]) == (2, 2)
        chain.client.kernel.released.clear()

        began = trio.current_time()
        chain.client.open(OPEN, 2)
        await wait_all_tasks_blocked()
        (outcome,) = chain.client.kernel.released
        assert outcome.fate is Fate.UNTOUCHED and trio.current_time() == began
        assert (counts["refused"], counts["no agent"]) == (3, 3)

        await pass_time(20)
        chain.client.kernel.released.clear()
        chain.client.open(OPEN, 3)  # it may have one by now: somebody has to find out
        await wait_all_tasks_blocked()
        assert not chain.client.kernel.released
        await pass_time(1.05)
        assert len(chain.client.kernel.released) == 1


async def test_the_host_that_did_not_answer_is_blamed_and_avoided(
    autojump_clock: MockClock,
) -> None:
    text = f"""
    nf ids tap choose=agent {{ ids1 = {IDS}, ids2 = {FIREWALL} }}
    match(dstport=80) >> {{ids}} fail=closed
    """
    async with running() as chain:
        await chain.client.sessions.load_policy(policy_set(text, 2))
        chain.client.open(80, 1)
        (first,) = [message.subsession.dst for _, _, message in await syns(chain)]
        victim = {host.address: host for host in chain.all}[first]
        await pass_time(20)
        chain.kill(victim)
        for sport in range(2, 40):  # of which half would choose the dead one
            chain.client.open(80, sport)
            await pass_time(1.2)
        refusals = chain.client.journal.counts["refused"]
        assert 1 <= refusals <= 5  # one in ten seconds, while it is not avoided


async def test_the_least_loaded_are_not_given_all_until_the_next_report(
    autojump_clock: MockClock,
) -> None:
    text = f"""
    nf ids tap choose=least-loaded {{ ids1 = {IDS}, ids2 = {FIREWALL} }}
    match(dstport=80) >> {{ids}} fail=closed
    """
    async with running() as chain:
        sessions = chain.client.sessions
        await sessions.load_policy(policy_set(text, 2))
        for sport in range(1, 21):
            chain.client.open(80, sport)
        firsts = Counter(message.subsession.dst for _, _, message in await syns(chain))
        assert firsts == {chain.ids.address: 10, chain.firewall.address: 10}
        await sessions.load_policy(with_loads(policy_set(text, 2), 10, 30))
        assert not sessions.chains.loads.placed, "they are in the report"
        for sport in range(21, 31):
            chain.client.open(80, sport)
        firsts = Counter(message.subsession.dst for _, _, message in await syns(chain))
        assert firsts == {chain.ids.address: 20, chain.firewall.address: 10}


async def test_a_session_that_ended_or_was_refused_loads_nobody(
    autojump_clock: MockClock,
) -> None:
    async with running() as chain:
        loads = chain.client.sessions.chains.loads
        await established(chain)
        assert loads.placed == {parse_address(FIREWALL): 1, parse_address(IDS): 1}
        chain.client.datapath.packet(Hook.OUT, chain.client.flow(CLOSED), flags=Tcp.RST)
        await pass_time(6)  # the last retransmissions
        assert chain.left_over() == {}
        assert not any(loads.placed.values())
        chain.client.routes.cut.add(parse_address(FIREWALL))
        chain.client.open(CLOSED, 40001)
        await wait_all_tasks_blocked()
        assert not any(loads.placed.values())


def with_loads(policy: PolicySet, *loads: float) -> PolicySet:
    (nf,) = policy.nfs
    told = tuple(
        msgspec.structs.replace(one, load=load)
        for one, load in zip(nf.instances, loads, strict=True)
    )
    return msgspec.structs.replace(policy, nfs=(msgspec.structs.replace(nf, instances=told),))


async def syns(chain: Chain) -> list[tuple[bytes, bytes, Syn]]:
    await wait_all_tasks_blocked()
    return [
        (sender, receiver, message)
        for sender, receiver, message in chain.seen
        if isinstance(message, Syn) and sender == chain.client.address
    ]


async def test_no_route_to_the_first_hop_is_refused_at_once(autojump_clock: MockClock) -> None:
    async with running() as chain:
        chain.client.routes.cut.add(parse_address(FIREWALL))
        chain.client.open(CLOSED)
        await wait_all_tasks_blocked()
        assert [one.fate for one in chain.client.kernel.released] == [Fate.DROPPED]
        assert chain.seen == []
        assert chain.left_over() == {}


async def test_no_route_in_the_middle_is_refused_with_blame(autojump_clock: MockClock) -> None:
    async with running() as chain:
        chain.ids.routes.cut.add(parse_address(SERVER))
        outcome = await refused(chain, CLOSED)
        assert outcome.fate is Fate.DROPPED
        resets = [message for _, _, message in chain.seen if isinstance(message, Rst)]
        assert resets[0].blame == parse_address(SERVER)


async def test_an_inline_function_needs_forwarding(autojump_clock: MockClock) -> None:
    async with running() as chain:
        chain.firewall.forwards = False
        events = chain.client.journal.events()
        async with trio.open_nursery() as nursery:
            told: list[str] = []

            async def watch() -> None:
                async for event in events:
                    told.append(f"{event.kind.value}: {event.text}")
                    return

            nursery.start_soon(watch)
            await wait_all_tasks_blocked()
            await refused(chain, CLOSED)
        await events.aclose()  # type: ignore[attr-defined]
        assert "sysctl -w net.ipv4.ip_forward=1" in told[0]
        assert told[0].startswith("refused: ")


async def test_a_full_table_refuses_and_leaves_the_others_running(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        chain = Chain(nursery)
        await chain.start()
        kernel = FakeKernel(Limits(sessions=0))
        chain.kill(chain.ids)
        chain.ids = chain.host(IDS, Role.MIDDLEBOX, kernel)
        outcome = await refused(chain, OPEN)
        assert outcome.fate is Fate.UNTOUCHED
        assert any("room for" in m.text for _, _, m in chain.seen if isinstance(m, Rst))
        nursery.cancel_scope.cancel()


async def test_a_restarted_agent_takes_over_and_ends_sessions_properly(
    autojump_clock: MockClock,
) -> None:
    """I6"""
    async with running() as chain:
        session = await established(chain)
        for name, role in (("ids", Role.MIDDLEBOX), ("client", Role.CLIENT)):
            old = getattr(chain, name)
            kernel = chain.kill(old)
            flow = chain.client.flow(CLOSED)
            out = kernel.packet(
                Hook.OUT if name == "client" else Hook.IN,
                flow if name == "client" else old.sessions.node.view(session).left,
            )
            assert out.fate is Fate.SENT  # without any agent
            host = chain.host({"ids": IDS, "client": "10.0.0.1"}[name], role, kernel)
            setattr(chain, name, host)
            await host.sessions.adopt()
            assert host.sessions.state(session) is SessionState.ESTABLISHED
        chain.client.datapath.packet(Hook.OUT, chain.client.flow(CLOSED), flags=Tcp.RST)
        await pass_time(6)  # the last retransmissions
        assert chain.left_over() == {}


async def test_incomplete_sessions_are_removed_at_take_over(autojump_clock: MockClock) -> None:
    async with running() as chain:
        await established(chain)
        kernel = chain.kill(chain.ids)
        (row, _) = kernel.rows()
        kernel.remove(row.entry.key)
        chain.ids = chain.host(IDS, Role.MIDDLEBOX, kernel)
        await chain.ids.sessions.adopt()
        assert kernel.rows() == []
        assert chain.ids.journal.counts["incomplete"] == 1


async def test_changed_routes_reach_the_entries(autojump_clock: MockClock) -> None:
    async with running() as chain:
        await established(chain)
        before = chain.ids.kernel.rows()
        await chain.ids.sessions.follow_network()
        assert chain.ids.kernel.rows() == before
        chain.ids.routes.ifindex = 7
        await chain.ids.sessions.follow_network()
        hops = {row.entry.hop.ifindex for row in chain.ids.kernel.rows() if row.entry.hop}
        assert hops == {7}


async def test_losses_are_made_good(autojump_clock: MockClock) -> None:
    """I5: every first copy of a message is lost."""
    async with running() as chain:
        once: set[tuple[object, ...]] = set()

        def lose(sender: bytes, receiver: bytes, message: object) -> bool:
            key = (sender, receiver, type(message))
            first = key not in once
            once.add(key)
            return first

        chain.lose = lose
        chain.client.open(CLOSED)
        await pass_time(2)
        (session,) = chain.client.sessions.node.sessions
        assert chain.client.kernel.released[0].fate is Fate.SENT
        assert chain.server.sessions.state(session) is SessionState.ESTABLISHED


async def test_a_policy_that_went_meanwhile_lets_the_packet_pass(
    autojump_clock: MockClock,
) -> None:
    async with running() as chain:
        kernel = chain.client.kernel
        await chain.client.sessions.load_policy(policy_set("", 2))
        await chain.client.sessions.openings.held(chain.client.flow(CLOSED))
        assert kernel.packet(Hook.OUT, chain.client.flow(CLOSED)).fate is Fate.UNTOUCHED
        assert chain.seen == []


async def test_only_a_client_holds_packets_by_the_rules_it_knows(
    autojump_clock: MockClock,
) -> None:
    async with running() as chain:
        host = Host(chain, "10.0.0.9", Role.MIDDLEBOX, FakeKernel(), holds=False)
        await host.datapath.attach([host.routes.ifindex])
        await host.sessions.load_policy(policy_set())
        assert host.kernel.policy.rules == ()
        flow = chain.client.flow(CLOSED)._replace(src=host.address)
        assert host.kernel.packet(Hook.OUT, flow, flags=Tcp.SYN).fate is Fate.UNTOUCHED
        assert host.sessions.chains.policy.rules != ()


async def test_the_journal_counts_and_tells(autojump_clock: MockClock) -> None:
    async with running() as chain:
        session = await established(chain)
        journal = chain.client.journal
        assert journal.counts[EventKind.ESTABLISHED.value] == 1
        assert len(journal.set_up_times) == 1
        assert journal.percentile(0.5) == journal.percentile(0.99) == journal.set_up_times[0]
        found = [row async for row in chain.firewall.sessions.all_rows()]
        ((view, state, rows),) = found
        assert (view.session, state, len(rows)) == (session, SessionState.ESTABLISHED, 4)
        assert {row.entry.action for row in rows} == {Action.SEND, Action.DELIVER}


async def test_a_slow_reader_misses_the_oldest_events(autojump_clock: MockClock) -> None:
    async with running() as chain:
        journal = chain.client.journal
        events = journal.events()
        texts: list[str] = []

        async def read_one() -> None:
            texts.append((await anext(events)).text)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_one)
            await wait_all_tasks_blocked()
            journal.tell(EventKind.POLICY, "first")
        for number in range(300):
            journal.tell(EventKind.POLICY, str(number))
        await read_one()
        assert texts == ["first", "44"]
        await events.aclose()  # type: ignore[attr-defined]
        assert not journal._readers


@pytest.mark.timeout(300)
async def test_many_sessions_leave_nothing(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I9: at a middlebox, all alive at once: no entry, port, timer, descriptor or memory."""
    many = 100_000 if os.environ.get("M2M_HEAVY") == "1" else 20_000
    quiet = structlog.make_filtering_bound_logger(logging.INFO)
    monkeypatch.setattr(
        "m2m.agent.sessions._log",
        structlog.wrap_logger(structlog.PrintLogger(), wrapper_class=quiet),
    )
    async with trio.open_nursery() as nursery:
        wire = Wire(nursery)
        host = wire.host(IDS, Role.MIDDLEBOX, FakeKernel(Limits(sessions=many, tcp_idle=30)))
        sessions = host.sessions
        left, right = parse_address(CLIENT), parse_address(SERVER)
        hops = (Hop(host.address, Position.TAP, "ids"), Hop(right, Position.SERVER))

        async def set_up(number: int) -> tuple[int, Flow, Flow]:
            """What is needed to end it: the session's id and its two subsessions."""
            upper, lower = divmod(number, 2000)
            leg = Flow(6, left, 61000 + lower, host.address, 63264 + upper)
            flow = Flow(6, left, 1024 + lower, right, 1024 + upper)
            syn = Syn(number + 1, leg, flow, hops, 1500, 0, 1, 1000)
            await sessions.received(left, syn)
            onward = wire.seen[-1][2]
            assert isinstance(onward, Syn)
            await sessions.received(right, SynAck(syn.session, onward.subsession, 1500))
            await sessions.received(left, Ack(syn.session, leg))
            wire.seen.clear()
            return syn.session, leg, onward.subsession

        async def tear_down(session: int, leg: Flow, onward: Flow) -> None:
            await sessions.received(left, Fin(session, leg))
            await sessions.received(right, FinAck(session, onward))
            wire.seen.clear()

        async def left_over(first: int, count: int) -> tuple[int, int]:
            """After *count* sessions: blocks of memory, and file descriptors."""
            live = [await set_up(first + number) for number in range(count)]
            assert len(sessions) == sessions.node.ports.in_use == count
            assert len(host.kernel.rows()) == 2 * count
            for ids in live:
                await tear_down(*ids)
            del live
            await pass_time(60)
            assert len(sessions) == sessions.node.ports.in_use == len(sessions._timers) == 0
            assert host.kernel.rows() == []
            gc.collect()
            return sys.getallocatedblocks(), len(os.listdir("/proc/self/fd"))

        # What is bounded (ids and ports that ended lately) is full after the first ones.
        before = await left_over(0, 10_000)
        after = await left_over(10_000, many)
        assert after[0] - before[0] < 5_000
        assert after[1] == before[1]
        nursery.cancel_scope.cancel()
