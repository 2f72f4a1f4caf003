"""Moving ends of sessions at one host (``docs/mobility.md``): its own, and its neighbours'.

:class:`~m2m.protocol.moving.Moving` and :class:`~m2m.protocol.rebinding.Rebinding` are the two
sides of a move; here is what they share, and what the rest of the node has to know of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import msgspec

from m2m.identity import ANONYMOUS, Identity
from m2m.protocol.change import Change, Commands, Part
from m2m.protocol.commands import Command, Withdraw
from m2m.protocol.devices import is_open, read_note
from m2m.protocol.events import (
    Adopted,
    DeedsGiven,
    HandedBefore,
    HandOver,
    LeadHere,
    Moved,
    Received,
    Rehomed,
    TakeOver,
    Timer,
)
from m2m.protocol.flow import Address, Flow
from m2m.protocol.handing import Handing
from m2m.protocol.moving import Moving
from m2m.protocol.ports import PortAllocator
from m2m.protocol.reasons import own_address
from m2m.protocol.rebind import End, Rebind, Rebound
from m2m.protocol.rebinding import Rebinding
from m2m.protocol.register import Register
from m2m.protocol.renaming import Batches, Fading
from m2m.protocol.session import Session
from m2m.protocol.translation import Entry, Hook, Toward
from m2m.protocol.wire import Challenge

__all__ = ["Mobility", "follow_ends"]


class Mobility:
    """All that a host does about legs that get another name."""

    def __init__(
        self,
        identity: Identity,
        devices: Mapping[Address, bytes],
        ports: PortAllocator,
        register: Register,
        claim: Callable[[Commands, Session, Flow], None],
        over: Callable[[Commands, Session, Flow], None],
        renamed: Callable[[Commands, Session, tuple[Hook, Flow]], None],
        probe: float,
    ) -> None:
        """*devices* tells whose device is at an address; *claim* gets a left leg out of the hands
        of any other session that had it; *over* ends a session whose hop does not know it by this
        leg; *renamed* is told of each leg of a neighbour's that has another name; *probe*: see
        :class:`~m2m.protocol.steps.Settings`."""
        self.counts: Counter[str] = Counter()
        self._device = identity.device
        self._ports = ports
        self._batches = Batches()
        self._fading = Fading(register, ports)
        self._moving = Moving(
            identity, devices, ports, register, self._fading, self._batches, over,
            lambda out, session: self.handing.void(out, session), self.counts,
        )  # fmt: skip
        self.handing = Handing(
            identity, devices, ports, register, self._batches, self._moving, self.closing, probe,
            self.counts,
        )  # fmt: skip
        self._rebinding = Rebinding(
            identity, ports, register, self._fading, self._batches, claim, self._present,
            self.handing.has_handed, renamed, self.counts,
        )  # fmt: skip

    # -- what is known ------------------------------------------------------------------

    def ends(self) -> dict[tuple[End, Address, Address], list[int]]:
        """The sessions with legs that end here, by end, own address and neighbour."""
        return self._moving.ends()

    def unconfirmed(self) -> dict[tuple[Address, Address], list[int]]:
        """The sessions of legs that are on their way, by own address, as confirmed last, and
        neighbour."""
        return self._moving.unconfirmed()

    @property
    def is_moving(self) -> bool:
        """Whether any leg is on its way."""
        return bool(self._moving)

    def where(self, session: Session) -> Address:
        """This host's address on the session's legs; that to which they are on their way."""
        return self._moving.going_to(session) or own_address(session)

    def moving(self) -> set[int]:
        """The sessions of which a leg is on its way."""
        return self._moving.sessions()

    def ports_in_use(self) -> int:
        """How many pairs of ports names of legs have that are not the legs' own."""
        return sum(part.ports_in_use() for part in (self._moving, self._fading, self.handing))

    def today(self, event: Received) -> Received:
        """The same, with the present name of the leg that it is about."""
        if not (self._fading or self._moving):
            return event
        message = event.message
        leg: Flow | None = getattr(message, "subsession", None)
        if leg is None or isinstance(message, Challenge):
            return event
        now = self._present(message.session, leg)
        if now is None:
            return event
        return event._replace(message=msgspec.structs.replace(message, subsession=now))

    def _present(self, session: int, leg: Flow) -> Flow | None:
        return self._fading.present(session, leg) or self._moving.present(session, leg)

    def is_strange(self, event: Received) -> bool:
        """Whether this names a leg on its way by a name that only the hop knows yet: it has
        confirmed a move, and its answer was lost."""
        return bool(self._moving) and self._moving.is_strange(event)

    def silence(self, commands: list[Command]) -> list[Command]:
        """Without what would name a leg whose name is open now."""
        return self._moving.silence(commands) if self._moving else commands

    # -- events -------------------------------------------------------------------------

    def moved(self, event: Moved) -> Commands:
        out: Commands = []
        self._moving.moved(out, event)
        return out

    def rehomed(self, event: Rehomed) -> Commands:
        out: Commands = []
        self._batches.rehomed(out, event)
        return out

    def rebind(self, event: Received) -> Commands:
        out: Commands = []
        assert isinstance(event.message, Rebind)
        self._rebinding.rebind(out, event)
        return out

    def rebound(self, event: Received) -> Commands:
        out: Commands = []
        assert isinstance(event.message, Rebound)
        self._moving.rebound(out, event.message)
        return out

    def timer_fired(self, timer: Timer) -> Commands:
        out: Commands = []
        if timer is Timer.MOVE:
            self._moving.tick(out)
        elif timer is Timer.HAND:
            self.handing.tick(out)
        else:
            self._fading.tick(out)
        return out

    def handed(self, event: HandOver | DeedsGiven | TakeOver | LeadHere | HandedBefore) -> Commands:
        """A process moves, and its sessions with it."""
        out: Commands = []
        match event:
            case HandOver():
                self.handing.hand_over(out, event)
            case DeedsGiven():
                self.handing.given(out, event)
            case TakeOver():
                self.handing.take_over(out, event)
            case LeadHere():
                self.handing.lead_here(out, event)
            case HandedBefore():
                self.handing.handed_before(out, event)
        return out

    # -- sessions -----------------------------------------------------------------------

    def adopted(self, out: Commands, session: Session, event: Adopted) -> None:
        """A restarted agent has found what was kept of a session, and other names of its legs."""
        read_note(session, event.note)
        end = _own_end(session)
        being_handed = end is not None and is_open(event.note, end)
        if session.left is None:
            session.client = self._device
        elif session.right is None:
            session.server = self._device
        ours: dict[Flow, list[Flow]] = {}
        for entry in event.moved:
            left = entry.toward is Toward.RIGHT
            name = entry.match if left else entry.match.reverse()
            now = _leg_of(session, name, left=left)
            if now is None:
                out.append(Withdraw(session.id, (entry,)))
                continue
            if not left:
                self._ports.adopt(name)
            far_end_is_the_same = (name.src if left else name.dst) == (now.src if left else now.dst)
            if far_end_is_the_same and (session.left is None or session.right is None):
                ours.setdefault(now, []).append(name)
            else:
                self._fading.found(out, session, name, now, left=left)
        if being_handed and not ours:
            main = session.right if session.left is None else session.left
            assert main is not None
            ours[main] = []
        for leg, names in ours.items():
            self._moving.found(out, session, leg, names, is_open=being_handed)

    def marked(self, session: Session) -> tuple[Entry, ...]:
        """The rows of old names of the session's legs, marked as such."""
        return self._fading.marked(session)

    def leg_gone(self, out: Commands, session: Session, leg: Flow) -> None:
        """A leg of the session is no more."""
        self._fading.leg_gone(out, session, leg)

    def unused(self, out: Commands, session: Session, leg: Flow) -> bool:
        """*leg*, a left leg that this session has for another's, may only be an old name: then it
        is one no more."""
        return self._fading.drop(out, session, leg)

    def closing(self, out: Commands, session: Session) -> None:
        """The session ends: what accepts packets by other names of its legs goes first."""
        if self._moving:
            self._moving.closing(out, session)
        self.handing.closing(session)
        self._fading.closing(out, session)


def _own_end(session: Session) -> End | None:
    """The end of the session that this host is."""
    if session.left is None:
        return End.CLIENT
    return End.SERVER if session.right is None else None


def _leg_of(session: Session, name: Flow, *, left: bool) -> Flow | None:
    """The leg on that side that *name* is another name of: it has the far end or the ports."""
    main, change = (session.left if left else session.right), session.change
    spare = None
    if change is not None and (change.part is Part.RIGHT) == left:
        spare = change.spare
    ports = name.sport, name.dport
    for leg in (main, spare):
        if leg is not None:
            far_end_is_the_same = (name.src if left else name.dst) == (leg.src if left else leg.dst)
            if far_end_is_the_same or ports == (leg.sport, leg.dport):
                return leg
    return main


def follow_ends(session: Session, change: Change, event: Received) -> None:
    """The session's client or server speaks about a change from where it is now: that is where L
    or R, if it is that, can be reached."""
    if event.device == ANONYMOUS or change.id != getattr(event.message, "change", None):
        return
    if event.device == session.client and change.part is not Part.LEFT:
        change.leader = event.peer
    elif event.device == session.server and change.part is Part.LEFT:
        change.right = event.peer
