"""R: the host where both paths meet again (docs/reconfiguration.md, "R").

It accepts the new leg beside the old, tells L when it has been reached by both paths, and goes
over to the new leg when it hears that this is in, or that the old one is out.
"""

from __future__ import annotations

from m2m.protocol.change import Change, Commands, Part, Phase, Tools, sent, with_left
from m2m.protocol.commands import Redirect, Send, WatchAck, Withdraw
from m2m.protocol.flow import format_address
from m2m.protocol.reasons import Why, own_address
from m2m.protocol.session import Role, Session
from m2m.protocol.translation import (
    Entry,
    Position,
    Toward,
    receiver,
    redirected_entry,
    spare_entries,
)
from m2m.protocol.update import (
    Lock,
    Mode,
    UpdateAsk,
    UpdateDrain,
    UpdateDrained,
    UpdateEmpty,
    UpdateFin,
    UpdateFinAck,
    UpdateReject,
    UpdateSubAck,
    UpdateSyn,
    UpdateSynAck,
)
from m2m.protocol.wire import Cause, clip

__all__ = ["Receiving", "undecided"]


def undecided(change: Change) -> bool:
    """Whether R does not know yet which of its left legs will be in."""
    return change.phase in (Phase.LOCKED, Phase.SPLITTING, Phase.DRAINING, Phase.DRAINED)


