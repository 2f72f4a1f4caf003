"""The control socket: what is asked, what is answered, and what becomes of bad clients."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio

from m2m.agent import control
from m2m.agent.api import Event, EventKind, TakenOver
from m2m.agent.dialogue import (
    MAX_REQUEST,
    SNAPSHOT_SESSIONS,
    AgentsItem,
    AskAgents,
    AskPath,
    AskPolicy,
    AskSessions,
    AskStats,
    Done,
    End,
    EventItem,
    Failed,
    HandOver,
    Item,
    LeadHere,
    LedItem,
    PathItem,
    PolicyItem,
    Request,
    SessionItem,
    Snapshot,
    StatsItem,
    TakenItem,
    TakeOver,
    Watch,
)
from m2m.errors import ConfigError
from tests.support.control import AGENTS, POLICY, FakeSource, path, session

FIRST = session(0).id


class Client:
    """Speaks the control socket's language, line by line."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._in = b""

    async def raw(self, line: bytes) -> None:
        await self.stream.send_all(line)

    async def ask(self, request: Request) -> list[Item]:
        """All items up to the last one."""
        await self.raw(msgspec.json.encode(request) + b"\n")
        items = [await self.item()]
        while not isinstance(items[-1], Done | Failed):
            items.append(await self.item())
        return items

    async def item(self) -> Item:
        while b"\n" not in self._in:
            data = await self.stream.receive_some()
            assert data, "the agent closed"
            self._in += data
        line, _, self._in = self._in.partition(b"\n")
        return msgspec.json.decode(line, type=Item)

    async def closed(self) -> bool:
        return not await self.stream.receive_some()


@asynccontextmanager
async def an_agent(
    tmp_path: Path, source: FakeSource
) -> AsyncIterator[tuple[Client, trio.Nursery]]:
    at = tmp_path / "run" / "agent.sock"
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(control.serve, at, source)
            async with await trio.open_unix_socket(os.fspath(at)) as stream:
                yield Client(stream), nursery
            nursery.cancel_scope.cancel()


async def test_every_question_has_its_answer(tmp_path: Path) -> None:
    source = FakeSource(2)
    async with an_agent(tmp_path, source) as (client, _):
        assert await client.ask(AskSessions()) == [
            SessionItem(session(0)), SessionItem(session(1)), Done(),
        ]  # fmt: skip
        assert await client.ask(AskPath(FIRST)) == [PathItem(path(0)), Done()]
        assert await client.ask(AskPolicy()) == [PolicyItem(POLICY), Done()]
        assert await client.ask(AskAgents()) == [AgentsItem(AGENTS), Done()]
        assert await client.ask(AskStats()) == [StatsItem(await source.stats()), Done()]


async def test_many_sessions_are_streamed(tmp_path: Path) -> None:
    async with an_agent(tmp_path, FakeSource(3000)) as (client, _):
        items = await client.ask(AskSessions())
        assert [item.session.id for item in items[:-1] if isinstance(item, SessionItem)] == [
            session(number).id for number in range(3000)
        ]


async def test_ending_a_session_reaches_the_agent(tmp_path: Path) -> None:
    source = FakeSource(1)
    async with an_agent(tmp_path, source) as (client, _):
        assert await client.ask(End(FIRST.upper())) == [Done()]
        assert source.ended == [FIRST]


@pytest.mark.needs("root")
async def test_sessions_of_a_process_that_moves(tmp_path: Path) -> None:
    source = FakeSource(2)
    second = session(1).id
    async with an_agent(tmp_path, source) as (client, _):
        assert await client.ask(HandOver((FIRST, second), "/run/deeds")) == [Done()]
        assert source.handed == [((FIRST, second), Path("/run/deeds"))]
        assert await client.ask(TakeOver("/run/deeds")) == [
            TakenItem(TakenOver((FIRST,), {second: "it is at this host already"})), Done(),
        ]  # fmt: skip
        assert await client.ask(LeadHere((FIRST,))) == [LedItem((FIRST,)), Done()]
        for request, why in (
            (HandOver((), "/run/deeds"), "name the sessions"),
            (HandOver((FIRST,), "deeds"), "whole path"),
            (HandOver(("77",), "/run/deeds"), "there are " + FIRST),
            (HandOver(("x",), "/run/deeds"), "no session id"),
            (TakeOver("deeds"), "whole path"),
        ):
            (failed,) = await client.ask(request)
            assert isinstance(failed, Failed) and why in failed.why
    assert len(source.handed) == 1


