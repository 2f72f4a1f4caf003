"""A session's path, asked hop by hop: each host describes its part and names its neighbours.

The questions and answers travel like all control messages, but are the shell's own business:
they change nothing, and their answers need the datapath's counters.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeAlias

import msgspec
import trio

from m2m.agent.api import (
    Direction,
    FlowInfo,
    HopReport,
    PathInfo,
    Role,
    SessionState,
    UnknownSession,
    format_session,
    parse_session,
)
from m2m.agent.functions import Functions
from m2m.agent.sessions import Sessions
from m2m.agent.sockets import retransmissions
from m2m.datapath import Row
from m2m.policy.rules import Kind
from m2m.protocol.flow import Address, format_address, parse_address
from m2m.protocol.translation import Hook, Position, SessionView, Toward
from m2m.protocol.wire import MAX_CHAIN, Message, PathRep, PathReq

__all__ = ["Paths", "directions", "halves", "position_name"]

_PATIENCE = (0.25, 0.5, 1.0)  # s to wait for a hop's answer, try by try: it may be busy
_WALKS = 4  # of a path that a change is just altering
_HALVES = 8  # shown on either side of a path
_BETWEEN = 0.05  # s from one to the next: by then the change is further on

_UNKNOWN = "does not know the session"

Send: TypeAlias = Callable[[Address, Message, Address | None], None]


class _Question:
    """One that is under way: *answer* is a report, or why there is none."""

    def __init__(self) -> None:
        self.answered = trio.Event()
        self.answer: HopReport | str = "does not answer"


class Paths:
    """Asks others about sessions, and answers them."""

    def __init__(
        self, name: str, role: Role, sessions: Sessions, send: Send, functions: Functions
    ) -> None:
        self._name = name
        self._role = role
        self._sessions = sessions
        self._send = send
        self._functions = functions
        self._questions: dict[tuple[Address, int], _Question] = {}

    async def path(self, session: int) -> PathInfo:
        """The whole path, both ways from here. A hop that does not answer ends the walk.

        Takes less than a second per hop. Raises :exc:`~m2m.agent.api.UnknownSession`.
        """
        found = await self._whole(session, lambda: self.report(session))
        if found is None:
            raise UnknownSession(f"no session {format_session(session)} is at this host")
        return found

    async def joined(self, session: int) -> PathInfo:
        """The same, with the halves that proxies join to it."""
        found = await self.path(session)
        before, behind = await self._beyond(found, 0), await self._beyond(found, -1)
        return msgspec.structs.replace(found, before=tuple(reversed(before)), behind=tuple(behind))

    async def _beyond(self, path: PathInfo, end: int) -> list[PathInfo]:
        """The halves on the other side of the proxy at this end, and of the next one."""
        found: list[PathInfo] = []
        while len(found) < _HALVES:
            hop, path_there = path.hops[end], None
            for name in hop.halves[-_HALVES:]:
                path_there = await self.path_by(parse_session(name), parse_address(hop.address))
                if path_there is not None:
                    found.append(path_there)
            if path_there is None:
                break
            path = path_there
        return found

    async def path_by(self, session: int, host: Address) -> PathInfo | None:
        """The whole path as *host*, which is or was on it, knows it; None if it does not."""

        async def known() -> HopReport | None:
            here = await self.report(session)
            if here is not None:
                return here
            answer = await self._ask(host, session)
            return None if isinstance(answer, str) else answer

        return await self._whole(session, known)

    async def _whole(
        self, session: int, start: Callable[[], Awaitable[HopReport | None]]
    ) -> PathInfo | None:
        """The path from where it is begun; None when it is not known there.

        Hosts are asked one after the other, while others may change the path: a host that was
        named as a neighbour may have left when it is asked. Then the path is walked anew.
        """
        found: PathInfo | None = None
        for walk in range(_WALKS):
            if walk:
                await trio.sleep(_BETWEEN)
            here = await start()
            if here is None:
                return None
            found = await self._around(session, here)
            if _UNKNOWN not in found.problem:
                break
        return found

    async def _around(self, session: int, here: HopReport) -> PathInfo:
        lefts: list[HopReport] = []
        rights: list[HopReport] = []
        problems: list[str] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._walk, session, here.prev, "prev", lefts, problems)
            nursery.start_soon(self._walk, session, here.next, "next", rights, problems)
        hops = (*reversed(lefts), here, *rights)
        first, last = hops[0].position, hops[-1].position
        if not problems and not (first in ("client", "proxy") and last in ("server", "proxy")):
            problems.append(f"it goes from a {first} to a {last}")
        return PathInfo(format_session(session), hops, not problems, "; ".join(problems))

    async def report(self, session: int) -> HopReport | None:
        """This host's part of a session, None when it has none."""
        view, state = self._sessions.node.view(session), self._sessions.state(session)
        if view is None or state is None:
            return None
        to_server, to_client = directions(await self._sessions.rows(view))
        left, right = view.left, view.right
        own = _own(view)
        return HopReport(
            session=format_session(session),
            host=self._name,
            address=format_address(own),
            role=self._role,
            position=position_name(view),
            nf=_nf_at(own, view, self._sessions),
            state=state,
            supersession=FlowInfo.of(view.supersession),
            left=None if left is None else FlowInfo.of(left),
            right=None if right is None else FlowInfo.of(right),
            to_server=to_server,
            to_client=to_client,
            prev=None if left is None else format_address(left.src),
            next=None if right is None else format_address(right.dst),
            retransmissions=_repeated(view),
            watched=bool(self._functions.running),
            local=None if view.local is None else FlowInfo.of(view.local),
            halves=halves(view, self._sessions),
        )

    async def asked(self, peer: Address, request: PathReq, at: Address | None) -> None:
        """Answer another agent that asked *at* one of our addresses; with nothing when the
        session is not here."""
        report = await self.report(request.session)
        encoded = b"" if report is None else msgspec.msgpack.encode(report)
        self._send(peer, PathRep(request.session, encoded), at)

    def answered(self, peer: Address, reply: PathRep) -> None:
        """Another agent's answer has come; one that nobody waits for is ignored."""
        question = self._questions.get((peer, reply.session))
        if question is None:
            return
        if not reply.report:
            question.answer = _UNKNOWN
        else:
            try:
                question.answer = msgspec.msgpack.decode(reply.report, type=HopReport)
            except msgspec.DecodeError as error:
                question.answer = f"describes it in a way that is not understood ({error})"
        question.answered.set()

    async def _walk(
        self,
        session: int,
        neighbour: str | None,
        direction: str,
        found: list[HopReport],
        problems: list[str],
    ) -> None:
        for _ in range(MAX_CHAIN + 1):
            if neighbour is None:
                return
            try:
                answer = await self._ask(parse_address(neighbour), session)
            except ValueError:
                answer = "is not an address, though its neighbour says so"
            if isinstance(answer, str):
                problems.append(f"{neighbour} {answer}")
                found.append(_unreachable(session, neighbour))
                return
            found.append(answer)
            neighbour = getattr(answer, direction)

    async def _ask(self, peer: Address, session: int) -> HopReport | str:
        """What *peer* says of the session, or why it says nothing."""
        key = (peer, session)
        question = self._questions.get(key)
        if question is None:  # else somebody asks already: wait for the same answer
            question = self._questions[key] = _Question()
        try:
            for patience in _PATIENCE:
                self._send(peer, PathReq(session), None)
                with trio.move_on_after(patience):
                    await question.answered.wait()
                    break
            return question.answer
        finally:
            if self._questions.get(key) is question:
                del self._questions[key]


