"""One leg gets another name: what that means for a session at either end of the leg.

A leg is the session's own (*main*), or the spare one of a change that is under way. Old names fade:
for a while packets that carry them are accepted, and control messages that use them are understood.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, TypeAlias

from m2m.protocol.change import Change, Commands, Part, with_left, with_right
from m2m.protocol.commands import Rehome, SetTimer, Withdraw
from m2m.protocol.events import Rehomed, Timer
from m2m.protocol.flow import Flow
from m2m.protocol.ordering import Emptying
from m2m.protocol.ports import PortAllocator
from m2m.protocol.register import Register
from m2m.protocol.session import Session
from m2m.protocol.translation import (
    MOVED,
    Entry,
    Hook,
    Position,
    received_entry,
    sent_entry,
)

__all__ = ["Batches", "Fading", "Outcome", "Rehoming", "Renaming", "rows_of"]


class Renaming:
    """One leg of a session that is to be named otherwise. *left*: it is on the session's left."""

    __slots__ = ("_renamed", "left", "leg", "new", "session", "spare")

    def __init__(self, session: Session, leg: Flow, new: Flow, *, left: bool) -> None:
        """*leg* must be one of the session's; raises :exc:`ValueError`."""
        self.session = session
        self.leg = leg
        self.new = new
        self.left = left
        self.spare = leg != (session.left if left else session.right)
        change = session.change
        if self.spare and (change is None or change.spare != leg):
            raise ValueError(f"{leg} is no leg of session {session.id:016x}")
        names = (new, session.right) if left else (session.left, new)
        self._renamed = session.view_with(*names)
        if self.spare and not left:
            assert change is not None
            self._renamed = self._renamed._replace(splice=change.splice)

    def accepted(self, *, moved: bool = False) -> tuple[Entry, ...]:
        """The row that accepts packets by the new name; *moved*: not confirmed yet."""
        if self.leg == self.new:
            return ()
        received = received_entry(self._renamed, left=self.left)
        return (received._replace(generation=MOVED) if moved else received,)

    @property
    def former(self) -> tuple[Hook, Flow]:
        """The key of the row that accepts packets by the name so far."""
        return Hook.IN, self.leg if self.left else self.leg.reverse()

    def marked(self) -> tuple[Entry, ...]:
        """That row, as one of an old name."""
        _, match = self.former
        return tuple(row._replace(match=match) for row in self.accepted(moved=True))

    def redirected(self) -> tuple[Entry, ...]:
        """The row that sends by it, if any does, and what a tap has beside it: packets are not
        sent by a spare leg."""
        if self.spare or self.leg == self.new:
            return ()
        return sent_entry(self._renamed, left=self.left), *self._beside()

    def _beside(self) -> tuple[Entry, ...]:
        """At a tap what comes by the spare leg of the other side is sent by this one, too."""
        session, change, left = self.session, self.session.change, self.left
        if session.position is not Position.TAP or change is None or change.spare is None:
            return ()
        if change.part is not (Part.LEFT if left else Part.RIGHT):
            return ()
        if left:
            beside = with_right(self._renamed, change.spare, change.splice)
        else:
            beside = with_left(self._renamed, change.spare)
        return (sent_entry(beside, left=left),)

    def apply(self, register: Register, packets: int | None) -> None:
        """The datapath has done it. *packets*: counted by the row that sends, when it changed."""
        session, change = self.session, self.session.change
        if self.leg == self.new:
            return
        if self.left:
            register.unlist(session)
            if self.spare:
                register.unlist_leg(self.leg, session)
        if self.spare:
            assert change is not None
            change.spare = self.new
            change.more = True  # what the other end has counted began under the old name
        elif self.left:
            session.left, session.sent_left, session.more_left = self.new, packets, True
        else:
            session.right, session.sent_right, session.more_right = self.new, packets, True
        if session.position is Position.TAP:  # its row for what comes sends it on, too
            session.sent_left = session.sent_right = None
        if self.left:
            register.list(session)
            if change is not None and change.part is Part.RIGHT and change.spare is not None:
                register.list_leg(change.spare, session)
        if change is not None:
            if change.part is Part.LEFT:
                change.leader = self.new.src
            self._emptied_under(change)

    def _emptied_under(self, change: Change) -> None:
        """If this very leg is being emptied, look at its new row."""
        emptying = change.emptying
        hooked = self.leg if self.left else self.leg.reverse()
        if emptying is not None and emptying.key[1] == hooked:
            key = emptying.key[0], self.new if self.left else self.new.reverse()
            change.emptying = renewed = Emptying(key, None, emptying.limit)
            renewed.delay = emptying.delay


