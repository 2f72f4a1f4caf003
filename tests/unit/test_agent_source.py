"""What an agent answers on its control socket, from a chain in memory."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from m2m.agent.api import AgentInfo, EventKind, Role, SessionState, UnknownSession
from m2m.agent.functions import Functions
from m2m.agent.source import Answers
from m2m.auth import DomainKey
from m2m.datapath import Reason
from m2m.datapath.fake_kernel import Fate
from m2m.errors import M2MError
from m2m.protocol.handing import GOOD
from m2m.protocol.translation import Hook
from tests.support.agents import Chain, Host, pass_time, policy_set, running

KEY = DomainKey(bytes(range(32)))
_STEP = 0.5  # s


class Server:
    """A policy server that knows of nobody."""

    connected = True

    async def agents(self) -> Sequence[AgentInfo]:
        return ()


def answers(host: Host, server: Server | None = None) -> Answers:
    return Answers(
        "ue", host.role, host.sessions, host.paths, host.asking, lambda: {"sent.syn": 1}, server,
        "p:5263", KEY, Functions(),
    )  # fmt: skip


async def established(chain: Chain) -> int:
    chain.client.open(80)
    await wait_all_tasks_blocked()
    (session,) = chain.client.sessions.node.sessions
    return session


async def test_sessions_tell_flows_chain_and_counters(autojump_clock: MockClock) -> None:
    async with running() as chain:
        session = await established(chain)
        (info,) = [one async for one in answers(chain.client).sessions()]
        assert (info.id, info.position) == (f"{session:016x}", "client")
        assert (info.state, info.chain) == (SessionState.ESTABLISHED, ("firewall", "ids"))
        assert info.supersession.flow() == chain.client.flow(80)
        assert (info.left, info.right is None) == (None, False)
        assert info.to_server is not None and info.to_server.packets == 1
        assert info.to_client is not None and info.to_client.packets == 0

        await chain.client.sessions.load_policy(policy_set(generation=2))
        (info,) = [one async for one in answers(chain.client).sessions()]
        assert (info.generation, info.chain) == (1, ())  # of a policy that is known no more


async def test_a_session_that_opens_is_told_without_counters(autojump_clock: MockClock) -> None:
    async with running() as chain:
        chain.kill(chain.server)
        chain.client.open(80)
        await wait_all_tasks_blocked()
        (info,) = [one async for one in answers(chain.client).sessions()]
        assert (info.state, info.to_server) == (SessionState.OPENING, None)


async def test_many_sessions_are_all_told(autojump_clock: MockClock) -> None:
    async with running() as chain:
        for sport in range(600):
            chain.client.open(80, 1024 + sport)
            await wait_all_tasks_blocked()
        found = [one async for one in answers(chain.ids).sessions()]
        assert len({one.id for one in found}) == len(found) == 600
        assert all(one.to_server for one in found)


async def test_ending_a_session_ends_it_everywhere(autojump_clock: MockClock) -> None:
    async with running() as chain:
        session = await established(chain)
        await answers(chain.client).end(session)
        await wait_all_tasks_blocked()
        assert chain.left_over() == {}
        with pytest.raises(UnknownSession, match=f"{session:016x}"):
            await answers(chain.client).end(session)


async def test_stats_count(autojump_clock: MockClock) -> None:
    async with running() as chain:
        source = answers(chain.client)
        await established(chain)
        await pass_time(5)
        stats = await source.stats()
        assert (stats.agent, stats.role, stats.sessions) == ("ue", Role.CLIENT, 1)
        assert (stats.uptime, stats.datapath) == (5.0, "fake")
        assert stats.reasons["held"] == 1
        assert stats.control == {"sent.syn": 1}
        assert stats.setups["established"] == 1
        assert stats.setups["set-up p50 us"] >= 0


async def test_policy_and_agents(autojump_clock: MockClock) -> None:
    async with running() as chain:
        alone, linked = answers(chain.client), answers(chain.client, Server())
        policy = await linked.policy()
        assert (policy.generation, policy.server, policy.connected) == (1, "p:5263", True)
        assert not (await alone.policy()).connected
        assert await linked.agents() == ()
        with pytest.raises(M2MError, match="without --policy-server"):
            await alone.agents()


async def test_events_are_told_from_now_on(autojump_clock: MockClock) -> None:
    async with running() as chain:
        events = answers(chain.client).events()
        kinds: list[EventKind] = []

        async def watch() -> None:
            async for event in events:
                kinds.append(event.kind)
                if event.kind is EventKind.CLOSED:
                    return

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await wait_all_tasks_blocked()
            await answers(chain.client).end(await established(chain))
        assert kinds == [EventKind.ESTABLISHED, EventKind.CLOSED]
        await events.aclose()  # type: ignore[attr-defined]


async def later(clock: MockClock, seconds: float) -> None:
    """Time passes; by itself it would, too, while a thread reads or writes a file."""
    steps = max(1, round(seconds / _STEP))
    for _ in range(steps):
        clock.jump(seconds / steps)
        await wait_all_tasks_blocked()


async def test_sessions_leave_in_a_file_and_come_back(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with running() as chain:
        session = await established(chain)
        source, text = answers(chain.server), f"{session:016x}"
        await source.hand_over([session], tmp_path / "deeds")
        assert not chain.server.sessions.node.sessions
        assert chain.server.journal.counts["handed-over"] == 1
        sent = chain.client.flow(80).reverse()
        for _ in range(6):  # whatever its socket still says is dropped
            outcome = chain.server.datapath.packet(Hook.OUT, sent)
            assert (outcome.fate, outcome.reason) == (Fate.DROPPED, Reason.REFUSED)
            await later(mock_clock, 1.5)

        taken = await source.take_over(tmp_path / "deeds")
        assert (taken.taken, taken.refused) == ((text,), {})
        assert await source.lead_here(()) == [text]
        assert chain.server.datapath.packet(Hook.OUT, sent).fate is Fate.SENT
        assert chain.server.sessions.node.mobility.counts["taken over"] == 1
        assert (await source.path(session)).complete

        again = await source.take_over(tmp_path / "deeds")
        assert again.taken == () and "already" in again.refused[text]
        assert await source.lead_here(()) == []
        with pytest.raises(UnknownSession, match="take it over"):
            await source.lead_here([session])


async def test_of_two_files_the_later_one_is_good(tmp_path: Path, mock_clock: MockClock) -> None:
    async with running() as chain:
        session = await established(chain)
        source = answers(chain.server)
        await source.hand_over([session], tmp_path / "deeds")
        await source.take_over(tmp_path / "deeds")
        await source.lead_here(())
        await source.hand_over([session], tmp_path / "later")
        used = await source.take_over(tmp_path / "deeds")
        assert used.refused == {
            f"{session:016x}": "this host has handed it over once more since then"
        }
        await source.take_over(tmp_path / "later")
        await source.lead_here(())
        assert (await source.path(session)).complete


async def test_a_hop_that_is_silent_is_not_waited_for(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with running() as chain:
        session = await established(chain)
        source = answers(chain.server)
        await source.hand_over([session], tmp_path / "deeds")
        await source.take_over(tmp_path / "deeds")
        chain.server.wire.lose = lambda *_: True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(later, mock_clock, 11.0)
            with pytest.raises(M2MError, match="has not answered within 10 s"):
                await source.lead_here(())
        chain.server.wire.lose = lambda *_: False
        await later(mock_clock, 2.0)
        assert (await source.path(session)).complete


async def test_what_is_not_handed_over_stays(tmp_path: Path, mock_clock: MockClock) -> None:
    async with running() as chain:
        session = await established(chain)
        source, path = answers(chain.server), tmp_path / "deeds"
        path.write_text("somebody's own text, which is no deed")
        for sessions, where, why in (
            ([session], path, "the deeds cannot be written: File exists"),
            ([session], tmp_path / "no" / "deeds", "No such file"),
            ([session, 77], tmp_path / "other", "not at this host"),
        ):
            with pytest.raises(M2MError, match=why):
                await source.hand_over(sessions, where)
        assert os.listdir(tmp_path) == ["deeds"]
        assert list(chain.server.sessions.node.sessions) == [session]
        assert (await source.path(session)).complete
        with pytest.raises(M2MError, match="no file of deeds"):
            await source.take_over(path)
        counts = chain.server.sessions.node.mobility.counts
        assert (counts["hand-over refused"], counts["take-over refused"]) == (3, 1)


async def test_without_a_route_nothing_is_taken_over(tmp_path: Path, mock_clock: MockClock) -> None:
    async with running() as chain:
        session = await established(chain)
        source = answers(chain.server)
        await source.hand_over([session], tmp_path / "deeds")
        chain.server.routes.cut.add(chain.ids.address)
        taken = await source.take_over(tmp_path / "deeds")
        assert "no route" in taken.refused[f"{session:016x}"]
        await later(mock_clock, GOOD + 20.0)
        assert not await chain.server.datapath.kept()
