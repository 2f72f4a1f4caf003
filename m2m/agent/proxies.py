"""What this host's proxies tell of their sockets, and what they are told (``docs/proxies.md``).

A proxy's process connects to a Unix socket and asks, one question after the other. Messages are
those of ``nf_adapters/sockets/wire.h``.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

import structlog
import trio

from m2m.agent.api import format_session
from m2m.agent.asking import Asking
from m2m.agent.leaving import Departure, Leaving, Stays
from m2m.agent.openings import Fate, Outcome
from m2m.agent.sessions import Sessions
from m2m.agent.unix import bind, unlink_own
from m2m.errors import M2MError
from m2m.protocol.events import Ended
from m2m.protocol.flow import Address, Flow, Proto
from m2m.protocol.session import Role, Session
from m2m.protocol.translation import Position, Toward, sender
from nf_adapters.sockets import SIZE, Kind, Message, decode, encode
from nf_adapters.state.ctnetlink import Conntrack

__all__ = ["Proxies"]

_log = structlog.get_logger()

_BACKLOG = 1024  # processes that connect at once
_UNUSED = 5.0  # s after which a half is given up whose socket has sent nothing
_INT = struct.Struct("=i")
_DESCRIPTORS = 2  # beside LEAVE
_NO_FILES = 0.1  # s before another process is let in, when this one has too many open files
_ANSWERS = {
    Fate.STEERED: Kind.READY,
    Fate.PASSED: Kind.UNKNOWN,
    Fate.REFUSED: Kind.REFUSED,
}


class Proxies:
    """The sessions that come to proxies here, and the halves by which they go on."""

    def __init__(
        self,
        sessions: Sessions,
        listens: Callable[[], Iterable[tuple[Address, int]]] = tuple,
        asking: Asking | None = None,
    ) -> None:
        """*listens* tells where packets may be led to; see :class:`Leaving` for *asking*."""
        self._sessions = sessions
        self._listens = listens
        self._register = sessions.node.register
        self._fresh: deque[tuple[float, Flow]] = deque()  # halves that may not be used, and when
        self._some = trio.Event()
        self._connections: Conntrack | None = None  # until it is needed
        self._leaving = Leaving(sessions, self.find_accepted, asking)

    def find_accepted(self, flow: Flow) -> Session | None:
        """The session whose connection was accepted here from its source; its destination is the
        one that the client meant."""
        found = self._register.with_flow(flow) or self._renamed(flow)
        return found if found is not None and found.position is Position.PROXY else None

    def _renamed(self, flow: Flow) -> Session | None:
        """The same where connection tracking has given the connection another source port: two
        of a client's, from one port to different servers, would be one where they are led to."""
        for address, port in self._listens():
            answers = flow._replace(dst=address, dport=port).reverse()
            try:
                if self._connections is None:
                    self._connections = Conntrack()
                found = self._connections.get(answers, 0)
            except (M2MError, OSError) as error:
                _log.warning("connection tracking does not tell", flow=str(flow), why=str(error))
                return None
            if found is not None and found.entry.flow.dst == flow.dst:
                return self._register.with_flow(found.entry.flow)
        return None

    async def connect_half(self, session: int, outgoing: Flow) -> Outcome:
        """Have *outgoing* go on with a session that has come here."""
        came = self._sessions.node.sessions.get(session)
        if came is None or came.position is not Position.PROXY:
            return Outcome(Fate.PASSED, f"no session {format_session(session)} has come here")
        if outgoing.proto != Proto.TCP:
            return Outcome(Fate.PASSED, "only TCP connections go on with a session")
        outcome = await self._sessions.openings.go_on(came, outgoing)
        if outcome.fate is Fate.STEERED:
            self._fresh.append((trio.current_time() + _UNUSED, outgoing))
            self._some.set()
        return outcome

    async def revoke_half(self, outgoing: Flow) -> None:
        """The connection *outgoing* was not made, or is given up."""
        half = self._half(outgoing)
        if half is not None:
            await self._sessions.feed(Ended(half.id, "its proxy has not connected"))

    def _half(self, outgoing: Flow) -> Session | None:
        found = self._register.with_flow(outgoing)
        return found if found is not None and found.role is Role.CLIENT else None

    async def serve(
        self,
        path: Path,
        group: str | None = None,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Answer processes on the Unix socket *path*, which *group* may use, until cancelled.

        Raises :exc:`~m2m.errors.ConfigError` when it cannot be made.
        """
        with await bind(path, socket.SOCK_SEQPACKET, group) as listener:
            listener.listen(_BACKLOG)
            made = os.stat(path).st_ino
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._give_up_unused)
                    nursery.start_soon(self._leaving.run)
                    task_status.started()
                    while True:
                        nursery.start_soon(self._talk, await _accept(listener))
            finally:
                unlink_own(path, made)
                self._leaving.close()
                if self._connections is not None:
                    self._connections.close()

    async def _talk(self, process: trio.socket.SocketType) -> None:
        line = _Line(process)
        with process:
            try:
                while True:
                    data, beside = await _receive(process)
                    try:
                        if not data:
                            break
                        await self._hear(line, _question(data), beside)
                    finally:
                        for sock in beside:
                            sock.close()
            except (ValueError, OSError) as error:
                _log.info("a proxy's process is not answered any more", why=str(error))
            finally:
                if line.departure is not None:
                    with trio.CancelScope(shield=True):
                        await line.departure.stay()
                    self._gone(line)

    async def _hear(self, line: _Line, said: Message, beside: list[socket.socket]) -> None:
        process = line.process
        if said.kind in (Kind.LEAVE, Kind.PASSED):
            await process.send(encode(await self._leave(line, said, beside)))
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, process, said)
            answer = await self._answer(said)
            nursery.cancel_scope.cancel()
        try:
            await process.send(encode(answer))
        except OSError:
            if answer.kind is Kind.READY and answer.flow is not None:  # nobody is there to use it
                await self.revoke_half(answer.flow)
            raise

    async def _leave(self, line: _Line, said: Message, beside: list[socket.socket]) -> Message:
        """What a proxy's process is told that would leave a session."""
        try:
            if said.kind is Kind.LEAVE:
                if line.departure is not None or len(beside) != _DESCRIPTORS:
                    raise Stays("LEAVE comes with two sockets, once")
                line.departure = await self._leaving.begin(beside[0], beside[1])
                line.sockets, beside[:] = list(beside), []
                return Message(Kind.LEAVING, said.number)
            if line.departure is None:
                raise Stays("it is not leaving any session")
            if not await line.departure.passed():
                return Message(Kind.MORE, said.number)
            answer = Message(Kind.LEFT, said.number)
        except Stays as error:
            answer = Message(Kind.STAYS, said.number, text=str(error))
            _log.info("a proxy stays in a session", why=str(error))
        if line.departure is not None:
            self._gone(line)
        return answer

    def _gone(self, line: _Line) -> None:
        assert line.departure is not None
        self._leaving.over(line.departure)
        line.departure = None
        for sock in line.sockets:
            sock.close()

    async def _watch(self, process: trio.socket.SocketType, said: Message) -> None:
        """A process that does not wait any longer connects as without M2M, from the same port: what
        is being set up for it must not come to be."""
        await trio.lowlevel.wait_readable(process)  # it says nothing before it is answered
        if said.kind is Kind.CONNECTING and said.flow is not None:
            with trio.CancelScope(shield=True):  # it ends the waiting for the answer, and goes on
                await self.revoke_half(said.flow)

    async def _answer(self, said: Message) -> Message:
        kind, number, session, flow, _ = said
        assert flow is not None
        match kind:
            case Kind.ACCEPTED:
                self._leaving.prepare()
                found = self.find_accepted(flow)
                if found is None:
                    return Message(Kind.UNKNOWN, number, text="no session of ours")
                return Message(Kind.FOUND, number, found.id, found.supersession)
            case Kind.CONNECTING:
                outcome = await self.connect_half(session, flow)
                return Message(_ANSWERS[outcome.fate], number, session, flow, outcome.why)
            case Kind.REVOKED:
                await self.revoke_half(flow)
                return Message(Kind.GONE, number, session, flow)
        raise AssertionError(f"{kind.name} is no question")

    async def _give_up_unused(self) -> None:
        """A process may end between its question and its SYN."""
        while True:
            if not self._fresh:
                self._some = trio.Event()
                await self._some.wait()
            due, outgoing = self._fresh.popleft()
            await trio.sleep_until(due)
            half = self._half(outgoing)
            if half is None:
                continue
            async with self._sessions.turn:
                rows = await self._sessions.datapath.rows([sender(half.view, Toward.RIGHT)])
            if rows and not rows[0].counters.packets:
                await self._sessions.feed(Ended(half.id, "its proxy has sent nothing"))


class _Line:
    """A process's connection, and what it is about to leave."""

    def __init__(self, process: trio.socket.SocketType) -> None:
        self.process = process
        self.departure: Departure | None = None
        self.sockets: list[socket.socket] = []  # of that


async def _receive(process: trio.socket.SocketType) -> tuple[bytes, list[socket.socket]]:
    """A message and the sockets beside it, which are the caller's.

    Raises :exc:`OSError`, also where one of them is no socket; none is left open then.
    """
    room = socket.CMSG_SPACE(_DESCRIPTORS * _INT.size)
    data, beside, _, _ = await process.recvmsg(SIZE + 1, room, socket.MSG_CMSG_CLOEXEC)
    numbers: list[int] = []
    for level, kind, content in beside:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            whole = len(content) // _INT.size * _INT.size
            numbers += [fd for (fd,) in _INT.iter_unpack(content[:whole])]
    found: list[socket.socket] = []
    try:
        for fd in numbers:
            found.append(socket.socket(fileno=fd))  # noqa: PERF401  (one may fail, and those before stay)
    except OSError:
        for sock in found:
            sock.detach()
        for fd in numbers:
            os.close(fd)
        raise
    return data, found


def _question(data: bytes) -> Message:
    """Raises :exc:`ValueError` for what is none."""
    said = decode(data)
    if said.kind in (Kind.LEAVE, Kind.PASSED):
        return said
    if said.kind not in (Kind.ACCEPTED, Kind.CONNECTING, Kind.REVOKED):
        raise ValueError(f"{said.kind.name} is no question")
    if said.flow is None:
        raise ValueError(f"{said.kind.name} names no flow")
    return said


async def _accept(listener: trio.socket.SocketType) -> trio.socket.SocketType:
    while True:
        try:
            process, _ = await listener.accept()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ECONNABORTED):
                raise
            _log.warning("a proxy's process is not let in", why=error.strerror)
            await trio.sleep(_NO_FILES)
        else:
            return process
