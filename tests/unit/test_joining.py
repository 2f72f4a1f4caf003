"""JOIN: all hosts know a session that a proxy has left by one name, and its host can go
(docs/splicing.md). A chain in memory: client, firewall, proxy, tap, server."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from trio.testing import MockClock, wait_all_tasks_blocked

from m2m.agent.api import Role
from m2m.agent.asking import Wanted
from m2m.agent.order import Do, Wish
from m2m.agent.plan import plan
from m2m.datapath import EndReason
from m2m.datapath.fake_kernel import Fate
from m2m.policy.rules import Asker, ChangeMode
from m2m.protocol.devices import former_note
from m2m.protocol.events import Counts, Spliced
from m2m.protocol.flow import Address, format_address, parse_address
from m2m.protocol.session import Session, State
from m2m.protocol.splice import Splice
from m2m.protocol.translation import Hook, Position, Toward, entries_for, receiver, sender
from m2m.protocol.update import Join, Joined, Lock, UpdateSynAck
from m2m.protocol.wire import Message
from tests.support.agents import CLIENT, FIREWALL, IDS, SERVER, Host, pass_time, policy_set
from tests.support.proxying import POLICY, PROXY, ProxyChain, proxying

SPLICE = Splice((1000, 2**32 - 50), (7, 8), (1, -1))
Loses = Callable[[Address, Address, Message], bool]


async def leave(chain: ProxyChain) -> tuple[Session, int]:
    """The proxy leaves a session: what that is at its host, and how the right half was called."""
    came = await chain.come()
    outgoing = chain.outgoing()
    await chain.go_on(came, outgoing)
    chain.opens(outgoing)
    node = chain.proxy.sessions.node
    half = node.register.with_flow(outgoing)
    assert half is not None
    former, comes = half.id, (
        receiver(came.view, Toward.RIGHT), receiver(half.view, Toward.LEFT),
    )  # fmt: skip
    silent = sender(came.view, Toward.LEFT), sender(half.view, Toward.RIGHT)
    await chain.proxy.datapath.hold(comes)
    async with chain.proxy.sessions.turn:
        event = Spliced(came.id, former, SPLICE, Counts(3, 2, 1, 0))
        await chain.proxy.sessions.splice(event, silent)
    return came, former


def names(chain: ProxyChain) -> set[int]:
    return {one for host in chain.all for one in host.sessions.node.sessions}


def rows_of(host: Host) -> set[int]:
    return {row.entry.session for row in host.kernel.rows()}


def loses_first(kind: type[Message], times: int) -> Loses:
    left = [times]

    def lose(_sender: Address, _receiver: Address, message: Message) -> bool:
        left[0] -= isinstance(message, kind)
        return isinstance(message, kind) and left[0] >= 0

    return lose


async def remove(chain: ProxyChain, session: int) -> str | None:
    """Have the proxy's host taken out; why not."""
    chains, wish = chain.client.sessions.chains, Wish(Do.REMOVE, ("cache",))
    wanted = Wanted(
        lambda hops, here, flow: plan(wish, hops, here, flow, chains.policy),
        Asker.OPERATOR, ChangeMode.LF,
    )  # fmt: skip
    return (await chain.client.asking.change(session, wanted)).error


@pytest.mark.parametrize(
    "lose", [lambda *_: False, loses_first(Join, 5), loses_first(Joined, 4)], ids=str
)
async def test_all_know_one_name(autojump_clock: MockClock, lose: Loses) -> None:
    async with proxying() as chain:
        told: list[int] = []
        chain.proxy.sessions.left = told.append
        chain.lose = lose
        came, former = await leave(chain)
        assert former != came.id
        await pass_time(2)
        assert names(chain) == {came.id}
        for host in chain.all:
            assert rows_of(host) == {came.id}
        assert told == [came.id]
        client = chain.client.sessions.node.sessions[came.id]
        server = chain.server.sessions.node.sessions[came.id]
        assert (client.client, client.server) == (chain.client.device, chain.server.device)
        assert (server.client, server.server) == (chain.client.device, chain.server.device)


