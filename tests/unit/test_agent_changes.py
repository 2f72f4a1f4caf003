"""Chains that change while sessions live, over agents in memory: what the node asks is done."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from m2m.agent.api import EventKind
from m2m.agent.changes import Expected
from m2m.datapath import DatapathError, Holding, Limits
from m2m.datapath.fake_kernel import Fate
from m2m.protocol.commands import ChangeDone, ChangeRefused
from m2m.protocol.events import ChangeWanted, Route
from m2m.protocol.flow import format_address, parse_address
from m2m.protocol.translation import Hook, Position
from m2m.protocol.update import Mode, Step, UpdateDrain, UpdateDrained, UpdateSynAck
from m2m.protocol.wire import Cause, Hop
from tests.support.agents import FIREWALL, IDS, SERVER, Host, pass_time
from tests.support.changing import OTHER, PORT, LiveSession, a_live_session

CHANGE = 77


def expect(chain: LiveSession, host: Host) -> Expected:
    return host.sessions.changes.expect(chain.session, CHANGE, lambda: None)


def replace_ids(chain: LiveSession, mode: Mode = Mode.LF) -> ChangeWanted:
    """What the firewall, left of the tap, is to lead."""
    return ChangeWanted(
        chain.session, CHANGE, mode, (Step(parse_address(IDS)),), parse_address(SERVER),
        (Hop(parse_address(OTHER), Position.TAP, "ids"),), Route(parse_address(FIREWALL), 1500),
    )  # fmt: skip


@pytest.mark.parametrize("mode", list(Mode))
async def test_a_middlebox_is_replaced_and_nothing_of_the_old_path_stays(
    autojump_clock: MockClock, mode: Mode
) -> None:
    async with a_live_session() as chain:
        assert chain.carries(FIREWALL, IDS)
        expected = expect(chain, chain.firewall)
        await chain.firewall.sessions.feed(replace_ids(chain, mode))
        with trio.fail_after(5):
            result = await expected.wait()
        assert isinstance(result, ChangeDone)
        assert expected.switched is not None
        assert expected.ended is not None
        assert expected.ended >= expected.switched
        await trio.testing.wait_all_tasks_blocked()  # the new hop hears that it may let go
        assert chain.carries(FIREWALL, OTHER)
        assert len(chain.ids.sessions) == 0
        assert chain.ids.kernel.rows() == []
        assert chain.firewall.journal.counts[EventKind.CHANGED.value] == 1


async def test_one_that_cannot_be_is_undone_and_says_why(autojump_clock: MockClock) -> None:
    async with a_live_session() as chain:
        chain.other.routes.cut.add(parse_address(SERVER))
        expected = expect(chain, chain.firewall)
        await chain.firewall.sessions.feed(replace_ids(chain, Mode.OP))
        with trio.fail_after(5):
            result = await expected.wait()
        assert isinstance(result, ChangeRefused)
        assert (result.cause, expected.switched) == (Cause.NO_ROUTE, None)
        assert chain.carries(FIREWALL, IDS)
        assert chain.other.kernel.rows() == []
        assert chain.firewall.journal.counts[EventKind.UNCHANGED.value] == 1


async def test_a_datapath_that_refuses_undoes_the_change(autojump_clock: MockClock) -> None:
    """The new hop's table is full; and then the leader's own."""
    async with a_live_session() as chain:
        for full in (chain.other, chain.firewall):
            full.kernel.limits = Limits(sessions=0)
            expected = expect(chain, chain.firewall)
            await chain.firewall.sessions.feed(replace_ids(chain))
            with trio.fail_after(5):
                result = await expected.wait()
            assert isinstance(result, ChangeRefused)
            assert result.cause is Cause.INSTALL_FAILED
            assert "room for" in result.text
            assert chain.carries(FIREWALL, IDS)
            full.kernel.limits = Limits()
            await pass_time(20)


async def test_packets_that_cannot_be_held_go_on_and_the_change_is_undone(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_live_session() as chain:

        async def refuse(*_: object, **__: object) -> list[Holding]:
            raise DatapathError("not now")

        monkeypatch.setattr(chain.firewall.datapath, "hold", refuse)
        expected = expect(chain, chain.firewall)
        await chain.firewall.sessions.feed(replace_ids(chain, Mode.OP))
        with trio.fail_after(5):
            result = await expected.wait()
        assert isinstance(result, ChangeRefused)
        assert result.cause is Cause.OVERFLOW
        assert chain.carries(FIREWALL, IDS)


async def test_too_many_packets_to_hold_go_the_old_way_and_the_change_is_undone(
    autojump_clock: MockClock,
) -> None:
    async with a_live_session() as chain:
        chain.firewall.kernel.limits = Limits(hold_packets=3)
        chain.lose = lambda _from, _to, message: isinstance(message, UpdateDrain)
        expected = expect(chain, chain.firewall)
        await chain.firewall.sessions.feed(replace_ids(chain, Mode.OP))
        await wait_all_tasks_blocked()
        fates = [
            chain.firewall.datapath.packet(Hook.OUT, chain.client.flow(PORT)).fate for _ in range(6)
        ]
        with trio.fail_after(5):
            result = await expected.wait()
        assert fates == [Fate.HELD] * 4 + [Fate.SENT] * 2
        assert isinstance(result, ChangeRefused)
        assert result.cause is Cause.OVERFLOW
        assert [one.flow.dst for one in chain.firewall.kernel.released[-4:]] == (
            [parse_address(IDS)] * 4
        )
        assert chain.firewall.journal.counts["hold overflow"] == 1


@pytest.mark.parametrize("victim", ["firewall", "ids", "other", "server"])
async def test_a_killed_agent_takes_a_change_over_and_either_path_is_whole(
    autojump_clock: MockClock, victim: str
) -> None:
    """I5, I6: it dies while packets are held, and is back a second later."""
    async with a_live_session() as chain:
        chain.lose = lambda _from, _to, message: isinstance(message, UpdateDrained)
        await chain.firewall.sessions.feed(replace_ids(chain, Mode.OP))
        await wait_all_tasks_blocked()
        old = getattr(chain, victim)
        kernel = chain.kill(old)
        await pass_time(1)
        chain.lose = lambda *_: False
        host = chain.host(format_address(old.address), old.role, kernel)
        setattr(chain, victim, host)
        await host.sessions.adopt()
        await pass_time(60)
        assert chain.carries(FIREWALL, IDS)
        assert chain.other.kernel.rows() == []
        assert {len(one.kernel.rows()) for one in chain.all} == {0, 2, 4}
        assert all(one.sessions.node.ports.in_use <= 1 for one in chain.all)


async def test_changed_routes_reach_the_second_leg_too(autojump_clock: MockClock) -> None:
    async with a_live_session() as chain:
        chain.lose = lambda _from, _to, message: isinstance(message, UpdateSynAck)
        await chain.ids.sessions.feed(
            ChangeWanted(
                chain.session, CHANGE, Mode.LF, (), parse_address(SERVER),
                (Hop(parse_address(OTHER), Position.TAP, "ids"),),
                Route(parse_address(IDS), 1500),
            )
        )  # fmt: skip
        await wait_all_tasks_blocked()
        before = {row.entry.key: row.counters.packets for row in chain.ids.kernel.rows()}
        chain.ids.routes.ifindex = 7
        await chain.ids.sessions.follow_network()
        rows = chain.ids.kernel.rows()
        assert len(rows) == 3
        assert {row.entry.hop.ifindex for row in rows if row.entry.hop} == {7}
        assert {row.entry.key: row.counters.packets for row in rows} == before


async def test_the_way_to_a_new_neighbour_is_followed_from_then_on(
    autojump_clock: MockClock,
) -> None:
    async with a_live_session() as chain:
        expected = expect(chain, chain.firewall)
        await chain.firewall.sessions.feed(replace_ids(chain))
        with trio.fail_after(5):
            await expected.wait()
        chain.firewall.routes.ifindex = 7
        await chain.firewall.sessions.follow_network()
        hops = {row.entry.rewrite.dst: row.entry.hop for row in chain.firewall.kernel.rows()
                if row.entry.hop is not None}  # fmt: skip
        assert {hop.ifindex for hop in hops.values()} == {7}
        assert parse_address(OTHER) in hops
