"""The hop: a neighbour has moved, and proves that these sessions are its own.

Nothing is remembered of a REBIND but the number of the move: what comes twice is answered again,
and what is older than the last is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial

from m2m.identity import ANONYMOUS, Identity
from m2m.protocol.change import Commands, Part
from m2m.protocol.commands import Command, Keep, Send
from m2m.protocol.commands import Rebound as Told
from m2m.protocol.devices import (
    MAX_NUMBER,
    device_of,
    note_of,
    number_of,
    set_device,
    set_number,
    set_rebound,
)
from m2m.protocol.events import Received
from m2m.protocol.flow import Address, Flow
from m2m.protocol.ports import PortAllocator, PortsExhausted
from m2m.protocol.rebind import Bound, End, Leg, Rebind, Rebound, Result
from m2m.protocol.register import Register
from m2m.protocol.renaming import Batches, Fading, Outcome, Rehoming, Renaming
from m2m.protocol.session import Session, State
from m2m.protocol.translation import Entry, Hook, Position

__all__ = ["Rebinding"]

_STANDING = (State.ESTABLISHED, State.ADOPTED)


class Rebinding:
    """What this host does about moves of its neighbours."""

    def __init__(
        self,
        identity: Identity,
        ports: PortAllocator,
        register: Register,
        fading: Fading,
        batches: Batches,
        claim: Callable[[Commands, Session, Flow], None],
        name_today: Callable[[int, Flow], Flow | None],
        handed: Callable[[int], bool],
        renamed: Callable[[Commands, Session, tuple[Hook, Flow]], None],
        counts: Counter[str],
    ) -> None:
        """*claim* gets a left leg out of the hands of any other session that had it; *name_today*
        tells what another name of a session's leg stands for; *handed*, whether this host has
        handed a session over; *renamed* is told of each leg that has another name, with the key of
        the row that has accepted packets by the former one."""
        self._identity = identity
        self._ports = ports
        self._register = register
        self._fading = fading
        self._batches = batches
        self._claim = claim
        self._name_today = name_today
        self._handed = handed
        self._renamed = renamed
        self._counts = counts

    def rebind(self, out: Commands, event: Received) -> None:
        """A batch of moved legs."""
        message = event.message
        assert isinstance(message, Rebind)
        answers: list[Bound] = []
        steps: list[Rehoming] = []
        legs: list[Leg] = []
        for leg in message.legs:
            names = message.flows(leg)
            judged = self._judge(message, leg, *names)
            if isinstance(judged, Bound):
                answers.append(judged)
                continue
            session, present = judged
            step = self._step(out, session, leg, present, names[1])
            if step is None:
                answers.append(_answer(leg, Result.FAILED))
            else:
                steps.append(step)
                legs.append(leg)
        answer = partial(self._moved, event.peer, message, legs, steps, answers)
        if steps:
            self._batches.start(out, steps, answer)
        else:
            answer(out, [])

    # -- before -------------------------------------------------------------------------

    def _judge(
        self, message: Rebind, leg: Leg, old: Flow, new: Flow
    ) -> tuple[Session, Flow] | Bound:
        """The session that is to follow and its leg, or the answer if there is nothing to be
        done."""
        session = self._register.called(leg.session)
        if session is None and self._handed(leg.session):
            return _answer(leg, Result.FAILED)  # whoever has it now will hear of it there
        if session is None or session.state is State.CLOSING:
            self._counts["rebind unknown"] += 1
            return _answer(leg, Result.UNKNOWN)
        device = device_of(session, leg.end)
        present = self._present(session, leg, old, new)
        if device == message.device:
            # Whoever has taken it over goes on to prove this by the key that was valid until then.
            done = self._done(session, message, leg, present)
            if done is not None:
                return done
        if not self._identity.proves(device, leg.session, message.content(leg), leg.proof):
            self._counts["rebind unproven"] += 1
            return _answer(leg, Result.UNPROVEN)
        last = number_of(session, leg.end)
        if leg.number < last or leg.number > MAX_NUMBER:
            self._counts["rebind old"] += 1
            return _answer(leg, Result.OLD, number=last)
        if leg.number == last:  # of another address, or device
            self._counts["rebind old"] += 1
            return _answer(leg, Result.OLD, number=last)
        if session.state not in _STANDING or present is None:
            return _answer(leg, Result.FAILED)
        return session, present

    def _done(
        self, session: Session, message: Rebind, leg: Leg, present: Flow | None
    ) -> Bound | None:
        """The answer to this very move, if it has been made and the answer was lost: to say so
        again changes nothing."""
        same = leg.number == number_of(session, leg.end)
        if not same or present is None or _mover(leg.end, present) != message.new:
            return None
        return _answer(leg, Result.DONE, ports=(present.sport, present.dport))

    def _present(self, session: Session, leg: Leg, old: Flow, new: Flow) -> Flow | None:
        """The leg that is meant: by the name it has, has had a moment ago, or was to get; or the
        one that led to this end after its last move, of which it has not heard."""
        main = session.left if leg.end is End.CLIENT else session.right
        part = Part.RIGHT if leg.end is End.CLIENT else Part.LEFT
        change = session.change
        spare = change.spare if change is not None and change.part is part else None
        names = (old, new, self._name_today(session.id, old))
        for candidate in (main, spare):
            if candidate is not None and candidate in names:
                return candidate
        last = session.rebound[leg.end]
        return last if last is not None and last in (main, spare) else None

    def _step(
        self, out: Commands, session: Session, leg: Leg, present: Flow, new: Flow
    ) -> Rehoming | None:
        """What the datapath has to do; None if there are no ports."""
        left = leg.end is End.CLIENT
        if left:
            self._claim(out, session, new)
            if session.state not in _STANDING:
                return None
            self._fading.take(session, new)
        elif new != present and not self._fading.take(session, new):
            try:
                if not self._ports.claim(new):
                    new = self._ports.allocate(new.proto, new.src, new.dst)
            except PortsExhausted:
                return None
        renaming = Renaming(session, present, new, left=left)
        marked: tuple[Entry, ...] = ()
        if _is_mistakable(renaming):
            marked = *renaming.marked(), *self._fading.marked(session)
        return Rehoming(renaming, renaming.accepted(), renaming.redirected(), marked)

    # -- after --------------------------------------------------------------------------

    def _moved(
        self,
        peer: Address,
        message: Rebind,
        legs: list[Leg],
        steps: list[Rehoming],
        answers: list[Bound],
        out: Commands,
        outcomes: list[Outcome],
    ) -> None:
        notes = []
        told: list[Command] = []
        for leg, step, outcome in zip(legs, steps, outcomes, strict=True):
            renaming, session = step.renaming, step.renaming.session
            if not outcome.ok:
                if renaming.new != renaming.leg:
                    if leg.end is End.SERVER:
                        self._ports.release(renaming.new)
                    else:
                        self._register.unlist_leg(renaming.new, session)
                self._counts["rebind failed"] += 1
                answers.append(_answer(leg, Result.FAILED))
                continue
            if renaming.new != renaming.leg:
                renaming.apply(self._register, outcome.packets)
                self._renamed(out, session, renaming.former)
                self._fading.begin(out, renaming, renaming.leg)
            set_number(session, leg.end, leg.number)
            set_device(session, leg.end, message.device)
            set_rebound(session, leg.end, renaming.new)
            notes.append((session.id, note_of(session)))
            new = renaming.new
            answers.append(_answer(leg, Result.DONE, ports=(new.sport, new.dport)))
            self._counts["rebound"] += 1
            told.append(Told(session.view, new, here=False))
        out.append(Send(peer, self._answered(message, answers)))
        out += told
        if notes:
            out.append(Keep(tuple(notes)))

    def _answered(self, message: Rebind, answers: list[Bound]) -> Rebound:
        bare = Rebound(answers[0].session, message.new, message.hop, tuple(answers))
        proved = []
        for answer in answers:
            if answer.result not in (Result.UNKNOWN, Result.UNPROVEN):
                session = self._register.called(answer.session)
                device = ANONYMOUS if session is None else device_of(session, answer.end)
                proof = self._identity.prove(device, answer.session, bare.content(answer))
                answer = Bound(*answer[:-1], proof)
            proved.append(answer)
        return Rebound(bare.session, bare.new, bare.hop, tuple(proved))


def _is_mistakable(renaming: Renaming) -> bool:
    """Whether a restarted agent might take an old name of the leg for a second leg of a change, or
    for one that is in use, unless its row is marked."""
    session, old, new = renaming.session, renaming.leg, renaming.new
    return (
        (old.sport, old.dport) != (new.sport, new.dport)
        or session.position is Position.TAP
        or session.change is not None
    )


def _answer(
    leg: Leg, result: Result, *, number: int | None = None, ports: tuple[int, int] | None = None
) -> Bound:
    number = leg.number if number is None else number
    return Bound(leg.session, leg.end, number, result, leg.ports if ports is None else ports)


def _mover(end: End, leg: Flow) -> Address:
    return leg.src if end is End.CLIENT else leg.dst