async def test_who_does_not_know_yet_is_spoken_to_as_before(autojump_clock: MockClock) -> None:
    async with proxying() as chain:
        chain.lose = lambda _s, _r, message: isinstance(message, Join)
        came, former = await leave(chain)
        await pass_time(1)
        assert chain.server.sessions.node.sessions.keys() == {former}
        # The client's end is the end of both.
        await chain.client.sessions.ended(came.id, EndReason.FIN)
        await pass_time(30)
        assert chain.left_over() == {}


async def test_the_hop_goes_and_what_it_added_is_added_before(autojump_clock: MockClock) -> None:
    async with proxying() as chain:
        came, _ = await leave(chain)
        await pass_time(1)
        tap = chain.proxy.sessions.node.sessions[came.id]
        assert (tap.position, tap.splice) == (Position.TAP, SPLICE)
        assert await remove(chain, came.id) is None
        await pass_time(10)
        assert len(chain.proxy.sessions.node.sessions) == 0
        locks = [one for _, _, one in chain.seen if isinstance(one, Lock)]
        assert [one.splice for one in locks] == [None, SPLICE]
        assert {one.splice for _, _, one in chain.seen if isinstance(one, UpdateSynAck)} == {SPLICE}
        at_firewall = chain.firewall.sessions.node.sessions[came.id]
        assert at_firewall.splice == SPLICE
        spliced = {
            (row.entry.hook, row.entry.toward) for row in chain.firewall.kernel.rows()
            if row.entry.splice is not None
        }  # fmt: skip
        assert spliced == {(Hook.OUT, Toward.RIGHT), (Hook.IN, Toward.LEFT)}
        outcome = chain.client.datapath.packet(Hook.OUT, came.supersession, seq=5)
        host, flow = chain.walk(outcome)
        assert (host, flow) == (chain.server, came.supersession)


async def test_a_removal_that_is_undone_leaves_it_where_it_was(autojump_clock: MockClock) -> None:
    async with proxying() as chain:
        came, _ = await leave(chain)
        await pass_time(1)
        chain.lose = lambda _s, _r, message: isinstance(message, UpdateSynAck)
        assert await remove(chain, came.id) is not None
        await pass_time(10)
        assert chain.firewall.sessions.node.sessions[came.id].splice is None
        assert chain.proxy.sessions.node.sessions[came.id].splice == SPLICE
        assert all(row.entry.splice is None for row in chain.firewall.kernel.rows())
        outcome = chain.client.datapath.packet(Hook.OUT, came.supersession, seq=5)
        assert chain.walk(outcome)[0] is chain.server


async def test_the_next_agent_there_finds_it(autojump_clock: MockClock) -> None:
    async with proxying() as chain:
        came, _ = await leave(chain)
        await pass_time(1)
        chain.proxy = chain.host(PROXY, Role.MIDDLEBOX, chain.kill(chain.proxy))
        await wait_all_tasks_blocked()
        await chain.proxy.sessions.adopt()
        found = chain.proxy.sessions.node.sessions[came.id]
        assert (found.position, found.splice) == (Position.TAP, SPLICE)
        await pass_time(5)
        assert found.state is State.ESTABLISHED
        outcome = chain.client.datapath.packet(Hook.OUT, came.supersession, seq=5)
        assert outcome.fate is Fate.SENT
        assert chain.walk(outcome)[0] is chain.server


