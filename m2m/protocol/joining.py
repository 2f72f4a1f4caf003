"""Two halves become one session for all hosts of it (``docs/splicing.md``, "JOIN").

The host of a proxy that has left knows the session by its left half's name; hosts right of it
know it by the right half's, until JOIN has come to them. A host whose right neighbour has not yet
said that it knows speaks to it of the former name, and takes either from it: what is said is
changed on its way in and out, and no machine has to know.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

import msgspec

from m2m.identity import ANONYMOUS
from m2m.protocol.commands import (
    CancelTimer,
    Closed,
    Command,
    Forget,
    HalvesJoined,
    Keep,
    Rename,
    Send,
    SetTimer,
)
from m2m.protocol.devices import former_note, half_note, note_of
from m2m.protocol.events import Received, RenamedBefore, Spliced, SplicedBefore, Timer
from m2m.protocol.flow import Address, Flow
from m2m.protocol.register import Register
from m2m.protocol.session import Role, Session, State
from m2m.protocol.translation import Position
from m2m.protocol.update import Join, Joined, UpdateAck
from m2m.protocol.wire import Ack

if TYPE_CHECKING:
    from m2m.protocol.change import Commands

__all__ = ["Joining"]

_RETRY, _RETRY_MAX = 0.02, 5.0  # s
_STANDING = (State.ESTABLISHED, State.ADOPTED)


class _Asking:
    """What this host, where a proxy has left, wants the others to know."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.sides = ["right", "left"]  # that have not answered
        self.delay = _RETRY


