"""Changing one session's chain for somebody on this host: may they, how, and what came of it.

If this host leads what is planned, its node is told to; otherwise the host that does is asked. A
plan that was overtaken by another change is made anew.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import trio
from msgspec.structs import replace

from m2m.agent.api import ChangeReport, HopReport, PathInfo, format_session
from m2m.agent.changes import Expected
from m2m.agent.path import Paths
from m2m.agent.plan import Plan, Unfit, hop_name
from m2m.agent.sessions import Sessions
from m2m.errors import M2MError
from m2m.policy.rules import ALLOWED, Asker, ChangeMode
from m2m.protocol.commands import ChangeDone, ChangeRefused
from m2m.protocol.events import ChangeWanted, RequestWanted
from m2m.protocol.flow import Address, Flow, Proto, format_address
from m2m.protocol.reasons import own_address
from m2m.protocol.session import Session, State
from m2m.protocol.splice import Splice
from m2m.protocol.update import Mode
from m2m.protocol.wire import Cause

__all__ = ["STANDING", "Asking", "Wanted"]

STANDING = (State.ESTABLISHED, State.ADOPTED)
"""States in which a session's chain can be changed."""

_TRIES = 5  # for a session whose chain others change meanwhile
_PATIENCE = 20.0  # s; the protocol is through long before

Planner: TypeAlias = Callable[[Sequence[HopReport], str, Flow], Plan]
"""Makes a plan of a session's path, the asked host's address on it, and the session's flow."""


class Wanted(NamedTuple):
    """What somebody wants of a session."""

    planner: Planner
    asker: Asker
    mode: ChangeMode | None = None  # None: as the session's policy says
    progress: Callable[[str, str], None] = lambda _session, _stage: None
    # Sessions that were not named themselves need not fit: Unfit is raised, not reported.
    named: bool = True
    added: Splice | None = None  # to numbers, by a function of this host, which is to be taken out


class _Refused(M2MError):
    """It must not be, or cannot; *by* whom, and why as the protocol names it."""

    def __init__(self, text: str, by: str, cause: Cause | None = None) -> None:
        super().__init__(text)
        self.by = by
        self.cause = None if cause is None else cause.name.lower()


class _Case:
    """One session's change, as far as it has come."""

    def __init__(self, session: int, mode: ChangeMode) -> None:
        self.session = session
        self.mode = mode
        self.before: PathInfo | None = None
        self.leader: Address | None = None
        self.expected: Expected | None = None