async def test_an_end_that_moves_before_it_knows(autojump_clock: MockClock) -> None:
    """Its neighbour knows the session by the name that it proves."""
    async with proxying() as chain:
        to_server, elsewhere = chain.server.address, parse_address("10.0.5.1")
        chain.lose = lambda _s, receiver, message: (
            isinstance(message, Join) and receiver in (to_server, elsewhere)
        )
        came, former = await leave(chain)
        await pass_time(1)
        chain.server.routes.own = elsewhere
        chain.hosts[elsewhere] = chain.server
        await chain.server.sessions.follow_network()
        await pass_time(5)
        (session,) = chain.server.sessions.node.sessions.values()
        assert session.id == former
        assert session.left is not None and session.left.dst == elsewhere
        assert not chain.server.sessions.node.mobility.is_moving
        assert alive(chain, came)
        chain.lose = lambda *_: False
        await pass_time(6)
        assert names(chain) == {came.id}


async def restart(chain: ProxyChain, host: Host, label: str) -> Host:
    """Another agent there, which takes over what the kernel has."""
    made = chain.host(label, host.role, chain.kill(host))
    await wait_all_tasks_blocked()
    await made.sessions.load_policy(policy_set(POLICY))
    await made.sessions.adopt()
    return made


def alive(chain: ProxyChain, came: Session) -> bool:
    outcome = chain.client.datapath.packet(Hook.OUT, came.supersession, seq=5)
    return chain.walk(outcome)[0] is chain.server


async def test_the_next_agent_there_goes_on_asking(autojump_clock: MockClock) -> None:
    async with proxying() as chain:
        chain.lose = lambda _s, _r, message: isinstance(message, Join)
        came, former = await leave(chain)
        await pass_time(1)
        chain.proxy = await restart(chain, chain.proxy, PROXY)
        told: list[int] = []
        chain.proxy.sessions.left = told.append
        await pass_time(1)
        assert names(chain) == {came.id, former}
        chain.lose = lambda *_: False
        await pass_time(6)
        assert names(chain) == {came.id}
        assert told == [came.id]
        # And the one after it, for the host may still be in the chain.
        chain.proxy = await restart(chain, chain.proxy, PROXY)
        chain.proxy.sessions.left = told.append
        await pass_time(1)
        assert told == [came.id] * 2
        assert alive(chain, came)
        assert await remove(chain, came.id) is None
        await pass_time(10)
        assert not chain.proxy.kernel.notes
        assert alive(chain, came)


async def test_a_session_that_has_ended_meanwhile_leaves_no_name(
    autojump_clock: MockClock,
) -> None:
    async with proxying() as chain:
        came, _ = await leave(chain)
        await pass_time(1)
        assert len(chain.proxy.kernel.notes) == 2
        for entry in entries_for(came.view):
            chain.proxy.kernel.remove(entry.key)
        chain.proxy = await restart(chain, chain.proxy, PROXY)
        assert not chain.proxy.kernel.notes


@pytest.mark.parametrize("knows", [True, False])
async def test_a_neighbour_that_is_restarted_knows_one_name(
    autojump_clock: MockClock, knows: bool
) -> None:
    """The other one, which may be the one that it is spoken to by."""
    async with proxying() as chain:
        to_server = chain.server.address
        chain.lose = lambda _s, receiver, message: (
            isinstance(message, Join) and (receiver == to_server or not knows)
        )
        came, former = await leave(chain)
        await pass_time(1)
        chain.ids = await restart(chain, chain.ids, IDS)
        assert chain.ids.sessions.node.sessions.keys() == {came.id if knows else former}
        await pass_time(20)
        assert alive(chain, came)
        chain.lose = lambda *_: False
        await pass_time(10)
        assert names(chain) == {came.id}
        assert alive(chain, came)
        assert await remove(chain, came.id) is None