class Receiving:
    """The machine of R."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    def lock(self, out: Commands, session: Session, message: Lock, syn: UpdateSyn | None) -> None:
        """The old path leads here; *syn* has come by the new one already, or will."""
        change = Change(message.change, Part.RIGHT, message.mode, Phase.LOCKED, message.leader)
        change.splice = message.splice
        session.change = change
        if syn is not None:
            self.made(out, session, syn)
        self._tools.watch(out, session)

    def made(self, out: Commands, session: Session, syn: UpdateSyn) -> None:
        """The new path leads here, perhaps not for the first time."""
        change = session.change
        assert change is not None
        if change.spare is None and change.phase is Phase.LOCKED:
            change.spare = syn.subsession
            change.mtu = syn.mtu
            self._tools.register.list_leg(syn.subsession, session)
            self._tools.accept(out, session, self._spare_entries(session))
        if change.spare == syn.subsession and undecided(change):
            answer = UpdateSynAck(session.id, change.id, change.mtu, change.splice)
            out.append(Send(change.leader, answer))

    def failed(self, out: Commands, session: Session, why: str) -> None:
        """The datapath could not accept the new leg, or not redirect to it."""
        change = session.change
        assert change is not None
        own = own_address(session)
        if change.phase is Phase.SWITCHING:  # L has decided: L repeats, and so does this host
            self._tools.enter(session, Phase.LOCKED)
            self._tools.resume(out, session)
            self._tools.watch(out, session)
            return
        self._forget_spare(session, change)
        text = clip(f"{format_address(own)} cannot take the new path: {why}")
        out.append(
            Send(
                change.leader,
                UpdateReject(session.id, change.id, Cause.INSTALL_FAILED, text, own),
            )
        )

    # -- op and ss+op -------------------------------------------------------------------

    def split(self, out: Commands, session: Session) -> None:
        """UPDATE-SUB, perhaps not for the first time."""
        change = session.change
        assert change is not None
        if change.phase is Phase.LOCKED and change.spare is not None:
            self._hold(out, session, Phase.SPLITTING)
        elif change.own_acked:
            out.append(Send(change.leader, UpdateSubAck(session.id, change.id)))

    def drain(self, out: Commands, session: Session, message: UpdateDrain) -> None:
        """UPDATE-DRAIN, perhaps not for the first time."""
        change = session.change
        assert change is not None and session.left is not None
        if change.spare is None or message.subsession != session.left:
            return
        if change.phase in (Phase.LOCKED, Phase.SPLITTING):
            change.fin = UpdateFin(session.id, session.left, change.id, message.count)
            self._hold(out, session, Phase.DRAINING)
        elif change.phase is Phase.DRAINED:
            self._say_drained(out, session, change)

    def _hold(self, out: Commands, session: Session, phase: Phase) -> None:
        self._tools.enter(session, phase)
        splitting = phase is Phase.SPLITTING
        session.more_right |= splitting and session.position is Position.TAP
        self._tools.hold(out, session, Toward.LEFT, substream=splitting)

    def holding(
        self, out: Commands, session: Session, packets: int, checkpoint: int | None
    ) -> None:
        """The kernel holds what this host sends to the left."""
        change = session.change
        assert change is not None
        if change.phase is Phase.SPLITTING:
            if checkpoint is None:
                self.acked(out, session)
            else:
                key = receiver(session.view, Toward.RIGHT)
                out.append(WatchAck(session.id, change.id, key, checkpoint))
            self._tools.watch(out, session)
        elif change.phase is Phase.DRAINING:
            assert change.fin is not None
            change.count = sent(packets, session.sent_left)
            target, change.fin = change.fin.count, None
            self._tools.empty(out, session, Toward.RIGHT, target)

    def acked(self, out: Commands, session: Session) -> None:
        """What this host had sent to the left has been acknowledged through the old path."""
        change = session.change
        assert change is not None
        if change.phase is Phase.SPLITTING and not change.own_acked:
            change.own_acked = True
            out.append(Send(change.leader, UpdateSubAck(session.id, change.id)))

    def _say_drained(self, out: Commands, session: Session, change: Change) -> None:
        left = session.left
        assert left is not None
        out.append(Send(left.src, UpdateDrained(session.id, left, change.id, change.count)))

    def let_go(self, out: Commands, session: Session, why: Why) -> None:
        """What was held has gone by the rows as they are, before its time."""
        change = session.change
        assert change is not None and why.cause is not None
        if change.mode is Mode.LF:  # some may overtake others, but none is lost
            self._tools.behind(out, session)
            return
        message = UpdateReject(session.id, change.id, why.cause, why.text, why.blame)
        out.append(Send(change.leader, message))

    # -- the decision, as it is heard of ------------------------------------------------

    def switch(self, out: Commands, session: Session, fin: UpdateFin | None = None) -> None:
        """The new leg is in: an UPDATE-ACK says so, or *fin* about the old one."""
        change = session.change
        assert change is not None and change.spare is not None
        if undecided(change):
            self._tools.enter(session, Phase.SWITCHING)
            change.fin = fin
            if change.mode is Mode.LF and change.id and change.spare.src == change.leader:
                self._tools.hold(out, session, Toward.LEFT)  # no new host to keep it back
            entry = redirected_entry(session.view, with_left(session.view, change.spare))
            out.append(Redirect(session.id, change.id, entry))

    def redirected(self, out: Commands, session: Session, packets: int) -> None:
        """What this host sends to the left goes by the new leg."""
        change, tools = session.change, self._tools
        assert change is not None
        if change.phase is not Phase.SWITCHING:
            return
        change.count = sent(packets, session.sent_left)
        session.sent_left = packets
        change.more, session.more_left = session.more_left, False
        assert change.spare is not None and session.left is not None
        tools.register.unlist(session)
        session.left, change.spare = change.spare, session.left
        tools.register.list(session)
        tools.register.list_leg(change.spare, session)
        if change.mode is not Mode.LF:
            tools.resume(out, session)
        fin = change.fin
        tools.enter(session, Phase.FINISHING)
        if fin is not None:
            self.spare_out(out, session, fin.count)
        else:
            tools.watch(out, session, tools.settings.finish_limit)

    def spare_out(self, out: Commands, session: Session, count: int | None) -> None:
        """The spare leg is out: the new one, and all is as before; or the old one."""
        change = session.change
        assert change is not None and change.spare is not None
        if undecided(change):
            leg = change.spare
            self.undone(out, session)
            out.append(Send(leg.src, UpdateFinAck(session.id, leg, change.id, 0, change.held)))
        elif change.phase is Phase.FINISHING:
            self._tools.enter(session, Phase.EMPTYING)
            spare = with_left(session.view, change.spare)
            self._tools.empty(out, session, Toward.RIGHT, count, spare=spare)

    def undone(self, out: Commands, session: Session) -> None:
        """The old leg stays in."""
        change = session.change
        assert change is not None
        self._tools.resume(out, session)
        if change.spare is not None:
            out.append(Withdraw(session.id, self._spare_entries(session)))
            self._tools.leg_gone(out, session, change.spare)
            self._forget_spare(session, change)
        self._tools.end(out, session)

    def emptied(self, out: Commands, session: Session) -> None:
        """Nothing more comes by the leg that was looked at."""
        change = session.change
        assert change is not None and change.emptying is not None
        if change.phase is Phase.DRAINING:
            self._tools.enter(session, Phase.DRAINED)
            self._say_drained(out, session, change)
            self._tools.watch(out, session)
            return
        leg, seen = change.spare, change.emptying.seen
        assert leg is not None and session.left is not None
        if session.position is Position.TAP:
            # What came by the old leg was sent on to the right by an entry that goes with it.
            known = session.sent_right is not None and seen is not None
            session.sent_right = (session.sent_right or 0) - (seen or 0) if known else None
        out.append(Withdraw(session.id, self._spare_entries(session)))
        self._tools.leg_gone(out, session, leg)
        self._forget_spare(session, change)
        message = UpdateFinAck(session.id, leg, change.id, change.count, change.held)
        session.through = message
        out.append(Send(leg.src, message))
        if change.far is not None:
            out.append(Send(change.leader, message))
        if change.mode is Mode.LF and change.id:
            leg = session.left
            out.append(Send(leg.src, UpdateEmpty(session.id, leg, change.id)))
        self._tools.follow(out, session)

    def still_asked(self, out: Commands, session: Session, change: int) -> None:
        """L repeats that the new leg is in, though all is over here: UPDATE-FIN, which says so by
        the old leg, goes to where this end was then. *change* 0: a restarted L's."""
        finack = session.through
        if session.role is Role.SERVER and finack is not None and change in (0, finack.change):
            out.append(Send(finack.subsession.src, finack))

    # -- time, and others ---------------------------------------------------------------

    def tick(self, out: Commands, session: Session) -> None:
        """No news: ask."""
        change, tools = session.change, self._tools
        assert change is not None
        if change.phase is Phase.FOLLOWING:
            tools.behind(out, session)
            return
        if change.waited >= 2 * tools.settings.hold_limit:
            tools.resume(out, session)  # nobody leads this any more
        tools.ask(out, session)
        limit = float("inf")
        if change.phase is Phase.FINISHING:
            if not tools.late(change):
                limit = tools.settings.finish_limit
            elif change.spare is not None and change.spare.src != change.leader:
                # A host of the old path is gone, perhaps for ever; but L knows as well.
                change.far = change.spare
                out.append(Send(change.leader, UpdateAsk(session.id, change.far, change.id)))
        tools.watch(out, session, limit)

    def spare_gone(self, out: Commands, session: Session) -> None:
        """The neighbour on the spare leg has closed it."""
        change = session.change
        assert change is not None and change.spare is not None
        if undecided(change):
            self._tools.resume(out, session)
            out.append(Withdraw(session.id, self._spare_entries(session)))
            self._tools.leg_gone(out, session, change.spare)
            self._forget_spare(session, change)
        else:
            self.spare_out(out, session, None)

    def _spare_entries(self, session: Session) -> tuple[Entry, ...]:
        change = session.change
        assert change is not None and change.spare is not None
        return spare_entries(session.view, with_left(session.view, change.spare))

    def _forget_spare(self, session: Session, change: Change) -> None:
        if change.spare is not None:
            self._tools.register.unlist_leg(change.spare, session)
            change.spare = None