class Asking:
    """Asks, one change of a session after the other."""

    def __init__(self, name: str, sessions: Sessions, paths: Paths) -> None:
        self._name = name
        self._sessions = sessions
        self._paths = paths
        self._turns: dict[int, trio.Lock] = {}

    async def change(self, session: int, wanted: Wanted) -> ChangeReport:
        """Change a session as it is wanted, and report. Raises :exc:`Unfit` (see :class:`Wanted`).

        Takes less than a second, unless others change the session or hosts do not answer.
        """
        turn = self._turns.setdefault(session, trio.Lock())
        try:
            async with turn:
                return await self._in_turn(session, wanted)
        finally:
            if not turn.locked():
                self._turns.pop(session, None)

    async def _in_turn(self, session: int, wanted: Wanted) -> ChangeReport:
        case = _Case(session, wanted.mode or ChangeMode.OP)
        try:
            await self._carry_out(case, wanted)
        except Unfit as error:
            if not wanted.named:
                raise
            return await self._report(case, error)
        except M2MError as error:
            return await self._report(case, error)
        return await self._report(case, None)

    async def _carry_out(self, case: _Case, wanted: Wanted) -> None:
        """Raises :exc:`M2MError` that says why it was not to be."""
        session = self._sessions.node.sessions.get(case.session)
        if session is None or session.state not in STANDING:
            raise _Refused("the session is not established at this host", self._name)
        flow, own = session.supersession, own_address(session)
        case.mode = self._may(wanted, session)
        for tries_left in reversed(range(_TRIES)):
            case.before = await self._paths.path(session.id)
            if not case.before.complete:
                raise _Refused(f"its path is not whole: {case.before.problem}", self._name)
            plan = wanted.planner(case.before.hops, format_address(own), flow)
            case.leader = plan.leader
            number = secrets.randbits(64) or 1
            event = self._event(session, plan, number, Mode[case.mode.name], wanted.added)
            case.expected = await self._await(event, number, wanted)
            result = case.expected.result
            if isinstance(result, ChangeDone):
                return
            if result is None:
                text = f"nothing was heard of it for {_PATIENCE:g} s"
                raise _Refused(text, self._name, Cause.TIMEOUT)
            if result.cause is not Cause.MOVED or not tries_left:
                raise self._refusal(case, result)

    def _may(self, wanted: Wanted, session: Session) -> ChangeMode:
        """In which mode the session may be changed, if this asker may ask at all."""
        policy = self._sessions.chains.policy_now(session)
        allowed = ALLOWED if policy is None else policy.allow
        if wanted.asker not in allowed:
            where = "by default" if policy is None else f"line {policy.line} of the policy says"
            who = ", ".join(allowed) or "nobody"
            raise _Refused(
                f"{wanted.asker} may not ask for changes of this session: {where} {who} may; "
                "write allow={...} behind its rule",
                self._name,
            )
        if wanted.mode is not None:
            return wanted.mode
        mode = ChangeMode.OP if policy is None else policy.change
        tcp = session.supersession.proto == Proto.TCP
        return ChangeMode.OP if mode is ChangeMode.SS_OP and not tcp else mode

    def _event(
        self, session: Session, plan: Plan, number: int, mode: Mode, added: Splice | None
    ) -> ChangeWanted | RequestWanted:
        own, (leader, steps, right, hops) = own_address(session), plan
        if leader == own:
            route = self._sessions.route_to(hops[0].address if hops else right)
            return ChangeWanted(session.id, number, mode, steps, right, hops, route)
        if [step.address for step in steps] == [own]:
            # About this host itself: whoever is its left neighbour at the time is asked.
            return RequestWanted(session.id, number, mode, None, (), None, hops, added)
        return RequestWanted(session.id, number, mode, leader, steps, right, hops)

    async def _await(
        self, event: ChangeWanted | RequestWanted, number: int, wanted: Wanted
    ) -> Expected:
        """Have it done, and wait for the end."""
        session, name = event.session, format_session(event.session)
        changes = self._sessions.changes
        wanted.progress(name, "asked")
        expected = changes.expect(session, number, lambda: wanted.progress(name, "switched"))
        try:
            await self._sessions.feed(event)
            with trio.move_on_after(_PATIENCE):
                await expected.wait()
        finally:
            changes.forget(session, number)
        return expected

    # -- what came of it ----------------------------------------------------------------

    def _refusal(self, case: _Case, result: ChangeRefused) -> _Refused:
        blamed = result.blame if result.blame is not None else case.leader
        return _Refused(result.text, self._called(blamed, case.before), result.cause)

    def _called(self, host: Address | None, path: PathInfo | None) -> str:
        """A host as a person knows it."""
        text = self._name if host is None else format_address(host)
        for hop in path.hops if path is not None else ():
            if hop.address == text:
                return hop_name(hop)
        for nf in self._sessions.chains.policy.nfs:
            for one in nf.instances:
                if one.address == host:
                    return f"{nf.name}/{one.name}"
        return text

    async def _report(self, case: _Case, error: M2MError | None) -> ChangeReport:
        after, expected = case.before, case.expected
        if case.leader is not None and expected is not None:
            after = await self._paths.path_by(case.session, case.leader)
        report = ChangeReport(
            session=format_session(case.session),
            mode=case.mode,
            before=_names(case.before),
            after=_names(after),
            retransmissions=_repeated(case.before, after),
        )
        if error is not None:
            by, cause = getattr(error, "by", self._name), getattr(error, "cause", None)
            return replace(report, error=str(error), by=by, cause=cause)
        assert expected is not None
        assert expected.ended is not None
        assert isinstance(expected.result, ChangeDone)
        return replace(
            report,
            duration=round(expected.switched or expected.ended, 6),
            total=round(expected.ended, 6) if expected.result.gone else None,
            held=expected.result.held,
        )


def _names(path: PathInfo | None) -> tuple[str, ...]:
    return () if path is None else tuple(map(hop_name, path.hops))


def _repeated(before: PathInfo | None, after: PathInfo | None) -> int | None:
    """How many more segments the ends have repeated, as far as both paths tell."""
    if before is None or after is None:
        return None
    more = [
        new.retransmissions - old.retransmissions
        for old, new in zip(_ends(before), _ends(after), strict=True)
        if old.retransmissions is not None and new.retransmissions is not None
    ]
    return sum(more) if more else None


def _ends(path: PathInfo) -> tuple[HopReport, HopReport]:
    return path.hops[0], path.hops[-1]