async def test_only_root_hands_over_and_takes_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "_is_root", lambda _: False)
    source = FakeSource(1)
    async with an_agent(tmp_path, source) as (client, _):
        for request in (HandOver((FIRST,), "/run/deeds"), TakeOver("/run/deeds"), LeadHere()):
            (failed,) = await client.ask(request)
            assert isinstance(failed, Failed) and "only root" in failed.why
        assert await client.ask(End(FIRST)) == [Done()]
    assert not source.handed


@pytest.mark.needs("root")
async def test_the_kernel_tells_who_asks(tmp_path: Path) -> None:
    """A member of the socket's group may ask, but not for keys."""
    source = FakeSource(1)
    async with an_agent(tmp_path, source):
        at = tmp_path / "run" / "agent.sock"
        request = msgspec.json.encode(HandOver((FIRST,), "/run/deeds")).decode()
        asks = (
            "import os, socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
            "s.sendall(sys.argv[2].encode() + b'\\n'); print(s.makefile().readline())"
        )
        for part in (tmp_path, *tmp_path.parents[:2], at.parent, at):
            os.chmod(part, 0o777)
        done = await trio.run_process(
            [sys.executable, "-c", asks, str(at), request], capture_stdout=True, user=65534
        )
        assert b"only root" in done.stdout
    assert not source.handed


@pytest.mark.parametrize("kind", [AskPath, End])
@pytest.mark.parametrize("identifier", ["77", "nonsense"])
async def test_an_unknown_session_is_answered_with_those_there_are(
    tmp_path: Path, kind: type[AskPath | End], identifier: str
) -> None:
    async with an_agent(tmp_path, FakeSource(9)) as (client, _):
        (failed,) = await client.ask(kind(identifier))
        assert isinstance(failed, Failed)
        assert (
            f"there are {', '.join(session(number).id for number in range(5))}, ..." in failed.why
        )
        assert identifier in failed.why


async def test_without_any_session_that_is_said(tmp_path: Path) -> None:
    async with an_agent(tmp_path, FakeSource(0)) as (client, _):
        (failed,) = await client.ask(AskPath("77"))
        assert failed == Failed(
            "no session 0000000000000077 is at this host; there are no sessions now"
        )


async def test_a_failure_is_told_and_the_conversation_goes_on(tmp_path: Path) -> None:
    source = FakeSource(1)
    source.server_away = True
    async with an_agent(tmp_path, source) as (client, _):
        (failed,) = await client.ask(AskAgents())
        assert isinstance(failed, Failed)
        assert failed.why.startswith("cannot reach the policy server")
        assert (await client.ask(AskPolicy()))[-1] == Done()


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"not json\n",
        b"{}\n",
        b'{"request": "reboot"}\n',
        b'{"request": "path"}\n',
        b'{"request": "watch", "interval": 0}\n',
        b"\xff\xfe\n",
    ],
)
async def test_what_is_no_request_is_refused_and_the_next_one_answered(
    tmp_path: Path, line: bytes
) -> None:
    async with an_agent(tmp_path, FakeSource(0)) as (client, _):
        await client.raw(line)
        failed = await client.item()
        assert isinstance(failed, Failed)
        assert failed.why.startswith("this is no request: ")
        assert await client.ask(AskSessions()) == [Done()]


async def test_a_line_without_end_is_not_waited_for(tmp_path: Path) -> None:
    async with an_agent(tmp_path, FakeSource(0)) as (client, _):
        await client.raw(b"x" * (MAX_REQUEST + 1))
        assert await client.item() == Failed(
            f"a request has at most {MAX_REQUEST} bytes in one line"
        )
        assert await client.closed()


