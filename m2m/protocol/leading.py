"""L: the host that leads a change (docs/reconfiguration.md, "L").

It decides alone, by redirecting its own entry towards the server, and then tells both paths how
it ended: UPDATE-ACK on the leg that is in, UPDATE-FIN on the one that is out, until all of the
latter is gone.
"""

from __future__ import annotations

import random

from m2m.protocol.change import Change, Commands, Part, Phase, Tools, sent, with_right
from m2m.protocol.commands import (
    ChangeDone,
    ChangeRefused,
    Redirect,
    Send,
    Switched,
    WatchAck,
    Withdraw,
)
from m2m.protocol.events import ChangeWanted
from m2m.protocol.flow import Address, Flow, Proto, format_address
from m2m.protocol.ports import PortsExhausted
from m2m.protocol.reasons import Why, describe_hop, own_address
from m2m.protocol.session import Role, Session, State
from m2m.protocol.splice import both
from m2m.protocol.translation import (
    Entry,
    Position,
    SessionView,
    Toward,
    receiver,
    redirected_entry,
    spare_entries,
)
from m2m.protocol.update import (
    Done,
    Lock,
    Mode,
    Reject,
    UpdateAck,
    UpdateAsk,
    UpdateDrain,
    UpdateDrained,
    UpdateEmpty,
    UpdateFin,
    UpdateReject,
    UpdateSub,
    UpdateSyn,
    UpdateSynAck,
)
from m2m.protocol.wire import MAX_CHAIN, Cause, clip

__all__ = ["Leading", "decided"]

_UNDECIDED = (Phase.MAKING, Phase.SPLITTING, Phase.DRAINING, Phase.DRAINED, Phase.SWITCHING)
_OUTCOMES = 1024  # remembered, for requesters that did not hear


def decided(change: Change) -> bool:
    """Whether L's change has been redirected or undone: one of its legs is out for good."""
    return change.phase not in _UNDECIDED