def directions(rows: Iterable[Row]) -> tuple[Direction | None, Direction | None]:
    """What has come in for the server and for the client, from a session's entries.

    An inline middlebox has an entry before and one behind its network function in each
    direction; what the function drops is in the first one only, so that one is told.
    """
    found: dict[Toward, Row] = {}
    for row in rows:
        if row.entry.toward not in found or row.entry.hook is Hook.IN:
            found[row.entry.toward] = row
    to_server, to_client = found.get(Toward.RIGHT), found.get(Toward.LEFT)
    return (
        None if to_server is None else Direction.of(to_server.counters),
        None if to_client is None else Direction.of(to_client.counters),
    )


def position_name(view: SessionView) -> str:
    """What this host is to a session, in a word; a proxy is one on both sides."""
    place = view.position if view.local is None else Position.PROXY
    return place.name.lower()


def halves(view: SessionView, sessions: Sessions) -> tuple[str, ...]:
    """At a proxy: the sessions by which this one goes on, or the one that it goes on with."""
    if position_name(view) != "proxy":
        return ()
    return tuple(format_session(one.id) for one in sessions.node.register.other_halves(view))


def _own(view: SessionView) -> Address:
    """The address by which the neighbours know this host."""
    if view.left is not None:
        return view.left.dst
    assert view.right is not None
    return view.right.src


def _nf_at(own: Address, view: SessionView, sessions: Sessions) -> str | None:
    """The network function that a middlebox runs for the session, as far as policy tells or,
    when it is not declared any more, has told."""
    name = position_name(view)
    if name in ("client", "server"):
        return None
    # A tap with a splice may be all that is left of a proxy.
    for kind in (Kind(name),) if view.splice is None else (Kind(name), Kind.PROXY):
        for nf in sessions.chains.policy.nfs:
            if nf.kind is kind:
                for instance in nf.instances:
                    if instance.address == own:
                        return f"{nf.name}/{instance.name}"
        former = sessions.chains.former_nfs.get((own, kind))
        if former is not None:
            return former
    return None


def _repeated(view: SessionView) -> int | None:
    if view.position is Position.CLIENT:
        return retransmissions(view.here)
    if view.position is Position.SERVER:
        return retransmissions(view.supersession.reverse())
    return None


def _unreachable(session: int, address: str) -> HopReport:
    return HopReport(
        session=format_session(session),
        host="",
        address=address,
        role=None,
        position="",
        nf=None,
        state=SessionState.UNREACHABLE,
        supersession=None,
        left=None,
        right=None,
        to_server=None,
        to_client=None,
        prev=None,
        next=None,
    )
