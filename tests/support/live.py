"""What a running agent says of itself, and what it keeps in the kernel, for tests to look at."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import trio

from m2m.agent.api import (
    AgentInfo,
    ChangeReport,
    EventKind,
    PathInfo,
    PolicyInfo,
    SessionInfo,
    Stats,
)
from m2m.agent.dialogue import (
    AgentsItem,
    AskAgents,
    AskPath,
    AskPolicy,
    AskSessions,
    AskStats,
    Change,
    ChangedItem,
    EventItem,
    Item,
    PathItem,
    PolicyItem,
    SessionItem,
    Snapshot,
    StatsItem,
    Watch,
)
from m2m.cli.query import ask, one
from m2m.datapath import genl, kmod
from m2m.datapath._bpf import Map
from m2m.datapath.genl import Genl
from m2m.datapath.layout import session_of
from m2m.datapath.pins import directory_of
from m2m.lab.pace import SLOWNESS

PATIENCE = 20.0 * SLOWNESS  # s for what must happen


def module_keys() -> set[bytes]:
    """The keys of the sessions' rows that the module has in this network namespace."""
    reader = Genl()
    try:
        found = [
            one
            for message in reader.dump(genl.find_family(), "GET_ROWS")
            for one in kmod._unpacked(message)
        ]
    finally:
        reader.close()
    return {key for key, value in found if session_of(value) != 0}


class LiveAgent:
    """The agent *name*, whose control socket is *control*. It need not run all the time."""

    def __init__(self, name: str, control: Path) -> None:
        self.name = name
        self.control = control

    def stats(self) -> Stats:
        return one(self.control, AskStats(), StatsItem).stats

    def sessions(self) -> list[SessionInfo]:
        items = ask(self.control, AskSessions())
        return [item.session for item in items if isinstance(item, SessionItem)]

    def policy(self) -> PolicyInfo:
        return one(self.control, AskPolicy(), PolicyItem).policy

    def agents(self) -> tuple[AgentInfo, ...]:
        return one(self.control, AskAgents(), AgentsItem).agents

    def path(self, session: str) -> PathInfo:
        return one(self.control, AskPath(session), PathItem).path

    async def change(self, **wish: object) -> ChangeReport:
        """Have the chain of one session changed; what became of it."""
        request = msgspec.convert(wish, Change)
        items = await trio.to_thread.run_sync(lambda: list(ask(self.control, request)))
        (report,) = (item.report for item in items if isinstance(item, ChangedItem))
        return report

    def entries(self) -> int:
        """How many rows of sessions the translation table has, whoever is there to tell."""
        return len(self.keys())

    def keys(self) -> set[bytes]:
        """The keys of those rows."""
        return {key for key, value in self.rows("flows").items() if session_of(value) != 0}

    def rows(self, table: str) -> dict[bytes, bytes]:
        """All of one of its pinned tables."""
        pinned = Map.pinned(directory_of(self.name) / table)
        found, key = {}, pinned.next_key()
        while key is not None:
            value = pinned.lookup(key)
            if value is not None:
                found[key] = value
            key = pinned.next_key(key)
        pinned.close()
        return found

    async def until(
        self, seen: Callable[[Snapshot], bool], *, patience: float = PATIENCE
    ) -> Snapshot:
        """Watch the agent until a snapshot is as wanted."""
        async with self._watch(patience) as watched:
            while True:
                item = await watched.next()
                if isinstance(item, Snapshot) and seen(item):
                    return item

    async def until_told(self, kind: EventKind, task_status: trio.TaskStatus[None]) -> str:
        """Started when the agent is watched: the text of the first event of *kind*."""
        async with self._watch() as watched:
            while not isinstance(item := await watched.next(), Snapshot):
                pass
            task_status.started()
            while not (isinstance(item, EventItem) and item.event.kind is kind):
                item = await watched.next()
            return item.event.text

    async def until_empty(self) -> None:
        """Return when no session is left here, nor an entry of one."""
        await self.until(lambda snapshot: snapshot.stats.sessions == 0)

    @asynccontextmanager
    async def _watch(self, patience: float = PATIENCE) -> AsyncIterator[_Watched]:
        with trio.fail_after(patience):
            async with await trio.open_unix_socket(str(self.control)) as stream:
                await stream.send_all(msgspec.json.encode(Watch(0.1)) + b"\n")
                yield _Watched(stream)


class _Watched:
    """What an agent tells, line by line."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = b""
        self._decoder = msgspec.json.Decoder[Item](Item)

    async def next(self) -> Item:
        while b"\n" not in self._buffer:
            data = await self._stream.receive_some()
            assert data, "the agent has ended"
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        return self._decoder.decode(line)
