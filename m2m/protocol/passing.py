"""Old and new hops: what lies between L and R on the two paths (docs/reconfiguration.md).

An old hop passes on what it is told, empties itself in between, and goes when its left leg is out.
A new hop has joined like any hop of a session that is set up, and waits to hear that it is in.
"""

from __future__ import annotations

from m2m.protocol.change import Change, Commands, Part, Phase, Tools, sent
from m2m.protocol.commands import (
    CancelTimer,
    Closed,
    ExportState,
    ImportState,
    ReleaseState,
    Remove,
    Send,
)
from m2m.protocol.events import Timer
from m2m.protocol.flow import Address, format_address
from m2m.protocol.ordering import Incoming, Outgoing
from m2m.protocol.reasons import own_address
from m2m.protocol.session import Session, State
from m2m.protocol.splice import both
from m2m.protocol.translation import Toward
from m2m.protocol.update import (
    Lock,
    Mode,
    Progress,
    StateAck,
    StatePart,
    UpdateDrain,
    UpdateDrained,
    UpdateFin,
    UpdateFinAck,
    UpdateReject,
    UpdateSyn,
)
from m2m.protocol.wire import Cause, WireError, clip

__all__ = ["Passing"]

_GOING = (Phase.FINISHING, Phase.LEAVING, Phase.EMPTYING)