class Leading:
    """The machine of L."""

    def __init__(self, tools: Tools, rng: random.Random) -> None:
        self._tools = tools
        self._rng = rng
        self._outcomes: dict[tuple[int, int], Done | Reject] = {}

    # -- the beginning ------------------------------------------------------------------

    def outcome(self, session: int, change: int) -> Done | Reject | None:
        """What became of a change that was asked for, if that was lately."""
        return self._outcomes.get((session, change))

    def refuse(
        self, out: Commands, session: int, change: int, requester: Address | None, why: Why
    ) -> None:
        """Tell whoever wants this change that it will not be."""
        cause = Cause.ABANDONED if why.cause is None else why.cause
        if requester is None:
            out.append(ChangeRefused(session, change, cause, why.text, why.blame))
            return
        message = Reject(session, change, cause, clip(why.text), why.blame)
        self._remember(message)
        out.append(Send(requester, message))

    def start(
        self, out: Commands, session: Session, wanted: ChangeWanted, requester: Address | None
    ) -> None:
        """Make the new path and lock the old one; or say why not."""
        why = _objection(session, wanted)
        leg = None
        if why is None:
            first = wanted.hops[0].address if wanted.hops else wanted.right
            try:
                proto = session.supersession.proto
                leg = self._tools.ports.allocate(proto, wanted.route.source, first)
            except PortsExhausted as error:
                why = Why(Cause.NO_PORTS, str(error), own_address(session))
        if why is not None:
            self.refuse(out, session.id, wanted.change, requester, why)
            return
        assert leg is not None
        # A request may be repeated to a restarted agent that has forgotten it, while messages of
        # the first attempt are about: each attempt has a number of its own.
        number = wanted.change if requester is None else self._rng.getrandbits(64) or 1
        change = Change(number, Part.LEFT, wanted.mode, Phase.MAKING, leg.src)
        change.wish = wanted.change
        change.spare = leg
        change.steps, change.hops, change.right = wanted.steps, wanted.hops, wanted.right
        change.requester = requester
        change.mtu = min(wanted.route.mtu, 0xFFFF)
        session.change = change
        self._make(out, session, change)
        self._tools.repeat(out, session, self._tools.settings.patience)
        change.added = wanted.added
        change.splice = both(session.splice, wanted.added)
        self._tools.accept(out, session, self._spare_entries(session))

    def _make(self, out: Commands, session: Session, change: Change) -> None:
        """While this host makes its own new leg, all others are at work already."""
        old, new = session.right, change.spare
        assert old is not None and new is not None
        syn = UpdateSyn(
            session.id, new, change.id, change.mode, change.leader, session.supersession,
            change.hops, change.right, change.mtu, session.policy, session.generation,
            session.client, session.server,
        )  # fmt: skip
        lock = Lock(
            session.id, old, change.id, change.mode, change.leader, change.steps, change.right
        )
        out.append(Send(new.dst, syn))
        out.append(Send(old.dst, lock))

    def synack(self, out: Commands, session: Session, message: UpdateSynAck) -> None:
        """Everything stands, and nobody else is at work on it."""
        change = session.change
        assert change is not None
        if change.phase is not Phase.MAKING:
            return
        if message.mtu < session.mtu:
            text = (
                f"the new path takes packets of {message.mtu} bytes, the session sends up to "
                f"{session.mtu}: choose a path with as large an MTU"
            )
            self.undo(out, session, Why(Cause.MTU, text, None))
            return
        if message.splice is not None:
            if change.mode is not Mode.LF and change.hops:
                text = "a proxy has left where the old path leads: only lf can change that"
                self.undo(out, session, Why(Cause.MODE, text, None))
                return
            # What the hops that leave have added to numbers, this host is to add.
            change.splice = both(both(session.splice, change.added), message.splice)
            self._tools.accept(out, session, self._spare_entries(session))
        if change.mode is Mode.LF:
            if change.hops:
                self._switch(out, session)
            elif not change.holding:  # no new host to keep back what is not to overtake
                self._tools.hold(out, session, Toward.RIGHT)
        else:
            whole = change.mode is Mode.OP
            self._hold(out, session, Phase.DRAINING if whole else Phase.SPLITTING)

    # -- op and ss+op -------------------------------------------------------------------

    def _hold(self, out: Commands, session: Session, phase: Phase) -> None:
        self._tools.enter(session, phase)
        splitting = phase is Phase.SPLITTING
        session.more_left |= splitting and session.position is Position.TAP
        self._tools.hold(out, session, Toward.RIGHT, substream=splitting)

    def holding(
        self, out: Commands, session: Session, packets: int, checkpoint: int | None
    ) -> None:
        """The kernel holds what this host sends to the right."""
        change = session.change
        assert change is not None and session.right is not None
        if change.phase is Phase.MAKING:
            self._switch(out, session)
            return
        if change.phase is Phase.SPLITTING:
            change.own_acked = checkpoint is None
            out.append(Send(change.right, UpdateSub(session.id, change.id)))
            if checkpoint is not None:
                key = receiver(session.view, Toward.LEFT)
                out.append(WatchAck(session.id, change.id, key, checkpoint))
        elif change.phase is Phase.DRAINING:
            change.count = sent(packets, session.sent_right)
            out.append(
                Send(
                    session.right.dst,
                    UpdateDrain(session.id, session.right, change.id, change.count),
                )
            )
        else:
            return
        self._tools.repeat(out, session, self._tools.settings.hold_limit)

    def acked(self, out: Commands, session: Session, *, own: bool) -> None:
        """One of the two substreams has been acknowledged through the old path."""
        change = session.change
        assert change is not None
        if change.phase is Phase.SPLITTING:
            change.own_acked |= own
            change.acked |= not own
            if change.own_acked and change.acked:
                self._hold(out, session, Phase.DRAINING)

    def drained(self, out: Commands, session: Session, message: UpdateDrained) -> None:
        """The old path is empty but for what is on its way to this host, and state has moved."""
        change = session.change
        assert change is not None
        if change.phase is Phase.DRAINING and message.subsession == session.right:
            self._tools.enter(session, Phase.DRAINED)
            self._tools.empty(out, session, Toward.LEFT, message.count)

    # -- the decision -------------------------------------------------------------------

    def _switch(self, out: Commands, session: Session) -> None:
        change = self._tools.enter(session, Phase.SWITCHING)
        assert change.spare is not None
        entry = redirected_entry(session.view, self._spare_view(session))
        out.append(Redirect(session.id, change.id, entry))

    def redirected(self, out: Commands, session: Session, packets: int) -> None:
        """It is done."""
        change = session.change
        assert change is not None
        if change.phase is not Phase.SWITCHING:
            return
        change.count = sent(packets, session.sent_right)
        session.sent_right = packets
        change.more, session.more_right = session.more_right, False
        assert change.spare is not None
        session.right, change.spare = change.spare, session.right
        session.splice, change.splice = change.splice, session.splice
        if change.mode is not Mode.LF:
            self._tools.resume(out, session)
        out.append(Switched(session.id, change.wish))
        self._finish(out, session)

    def let_go(self, out: Commands, session: Session, why: Why) -> None:
        """What was held has gone by the rows as they are, before its time."""
        change = session.change
        assert change is not None
        if change.mode is not Mode.LF:
            self.undo(out, session, why)
        elif change.phase is Phase.MAKING:  # some may overtake others, but none is lost
            self._switch(out, session)

    def undo(self, out: Commands, session: Session, why: Why) -> None:
        """Not decided yet: leave everything as it was."""
        change = session.change
        assert change is not None
        if decided(change):
            return
        change.why = why
        change.count = 0
        self._tools.resume(out, session)
        self._finish(out, session)

    def recover(self, out: Commands, session: Session) -> None:
        """A restarted agent has found a second right leg: it is out, whatever it was for."""
        change = session.change
        assert change is not None
        change.count = None
        self._finish(out, session)

    # -- the end ------------------------------------------------------------------------

    def _finish(self, out: Commands, session: Session) -> None:
        self._tools.enter(session, Phase.FINISHING)
        self._announce(out, session)
        self._tools.persist(out, session)

    def _announce(self, out: Commands, session: Session) -> None:
        change = session.change
        assert change is not None and change.spare is not None and session.right is not None
        out_leg, in_leg = change.spare, session.right
        if change.id:
            hops = len(change.steps if change.why is not None else change.hops)
            out.append(Send(in_leg.dst, UpdateAck(session.id, in_leg, change.id, hops)))
        elif session.state is State.ESTABLISHED and self._tools.late(change):
            # Found by a restarted agent, and R may have moved: the server hears of it by the way
            # that is in.
            out.append(Send(in_leg.dst, UpdateAck(session.id, in_leg, 0, MAX_CHAIN)))
        out.append(Send(out_leg.dst, UpdateFin(session.id, out_leg, change.id, change.count)))
        if change.far is not None:
            out.append(Send(change.right, UpdateFin(session.id, change.far, change.id, None)))

    def asked_directly(self, session: Session, peer: Address, message: UpdateAsk) -> None:
        """R, which has gone over, asks about its old leg: the old path does not tell it."""
        change = session.change
        assert change is not None
        leg = message.subsession
        ours = change.id == message.change and peer == change.right
        if ours and decided(change) and change.why is None and leg not in _legs(session):
            change.far = leg

    def finack(self, out: Commands, session: Session, count: int | None, held: int) -> None:
        """The leg that is out is gone at the other end; what it sent may be on its way still."""
        change = session.change
        assert change is not None
        if change.phase is not Phase.FINISHING:
            return
        change.held += held
        self._tools.resume(out, session)  # R is through with the old path: nothing is overtaken
        self._tools.enter(session, Phase.EMPTYING)
        spare = self._spare_view(session)
        self._tools.empty(out, session, Toward.LEFT, count, spare=spare)

    def emptied(self, out: Commands, session: Session) -> None:
        """Nothing more comes by the leg that was looked at."""
        change = session.change
        assert change is not None and change.emptying is not None
        if change.phase is Phase.DRAINED:
            self._switch(out, session)
        elif change.phase is Phase.EMPTYING:
            self._over(out, session, change.emptying.seen)

    def _over(self, out: Commands, session: Session, seen: int | None) -> None:
        change, tools = session.change, self._tools
        assert change is not None and change.spare is not None and session.right is not None
        if session.position is Position.TAP and change.why is None:
            # What came by the old leg was sent on to the left by an entry that goes with it.
            known = session.sent_left is not None and seen is not None
            session.sent_left = (session.sent_left or 0) - (seen or 0) if known else None
        out.append(Withdraw(session.id, self._spare_entries(session)))
        tools.leg_gone(out, session, change.spare)
        tools.ports.release(change.spare)
        if change.mode is Mode.LF and change.why is None and change.id:
            leg = session.right
            out.append(Send(leg.dst, UpdateEmpty(session.id, leg, change.id)))
        self._tell(out, session, change, gone=True)
        tools.end(out, session)

    def _tell(self, out: Commands, session: Session, change: Change, *, gone: bool) -> None:
        wish, change.wish = change.wish, 0
        if not wish:
            return  # nobody of this agent's life has wanted it, or they know
        if change.why is not None:
            self.refuse(out, session.id, wish, change.requester, change.why)
        elif change.requester is None:
            out.append(ChangeDone(session.id, wish, change.held, gone))
        else:
            message = Done(session.id, wish, change.held, gone)
            self._remember(message)
            out.append(Send(change.requester, message))

    def abandon(self, out: Commands, session: Session, why: Why) -> None:
        """This host leaves the session itself, or the session ends: no more of this change."""
        change = session.change
        assert change is not None
        if not decided(change):
            change.why = why
        self._tell(out, session, change, gone=False)

    def held_too_long(self, change: Change) -> bool:
        """Packets wait at L while the old path does not become empty."""
        limit = self._tools.settings.hold_limit
        return (
            change.part is Part.LEFT and change.phase is Phase.DRAINED and (change.waited >= limit)
        )

    # -- time, and others ---------------------------------------------------------------

    def tick(self, out: Commands, session: Session) -> None:
        """Send again, or give up."""
        change, settings = session.change, self._tools.settings
        assert change is not None and session.right is not None
        if change.phase is Phase.FINISHING:
            if change.waited >= settings.overtake_limit:
                self._tools.resume(out, session)
            self._go_on(out, session, change)
            return
        limit = {
            Phase.MAKING: settings.patience,
            Phase.EMPTYING: float("inf"),
        }.get(change.phase, settings.hold_limit)
        if change.waited >= limit - 1e-6:
            self.undo(out, session, _silent(change, limit))
            return
        match change.phase:
            case Phase.MAKING:
                self._make(out, session, change)
            case Phase.SPLITTING:
                out.append(Send(change.right, UpdateSub(session.id, change.id)))
            case Phase.DRAINING:
                drain = UpdateDrain(session.id, session.right, change.id, change.count)
                out.append(Send(session.right.dst, drain))
        self._tools.repeat(out, session, limit)

    def _go_on(self, out: Commands, session: Session, change: Change) -> None:
        """No UPDATE-FINACK yet. R's kernel may send by the old leg until R's agent has heard."""
        if self._tools.late(change):
            if change.why is not None:
                self._over(out, session, None)  # nobody has ever sent by the new one
                return
            self._tell(out, session, change, gone=False)
        self._announce(out, session)
        self._tools.persist(out, session)

    def rejected(self, out: Commands, session: Session, message: UpdateReject) -> None:
        """Another host cannot."""
        if session.change is not None and session.change.phase is Phase.SWITCHING:
            return  # the kernel has decided already and is about to say so
        self.undo(out, session, Why(message.cause, message.text, message.blame))

    def spare_gone(self, out: Commands, session: Session, why: Why) -> None:
        """The neighbour on the spare leg has closed it."""
        change = session.change
        assert change is not None
        if change.phase is Phase.SWITCHING:
            return
        self.undo(out, session, why)
        self.finack(out, session, None if change.why is None else 0, 0)

    def failed(self, out: Commands, session: Session, why: str) -> None:
        """The datapath could not accept the new leg, or not redirect to it."""
        own = own_address(session)
        text = f"{format_address(own)} cannot take the new path: {why}"
        self.undo(out, session, Why(Cause.INSTALL_FAILED, text, own))

    def _spare_view(self, session: Session) -> SessionView:
        change = session.change
        assert change is not None and change.spare is not None
        return with_right(session.view, change.spare, change.splice)

    def _spare_entries(self, session: Session) -> tuple[Entry, ...]:
        return spare_entries(session.view, self._spare_view(session))

    def _remember(self, message: Done | Reject) -> None:
        self._outcomes[message.session, message.change] = message
        if len(self._outcomes) > _OUTCOMES:
            del self._outcomes[next(iter(self._outcomes))]


