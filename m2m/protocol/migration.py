"""Changing the chain of a live session: which part of this host an event is for, and the rules
that are the same for all parts. ``docs/reconfiguration.md`` is the theory to this.

Two rules make the rest simple. *A leg that is out never comes back*: so an UPDATE-FIN is right
whenever it comes, whoever has forgotten what meanwhile. *Locks are taken from left to right and
wait for each other*: so there is no ring of hosts that wait, and nobody has to back off.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

from m2m.protocol.change import Change, Commands, Part, Phase, Tools, UpdateSettings
from m2m.protocol.commands import CancelTimer, Count, Send, Withdraw
from m2m.protocol.events import (
    Acked,
    ChangeWanted,
    Counted,
    Holding,
    HoldOverflow,
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
from m2m.protocol.leading import Leading, decided
from m2m.protocol.passing import Passing
from m2m.protocol.ports import PortAllocator
from m2m.protocol.reasons import Why, own_address
from m2m.protocol.receiving import Receiving, undecided
from m2m.protocol.register import Register
from m2m.protocol.requesting import Requesting
from m2m.protocol.session import Input, Session, State
from m2m.protocol.translation import Toward, spare_entries
from m2m.protocol.update import (
    Approve,
    Done,
    Lock,
    Mode,
    Progress,
    Reject,
    Request,
    StateAck,
    StatePart,
    UpdateAck,
    UpdateAsk,
    UpdateDrain,
    UpdateDrained,
    UpdateFin,
    UpdateFinAck,
    UpdateReject,
    UpdateSub,
    UpdateSubAck,
    UpdateSyn,
    UpdateSynAck,
)
from m2m.protocol.wire import Cause, Rst, clip

__all__ = ["Migration", "Waiting"]

_WAITING = 8  # changes that wait for one session here
_EARLY = 1024  # UPDATE-SYNs kept because they came before the LOCK, or before the old part ended

_STANDING = (State.CONFIRMING, State.ESTABLISHED, State.ADOPTED)


class _Wish(NamedTuple):
    """A change that this host is to lead, and who asked for it (None: somebody here)."""

    wanted: ChangeWanted
    requester: Address | None


class _Join(NamedTuple):
    """An UPDATE-SYN, and the way to the next host if there is one."""

    syn: UpdateSyn
    route: Route | None


Waiting: TypeAlias = "Lock | _Wish"
Step: TypeAlias = Callable[[Commands, Session, Input, object], None]
Admit: TypeAlias = Callable[[Commands, UpdateSyn, Route | None], None]


class Migration:
    """What :class:`~m2m.protocol.node.Node` does not do itself about changes of chains."""

    def __init__(
        self,
        settings: UpdateSettings,
        ports: PortAllocator,
        register: Register,
        rng: random.Random,
        step: Step,
        admit: Admit,
        claim: Callable[[Commands, Session, Flow], None],
    ) -> None:
        """*step* takes a step of the session's table, *admit* makes a new hop, and *claim* gets
        a left leg out of the hands of any other session that had it."""
        self._register = register
        self._step = step
        self._admit = admit
        self._claim = claim
        self._tools = Tools(settings, ports, register, self._next)
        self._left = Leading(self._tools, rng)
        self._right = Receiving(self._tools)
        self._hop = Passing(self._tools)
        self._requesting = Requesting(settings, register, rng)
        self._early: dict[tuple[int, int], _Join] = {}

    # -- what is wanted -----------------------------------------------------------------

    def change_wanted(self, event: ChangeWanted) -> Commands:
        out: Commands = []
        self._wish(out, _Wish(event, None))
        return out

    def request_wanted(self, event: RequestWanted) -> Commands:
        out: Commands = []
        self._requesting.start(out, event)
        return out

    def _request(self, out: Commands, event: Received) -> None:
        message = event.message
        assert isinstance(message, Request)
        outcome = self._left.outcome(message.session, message.change)
        if outcome is not None:
            out.append(Send(event.peer, outcome))
            return
        if event.route is None:
            why = Why(Cause.NO_ROUTE, "there is no route from here to the new path", None)
            self._left.refuse(out, message.session, message.change, event.peer, why)
            return
        wanted = ChangeWanted(
            message.session, message.change, message.mode, message.steps, message.right,
            message.hops, event.route,
        )  # fmt: skip
        self._wish(out, _Wish(wanted, event.peer))

    def _answered(self, out: Commands, event: Received) -> None:
        message = event.message
        assert isinstance(message, Approve | Done | Reject)
        self._requesting.answered(out, message)

    def _wish(self, out: Commands, wish: _Wish) -> None:
        wanted, requester = wish
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
        if change is not None and not under_way and not self._wait(session, wish):
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
                self._lock(out, Received(one.leader, one))
            else:
                self._wish(out, one)
        if gone:
            for key in [key for key in self._early if key[0] == session.id]:
                join = self._early.pop(key)
                if session.state is State.GONE:
                    self._syn(out, Received(join.syn.leader, join.syn, join.route))

    def _turn_away(self, out: Commands, session: Session, one: Waiting) -> None:
        own = own_address(session)
        why = Why(Cause.MOVED, f"{format_address(own)} has left the session's chain", own)
        if isinstance(one, Lock):
            self._reject(out, one, why)
        else:
            self._left.refuse(out, session.id, one.wanted.change, one.requester, why)

    def _reject(self, out: Commands, message: Lock | UpdateSyn, why: Why) -> None:
        assert why.cause is not None
        answer = UpdateReject(message.session, message.change, why.cause, clip(why.text), why.blame)
        out.append(Send(message.leader, answer))

    # -- the old path -------------------------------------------------------------------

    def _lock(self, out: Commands, event: Received) -> None:
        message = event.message
        assert isinstance(message, Lock)
        leg, session = message.subsession, self._register.get(message.session)
        here = format_address(leg.dst)
        if session is None or session.left != leg or session.state not in _STANDING:
            text = f"{format_address(leg.src)} does not lead to {here} any more"
            self._reject(out, message, Why(Cause.MOVED, text, leg.dst))
            return
        self._step(out, session, Input.IN, None)  # or nobody could change the chain
        change = session.change
        if change is not None and change.part is Part.NEW:
            self._tools.end(out, session)
            change = session.change
        if change is not None:
            self._lock_later(out, session, change, message)
            return
        why = _misfit(session, message)
        if why is not None:
            self._reject(out, message, why)
        elif message.steps:
            self._hop.lock(out, session, message)
        else:
            join = self._early.pop((session.id, message.change), None)
            if join is not None:
                self._claim(out, session, join.syn.subsession)
            self._right.lock(out, session, message, None if join is None else join.syn)

    def _lock_later(self, out: Commands, session: Session, change: Change, message: Lock) -> None:
        if change.id == message.change:
            if change.part is Part.OLD:
                self._hop.lock_again(out, session)
        elif not self._wait(session, message):
            text = "too many changes of this session wait here"
            self._reject(out, message, Why(Cause.BUSY, text, own_address(session)))
        elif change.part in (Part.OLD, Part.RIGHT):
            # What has locked this host came by the same leg. Its L is through with it, perhaps.
            self._tools.ask(out, session)

    # -- the new path -------------------------------------------------------------------

    def _syn(self, out: Commands, event: Received) -> None:
        message = event.message
        assert isinstance(message, UpdateSyn)
        session, join = self._register.get(message.session), _Join(message, event.route)
        if message.hops:
            self._join(out, session, join)
            return
        if session is None or session.state not in _STANDING or session.left is None:
            text = f"{format_address(message.right)} has no such session"
            self._reject(out, message, Why(Cause.MOVED, text, message.right))
            return
        change = session.change
        if change is None or change.id != message.change:
            self._keep(join)
        elif change.part is Part.RIGHT:
            if change.spare is None:
                self._claim(out, session, message.subsession)
            self._right.made(out, session, message)

    def _join(self, out: Commands, session: Session | None, join: _Join) -> None:
        syn = join.syn
        if session is None:
            self._admit(out, syn, join.route)
            return
        change = session.change
        if change is not None and change.part is Part.NEW and session.left == syn.subsession:
            assert session.right is not None
            out.append(Send(session.right.dst, onward(syn, session.right, session.mtu)))
        elif change is not None and change.part is Part.OLD and change.phase >= Phase.FINISHING:
            self._keep(join)
        elif session.left != syn.subsession:
            own = syn.subsession.dst
            text = f"{format_address(own)} is on the session's path already: name each host once"
            self._reject(out, syn, Why(Cause.LOOP, text, own))

    def joined(self, out: Commands, session: Session, syn: UpdateSyn) -> None:
        """The node has made this new hop; the message is passed on before it is installed."""
        session.change = Change(syn.change, Part.NEW, syn.mode, Phase.JOINED, syn.leader)
        assert session.right is not None
        out.append(Send(session.right.dst, onward(syn, session.right, session.mtu)))
        self._tools.watch(out, session)

    def _keep(self, join: _Join) -> None:
        """It has come before this host is ready for it."""
        self._early[join.syn.session, join.syn.change] = join
        if len(self._early) > _EARLY:
            del self._early[next(iter(self._early))]

    # -- how it ends --------------------------------------------------------------------

    def _ack(self, out: Commands, event: Received) -> None:
        message = event.message
        assert isinstance(message, UpdateAck)
        leg, session = message.subsession, self._register.get(message.session)
        change = None if session is None else session.change
        known = session is not None and (
            leg == session.left or (change is not None and leg == change.spare)
        )
        if session is None or not known:
            text = f"{format_address(leg.dst)} has no such session"
            out.append(
                Send(event.peer, Rst(message.session, leg, Cause.UNKNOWN_SESSION, text, leg.dst))
            )
            return
        if session.state not in _STANDING:
            return
        if leg == session.left:
            self._step(out, session, Input.IN, None)
        if session.waiting:
            session.waiting = [
                one for one in session.waiting
                if not (isinstance(one, Lock) and one.change == message.change)
            ]  # fmt: skip
        # 0 says that this leg was in some time; what is being changed now is not over by it.
        if change is not None and change.id == message.change != 0:
            if change.part is Part.RIGHT:
                if leg == change.spare:
                    self._right.switch(out, session)
                elif undecided(change):
                    self._right.undone(out, session)
                return
            if change.part is Part.OLD:
                if change.phase >= Phase.FINISHING:
                    return
                self._hop.unlock(out, session)
            elif change.part is Part.NEW:
                self._tools.end(out, session)
        if message.hops and session.right is not None:
            passed_on = UpdateAck(session.id, session.right, message.change, message.hops - 1)
            out.append(Send(session.right.dst, passed_on))

    def _fin(self, out: Commands, event: Received) -> None:
        message = event.message
        assert isinstance(message, UpdateFin)
        leg, session = message.subsession, self._register.get(message.session)
        change = None if session is None else session.change
        right_part = change is not None and change.part is Part.RIGHT
        if session is not None and session.state in _STANDING:
            if right_part and change is not None and leg == change.spare:
                self._right.spare_out(out, session, message.count)
                return
            if leg == session.left:
                if change is not None and right_part and change.spare is not None:
                    if change.phase is Phase.SWITCHING:
                        return
                    if undecided(change):
                        self._right.switch(out, session, message)
                        return
                self._leave(out, session, message)
                return
        for key in [key for key, join in self._early.items() if join.syn.subsession == leg]:
            del self._early[key]
        out.append(Send(event.peer, UpdateFinAck(message.session, leg, message.change, None, 0)))

    def _leave(self, out: Commands, session: Session, message: UpdateFin) -> None:
        assert session.left is not None
        if session.right is None:  # a server that no path leads to
            left = session.left
            why = Why(None, "the chain does not lead here any more", left_knows=True)
            self._step(out, session, Input.LEFT_OVER, why)
            finack = UpdateFinAck(session.id, left, message.change, None, 0)
            out.append(Send(left.src, finack))
            return
        change = session.change
        if change is not None and change.part in (Part.LEFT, Part.RIGHT):
            leg, ours = change.spare, change.part is Part.LEFT
            self._let_go(out, session, _LEFT_CHAIN)
            if ours and leg is not None:
                out.append(Send(leg.dst, UpdateFin(session.id, leg, change.id, None)))
                self._tools.ports.release(leg)
            session.change = None
        self._hop.leave(out, session, message)

    def _finack(self, out: Commands, event: Received) -> None:
        message = event.message
        assert isinstance(message, UpdateFinAck)
        session = self._register.get(message.session)
        change = None if session is None else session.change
        if session is None or change is None:
            return
        if change.part is Part.LEFT and message.subsession == change.spare:
            self._left.finack(out, session, message.count, message.held)
        elif change.part is Part.OLD and message.subsession == session.right:
            self._hop.finack(out, session, message)

    def _ask(self, out: Commands, event: Received) -> None:
        message = event.message
        assert isinstance(message, UpdateAsk)
        leg, session = message.subsession, self._register.get(message.session)
        if session is None:
            out.append(Send(event.peer, UpdateFin(message.session, leg, message.change, None)))
            return
        if session.state not in _STANDING:
            return
        answer = _is_in(session, leg, message.change)
        if answer and session.state is State.ADOPTED:
            self._tools.ask(out, session)  # it may be out itself: first it has to know
        elif answer:
            out.append(Send(event.peer, UpdateAck(session.id, leg, message.change, 0)))
        elif answer is False:
            change = session.change
            count = change.count if change is not None and leg == change.spare else None
            out.append(Send(event.peer, UpdateFin(session.id, leg, message.change, count)))

    # -- what L and R tell each other, and hops their heirs -----------------------------

    def _to_part(self, out: Commands, event: Received) -> None:
        """Messages that only a certain part in this very change understands."""
        message = event.message
        session = self._register.get(message.session)  # type: ignore[union-attr]
        change = None if session is None else session.change
        mine = change is not None and change.id == message.change  # type: ignore[union-attr]
        if isinstance(message, StatePart) and not (mine and change and change.part is Part.NEW):
            answer = StateAck(message.session, message.change, message.part, Progress.FAILED)
            out.append(Send(event.peer, answer))
            return
        if session is None or change is None or not mine or session.state not in _STANDING:
            return
        match change.part, message:
            case Part.LEFT, UpdateSynAck():
                self._left.synack(out, session, message)
            case Part.LEFT, UpdateReject():
                self._left.rejected(out, session, message)
            case Part.LEFT, UpdateSubAck():
                self._left.acked(out, session, own=False)
            case Part.LEFT, UpdateDrained():
                self._left.drained(out, session, message)
            case Part.RIGHT, UpdateSub():
                self._right.split(out, session)
            case Part.RIGHT, UpdateDrain():
                self._right.drain(out, session, message)
            case Part.OLD, UpdateDrain() if message.subsession == session.left:
                self._hop.drain(out, session, message)
            case Part.OLD, UpdateDrained():
                self._hop.drained(out, session, message)
            case Part.OLD, StateAck():
                self._hop.state_ack(out, session, message)
            case Part.NEW, StatePart():
                self._hop.state_part(out, session, event.peer, message)

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
        if self._tools.counted(out, session, event.packets, toward):
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
        if session is None or change is None:
            return out
        if change.part is Part.RIGHT and event.toward is Toward.LEFT:
            self._right.overflow(out, session)
        elif change.part is Part.LEFT and event.toward is Toward.RIGHT and change.holding:
            change.holding = False
            text = f"{format_address(own_address(session))} had to hold more packets than it may"
            self._left.undo(out, session, Why(Cause.OVERFLOW, text, own_address(session)))
        return out

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
        return out

    # -- the session itself -------------------------------------------------------------

    def received(self, event: Received) -> Commands | None:
        """What is to be done about a message, None if it is not about a change."""
        act = _RECEIVERS.get(type(event.message))
        if act is None:
            return None
        out: Commands = []
        act(self, out, event)
        return out

    def adopted(self, out: Commands, session: Session, spare: Flow) -> None:
        """A restarted agent has found a second leg; whoever knows what it is for will say so."""
        left = session.left is not None and spare.dst == session.left.dst
        part = Part.RIGHT if left else Part.LEFT
        change = Change(0, part, Mode.LF, Phase.LOCKED if left else Phase.MAKING, b"")
        change.spare = spare
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
            self._let_go(out, session, why)
            session.change = None
            out.append(CancelTimer(session.id, Timer.CHANGE))
        self._next(out, session)
        return leg, ours

    def _let_go(self, out: Commands, session: Session, why: Why) -> None:
        """Let packets go and take the spare leg's entries out, whatever the part."""
        change = session.change
        assert change is not None
        self._tools.resume(out, session)
        if change.part is Part.LEFT:
            self._left.abandon(out, session, why)
        leg = change.spare
        if leg is not None:
            view = session.view
            ours = change.part is Part.LEFT
            beside = view._replace(right=leg) if ours else view._replace(left=leg)
            out.append(Withdraw(session.id, spare_entries(view, beside)))
            self._register.unlist_leg(leg, session)

    def _change_of(self, session: int, change: int) -> tuple[Session | None, Change | None]:
        found = self._register.get(session)
        if found is None or found.change is None or found.change.id != change:
            return found, None
        return found, found.change