def rows_of(session: Session, name: Flow, *, left: bool) -> tuple[Entry, ...]:
    """What accepts packets by a name that no leg of the session has, on its *left* or right."""
    if name == (session.left if left else session.right):
        return ()
    names = (name, session.right) if left else (session.left, name)
    return (received_entry(session.view_with(*names), left=left),)


class Rehoming(NamedTuple):
    """What the datapath is to do for one leg."""

    renaming: Renaming
    accepted: tuple[Entry, ...]
    redirected: tuple[Entry, ...]
    marked: tuple[Entry, ...] = ()  # first, lest a restarted agent takes it for more than a name


class Outcome(NamedTuple):
    """What has become of one leg: whether it was done, and what its row that sends, if one was
    redirected, had counted."""

    ok: bool
    packets: int | None = None


Then: TypeAlias = Callable[[Commands, list[Outcome]], None]
"""Goes on when the datapath has answered about every leg."""


class Batches:
    """Legs whose rows are being changed, together, by the datapath."""

    def __init__(self) -> None:
        self._open: dict[int, tuple[list[Rehoming], Then]] = {}
        self._last = 0

    def start(self, out: Commands, steps: list[Rehoming], then: Then) -> None:
        """Do all of these; *then* goes on."""
        self._last += 1
        self._open[self._last] = steps, then
        accepted = tuple(row for step in steps for row in step.accepted)
        redirected = tuple(row for step in steps for row in (*step.marked, *step.redirected))
        out.append(Rehome(self._last, accepted, redirected))

    def rehomed(self, out: Commands, event: Rehomed) -> None:
        """The datapath's answer."""
        steps, then = self._open.pop(event.batch)
        if event.packets is not None:
            then(out, list(_shared_out(steps, event.packets)))
        elif len(steps) == 1:
            then(out, [Outcome(ok=False)])
        else:  # one that cannot must not keep the others
            outcomes: list[Outcome] = []

            def collect(out: Commands, found: list[Outcome]) -> None:
                outcomes.extend(found)
                if len(outcomes) == len(steps):
                    then(out, outcomes)

            for step in steps:
                self.start(out, [step], collect)


def _shared_out(steps: list[Rehoming], packets: tuple[int, ...]) -> Iterator[Outcome]:
    numbers = iter(packets)
    for step in steps:
        counted = [next(numbers) for _ in (*step.marked, *step.redirected)]
        yield Outcome(True, counted[len(step.marked)] if step.redirected else None)


PERIOD: Final = 1.0  # s
_AT_ONCE: Final = 64  # names that go before something else may happen
_NEXT: Final = 0.001  # s until the next of them do


class _Name:
    """An old name of a leg."""

    __slots__ = ("gone", "left", "now", "session")

    def __init__(self, session: Session, now: Flow, *, left: bool) -> None:
        self.session = session
        self.now = now  # what the leg is called today
        self.left = left
        self.gone = False  # its rows are out