async def test_a_request_in_pieces_and_two_at_once_are_the_same_to_us(tmp_path: Path) -> None:
    async with an_agent(tmp_path, FakeSource(0)) as (client, _):
        line = msgspec.json.encode(AskSessions()) + b"\n"
        await client.raw(line[:7])
        await client.raw(line[7:] + line)
        assert [await client.item(), await client.item()] == [Done(), Done()]


async def test_a_watch_tells_snapshots_and_events_until_its_reader_ends(tmp_path: Path) -> None:
    source = FakeSource(SNAPSHOT_SESSIONS + 7)
    event = Event(5.0, EventKind.CLOSED, "fin", FIRST)
    async with an_agent(tmp_path, source) as (client, _):
        await client.raw(msgspec.json.encode(Watch(interval=3600)) + b"\n")
        snapshot = await client.item()
        assert isinstance(snapshot, Snapshot)
        assert len(snapshot.sessions) == SNAPSHOT_SESSIONS
        assert snapshot.stats.sessions == SNAPSHOT_SESSIONS + 7
        while not source.watchers:
            await source.changed.wait()
        source.tell(event)
        assert await client.item() == EventItem(event)
        await client.stream.aclose()
        while source.watchers:
            await source.changed.wait()


async def test_snapshots_come_again(tmp_path: Path) -> None:
    async with an_agent(tmp_path, FakeSource(1)) as (client, _):
        await client.raw(msgspec.json.encode(Watch(interval=0.1)) + b"\n")
        one, two = await client.item(), await client.item()
        assert isinstance(one, Snapshot)
        assert isinstance(two, Snapshot)
        assert two.time > one.time


async def test_a_watch_that_fails_says_why(tmp_path: Path) -> None:
    source = FakeSource(1)
    source.broken = "the kernel refused"
    async with an_agent(tmp_path, source) as (client, _):
        assert await client.ask(Watch()) == [Failed("the kernel refused")]


async def test_a_client_that_goes_while_it_is_answered_hurts_nobody(tmp_path: Path) -> None:
    async with an_agent(tmp_path, FakeSource(3000)) as (client, _):
        async with await trio.open_unix_socket(os.fspath(tmp_path / "run" / "agent.sock")) as rude:
            await rude.send_all(msgspec.json.encode(AskSessions()) + b"\n")
        assert (await client.ask(AskStats()))[-1] == Done()


# --- the socket itself


async def test_the_socket_is_for_owner_and_group_and_goes_with_the_agent(tmp_path: Path) -> None:
    at = tmp_path / "run" / "agent.sock"
    async with an_agent(tmp_path, FakeSource(0)):
        assert os.stat(at).st_mode & 0o777 == 0o660
        assert os.stat(at.parent).st_mode & 0o777 == 0o750
    assert os.listdir(at.parent) == []


async def test_a_socket_left_by_a_killed_agent_is_replaced(tmp_path: Path) -> None:
    at = tmp_path / "run" / "agent.sock"
    os.mkdir(at.parent)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(os.fspath(at))
        dead.listen()
    async with an_agent(tmp_path, FakeSource(0)) as (client, _):
        assert await client.ask(AskSessions()) == [Done()]


async def test_a_live_agents_socket_is_left_alone(tmp_path: Path) -> None:
    at = tmp_path / "run" / "agent.sock"
    async with an_agent(tmp_path, FakeSource(0)) as (client, _):
        with pytest.raises(ConfigError, match=r"an agent answers on .* already"):
            await control.serve(at, FakeSource(0))
        assert await client.ask(AskSessions()) == [Done()]


async def test_a_file_in_the_way_is_not_removed(tmp_path: Path) -> None:
    at = trio.Path(tmp_path / "agent.sock")
    await at.write_text("precious")
    with pytest.raises(ConfigError, match="is no socket: remove it"):
        await control.serve(Path(at), FakeSource(0))
    assert await at.read_text() == "precious"


async def test_a_path_that_is_too_long_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="choose another directory with --run-dir"):
        await control.serve(tmp_path / ("x" * 120), FakeSource(0))
