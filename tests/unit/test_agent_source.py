"""What an agent answers on its control socket, from a chain in memory."""

from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from m2m.agent.api import AgentInfo, EventKind, Role, SessionState, UnknownSession
from m2m.agent.source import Answers
from m2m.errors import M2MError
from tests.support.agents import Chain, Host, pass_time, policy_set, running


class Server:
    """A policy server that knows of nobody."""

    connected = True

    async def agents(self) -> Sequence[AgentInfo]:
        return ()


def answers(host: Host, server: Server | None = None) -> Answers:
    return Answers(
        "ue", host.role, host.sessions, host.paths, host.asking, lambda: {"sent.syn": 1}, server,
        "p:5263", KEY,
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