class Passing:
    """The machine of a hop that is taken out or put in."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    # -- an old hop, while it is not decided --------------------------------------------

    def lock(self, out: Commands, session: Session, message: Lock) -> None:
        """Take part, and pass it on."""
        change = Change(message.change, Part.OLD, message.mode, Phase.LOCKED, message.leader)
        change.steps, change.right = message.steps, message.right
        change.splice = both(message.splice, session.splice)
        session.change = change
        self.lock_again(out, session)
        self._tools.watch(out, session)

    def lock_again(self, out: Commands, session: Session) -> None:
        """L repeats it: someone to the right may not have it."""
        change, right = session.change, session.right
        assert change is not None and right is not None
        if change.phase is Phase.LOCKED:
            message = Lock(
                session.id, right, change.id, change.mode, change.leader, change.steps[1:],
                change.right, change.splice,
            )  # fmt: skip
            out.append(Send(right.dst, message))

    def drain(self, out: Commands, session: Session, message: UpdateDrain) -> None:
        """L sends no more: let everything through, then say so to the right."""
        change = session.change
        assert change is not None
        if change.phase is Phase.LOCKED:
            self._tools.enter(session, Phase.DRAINING)
            self._tools.empty(out, session, Toward.RIGHT, message.count)
        elif change.phase is Phase.PASSED:
            self._pass_drain(out, session, change)
        elif change.phase is Phase.DRAINED:
            self._pass_drained(out, session, change)

    def drained(self, out: Commands, session: Session, message: UpdateDrained) -> None:
        """Nor does R."""
        change = session.change
        assert change is not None
        if change.phase is Phase.PASSED and message.subsession == session.right:
            self._tools.enter(session, Phase.RETURNING)
            self._tools.empty(out, session, Toward.LEFT, message.count)

    def exported(self, out: Commands, session: Session, state: bytes | None) -> None:
        """The NF has seen the last packet; here is what it knows."""
        change = session.change
        assert change is not None
        if change.phase is not Phase.MOVING:
            return  # released already
        if state is None:
            self._state_failed(out, session, "it could not be read")
            return
        try:
            change.outgoing = Outgoing(state)
        except WireError as error:
            self._state_failed(out, session, str(error))
            return
        self._send_state(out, session, change)
        self._tools.repeat(out, session)

    def state_ack(self, out: Commands, session: Session, message: StateAck) -> None:
        """The heir has a part, or all, or cannot take it."""
        change = session.change
        assert change is not None
        if change.phase is not Phase.MOVING or change.outgoing is None:
            return
        change.outgoing.acknowledged(message.part)
        if message.progress is Progress.IMPORTED:
            self._moved(out, session)
        elif message.progress is Progress.FAILED:
            self._state_failed(out, session, "the new host could not take it over")

    def unlock(self, out: Commands, session: Session) -> None:
        """The old path stays: go on."""
        change = session.change
        assert change is not None
        if change.exported:
            out.append(ReleaseState(session.id, keep=True))
        self._tools.end(out, session)

    def _pass_drain(self, out: Commands, session: Session, change: Change) -> None:
        right = session.right
        assert right is not None
        out.append(Send(right.dst, UpdateDrain(session.id, right, change.id, change.count)))

    def _pass_drained(self, out: Commands, session: Session, change: Change) -> None:
        left = session.left
        assert left is not None
        out.append(Send(left.src, UpdateDrained(session.id, left, change.id, change.count)))

    def _send_state(self, out: Commands, session: Session, change: Change) -> None:
        heir = change.steps[0].heir
        assert heir is not None and change.outgoing is not None
        for part in change.outgoing.to_send(session.id, change.id):
            out.append(Send(heir, part))

    def _moved(self, out: Commands, session: Session) -> None:
        change = self._tools.enter(session, Phase.DRAINED)
        self._pass_drained(out, session, change)
        self._tools.watch(out, session)

    def _state_failed(self, out: Commands, session: Session, why: str) -> None:
        change = self._tools.enter(session, Phase.MOVING)
        change.outgoing, change.exported = None, False
        out.append(ReleaseState(session.id, keep=True))
        own = own_address(session)
        text = clip(f"the state of the network function at {format_address(own)}: {why}")
        message = UpdateReject(session.id, change.id, Cause.STATE, text, own)
        out.append(Send(change.leader, message))
        self._tools.watch(out, session)

    # -- a hop that goes ----------------------------------------------------------------

    def leave(self, out: Commands, session: Session, message: UpdateFin) -> None:
        """The left leg is out: let everything through, and go."""
        change = session.change
        if change is not None and change.part is Part.OLD and change.phase in _GOING:
            if change.phase is Phase.LEAVING:
                self._pass_fin(out, session, change)
            return
        if change is None or change.part is not Part.OLD:
            before = change
            if before is not None:
                self._tools.resume(out, session)
            change = Change(message.change, Part.OLD, Mode.LF, Phase.FINISHING, b"")
            if before is not None:
                change.exported = before.imported
            session.change = change
        out.append(CancelTimer(session.id))
        self._tools.enter(session, Phase.FINISHING)
        self._tools.empty(out, session, Toward.RIGHT, message.count)

    def finack(self, out: Commands, session: Session, message: UpdateFinAck) -> None:
        """Everything to the right of here is gone or knows."""
        change = session.change
        assert change is not None
        if change.phase is Phase.LEAVING:
            change.held = message.held
            self._tools.enter(session, Phase.EMPTYING)
            self._tools.empty(out, session, Toward.LEFT, message.count)

    def right_gone(self, out: Commands, session: Session) -> None:
        """The right neighbour has closed the session."""
        change = session.change
        assert change is not None and session.right is not None
        self.finack(out, session, UpdateFinAck(session.id, session.right, change.id, None, 0))

    def left_gone(self, out: Commands, session: Session) -> None:
        """The left neighbour has closed the session: nothing gets through any more."""
        self._gone(out, session, None)

    def _pass_fin(self, out: Commands, session: Session, change: Change) -> None:
        right = session.right
        assert right is not None
        out.append(Send(right.dst, UpdateFin(session.id, right, change.id, change.count)))

    def _gone(self, out: Commands, session: Session, count: int | None) -> None:
        change, tools = session.change, self._tools
        assert change is not None and session.left is not None and session.right is not None
        if change.exported:
            out.append(ReleaseState(session.id, keep=False))
        tools.closing(out, session)
        out.append(Remove(session.view))
        tools.register.unlist(session)
        tools.register.forget(session)
        tools.ports.release(session.right)
        if session.state is not State.ESTABLISHED:
            out.append(CancelTimer(session.id))  # it was still waiting to be confirmed
        session.state = State.GONE
        finack = UpdateFinAck(session.id, session.left, change.id, count, change.held)
        out.append(Send(session.left.src, finack))
        out.append(CancelTimer(session.id, Timer.CHANGE))
        out.append(Closed(session.view, "its chain does not lead here any more"))
        session.change = None
        tools.over(out, session)

    # -- a new hop ----------------------------------------------------------------------

    def keep_back(self, out: Commands, session: Session, syn: UpdateSyn, toward: Toward) -> None:
        """lf: what goes by the new path waits at its last host until nothing more comes to that
        side by the old one. Else it would overtake what queues on that."""
        first, last = syn.subsession.src == syn.leader, len(syn.hops) == 1
        if syn.mode is Mode.LF and (last if toward is Toward.RIGHT else first):
            self._tools.hold(out, session, toward)

    def state_part(self, out: Commands, session: Session, peer: Address, part: StatePart) -> None:
        """What the old hop's NF knew of this session."""
        change = session.change
        assert change is not None
        if change.imported:
            out.append(Send(peer, self._imported(session, part, Progress.IMPORTED)))
            return
        if change.incoming is None:
            change.incoming = Incoming(part.parts)
        before = change.incoming.whole
        change.incoming.add(part)
        out.append(Send(peer, self._imported(session, part, Progress.RECEIVED)))
        whole = change.incoming.whole
        if before is None and whole is not None:
            change.leader = peer  # who is told what became of it
            out.append(ImportState(session.id, change.id, whole))

    def imported(self, out: Commands, session: Session, *, ok: bool) -> None:
        """The NF here has taken it, or not."""
        change = session.change
        assert change is not None
        change.imported = ok
        progress = Progress.IMPORTED if ok else Progress.FAILED
        out.append(Send(change.leader, StateAck(session.id, change.id, 0, progress)))

    def _imported(self, session: Session, part: StatePart, progress: Progress) -> StateAck:
        return StateAck(session.id, part.change, part.part, progress)

    # -- time ---------------------------------------------------------------------------

    def emptied(self, out: Commands, session: Session) -> None:
        """Nothing more comes by the leg that was looked at, nor out of the NF."""
        change, tools = session.change, self._tools
        assert change is not None and change.emptying is not None
        seen = change.emptying.seen
        match change.phase:
            case Phase.DRAINING:
                tools.enter(session, Phase.PASSED)
                change.count = sent(seen, session.sent_right)
                self._pass_drain(out, session, change)
                tools.watch(out, session)
            case Phase.RETURNING:
                change.count = sent(seen, session.sent_left)
                if change.steps and change.steps[0].heir is not None:
                    tools.enter(session, Phase.MOVING)
                    change.exported = True
                    out.append(ExportState(session.id, change.id))
                    tools.watch(out, session)
                else:
                    self._moved(out, session)
            case Phase.FINISHING:
                tools.enter(session, Phase.LEAVING)
                change.count = sent(seen, session.sent_right)
                self._pass_fin(out, session, change)
                tools.persist(out, session)
            case Phase.EMPTYING:
                self._gone(out, session, sent(seen, session.sent_left))

    def tick(self, out: Commands, session: Session) -> None:
        """Send again, or ask."""
        change, tools = session.change, self._tools
        assert change is not None
        if change.phase is Phase.FOLLOWING:
            tools.behind(out, session)
        elif change.phase is Phase.LEAVING:
            self._pass_fin(out, session, change)
            tools.persist(out, session)
        elif change.phase is Phase.MOVING and change.outgoing is not None:
            if change.waited < tools.settings.hold_limit:
                self._send_state(out, session, change)
            else:  # by now L has undone it, if it lives
                tools.ask(out, session)
            tools.repeat(out, session)
        else:
            tools.ask(out, session)
            tools.watch(out, session)