class Fading:
    """Old names of legs, from which packets are accepted for a while yet.

    They go after one to two times :data:`PERIOD`, and with them the ports of those that lead to the
    right: this host has chosen them.
    """

    def __init__(self, register: Register, ports: PortAllocator) -> None:
        self._register = register
        self._ports = ports
        self._names: dict[int, dict[Flow, _Name]] = {}  # by session
        self._young: list[tuple[Flow, _Name]] = []
        self._old: list[tuple[Flow, _Name]] = []

    def __bool__(self) -> bool:
        return bool(self._names)

    def ports_in_use(self) -> int:
        """How many pairs of ports wait here to be free."""
        return sum(not name.left for names in self._names.values() for name in names.values())

    def marked(self, session: Session) -> tuple[Entry, ...]:
        """The rows of the session's old names, marked as such: a restarted agent knows those that
        are not only while the leg has their ports, and is not the spare one of a change."""
        return tuple(
            row._replace(generation=MOVED)
            for leg, name in self._names.get(session.id, _NOTHING).items()
            if not name.gone
            for row in rows_of(session, leg, left=name.left)
        )

    def present(self, session: int, leg: Flow) -> Flow | None:
        """What *leg*, an old name, is called now; None if it is no old name of this session."""
        name = self._names.get(session, _NOTHING).get(leg)
        return None if name is None else name.now

    def begin(self, out: Commands, renaming: Renaming, old: Flow) -> None:
        """*old* is not used any more, by a leg that has just been renamed."""
        for name in self._names.get(renaming.session.id, _NOTHING).values():
            if name.now == old:
                name.now = renaming.new
        self.found(out, renaming.session, old, renaming.new, left=renaming.left)

    def found(self, out: Commands, session: Session, old: Flow, now: Flow, *, left: bool) -> None:
        """Packets are accepted by *old*, another name of a leg that is called *now*."""
        name = _Name(session, now, left=left)
        self._names.setdefault(session.id, {})[old] = name
        if left:
            self._register.list_leg(old, session)
        if not self._young and not self._old:
            out.append(SetTimer(0, PERIOD, Timer.FADE))
        self._young.append((old, name))

    def take(self, session: Session, leg: Flow) -> bool:
        """*leg* is to be used again by the same session; whether it was fading there."""
        return self._pop(session, leg) is not None

    def take_all(self, session: Session, now: Flow) -> list[Flow]:
        """The old names of a leg, which somebody else minds from now on."""
        names = self._names.get(session.id, _NOTHING).items()
        found = [old for old, name in names if name.now == now]
        for old in found:
            self._pop(session, old)
        return found

    def tick(self, out: Commands) -> None:
        """Those that have faded go; of thousands, some at a time."""
        faded, self._old = self._old[:_AT_ONCE], self._old[_AT_ONCE:]
        for leg, name in faded:
            if self._names.get(name.session.id, _NOTHING).get(leg) is name:
                self.drop(out, name.session, leg)
        if self._old:
            out.append(SetTimer(0, _NEXT, Timer.FADE))
            return
        self._old, self._young = self._young, []
        if self._old:
            out.append(SetTimer(0, PERIOD, Timer.FADE))

    def leg_gone(self, out: Commands, session: Session, leg: Flow) -> None:
        """A leg of the session is no more: its old names go with it. For a restarted agent they
        would be names of another one."""
        names = self._names.get(session.id, _NOTHING).items()
        for old in [old for old, name in names if name.now == leg and not name.gone]:
            self.drop(out, session, old)

    def drop(self, out: Commands, session: Session, leg: Flow) -> bool:
        """This one goes now; False if it is none."""
        name = self._pop(session, leg)
        if name is None:
            return False
        self._withdraw(out, name, leg)
        if not name.left:
            self._ports.release(leg)
        return True

    def closing(self, out: Commands, session: Session) -> None:
        """The session ends: the rows of its old names go. Their ports stay for a while."""
        for leg, name in self._names.get(session.id, _NOTHING).items():
            self._withdraw(out, name, leg)

    def _pop(self, session: Session, leg: Flow) -> _Name | None:
        names = self._names.get(session.id, _NOTHING)
        name = names.get(leg)
        if name is not None:
            del names[leg]
            if not names:
                del self._names[session.id]
        return name

    def _withdraw(self, out: Commands, name: _Name, leg: Flow) -> None:
        if name.gone:
            return
        name.gone = True
        if name.left:
            self._register.unlist_leg(leg, name.session)
        out.append(Withdraw(name.session.id, rows_of(name.session, leg, left=name.left)))


_NOTHING: dict[Flow, _Name] = {}