@pytest.mark.parametrize("last", ["proxy", "ids", "server"])  # that JOIN has come to
@pytest.mark.parametrize("order", ["ids server", "server ids", "ids", "server", "proxy ids"])
@pytest.mark.parametrize("apart", [0, 2])  # s
async def test_agents_are_restarted_before_all_know(
    autojump_clock: MockClock, last: str, order: str, apart: float
) -> None:
    """Whatever names they have forgotten, none of them ends the session."""
    async with proxying() as chain:
        reached = {"proxy": (), "ids": (IDS,), "server": (IDS, SERVER)}[last]
        addresses = {parse_address(one) for one in (*reached, FIREWALL, CLIENT)}
        chain.lose = lambda _s, receiver, message: (
            isinstance(message, Joined) or (isinstance(message, Join) and receiver not in addresses)
        )
        came, _ = await leave(chain)
        await pass_time(1)
        for name in order.split():
            host = getattr(chain, name)
            setattr(chain, name, await restart(chain, host, format_address(host.address)))
            await pass_time(apart)
        # Its first question is whether the path is still there.
        chain.client = await restart(chain, chain.client, CLIENT)
        await pass_time(20)
        assert [len(host.sessions.node.sessions) for host in chain.all] == [1] * 5
        assert alive(chain, came)
        chain.lose = lambda *_: False
        await pass_time(10)
        assert names(chain) == {came.id}
        assert alive(chain, came)
        assert len(chain.ids.kernel.notes) == 1
        assert await remove(chain, came.id) is None
        await pass_time(10)
        assert alive(chain, came)


@pytest.mark.parametrize("when", ["meanwhile", "later"])
async def test_another_proxy_left_of_it_leaves(autojump_clock: MockClock, when: str) -> None:
    """JOIN comes to the host of a proxy that has left itself, from the client's side: it asks for
    the name that it has got."""
    async with proxying() as chain:
        told: list[int] = []
        chain.proxy.sessions.left = told.append
        to_ids = parse_address(IDS)
        if when == "meanwhile":
            chain.lose = lambda _s, receiver, message: (
                isinstance(message, Join) and receiver == to_ids
            )
        came, _ = await leave(chain)
        await pass_time(2)
        first, second = came.id, came.id ^ 1
        at_firewall = chain.firewall.sessions.node.sessions[first]
        client, leg = chain.client.address, at_firewall.left
        assert leg is not None

        async def answer_in_place_of_the_other() -> None:
            await pass_time(1)
            asked = [message for _, receiver, message in chain.seen
                     if isinstance(message, Join) and receiver == client]  # fmt: skip
            assert asked[-1].name == second
            await chain.firewall.sessions.received(client, Joined(second, leg, asked[-1].change))
            await pass_time(6)

        join = Join(first, leg, 1, second, chain.client.device, 1500)
        await chain.firewall.sessions.received(client, join)
        await pass_time(2)
        chain.lose = lambda *_: False
        await answer_in_place_of_the_other()
        behind = (chain.firewall, chain.proxy, chain.ids, chain.server)
        assert {one for host in behind for one in host.sessions.node.sessions} == {second}
        assert told == ([second] if when == "meanwhile" else [first, second])
        assert len(chain.proxy.kernel.notes) == 2
        chain.proxy = await restart(chain, chain.proxy, PROXY)
        chain.proxy.sessions.left = told.append
        await answer_in_place_of_the_other()
        assert told.count(second) == 2
        assert alive(chain, came)


@pytest.mark.parametrize("renamed", [0, 1, 2])  # rows
async def test_an_agent_is_killed_while_it_renames(autojump_clock: MockClock, renamed: int) -> None:
    async with proxying() as chain:
        chain.lose = lambda _s, _r, message: isinstance(message, Join)
        came, former = await leave(chain)
        await pass_time(1)
        kernel = chain.ids.kernel
        keys = [row.entry.key for row in kernel.rows()]
        assert len(keys) == 2
        kernel.keep({came.id: kernel.notes[former], former: former_note(came.id)})
        kernel.rename(keys[:renamed], former, came.id)
        chain.ids = await restart(chain, chain.ids, IDS)
        assert chain.ids.sessions.node.sessions.keys() == rows_of(chain.ids) == {came.id}
        await pass_time(20)
        assert chain.server.sessions.node.sessions.keys() == {former}
        assert alive(chain, came)
        chain.lose = lambda *_: False
        await pass_time(6)
        assert names(chain) == {came.id}
        assert kernel.notes.keys() == {came.id}
