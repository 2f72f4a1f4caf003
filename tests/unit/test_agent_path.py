"""A session's path, asked over a chain of agents in memory."""

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from m2m.agent.api import SessionState, UnknownSession
from m2m.datapath.fake_packets import Tcp
from m2m.protocol.translation import Hook
from m2m.protocol.wire import MAX_REPORT, PathRep, PathReq
from tests.support.agents import CLIENT, FIREWALL, IDS, SERVER, Chain, pass_time, running


async def established(chain: Chain) -> int:
    chain.client.open(80)
    await wait_all_tasks_blocked()
    (session,) = chain.client.sessions.node.sessions
    return session


@pytest.mark.parametrize("asker", ["client", "firewall", "ids", "server"])
async def test_every_hop_tells_the_same_path(autojump_clock: MockClock, asker: str) -> None:
    async with running() as chain:
        session = await established(chain)
        (first,) = chain.client.kernel.released
        chain.walk(first)
        path = await getattr(chain, asker).paths.path(session)
        assert (path.complete, path.problem) == (True, "")
        assert [hop.address for hop in path.hops] == [CLIENT, FIREWALL, IDS, SERVER]
        assert [hop.position for hop in path.hops] == ["client", "inline", "tap", "server"]
        assert [hop.nf for hop in path.hops] == [None, "firewall/fw1", "ids/ids1", None]
        assert {hop.state for hop in path.hops} == {SessionState.ESTABLISHED}
        assert [hop.to_server and hop.to_server.packets for hop in path.hops] == [1] * 4
        for left, right in zip(path.hops, path.hops[1:], strict=False):
            assert (left.right, left.next) == (right.left, right.address)
            assert right.prev == left.address


async def test_a_function_that_drops_shows_between_its_two_entries(
    autojump_clock: MockClock,
) -> None:
    """What comes in is told, not what an inline function lets through."""
    async with running() as chain:
        session = await established(chain)
        view = chain.firewall.sessions.node.view(session)
        assert view is not None and view.left is not None
        chain.firewall.datapath.packet(Hook.IN, view.left, flags=Tcp.ACK)
        report = await chain.firewall.paths.report(session)
        assert report is not None and report.to_server is not None
        assert report.to_server.packets == 1


async def test_a_silent_hop_ends_the_walk_in_bounded_time(autojump_clock: MockClock) -> None:
    async with running() as chain:
        session = await established(chain)
        chain.kill(chain.ids)
        start = trio.current_time()
        path = await chain.client.paths.path(session)
        assert trio.current_time() - start < 2
        assert not path.complete
        assert path.problem == f"{IDS} does not answer"
        assert [hop.state for hop in path.hops] == [
            SessionState.ESTABLISHED, SessionState.ESTABLISHED, SessionState.UNREACHABLE
        ]  # fmt: skip


async def test_lost_questions_are_asked_again(autojump_clock: MockClock) -> None:
    async with running() as chain:
        session = await established(chain)
        lost: set[tuple[bytes, bytes]] = set()

        def lose(sender: bytes, receiver: bytes, message: object) -> bool:
            first = isinstance(message, PathReq | PathRep) and (sender, receiver) not in lost
            if first:
                lost.add((sender, receiver))
            return first

        chain.lose = lose
        assert (await chain.client.paths.path(session)).complete


async def test_a_hop_that_lost_the_session_says_so(autojump_clock: MockClock) -> None:
    async with running() as chain:
        session = await established(chain)
        chain.kill(chain.ids)
        chain.ids = chain.host(IDS, chain.ids.role)  # rebooted: its kernel has nothing
        path = await chain.client.paths.path(session)
        assert path.problem == f"{IDS} does not know the session"


async def test_a_path_that_changes_while_it_is_walked_is_walked_anew(
    autojump_clock: MockClock,
) -> None:
    """As when a neighbour leaves between one host's answer and the next one's."""
    async with running() as chain:
        session = await established(chain)
        gone = PathRep(session, b"")
        answers = 0

        def lose(sender: bytes, _receiver: bytes, message: object) -> bool:
            nonlocal answers
            if isinstance(message, PathRep) and sender == chain.ids.address:
                answers += 1
                if answers == 1:  # the true one is lost: it would be the last word
                    chain.client.paths.answered(chain.ids.address, gone)
                    return True
            return False

        chain.lose = lose
        path = await chain.client.paths.path(session)
        assert path.complete, path.problem
        assert answers == 2


async def test_an_answer_that_is_no_report_is_told(autojump_clock: MockClock) -> None:
    async with running() as chain:
        session = await established(chain)
        chain.lose = lambda sender, _receiver, message: isinstance(message, PathRep)

        async def answer() -> None:
            await wait_all_tasks_blocked()
            chain.client.paths.answered(chain.firewall.address, PathRep(session, b"\xc1"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            path = await chain.client.paths.path(session)
        assert "not understood" in path.problem


async def test_unasked_answers_and_unknown_sessions(autojump_clock: MockClock) -> None:
    async with running() as chain:
        session = await established(chain)
        chain.client.paths.answered(chain.ids.address, PathRep(session, b""))
        with pytest.raises(UnknownSession, match="no session 0000000000000009 is at this host"):
            await chain.client.paths.path(9)


async def test_reports_fit_a_message(autojump_clock: MockClock) -> None:
    async with running() as chain:
        session = await established(chain)
        await chain.client.paths.path(session)
        await pass_time(0.1)
        sizes = [len(m.report) for _, _, m in chain.seen if isinstance(m, PathRep)]
        assert sizes and max(sizes) < MAX_REPORT * 3 / 4  # IPv6 addresses and long names are longer
