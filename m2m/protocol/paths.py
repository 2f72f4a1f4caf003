"""What neighbours say about a change of a chain: on the old path, on the new one, and how it ends.

The rules here are the same whatever part a host has; what it then does is the machines' business.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

from m2m.protocol.change import Change, Commands, Part, Phase, Tools, with_left, with_right
from m2m.protocol.commands import Send, Withdraw
from m2m.protocol.events import (
    Received,
    Route,
)
from m2m.protocol.flow import Flow, format_address
from m2m.protocol.leading import Leading, decided
from m2m.protocol.passing import Passing
from m2m.protocol.reasons import Why, own_address
from m2m.protocol.receiving import Receiving, undecided
from m2m.protocol.session import Input, Session, State
from m2m.protocol.translation import Toward, spare_entries
from m2m.protocol.update import (
    Lock,
    Progress,
    StateAck,
    StatePart,
    UpdateAck,
    UpdateAsk,
    UpdateDrain,
    UpdateDrained,
    UpdateEmpty,
    UpdateFin,
    UpdateFinAck,
    UpdateReject,
    UpdateSub,
    UpdateSubAck,
    UpdateSyn,
    UpdateSynAck,
)
from m2m.protocol.wire import Cause, Rst, clip

__all__ = ["Admit", "Claim", "Machines", "Paths", "Take"]

_EARLY = 1024  # UPDATE-SYNs kept because they came before the LOCK, or before the old part ended

_STANDING = (State.CONFIRMING, State.ESTABLISHED, State.ADOPTED)

Take: TypeAlias = Callable[[Commands, Session, Input, object], None]
Admit: TypeAlias = Callable[[Commands, UpdateSyn, Route | None], None]
Claim: TypeAlias = Callable[[Commands, Session, Flow], None]


class _Join(NamedTuple):
    """An UPDATE-SYN, and the way to the next host if there is one."""

    syn: UpdateSyn
    route: Route | None


class Machines(NamedTuple):
    """The machines of all parts, and what they share."""

    tools: Tools
    left: Leading
    right: Receiving
    hop: Passing

    def let_go(self, out: Commands, session: Session, why: Why) -> None:
        """Let packets go and take the spare leg's entries out, whatever the part."""
        change = session.change
        assert change is not None
        self.tools.resume(out, session)
        if change.part is Part.LEFT:
            self.left.abandon(out, session, why)
        leg = change.spare
        if leg is not None:
            view = session.view
            ours = change.part is Part.LEFT
            beside = with_right(view, leg, change.splice) if ours else with_left(view, leg)
            out.append(Withdraw(session.id, spare_entries(view, beside)))
            self.tools.register.unlist_leg(leg, session)


