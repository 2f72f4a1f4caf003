"""The agent's Unix sockets, server side. What is said there is in :mod:`m2m.agent.dialogue`.

Whoever may open the control socket (mode 0660, in a directory of mode 0750) may ask everything and
end sessions; only root may hand sessions over to other hosts and take them over from there: their
files hold keys, and are where root says. Network functions have a socket of their own, on which
they can ask for changes about themselves and nothing else: give it, by its group, to those that
may. Whether sessions may be changed by either is up to their policy.
"""

from __future__ import annotations

import math
import os
import socket
import struct
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import trio
import trio.abc

from m2m.agent.api import ControlSource, SessionInfo, UnknownSession, parse_session
from m2m.agent.dialogue import (
    MAX_REQUEST,
    SNAPSHOT_SESSIONS,
    AgentsItem,
    AskAgents,
    AskPath,
    AskPolicy,
    AskSessions,
    AskStats,
    Change,
    ChangedItem,
    ChangingItem,
    Done,
    End,
    EventItem,
    Failed,
    HandOver,
    Item,
    LeadHere,
    LedItem,
    NfChange,
    NfRequest,
    NfRun,
    PathItem,
    PolicyItem,
    Quiet,
    Request,
    SessionItem,
    Snapshot,
    StatsItem,
    TakenItem,
    TakeOver,
    Watch,
    order_of,
)
from m2m.agent.functions import Function, Functions
from m2m.agent.order import Order
from m2m.agent.unix import listen, unlink_own
from m2m.errors import M2MError

__all__ = ["serve", "serve_nfs"]

Each = TypeVar("Each")

_UCRED = struct.Struct("=iII")  # pid, uid, gid
_SHOWN = 5  # sessions that the answer to an unknown id names
_BATCH = 64 << 10  # bytes of items written at once