_LEFT_CHAIN = Why(Cause.MOVED, "this host has left the session's chain meanwhile")


def _number(one: Waiting) -> int:
    return one.change if isinstance(one, Lock) else one.wanted.change


def onward(syn: UpdateSyn, leg: Flow, mtu: int) -> UpdateSyn:
    """An UPDATE-SYN as a new hop passes it on."""
    return UpdateSyn(
        syn.session, leg, syn.change, syn.mode, syn.leader, syn.supersession, syn.hops[1:],
        syn.right, mtu, syn.policy, syn.generation,
    )  # fmt: skip


def _misfit(session: Session, message: Lock) -> Why | None:
    """What speaks against this host's part in a change that it could take part in."""
    own = own_address(session)
    here = format_address(own)
    if not message.steps:
        if message.right == own:
            return None
        text = f"{here} is where the run ends, not {format_address(message.right)}"
        return Why(Cause.MOVED, text, own)
    following = message.steps[1].address if len(message.steps) > 1 else message.right
    if session.right is None:
        return Why(Cause.MOVED, f"{here} is the server and cannot be taken out", own)
    if session.right.dst != following:
        text = (
            f"{here} is followed by {format_address(session.right.dst)}, "
            f"not by {format_address(following)}: look at the path again"
        )
        return Why(Cause.MOVED, text, own)
    return None