class Paths:
    """Takes the messages that hosts pass on to each other."""

    def __init__(
        self,
        machines: Machines,
        step: Take,
        admit: Admit,
        claim: Claim,
        wait: Callable[[Session, Lock], bool],
    ) -> None:
        """*step* takes a step of the session's table, *admit* makes a new hop, *claim* gets a left
        leg out of the hands of any other session that had it, and *wait* keeps a lock until the
        present change is over; False if too many wait."""
        self._machines = machines
        self._tools, self._left, self._right, self._hop = machines
        self._register = machines.tools.register
        self._step = step
        self._admit = admit
        self._claim = claim
        self._wait = wait
        self._early: dict[tuple[int, int], _Join] = {}

    def received(self, out: Commands, event: Received) -> bool:
        """Whether this is a message for here; if so, it has been dealt with."""
        act = _RECEIVERS.get(type(event.message))
        if act is None:
            return False
        act(self, out, event)
        return True

    def reject(self, out: Commands, message: Lock | UpdateSyn, why: Why) -> None:
        """Tell L that this cannot be."""
        assert why.cause is not None
        answer = UpdateReject(message.session, message.change, why.cause, clip(why.text), why.blame)
        out.append(Send(message.leader, answer))

    def over(self, out: Commands, session: Session) -> None:
        """This host has left the session, or it has ended: who wants to join anew may."""
        for key in [key for key in self._early if key[0] == session.id]:
            join = self._early.pop(key)
            if session.state is State.GONE:
                self._syn(out, Received(join.syn.leader, join.syn, join.route))

    # -- the old path -------------------------------------------------------------------

    def lock(self, out: Commands, event: Received) -> None:
        """L's change wants this host, for the first time or after it has waited."""
        message = event.message
        assert isinstance(message, Lock)
        leg, session = message.subsession, self._register.get(message.session)
        if session is None or session.left != leg or session.state not in _STANDING:
            text = f"{format_address(leg.src)} does not lead to {format_address(leg.dst)} any more"
            self.reject(out, message, Why(Cause.MOVED, text, leg.dst))
            return
        self._step(out, session, Input.IN, None)  # or nobody could change the chain
        change = session.change
        if change is not None and change.part is Part.NEW:
            self._tools.resume(out, session)
            self._tools.end(out, session)
            change = session.change
        if change is not None:
            self._lock_later(out, session, change, message)
            return
        why = _misfit(session, message)
        if why is not None:
            self.reject(out, message, why)
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
            self.reject(out, message, Why(Cause.BUSY, text, own_address(session)))
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
            self.reject(out, message, Why(Cause.MOVED, text, message.right))
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
            self.reject(out, syn, Why(Cause.LOOP, text, own))

    def joined(self, out: Commands, session: Session, syn: UpdateSyn) -> None:
        """The node has made this new hop, and has said so to the datapath."""
        session.change = Change(syn.change, Part.NEW, syn.mode, Phase.JOINED, syn.leader)
        assert session.right is not None
        self._hop.keep_back(out, session, syn, Toward.RIGHT)
        out.append(Send(session.right.dst, onward(syn, session.right, session.mtu)))
        self._hop.keep_back(out, session, syn, Toward.LEFT)  # R redirects much later than L
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
        if leg == session.left and (change is None or change.id != message.change):
            self._right.still_asked(out, session, message.change)
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
            elif change.part is Part.NEW and change.phase is Phase.JOINED:
                self._tools.follow(out, session)
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
            self._machines.let_go(out, session, _LEFT_CHAIN)
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
        elif change.part is Part.LEFT and message.subsession == change.far:
            self._left.finack(out, session, None, message.held)  # it counts another leg
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
            if change is not None and change.part is Part.LEFT:
                self._left.asked_directly(session, event.peer, message)
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
            case (Part.LEFT | Part.NEW, UpdateEmpty()) if message.subsession == session.right:
                self._tools.behind(out, session, Toward.RIGHT)
            case (Part.RIGHT | Part.NEW, UpdateEmpty()) if message.subsession == session.left:
                self._tools.behind(out, session, Toward.LEFT)
            case Part.NEW, StatePart():
                self._hop.state_part(out, session, event.peer, message)


_LEFT_CHAIN = Why(Cause.MOVED, "this host has left the session's chain meanwhile")


def onward(syn: UpdateSyn, leg: Flow, mtu: int) -> UpdateSyn:
    """An UPDATE-SYN as a new hop passes it on."""
    return UpdateSyn(
        syn.session, leg, syn.change, syn.mode, syn.leader, syn.supersession, syn.hops[1:],
        syn.right, mtu, syn.policy, syn.generation, syn.client, syn.server,
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
            if change.part is Part.NEW and change.phase is Phase.JOINED:
                return None
            if change.part is Part.OLD:
                if change.phase >= Phase.FINISHING:
                    return False if change.phase > Phase.FINISHING else None
                if number == change.id:
                    return None
    return leg == session.right


_RECEIVERS: Final[dict[type, Callable[[Paths, Commands, Received], None]]] = {
    Lock: Paths.lock,
    UpdateSyn: Paths._syn,
    UpdateAck: Paths._ack,
    UpdateFin: Paths._fin,
    UpdateFinAck: Paths._finack,
    UpdateAsk: Paths._ask,
    UpdateSynAck: Paths._to_part,
    UpdateReject: Paths._to_part,
    UpdateSub: Paths._to_part,
    UpdateSubAck: Paths._to_part,
    UpdateDrain: Paths._to_part,
    UpdateDrained: Paths._to_part,
    UpdateEmpty: Paths._to_part,
    StatePart: Paths._to_part,
    StateAck: Paths._to_part,
}