class Joining:
    """The names of one host's sessions that others may know by another one."""

    def __init__(self, register: Register, rng: random.Random, *, renames: bool) -> None:
        """*renames*: whether sessions here can get other names."""
        self._register = register
        self._renames = renames
        self._rng = rng
        self._former: dict[int, tuple[int, ...]] = {}  # of sessions here: other names they had
        self._said: dict[int, tuple[Address, int]] = {}  # of sessions here: who says which name
        self._asking: dict[int, _Asking] = {}
        self._halves: dict[int, int] = {}  # of sessions that a proxy here has left: the right one

    # -- names --------------------------------------------------------------------------

    def heard(self, event: Received) -> Received:
        """The same, about the session's present name."""
        message = event.message
        said = getattr(message, "session", 0)
        session = self._register.called(said)
        if session is None and isinstance(message, Ack | UpdateAck):
            session = self._by_leg(event.peer, message)
        if session is None:
            return event
        if session.id != said:
            return event._replace(message=msgspec.structs.replace(message, session=session.id))
        if said in self._said and self._said[said][0] == event.peer:
            del self._said[said]  # it knows the name; restarted, it knows no other
        return event

    def _by_leg(self, peer: Address, message: Ack | UpdateAck) -> Session | None:
        """The session that stands here by the leg of a name that is not known: when agents were
        restarted, the left neighbour may say one that this host has forgotten, or has not been told
        yet. All other messages can wait until it has been; these would end the session."""
        leg, session = message.subsession, self._register.with_left(message.subsession)
        if session is None or session.state not in _STANDING:
            return None
        if self._register.has_ended(message.session) or peer != leg.src:
            return None
        return session if leg == session.left else None

    def said(self, commands: list[Command]) -> list[Command]:
        """The same, to each neighbour about the name that it knows."""
        if not self._former:
            return commands
        told = [self._for_neighbour(command) for command in commands]
        for command in commands:
            if isinstance(command, Closed):
                self._forget(told, command.view.session)
        return told

    def _for_neighbour(self, command: Command) -> Command:
        if not isinstance(command, Send):
            return command
        neighbour, name = self._said.get(getattr(command.message, "session", 0), (b"", 0))
        if command.peer != neighbour:
            return command
        return Send(command.peer, msgspec.structs.replace(command.message, session=name))

    def _forget(self, out: Commands, session: int) -> None:
        self._halves.pop(session, None)
        self._said.pop(session, None)
        self._asking.pop(session, None)
        former = self._former.pop(session, ())
        for name in former:
            self._register.unlist_name(name)
        if former:
            out.append(Forget(former))

    def _also_called(self, session: Session, former: int) -> None:
        """Its right neighbour knows it by this name, unless by an earlier one."""
        self._register.list_name(former, session)
        self._former[session.id] = (*self._former.get(session.id, ()), former)
        if session.right is not None:
            self._said.setdefault(session.id, (session.right.dst, former))

    def renamed_before(self, out: Commands, event: RenamedBefore) -> None:
        """A restarted agent goes on with what its right neighbours may call sessions."""
        for former, name in event.names:
            session = self._register.get(name)
            if session is None:
                out.append(Forget((former,)))
            else:
                self._also_called(session, former)

    # -- at the host of the proxy -------------------------------------------------------

    def spliced(self, out: Commands, event: Spliced) -> None:
        """Both halves are one in the datapath: they are here, too, and others shall know."""
        register = self._register
        session, half = register.get(event.session), register.get(event.half)
        assert session is not None and half is not None and half.right is not None
        register.unlist(session)
        register.unlist(half)
        register.forget(half)
        half.state = State.GONE
        session.position, session.role, session.state = Position.TAP, Role.MIDDLE, State.ESTABLISHED
        session.right, session.splice = half.right, event.splice
        session.server = half.server
        session.mtu = _smaller(session.mtu, half.mtu)
        # Neighbours have got what the proxy's sockets had sent, and get what these rows send from
        # now on, which have counted what the sockets got, too.
        counts = event.counts
        session.sent_left = _base(counts.came_left, counts.sent_left, session.sent_left)
        session.sent_right = _base(counts.came_right, counts.sent_right, half.sent_right)
        session.more_left |= counts.more_right
        session.more_right = half.more_right or counts.more_left
        session.through = None
        register.list(session)
        out.append(CancelTimer(half.id))
        out.append(CancelTimer(session.id))
        kept = (session.id, note_of(session)), (half.id, half_note(session.id))
        out.append(Keep(kept))
        self._call(out, session, half.id)

    def spliced_before(self, out: Commands, event: SplicedBefore) -> None:
        """A restarted agent does not know who knows: all are told (again)."""
        for half, name in event.names:
            session = self._register.called(name)
            if session is None or session.splice is None or session.position is not Position.TAP:
                out.append(Forget((half,)))
            else:
                out.append(Keep(((half, half_note(session.id)),)))
                self._call(out, session, half)

    def _call(self, out: Commands, session: Session, half: int) -> None:
        """Its right *half* is to be known by its own name."""
        self._halves[session.id] = half
        self._also_called(session, half)
        self._ask(out, session)

    def _ask(self, out: Commands, session: Session) -> None:
        self._asking[session.id] = _Asking(self._rng.getrandbits(64) or 1)
        self.tick(out, session.id, _RETRY)

    def tick(self, out: Commands, session: int, delay: float | None = None) -> None:
        """Tell again who has not answered."""
        found, asking = self._register.get(session), self._asking.get(session)
        if found is None or asking is None or found.state not in _STANDING:
            return
        asking.delay = min(2 * asking.delay, _RETRY_MAX) if delay is None else delay
        out.append(SetTimer(session, asking.delay, Timer.JOIN))
        for side in asking.sides:
            right = side == "right"
            leg, device = (found.right, found.client) if right else (found.left, found.server)
            assert leg is not None
            mtu = found.mtu or _ANY_MTU
            message = Join(session, leg, asking.number, session, device, mtu)
            out.append(Send(leg.dst if right else leg.src, message))

    # -- at the others ------------------------------------------------------------------

    def join(self, out: Commands, event: Received) -> None:
        """A neighbour says that the session is another one's other half."""
        message = event.message
        assert isinstance(message, Join)
        leg = message.subsession
        # A neighbour that was restarted says the present name, which may not be known here yet.
        session = self._register.get(message.session) or self._register.with_left(leg)
        if session is None or session.state not in _STANDING:
            return  # it is repeated
        if leg == session.left and event.peer == leg.src:
            if not self._take_name(out, session, message.name):
                return
            onward = session.right
            session.client = _known(message.device, session.client)
        elif leg == session.right and event.peer == leg.dst:
            if session.id != message.name:
                return
            onward = session.left
            session.server = _known(message.device, session.server)
        else:
            return
        session.mtu = _smaller(session.mtu, _told(message.mtu))
        out.append(Keep(((session.id, note_of(session)),)))
        if onward is None:
            out.append(Send(event.peer, Joined(session.id, leg, message.change)))
            return
        peer = onward.dst if onward is session.right else onward.src
        mtu = session.mtu or _ANY_MTU
        passed_on = Join(session.id, onward, message.change, message.name, message.device, mtu)
        out.append(Send(peer, passed_on))

    def _take_name(self, out: Commands, session: Session, name: int) -> bool:
        """Whether the session has that name (now)."""
        former = session.id
        if former == name:
            return True
        taken = self._register.get(name) is not None
        if not self._renames or taken or session.change is not None:
            return False
        out.append(CancelTimer(former))
        # In this order: when this agent is killed, the next one goes on with it.
        out.append(Keep(((name, note_of(session)), (former, former_note(name)))))
        out.append(Rename(session.view, name))
        self._register.rename(session, name)
        if session.delay:
            out.append(SetTimer(name, session.delay))
        self._carry_over(out, session, former)
        return True

    def _carry_over(self, out: Commands, session: Session, former: int) -> None:
        """What was known of a session by its *former* name."""
        name, half = session.id, self._halves.pop(former, None)
        said = self._said.pop(former, None)
        if said is not None:
            self._said[name] = said
        self._former[name] = self._former.pop(former, ())
        self._also_called(session, former)
        _, known = self._said.get(name, (b"", 0))
        if known != former:  # here is the server; or the right neighbour has not heard of it yet
            out.append(Forget((former,)))
            if known not in (0, half):
                out.append(Keep(((known, former_note(name)),)))
        if half is not None:  # a proxy here has left, too: what is asked is another question now
            if self._asking.pop(former, None) is not None:
                out.append(CancelTimer(former, Timer.JOIN))
            self._halves[name] = half
            out.append(Keep(((half, half_note(name)),)))
            self._ask(out, session)

    def joined(self, out: Commands, event: Received) -> None:
        """All from the neighbour to the end know."""
        message = event.message
        assert isinstance(message, Joined)
        session, leg = self._register.get(message.session), message.subsession
        if session is None or leg not in (session.left, session.right):
            return
        from_right = leg == session.right
        if from_right:
            self._right_knows(out, session)
        asking = self._asking.get(session.id)
        if asking is not None and asking.number == message.change:
            side = "right" if from_right else "left"
            asking.sides = [one for one in asking.sides if one != side]
            if not asking.sides:
                del self._asking[session.id]
                out.append(CancelTimer(session.id, Timer.JOIN))
                out.append(HalvesJoined(session.id))
            return
        onward: Flow | None = session.left if from_right else session.right
        if onward is not None:
            peer = onward.src if from_right else onward.dst
            out.append(Send(peer, Joined(session.id, onward, message.change)))

    def _right_knows(self, out: Commands, session: Session) -> None:
        """So the next agent here need not know what it had called the session."""
        self._said.pop(session.id, None)
        half = self._halves.get(session.id)
        noted = tuple(name for name in self._former.get(session.id, ()) if name != half)
        if noted:
            out.append(Forget(noted))


_ANY_MTU: Final = 0xFFFF  # it is not known


def _base(came: int, sent: int, before: int | None) -> int | None:
    """What a row is to be thought to have counted when it began to send by a leg, so that the rest
    is what has been sent there; *before*: that of the row which has *sent* so far."""
    return None if before is None else came - (sent - before)


def _smaller(one: int, other: int) -> int:
    """Of two MTUs, either of which may not be known (0)."""
    return min(one, other) if one and other else one or other


def _told(mtu: int) -> int:
    return 0 if mtu == _ANY_MTU else mtu


def _known(device: bytes, before: bytes) -> bytes:
    return before if device == ANONYMOUS else device
