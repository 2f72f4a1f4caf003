"""A host's part in a change of a session's chain, and what all parts have in common.

:mod:`m2m.protocol.migration` finds the part that an event is for; :mod:`~m2m.protocol.leading`
(L), :mod:`~m2m.protocol.receiving` (R) and :mod:`~m2m.protocol.passing` (old and new hops) are the
machines, :mod:`~m2m.protocol.ordering` has what op and ss+op add.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple, TypeAlias

from m2m.protocol.commands import (
    Accept,
    CancelTimer,
    Command,
    Count,
    Hold,
    Resume,
    Send,
    SetTimer,
    WatchCount,
)
from m2m.protocol.events import Counted, Timer
from m2m.protocol.flow import Address, Flow
from m2m.protocol.ordering import Emptying, Incoming, Outgoing
from m2m.protocol.ports import PortAllocator
from m2m.protocol.reasons import Why
from m2m.protocol.register import Register
from m2m.protocol.session import Session
from m2m.protocol.splice import Splice
from m2m.protocol.translation import Entry, Hook, Position, SessionView, Toward, receiver, sender
from m2m.protocol.update import Mode, Step, UpdateAsk, UpdateFin
from m2m.protocol.wire import Hop

__all__ = [
    "Change", "Commands", "Part", "Phase", "Tools", "UpdateSettings", "sent", "with_left",
    "with_right",
]  # fmt: skip

Commands: TypeAlias = list[Command]


class UpdateSettings(NamedTuple):
    """Times, in seconds."""

    patience: float = 1.0  # L waits this long for UPDATE-SYNACK
    hold_limit: float = 0.5  # packets are held at most this long
    overtake_limit: float = 0.05  # lf: ... by a host that only keeps them from overtaking
    finish_limit: float = 5.0  # for UPDATE-FINACK, before it is worth another look
    retry: float = 0.02  # before a message is sent again; doubles each time
    retry_max: float = 1.0
    ask: float = 0.3  # before a host without news asks; doubles
    ask_max: float = 5.0
    poll: float = 0.001  # between two looks at a counter; doubles
    poll_max: float = 0.01
    settle: float = 0.001  # an NF that has sent nothing for so long has nothing more to send
    drain_quiet: float = 0.05  # a leg by which nothing has come for so long is empty
    drain_limit: float = 2.0  # and it is after so long in any case
    request_retry: float = 0.5  # once a request was approved
    request_limit: float = 10.0


class Part(IntEnum):
    """What a host is in a change."""

    LEFT = 0  # L
    RIGHT = 1  # R
    OLD = 2
    NEW = 3


class Phase(IntEnum):
    """How far it is (docs/reconfiguration.md has the tables)."""

    LOCKED = 0  # R, old: nothing else is done here until this is over
    JOINED = 1  # new: unconfirmed
    MAKING = 2  # L
    SPLITTING = 3  # L, R (ss+op)
    DRAINING = 4  # L, R: all is held; old: its left leg is emptied
    PASSED = 5  # old: DRAIN is passed on
    RETURNING = 6  # old: its right leg is emptied
    MOVING = 7  # old: its NF's state is under way
    DRAINED = 8  # R, old: DRAINED is sent; L: waits for the redirect to be tried
    SWITCHING = 9  # L, R: the kernel is redirecting; the change is decided at L by its success
    FINISHING = 10  # L: repeats ACK and FIN; R: waits for FIN; old: empties its left leg for good
    LEAVING = 11  # old: repeats FIN to the right
    EMPTYING = 12  # L, R: the spare leg; old: its right leg
    FOLLOWING = 13  # R, new: all is done; what is kept back waits for the old path (lf)


class Change:
    """One change at one host; a session has at most one at a time.

    ``spare`` is the leg beside the one that packets are sent by: at L beside ``session.right``,
    at R beside ``session.left``.
    """

    __slots__ = (
        "acked", "added", "count", "delay", "emptying", "exported", "far", "fin", "held", "holding",
        "hops", "id", "imported", "incoming", "leader", "mode", "more", "mtu", "outgoing",
        "own_acked", "part", "phase", "requester", "right", "settling", "spare", "splice", "steps",
        "waited", "why", "wish",
    )  # fmt: skip

    def __init__(self, id: int, part: Part, mode: Mode, phase: Phase, leader: Address) -> None:  # noqa: A002
        self.id = id
        self.part = part
        self.mode = mode
        self.phase = phase
        self.leader = leader
        self.spare: Flow | None = None
        # L: of the spare leg. R, old: of the old run, up to here.
        self.splice: Splice | None = None
        self.added: Splice | None = None  # L: by a function of the old run that has told so
        self.steps: tuple[Step, ...] = ()
        self.hops: tuple[Hop, ...] = ()
        self.right: Address = b""
        self.mtu = 0  # L: of the first link of the new path; R: of all of it
        self.requester: Address | None = None  # L: who asked; None: somebody here
        self.wish = 0  # L: the number that this change has for who asked; 0: nobody waits for it
        self.why: Why | None = None  # L: why it is undone
        self.fin: UpdateFin | None = None  # R: came before it was due
        self.far: Flow | None = None  # R's old leg, when R and L speak of it without those between
        self.count: int | None = None  # what this host says has gone by the leg that is out
        self.more = False  # as Session.more_left, of the spare leg when it had been in use
        self.held = 0
        # What travels so waits at this host, in the row with this key.
        self.holding: dict[Toward, tuple[Hook, Flow]] = {}
        self.own_acked = False  # L, R: all up to the own checkpoint
        self.acked = False  # L: R's, too
        self.emptying: Emptying | None = None
        self.settling = False  # what is emptied is this host's own NF
        self.outgoing: Outgoing | None = None
        self.exported = False
        self.incoming: Incoming | None = None
        self.imported = False
        self.delay = 0.0  # s, of the timer that is set
        self.waited = 0.0  # s in this phase, up to when that timer was set


class Tools:
    """What all machines need: the host's tables, timers, and the emptying of legs."""

    def __init__(
        self,
        settings: UpdateSettings,
        ports: PortAllocator,
        register: Register,
        over: Callable[[Commands, Session], None],
        closing: Callable[[Commands, Session], None],
        names: Callable[[Session], tuple[Entry, ...]],
        leg_gone: Callable[[Commands, Session, Flow], None],
    ) -> None:
        self.settings = settings
        self.ports = ports
        self.register = register
        self.over = over  # the session's change is over: what waited may begin
        self.closing = closing  # this host forgets the session: other names of its legs go
        self.leg_gone = leg_gone  # a spare leg is no more, nor are its old names
        self._names = names  # the rows of old names of its legs, marked

    # -- time ---------------------------------------------------------------------------

    def enter(self, session: Session, phase: Phase) -> Change:
        """Begin a phase: nothing has been waited for yet."""
        change = session.change
        assert change is not None
        change.phase = phase
        change.waited = change.delay = 0.0
        change.emptying = None
        return change

    def repeat(self, out: Commands, session: Session, limit: float = float("inf")) -> None:
        """Come back to send again; at the latest when the phase may last no longer."""
        settings = self.settings
        self._arm(out, session, settings.retry, settings.retry_max, limit)

    def persist(self, out: Commands, session: Session) -> None:
        """Come back to send again, for ever; at *finish_limit* exactly, and from then on rarely."""
        change, settings = session.change, self.settings
        assert change is not None
        if self.late(change):
            self._arm(out, session, settings.retry, settings.ask_max, float("inf"))
        else:
            self.repeat(out, session, settings.finish_limit)

    def late(self, change: Change) -> bool:
        """Whether a phase lasts so long that nobody should wait for its end."""
        return change.waited >= self.settings.finish_limit - 1e-6

    def watch(self, out: Commands, session: Session, limit: float = float("inf")) -> None:
        """Come back to ask for news."""
        self._arm(out, session, self.settings.ask, self.settings.ask_max, limit)

    def _arm(
        self, out: Commands, session: Session, first: float, most: float, limit: float
    ) -> None:
        change = session.change
        assert change is not None
        delay = min(max(change.waited, first), most)
        change.delay = max(min(delay, limit - change.waited), 1e-3)
        out.append(SetTimer(session.id, change.delay, Timer.CHANGE))

    def ask(self, out: Commands, session: Session) -> None:
        """Ask whether the leg to the left is in, and the spare one if it leads there."""
        change = session.change
        number = 0 if change is None else change.id
        for leg in (session.left, None if change is None else change.spare):
            if leg is not None and (leg is session.left or leg.dst == _own(session)):
                out.append(Send(leg.src, UpdateAsk(session.id, leg, number)))

    # -- legs ---------------------------------------------------------------------------

    def accept(self, out: Commands, session: Session, entries: tuple[Entry, ...]) -> None:
        """Accept packets by the spare leg. From now on a restarted agent has to tell it from old
        names of the other one."""
        out.append(Accept(session.id, (*entries, *self._names(session))))

    def empty(
        self, out: Commands, session: Session, toward: Toward, count: int | None,
        *, spare: SessionView | None = None,
    ) -> None:  # fmt: skip
        """Look until *count* packets have come that travel *toward*, or nothing comes any more.

        By the spare leg, which *spare* has in its place, or by the one in use.
        """
        change = session.change
        assert change is not None
        more = session.more_left if toward is Toward.RIGHT else session.more_right
        if change.more if spare is not None else more:
            count = None
        key = receiver(session.view if spare is None else spare, toward)
        change.emptying = Emptying(key, count, self.settings.drain_quiet)
        change.settling = False
        out.append(Count(session.id, change.id, key))

    def counted(self, out: Commands, session: Session, event: Counted, toward: Toward) -> bool:
        """Whether the leg is empty; if not, look again later.

        An inline NF that is to go may still have in hand what has come in: its outgoing entry
        for packets *toward* the next host is looked at, too, and the queues before it.
        """
        change, settings = session.change, self.settings
        assert change is not None
        emptying = change.emptying
        assert emptying is not None
        first = emptying.seen is None
        if not emptying.look(event.packets, settings.drain_limit, event.queues):
            first_pause = settings.poll
            if emptying.target is not None:  # the kernel tells; else only if some were lost
                first_pause = settings.poll_max
                if first:
                    out.append(WatchCount(session.id, change.id, emptying.key, emptying.target))
            change.delay = emptying.delay = min(
                max(emptying.waited, first_pause), settings.poll_max
            )
            out.append(SetTimer(session.id, change.delay, Timer.CHANGE))
            return False
        inline = session.position is Position.INLINE and change.part is Part.OLD
        if inline and not change.settling:
            key = sender(session.view, toward)
            change.emptying = Emptying(key, None, settings.settle)
            change.settling = True
            out.append(Count(session.id, change.id, key))
            return False
        return True

    def hold(
        self, out: Commands, session: Session, toward: Toward, *, substream: bool = False
    ) -> None:
        """From now on what this host sends *toward* a side waits."""
        change = session.change
        assert change is not None
        change.holding[toward] = key = sender(session.view, toward)
        out.append(Hold(session.id, change.id, key, substream))

    def resume(self, out: Commands, session: Session, toward: Toward | None = None) -> None:
        """Let what waits go, by the rows as they are; all, or what travels *toward* one side."""
        change = session.change
        assert change is not None
        for way in sorted(change.holding):
            if toward in (None, way):
                out.append(Resume(session.id, change.id, change.holding.pop(way)))

    def follow(self, out: Commands, session: Session) -> None:
        """The change is over here but for what is kept back from overtaking the old path (lf)."""
        change = session.change
        assert change is not None
        if change.holding:
            self.enter(session, Phase.FOLLOWING)
            limit = self.settings.overtake_limit
            self._arm(out, session, limit, limit, limit)
        else:
            self.end(out, session)

    def behind(self, out: Commands, session: Session, toward: Toward | None = None) -> None:
        """The old path is empty, *toward* one side; or nobody waits for that any longer."""
        change = session.change
        assert change is not None
        self.resume(out, session, toward)
        if change.phase is Phase.FOLLOWING and not change.holding:
            self.end(out, session)

    def end(self, out: Commands, session: Session) -> None:
        """The session's change is over here."""
        session.change = None
        out.append(CancelTimer(session.id, Timer.CHANGE))
        self.over(out, session)


def sent(packets: int | None, base: int | None) -> int | None:
    """How many packets have gone by a leg: the entry's count less what it sent by others."""
    return None if packets is None or base is None else max(packets - base, 0)


def with_left(view: SessionView, leg: Flow) -> SessionView:
    """The session with another left leg."""
    return view._replace(left=leg)


def with_right(view: SessionView, leg: Flow, splice: Splice | None) -> SessionView:
    """The session with another right leg, and what is added to numbers there."""
    return view._replace(right=leg, splice=splice)


def _own(session: Session) -> Address:
    assert session.left is not None
    return session.left.dst