async def serve(
    path: Path,
    source: ControlSource,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer operators on the Unix socket *path* from *source* until cancelled; started when it
    is there.

    Takes the place of a socket on which nobody answers any more. Raises :exc:`ConfigError` when
    somebody does, or when it cannot be made.
    """
    await _serve(path, source, Request, task_status)


async def serve_nfs(
    path: Path,
    source: ControlSource,
    functions: Functions,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """As :func:`serve`, for the network functions of this host; those that run are put into
    *functions*."""
    await _serve(path, source, NfRequest, task_status, functions)


async def _serve(
    path: Path,
    source: ControlSource,
    requests: Any,
    task_status: trio.TaskStatus[None],
    functions: Functions | None = None,
) -> None:
    listener = await listen(path)
    made = os.stat(path).st_ino

    async def talk(stream: trio.SocketStream) -> None:
        is_root = _is_root(stream)
        await _Conversation(stream, source, requests, functions, is_root=is_root).run()

    try:
        await trio.serve_listeners(talk, [listener], task_status=_Discard(task_status))
    finally:
        unlink_own(path, made)


def _is_root(stream: trio.SocketStream) -> bool:
    """Whether it is root who has connected, as the kernel says (unix(7))."""
    answer = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _, uid, _ = _UCRED.unpack(answer)
    return int(uid) == 0


class _Discard:
    """Starts with None, whatever it is told."""

    def __init__(self, task_status: trio.TaskStatus[None]) -> None:
        self._task_status = task_status

    def started(self, value: object = None) -> None:
        self._task_status.started()


@asynccontextmanager
async def _closing(items: AsyncIterator[Each]) -> AsyncGenerator[AsyncIterator[Each], None]:
    """Have *items* finish when the reader stops early, not when memory is collected."""
    try:
        yield items
    finally:
        if isinstance(items, AsyncGenerator):
            await items.aclose()


class _Conversation:
    """One client: its requests are answered in turn."""

    def __init__(
        self,
        stream: trio.abc.Stream,
        source: ControlSource,
        requests: Any,
        functions: Functions | None,
        *,
        is_root: bool,
    ) -> None:
        """*requests*: what can be asked."""
        self._is_root = is_root
        self._stream = stream
        self._functions = functions
        self._source = source
        self._encoder = msgspec.json.Encoder()
        self._decoder = msgspec.json.Decoder[Any](requests)
        self._in = bytearray()
        self._out = bytearray()

    async def run(self) -> None:
        async with self._stream:
            try:
                while (line := await self._line()) is not None:
                    if not await self._answer(line):
                        return
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return  # the client has gone: it knows

    async def _line(self) -> bytes | None:
        """The next request; None when there will be none, or none that could be read."""
        while (end := self._in.find(b"\n")) < 0:
            if len(self._in) > MAX_REQUEST:
                await self._say(Failed(f"a request has at most {MAX_REQUEST} bytes in one line"))
                await self._flush()
                return None
            data = await self._stream.receive_some()
            if not data:
                return None
            self._in += data
        line = bytes(self._in[:end])
        del self._in[: end + 1]
        return line

    async def _answer(self, line: bytes) -> bool:
        """Answer one request; whether another one may follow."""
        try:
            request: Request | NfRequest = self._decoder.decode(line)
            if isinstance(request, Watch):
                await self._watch(request.interval)
                return False
            if isinstance(request, NfRun):
                await self._accompany(request)
                return False
            await self._carry_out(request)
        except msgspec.DecodeError as error:
            await self._say(Failed(f"this is no request: {error}"))
        except M2MError as error:
            await self._say(Failed(str(error)))
        else:
            await self._say(Done())
        await self._flush()
        return True

    async def _carry_out(self, request: Request | NfRequest) -> None:
        source = self._source
        if isinstance(request, AskSessions):
            async with _closing(source.sessions()) as sessions:
                async for session in sessions:
                    await self._say(SessionItem(session))
        elif isinstance(request, AskPath):
            try:
                await self._say(PathItem(await source.path(parse_session(request.id))))
            except UnknownSession as error:
                raise await self._with_known(error) from error
        elif isinstance(request, AskPolicy):
            await self._say(PolicyItem(await source.policy()))
        elif isinstance(request, AskAgents):
            await self._say(AgentsItem(tuple(await source.agents())))
        elif isinstance(request, AskStats):
            await self._say(StatsItem(await source.stats()))
        elif isinstance(request, End):
            try:
                await source.end(parse_session(request.id))
            except UnknownSession as error:
                raise await self._with_known(error) from error
        elif isinstance(request, Change | NfChange):
            await self._change(order_of(request))
        elif isinstance(request, HandOver | TakeOver | LeadHere):
            await self._hand(request)

    async def _with_known(self, error: UnknownSession) -> M2MError:
        """*error* with the sessions there are instead."""
        known = [session.id for session in await self._some_sessions(_SHOWN + 1)]
        if not known:
            return M2MError(f"{error}; there are no sessions now")
        more = ", ..." if len(known) > _SHOWN else ""
        return M2MError(f"{error}; there are {', '.join(known[:_SHOWN])}{more}")

    async def _some_sessions(self, count: int) -> tuple[SessionInfo, ...]:
        found: list[SessionInfo] = []
        async with _closing(self._source.sessions()) as sessions:
            async for session in sessions:
                found.append(session)
                if len(found) == count:
                    break
        return tuple(found)

    async def _hand(self, request: HandOver | TakeOver | LeadHere) -> None:
        """A session's end goes to another host, or comes from there."""
        if not self._is_root:
            raise M2MError("only root may hand sessions over or take them over")
        try:
            if isinstance(request, HandOver):
                if not request.sessions:
                    raise M2MError("name the sessions that are to be handed over")
                sessions = tuple(map(parse_session, request.sessions))
                await self._source.hand_over(sessions, _absolute(request.path))
            elif isinstance(request, TakeOver):
                taken = await self._source.take_over(_absolute(request.path))
                await self._say(TakenItem(taken))
            else:
                led = await self._source.lead_here(tuple(map(parse_session, request.sessions)))
                await self._say(LedItem(tuple(led)))
        except UnknownSession as error:
            raise await self._with_known(error) from error

    # -- changing -----------------------------------------------------------------------

    async def _change(self, order: Order) -> None:
        """Tell what becomes of each session while the others are still at it."""
        send, receive = trio.open_memory_channel[Item](math.inf)
        problem: M2MError | None = None
        gone = False

        async def work() -> None:
            nonlocal problem
            with send:
                try:
                    await self._source.change(
                        order,
                        lambda report: send.send_nowait(ChangedItem(report)),
                        lambda session, stage: send.send_nowait(ChangingItem(session, stage)),
                    )
                except M2MError as error:
                    problem = error

        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            async for item in receive:
                try:
                    await self._say(item)
                    await self._flush()
                except trio.BrokenResourceError:  # what is begun goes on without an audience
                    gone = True
                    nursery.cancel_scope.cancel()
        if gone:
            raise trio.BrokenResourceError
        if problem is not None:
            raise problem

    # -- watching -----------------------------------------------------------------------

    async def _watch(self, interval: float) -> None:
        """Tell what happens until the client closes."""
        turn = trio.Lock()
        problem = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tell_events, turn)
                nursery.start_soon(self._tell_snapshots, turn, interval)
                while await self._still_there():
                    pass
                nursery.cancel_scope.cancel()
        except* M2MError as group:
            problem = str(group.exceptions[0])
        if problem is not None:
            raise M2MError(problem)

    async def _still_there(self) -> bool:
        try:
            return bool(await self._stream.receive_some())  # nothing is asked during a watch
        except trio.BrokenResourceError:
            return False

    async def _tell_events(self, turn: trio.Lock) -> None:
        async with _closing(self._source.events()) as events:
            async for event in events:
                await self._tell(turn, EventItem(event))

    async def _tell_snapshots(self, turn: trio.Lock, interval: float) -> None:
        while True:
            stats = await self._source.stats()
            sessions = await self._some_sessions(SNAPSHOT_SESSIONS)
            await self._tell(turn, Snapshot(time.time(), stats, sessions))
            await trio.sleep(interval)

    async def _tell(self, turn: trio.Lock, item: Item) -> None:
        async with turn:
            try:
                await self._say(item)
                await self._flush()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                await trio.sleep_forever()  # the reader sees it too, and ends the watch

    # -- network functions --------------------------------------------------------------

    async def _accompany(self, about: NfRun) -> None:
        """A network function runs until its side closes."""
        assert self._functions is not None  # only they may say so
        function = self._functions.add(about)
        problem = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._ask_all, function)
                problem = await self._hear(function)
                nursery.cancel_scope.cancel()
        finally:
            self._functions.remove(function)
        if problem is not None:
            raise M2MError(f"this is no answer: {problem}")

    async def _hear(self, function: Function) -> str | None:
        """Its answers until its side closes; what is wrong with one, after which none is read."""
        answers = msgspec.json.Decoder(Quiet)
        try:
            while (line := await self._line()) is not None:
                function.answered(answers.decode(line))
        except msgspec.DecodeError as error:
            return str(error)
        except trio.BrokenResourceError:
            pass
        return None

    async def _ask_all(self, function: Function) -> None:
        async for question in function.asks:
            try:
                await self._say(question)
                await self._flush()
            except trio.BrokenResourceError:
                return  # its side has closed, which the reader sees too

    # -- output -------------------------------------------------------------------------

    async def _say(self, item: Item) -> None:
        self._out += self._encoder.encode(item) + b"\n"
        if len(self._out) >= _BATCH:
            await self._flush()

    async def _flush(self) -> None:
        out, self._out = self._out, bytearray()
        await self._stream.send_all(out)


def _absolute(path: str) -> Path:
    found = Path(path)
    if not found.is_absolute():
        raise M2MError(f"{path!r}: name the file of deeds by its whole path")
    return found
