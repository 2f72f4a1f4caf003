"""Changing the chain of a live session: what is wanted, what waits, and which machine an event is
for. ``docs/reconfiguration.md`` is the theory to this; :mod:`m2m.protocol.paths` takes what
neighbours say.

Two rules make the rest simple. *A leg that is out never comes back*: so an UPDATE-FIN is right
whenever it comes, whoever has forgotten what meanwhile. *Locks are taken from left to right and
wait for each other*: so there is no ring of hosts that wait, and nobody has to back off.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from m2m.protocol.change import Change, Commands, Part, Phase, Tools, UpdateSettings
from m2m.protocol.commands import CancelTimer, Count, Resume, Send
from m2m.protocol.events import (
    Acked,
    ChangeWanted,
    Counted,
    Holding,
    HoldOverflow,
    Reached,
    Received,
    Redirected,
    RequestWanted,
    Resumed,
    Route,
    StateExported,
    StateImported,
    Timer,
    TimerFired,
)
from m2m.protocol.flow import Address, Flow, format_address
from m2m.protocol.leading import Leading
from m2m.protocol.passing import Passing
from m2m.protocol.paths import Admit, Claim, Machines, Paths, Take
from m2m.protocol.ports import PortAllocator
from m2m.protocol.reasons import Why, own_address
from m2m.protocol.receiving import Receiving
from m2m.protocol.register import Register
from m2m.protocol.requesting import Requesting
from m2m.protocol.session import Session, State
from m2m.protocol.splice import Splice
from m2m.protocol.translation import Entry, Hook, Position, Toward
from m2m.protocol.update import (
    Approve,
    Done,
    Lock,
    Mode,
    Reject,
    Request,
    UpdateSyn,
)
from m2m.protocol.wire import Cause

__all__ = ["Migration", "Waiting"]

_WAITING = 8  # changes that wait for one session here


class _Wish(NamedTuple):
    """A change that this host is to lead, and who asked for it (None: somebody here)."""

    wanted: ChangeWanted
    requester: Address | None
    here: Address | None = None  # this host's address when it began to wait

    def from_where_it_is(self, here: Address) -> _Wish:
        """The same, with a route that begins at this host's present address: while it waited, a
        client may have moved."""
        if self.here in (None, here):
            return self
        route = self.wanted.route._replace(source=here)
        return _Wish(self.wanted._replace(route=route), self.requester)


Waiting: TypeAlias = "Lock | _Wish"


class Migration:
    """What :class:`~m2m.protocol.node.Node` does not do itself about changes of chains."""

    def __init__(
        self,
        settings: UpdateSettings,
        ports: PortAllocator,
        register: Register,
        rng: random.Random,
        step: Take,
        admit: Admit,
        claim: Claim,
        closing: Callable[[Commands, Session], None],
        names: Callable[[Session], tuple[Entry, ...]],
        where: Callable[[Session], Address],
        leg_gone: Callable[[Commands, Session, Flow], None],
    ) -> None:
        """*step* takes a step of the session's table, *admit* makes a new hop, *claim* gets a left
        leg out of the hands of any other session that had it, *closing* is told of sessions
        that this host forgets, *names* tells the rows of old names of a session's legs, and
        *where* this host's address on them, and *leg_gone* is told of each that is no more."""
        self._register = register
        self._where = where
        self._tools = tools = Tools(settings, ports, register, self._next, closing, names, leg_gone)
        self._left = Leading(tools, rng)
        self._right = Receiving(tools)
        self._hop = Passing(tools)
        self._machines = Machines(tools, self._left, self._right, self._hop)
        self._paths = Paths(self._machines, step, admit, claim, self._wait)
        self._requesting = Requesting(settings, register, rng)

    # -- what is wanted -----------------------------------------------------------------

    def change_wanted(self, event: ChangeWanted) -> Commands:
        out: Commands = []
        self._wish(out, _Wish(event, None))
        return out

    def request_wanted(self, event: RequestWanted) -> Commands:
        out: Commands = []
        self._requesting.start(out, event)
        return out

    def _request(self, out: Commands, peer: Address, message: Request, route: Route | None) -> None:
        session, change = message.session, message.change
        outcome = self._left.outcome(session, change)
        if outcome is not None:
            out.append(Send(peer, outcome))
        elif route is None:
            why = Why(Cause.NO_ROUTE, "there is no route from here to the new path")
            self._left.refuse(out, session, change, peer, why)
        else:
            wanted = ChangeWanted(
                session, change, message.mode, message.steps, message.right, message.hops, route,
                message.added,
            )  # fmt: skip
            self._wish(out, _Wish(wanted, peer))

    def _wish(self, out: Commands, wish: _Wish) -> None:
        wanted, requester, _ = wish
        session = self._register.get(wanted.session)
        if session is None or session.state not in (State.ESTABLISHED, State.ADOPTED):
            why = Why(Cause.UNKNOWN_SESSION, "the session is not established here")
            if (
                session is None
                and requester is not None
                and self._register.has_ended(wanted.session)
            ):
                why = Why(Cause.MOVED, "this host has left the session's chain")
            self._left.refuse(out, wanted.session, wanted.change, requester, why)
            return
        change = session.change
        under_way = change is not None and change.wish == wanted.change
        if change is not None and not under_way:
            if self._tools.late(change):
                self._turn_away(out, session, wish)
                return
            if not self._wait(session, wish._replace(here=self._where(session))):
                why = Why(Cause.BUSY, "too many changes of this session wait here", None)
                self._left.refuse(out, wanted.session, wanted.change, requester, why)
                return
        if requester is not None:
            out.append(Send(requester, Approve(wanted.session, wanted.change)))
        if change is None:
            self._left.start(out, session, wanted, requester)

    # -- what waits ---------------------------------------------------------------------

    def _wait(self, session: Session, one: Waiting) -> bool:
        """Keep it until the present change is over; False if too many wait."""
        waiting = session.waiting = session.waiting or []
        number = _number(one)
        for at, other in enumerate(waiting):
            if _number(other) == number:
                waiting[at] = one
                return True
        if len(waiting) >= _WAITING:
            return False
        waiting.append(one)
        return True

    def _next(self, out: Commands, session: Session) -> None:
        """The change is over: look afresh at those that waited."""
        waiting, session.waiting = session.waiting, None
        gone = session.state in (State.CLOSING, State.GONE)
        for one in waiting or ():
            if gone:
                self._turn_away(out, session, one)
            elif isinstance(one, Lock):
                self._paths.lock(out, Received(one.leader, one))
            else:
                self._wish(out, one.from_where_it_is(self._where(session)))
        if gone:
            self._paths.over(out, session)

    def _no_longer(self, out: Commands, session: Session) -> None:
        """The present change takes long: who wants another is told so, and need not wait."""
        waiting = session.waiting or []
        session.waiting = [one for one in waiting if isinstance(one, Lock)] or None
        for one in waiting:
            if not isinstance(one, Lock):
                self._turn_away(out, session, one)

    def _turn_away(self, out: Commands, session: Session, one: Waiting) -> None:
        own, change = own_address(session), session.change
        here = format_address(own)
        if change is None or (change.part is Part.OLD and change.phase >= Phase.FINISHING):
            why = Why(Cause.MOVED, f"{here} has left the session's chain", own)
        else:
            text = f"an earlier change of the session is not over at {here}: try again later"
            why = Why(Cause.BUSY, text, own)
        if isinstance(one, Lock):
            self._paths.reject(out, one, why)
        else:
            self._left.refuse(out, session.id, one.wanted.change, one.requester, why)

    # -- events of the datapath ---------------------------------------------------------

    def counted(self, event: Counted) -> Commands:
        out: Commands = []
        session, change = self._change_of(event.session, event.change)
        if session is None or change is None or change.emptying is None:
            return out
        if change.emptying.key != event.key:
            return out
        rightward = change.phase in (Phase.DRAINING, Phase.FINISHING)
        toward = Toward.RIGHT if rightward else Toward.LEFT
        if self._tools.counted(out, session, event, toward):
            {Part.LEFT: self._left.emptied, Part.RIGHT: self._right.emptied}.get(
                change.part, self._hop.emptied
            )(out, session)
        return out

    def redirected(self, event: Redirected) -> Commands:
        out: Commands = []
        session, change = self._change_of(event.session, event.change)
        if session is not None and change is not None:
            if change.part is Part.LEFT:
                self._left.redirected(out, session, event.packets)
            elif change.part is Part.RIGHT:
                self._right.redirected(out, session, event.packets)
        return out

    def holding(self, event: Holding) -> Commands:
        out: Commands = []
        session, change = self._change_of(event.session, event.change)
        if session is not None and change is not None:
            if change.part is Part.LEFT:
                self._left.holding(out, session, event.packets, event.checkpoint)
            elif change.part is Part.RIGHT:
                self._right.holding(out, session, event.packets, event.checkpoint)
        return out

    def resumed(self, event: Resumed) -> Commands:
        _, change = self._change_of(event.session, event.change)
        if change is not None:
            change.held += event.packets
        return []

    def overflow(self, event: HoldOverflow) -> Commands:
        out: Commands = []
        session = self._register.get(event.session)
        change = None if session is None else session.change
        if session is None or change is None or event.toward not in change.holding:
            return out
        own = own_address(session)
        text = f"{format_address(own)} had to hold more packets than it may"
        self._let_go(out, session, event.toward, Why(Cause.OVERFLOW, text, own))
        return out

    def renamed(self, out: Commands, session: Session, former: tuple[Hook, Flow]) -> None:
        """A leg has another name. What a tap holds has come by the *former* one; what comes by the
        new one is not held, and must not overtake it."""
        change = session.change
        if change is None:
            return
        for toward, key in list(change.holding.items()):
            if key == former:
                out.append(Resume(session.id, change.id, key))
                text = "an end of the session has moved while packets were held: try again"
                why = Why(Cause.MOVED, text, own_address(session))
                self._let_go(out, session, toward, why)

    def _let_go(self, out: Commands, session: Session, toward: Toward, why: Why) -> None:
        """What was held has gone, before its time, by the rows as they are."""
        change = session.change
        assert change is not None
        del change.holding[toward]
        if change.part is Part.RIGHT:
            self._right.let_go(out, session, why)
        elif change.part is Part.LEFT:
            self._left.let_go(out, session, why)
        else:
            self._tools.behind(out, session, toward)

    def acked(self, event: Acked) -> Commands:
        out: Commands = []
        session = self._register.get(event.session)
        change = None if session is None else session.change
        if session is not None and change is not None:
            if change.part is Part.LEFT and event.toward is Toward.LEFT:
                self._left.acked(out, session, own=True)
            elif change.part is Part.RIGHT and event.toward is Toward.RIGHT:
                self._right.acked(out, session)
        return out

    def reached(self, event: Reached) -> Commands:
        session = self._register.get(event.session)
        change = None if session is None else session.change
        if session is None or change is None or change.emptying is None:
            return []
        change.emptying.delay = 0.0  # that pause was cut short
        return [Count(session.id, change.id, change.emptying.key)]

    def exported(self, event: StateExported) -> Commands:
        out: Commands = []
        session, change = self._change_of(event.session, event.change)
        if session is not None and change is not None and change.part is Part.OLD:
            self._hop.exported(out, session, event.data)
        return out

    def imported(self, event: StateImported) -> Commands:
        out: Commands = []
        session, change = self._change_of(event.session, event.change)
        if session is not None and change is not None and change.part is Part.NEW:
            self._hop.imported(out, session, ok=event.ok)
        return out

    def failed(self, out: Commands, session: Session, why: str) -> bool:
        """The datapath refuses; whether that is about a change, and not about the session."""
        change = session.change
        if change is None or change.part not in (Part.LEFT, Part.RIGHT):
            return False
        (self._left if change.part is Part.LEFT else self._right).failed(out, session, why)
        return True

    def timer_fired(self, event: TimerFired, *, request: bool) -> Commands:
        out: Commands = []
        if request:
            self._requesting.tick(out, event.session)
            return out
        session = self._register.get(event.session)
        change = None if session is None else session.change
        if session is None or change is None or not change.delay:
            return out
        change.waited += change.delay
        change.delay = 0.0
        if change.emptying is not None and not self._left.held_too_long(change):
            out.append(Count(session.id, change.id, change.emptying.key))
        elif change.part is Part.LEFT:
            self._left.tick(out, session)
        elif change.part is Part.RIGHT:
            self._right.tick(out, session)
        else:
            self._hop.tick(out, session)
        if session.change is change and self._tools.late(change):
            self._no_longer(out, session)
        return out

    # -- the session itself -------------------------------------------------------------

    def received(self, event: Received) -> Commands | None:
        """What is to be done about a message, None if it is not about a change."""
        out: Commands = []
        message = event.message
        if self._paths.received(out, event):
            return out
        if isinstance(message, Request):
            self._request(out, event.peer, message, event.route)
        elif isinstance(message, Approve | Done | Reject):
            self._requesting.answered(out, message)
        else:
            return None
        return out

    def joined(self, out: Commands, session: Session, syn: UpdateSyn) -> None:
        """The node has made a new hop of this host."""
        self._paths.joined(out, session, syn)

    def adopted(self, out: Commands, session: Session, spare: Flow, splice: Splice | None) -> None:
        """A restarted agent has found a second leg; whoever knows what it is for will say so."""
        left = session.left is not None and spare.dst == session.left.dst
        part = Part.RIGHT if left else Part.LEFT
        change = Change(0, part, Mode.LF, Phase.LOCKED if left else Phase.MAKING, b"")
        change.spare, change.splice = spare, splice
        change.more = session.position is Position.TAP
        session.change = change
        if left:
            self._register.list_leg(spare, session)
            self._tools.watch(out, session)
        else:
            self._tools.ports.adopt(spare)
            self._left.recover(out, session)

    def ask_left(self, out: Commands, session: Session) -> None:
        """An adopted session: is this host still on the path?"""
        self._tools.ask(out, session)

    def spare_over(self, out: Commands, session: Session, leg: Flow, why: Why) -> bool:
        """A neighbour has closed *leg*; whether it was only the spare one."""
        change = session.change
        if change is None:
            return False
        if change.spare == leg:
            if change.part is Part.LEFT:
                self._left.spare_gone(out, session, why)
            else:
                self._right.spare_gone(out, session)
            return True
        if change.part is Part.OLD and change.phase >= Phase.FINISHING:
            if leg == session.right:
                self._hop.right_gone(out, session)
            else:
                self._hop.left_gone(out, session)
            return True
        return False

    def accepts(self, session: Session, leg: Flow) -> bool:
        """Whether *leg* is a second leg of this session."""
        return session.change is not None and session.change.spare == leg

    def drop_spare(self, out: Commands, session: Session) -> None:
        """Another session has the ports of this one's spare left leg: the leg is dead."""
        if session.change is not None and session.change.part is Part.RIGHT:
            self._right.spare_gone(out, session)

    def closing(self, out: Commands, session: Session, why: Why) -> tuple[Flow | None, bool]:
        """The session ends: no more of its change. The spare leg, and whether it is ours."""
        change = session.change
        leg, ours = None, False
        if change is not None:
            leg, ours = change.spare, change.part is Part.LEFT
            self._machines.let_go(out, session, why)
            session.change = None
            out.append(CancelTimer(session.id, Timer.CHANGE))
        self._next(out, session)
        return leg, ours

    def _change_of(self, session: int, change: int) -> tuple[Session | None, Change | None]:
        found = self._register.get(session)
        if found is None or found.change is None or found.change.id != change:
            return found, None
        return found, found.change


def _number(one: Waiting) -> int:
    return one.change if isinstance(one, Lock) else one.wanted.change