def _is_in(session: Session, leg: Flow, number: int) -> bool | None:
    """Whether a right leg of this host is in; None while that is open."""
    change = session.change
    if change is not None:
        if change.part is Part.LEFT:
            if leg == change.spare:
                return False if decided(change) else None
            if leg == session.right and not decided(change) and number == change.id:
                return None
        elif leg == session.right:
            if change.part is Part.NEW:
                return None
            if change.part is Part.OLD:
                if change.phase >= Phase.FINISHING:
                    return False if change.phase > Phase.FINISHING else None
                if number == change.id:
                    return None
    return leg == session.right


_RECEIVERS: Final[dict[type, Callable[[Migration, Commands, Received], None]]] = {
    Request: Migration._request,
    Lock: Migration._lock,
    UpdateSyn: Migration._syn,
    UpdateAck: Migration._ack,
    UpdateFin: Migration._fin,
    UpdateFinAck: Migration._finack,
    UpdateAsk: Migration._ask,
    UpdateSynAck: Migration._to_part,
    UpdateReject: Migration._to_part,
    UpdateSub: Migration._to_part,
    UpdateSubAck: Migration._to_part,
    UpdateDrain: Migration._to_part,
    UpdateDrained: Migration._to_part,
    StatePart: Migration._to_part,
    StateAck: Migration._to_part,
    Approve: Migration._answered,
    Done: Migration._answered,
    Reject: Migration._answered,
}