def _objection(session: Session, wanted: ChangeWanted) -> Why | None:
    """What speaks against a change led by this host."""
    own, right = own_address(session), session.right
    here = format_address(own)
    if session.role is Role.SERVER or right is None:
        return Why(Cause.MODE, f"{here} is the server: nothing can change to its right", own)
    if wanted.mode is Mode.SS_OP and session.supersession.proto != Proto.TCP:
        return Why(Cause.MODE, "ss+op is for TCP alone: choose op", own)
    if not wanted.steps and not wanted.hops:
        return Why(Cause.MODE, "nothing to take out and nothing to put in", own)
    if wanted.added is not None and wanted.hops:
        text = "a function that has changed lengths can be taken out, but not replaced"
        return Why(Cause.MODE, text, own)
    if wanted.added is not None and session.supersession.proto != Proto.TCP:
        return Why(Cause.MODE, "only the numbers of TCP can be added to", own)
    neighbour = wanted.steps[0].address if wanted.steps else wanted.right
    if neighbour != right.dst:
        text = (
            f"{here} is followed by {format_address(right.dst)}, "
            f"not by {format_address(neighbour)}: look at the path again"
        )
        return Why(Cause.MOVED, text, own)
    seen = {own, wanted.route.source, wanted.right, *(step.address for step in wanted.steps)}
    for hop in wanted.hops:
        if hop.address in seen:
            text = f"{describe_hop(hop)} is on the path already: name each host once"
            return Why(Cause.LOOP, text, hop.address)
        seen.add(hop.address)
    return None


def _legs(session: Session) -> tuple[Flow | None, ...]:
    assert session.change is not None
    return session.left, session.right, session.change.spare


def _silent(change: Change, limit: float) -> Why:
    what = {
        Phase.MAKING: "the new path was not made, or the old one not free,",
        Phase.SPLITTING: "what was sent before was not acknowledged",
    }.get(change.phase, "the old path did not become empty")
    return Why(Cause.TIMEOUT, f"{what} within {limit:g} s")
