"""Sessions whose end becomes another host's: a process moves, with its sockets.

::

    host that has it                  host that is to have it                    hop
      HandOver                          .                                         .
      note: open                        .                                         .
      deeds written                     .                                         .
      rows out, silent from now on      .                                         .
      .                                 TakeOver: note: open, rows in             .
      .                                 (sockets are made)                        .
      .                                 LeadHere: REBIND, proved by the deed -->  .
      .                                 note  <------------------------- REBOUND  .

A deed is good for one move, and the hop decides who makes it: whoever comes first with its number.
So however often it is copied, and wherever agents are restarted in between, the session is at one
host, or in the deed. While that is open, the note that is kept with the session says so: a
restarted agent then asks the hop, by a REBIND of its own, which makes the deed void or finds that
the session has gone.

Who has handed a session over says nothing about it any more, neither to neighbours nor, for as long
as its sockets may be there, to the other end. A deed that is not used is worth nothing after
:data:`GOOD`: then who still speaks of the session is told that it is unknown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from m2m.identity import ANONYMOUS, Identity
from m2m.protocol.change import Commands
from m2m.protocol.commands import (
    CancelTimer,
    Closed,
    Forget,
    GiveDeeds,
    HandedOver,
    Keep,
    NotHanded,
    Refrain,
    Remove,
    SetTimer,
    Taken,
    Withdraw,
)
from m2m.protocol.deed import Deed
from m2m.protocol.devices import (
    MAX_NUMBER,
    note_of,
    number_of,
    open_note_of,
    open_number,
    set_device,
    set_number,
)
from m2m.protocol.events import DeedsGiven, HandedBefore, HandOver, LeadHere, Route, TakeOver, Timer
from m2m.protocol.flow import Address, Flow, format_address
from m2m.protocol.moving import Moving, Title
from m2m.protocol.ports import PortAllocator, PortsExhausted
from m2m.protocol.rebind import End, flow_of
from m2m.protocol.register import Register
from m2m.protocol.renaming import Batches, Outcome, Rehoming, Renaming
from m2m.protocol.session import Role, Session, State
from m2m.protocol.translation import Position, entries_for, leg_entries

__all__ = ["GOOD", "Handing"]

GOOD: Final = 600.0
"""How long a deed is good for, in seconds, if it is not used."""

_SOCKETS_LINGER = 10.0  # s for which the sockets of what was handed over may be there still
_AGAIN = 0.5  # s; what Refrain does lasts for a second
_ANY: Final = -1  # smaller than the number of any deed
_SLOWLY = 10.0  # s between two looks at what may have become worthless
_STANDING = (State.ESTABLISHED, State.ADOPTED)
_ENDS = {Role.CLIENT: End.CLIENT, Role.SERVER: End.SERVER}


class _Gone:
    """A session that was handed over, or has turned out to be another host's."""

    __slots__ = ("age", "flow", "number", "ports")

    def __init__(self, number: int, flow: Flow | None = None, ports: Flow | None = None) -> None:
        self.number = number  # of its last move before
        self.flow = flow  # what its sockets here would send
        self.ports = ports  # of the leg that the hop still knows: not to be used for another
        self.age = 0.0


class _Waiting:
    """A session that has been taken over, and is not led here yet."""

    __slots__ = ("age", "gone", "session", "title")

    def __init__(self, session: Session, title: Title, gone: _Gone | None) -> None:
        self.session = session
        self.title = title
        self.gone = gone  # it had been handed over here, and comes back
        self.age = 0.0

    @property
    def other_ports(self) -> Flow | None:
        """Ports of its leg as the hop knows it, unless these are what it is called here."""
        ports = None if self.gone is None else self.gone.ports
        return None if ports == self.session.right else ports


class Handing:
    """What one host hands over and takes over."""

    def __init__(
        self,
        identity: Identity,
        devices: Mapping[Address, bytes],
        ports: PortAllocator,
        register: Register,
        batches: Batches,
        moving: Moving,
        closing: Callable[[Commands, Session], None],
        probe: float,
        counts: Counter[str],
    ) -> None:
        """*closing* takes out what accepts packets by other names of a session's legs; a client
        asks *probe* seconds later whether its path is there."""
        self._identity = identity
        self._devices = devices
        self._ports = ports
        self._register = register
        self._batches = batches
        self._moving = moving
        self._closing = closing
        self._probe = probe
        self._counts = counts
        self._leaving: dict[int, list[Session]] = {}
        self._gone: dict[int, _Gone] = {}
        self._waiting: dict[int, _Waiting] = {}
        self._delay = 0.0  # s, of the timer that is set; 0: none

    # -- what is known ------------------------------------------------------------------

    def has_handed(self, session: int) -> bool:
        """Whether nothing is to be said about this session."""
        return session in self._gone

    def waiting(self) -> tuple[int, ...]:
        """The sessions that have been taken over and are not led here yet."""
        return tuple(self._waiting)

    def ports_in_use(self) -> int:
        """How many pairs of ports are kept of sessions that have gone."""
        return sum(gone.ports is not None for gone in self._gone.values()) + sum(
            one.other_ports is not None for one in self._waiting.values()
        )

    # -- who has them -------------------------------------------------------------------

    def hand_over(self, out: Commands, event: HandOver) -> None:
        """Write deeds for all of these, unless one cannot be handed over."""
        leaving: list[Session] = []
        for number in event.sessions:
            session = self._register.get(number)
            why = _objection(session) if session else "it is not at this host"
            if session is not None and not why and self._hop_device(session) == ANONYMOUS:
                why = "its neighbour has not been heard of since this agent was started: try again"
            if session is None or why:
                self._counts["hand-over refused"] += 1
                out.append(NotHanded(event.request, f"session {number:016x}: {why}"))
                return
            leaving.append(session)
        self._leaving[event.request] = leaving
        out.append(Keep(tuple((one.id, _note(one)) for one in leaving)))
        out.append(GiveDeeds(event.request, tuple(map(self._deed, leaving))))

    def given(self, out: Commands, event: DeedsGiven) -> None:
        """They are written, and the sessions go; or they are not, and nothing has happened."""
        leaving = self._leaving.pop(event.request)
        if not event.ok:
            self._counts["hand-over refused"] += 1
            out.append(Keep(tuple((one.id, note_of(one)) for one in leaving)))
            return
        for session in leaving:
            self._closing(out, session)
            received, sent = leg_entries(session.view, left=session.left is not None)
            # The row that sends is replaced, not taken out first: no packet of a socket that is
            # still there goes by itself, or begins a session anew.
            out.append(Withdraw(session.id, (received,)))
            out.append(Refrain((sent.match,)))
            self._forget(out, session)
            out.append(HandedOver(session.view))
            self._gone[session.id] = _Gone(
                number_of(session, _end(session)), sent.match, session.right
            )
            self._counts["handed over"] += 1
        self._arm(out)

    def handed_before(self, out: Commands, event: HandedBefore) -> None:
        """By an agent that this one has taken the place of."""
        for session, note in event.notes:
            self._gone[session] = _Gone(open_number(note))
        self._arm(out)

    def _deed(self, session: Session) -> Deed:
        end = _end(session)
        leg = session.right or session.left
        assert leg is not None
        return Deed(
            session.id, end, session.supersession, leg, session.mss, session.mtu,
            session.policy, session.generation, session.client, session.server, session.moves,
            self._identity.session_key(self._hop_device(session), session.id),
        )  # fmt: skip

    def _hop_device(self, session: Session) -> bytes:
        if session.right is not None:
            return self._devices.get(session.right.dst, ANONYMOUS)
        assert session.left is not None
        return self._devices.get(session.left.src, ANONYMOUS)

    # -- who is to have them ------------------------------------------------------------

    def take_over(self, out: Commands, event: TakeOver) -> None:
        """Be ready for the sockets of these sessions. Nobody is told yet."""
        refused: list[tuple[int, str]] = []
        taken: list[_Waiting] = []
        for deed, route in event.deeds:
            why = self._unfit(deed, route)
            if not why:
                try:
                    taken.append(self._admit(deed, route))
                except PortsExhausted as error:
                    why = str(error)
            if why:
                self._counts["take-over refused"] += 1
                refused.append((deed.session, why))
        done = partial(self._installed, event.request, taken, refused)
        if not taken:
            done(out, [])
            return
        # First of all: a note without rows is silence after a restart, and harmless.
        out.append(Keep(tuple((one.session.id, _note(one.session)) for one in taken)))
        steps = []
        for one in taken:
            leg = one.session.right or one.session.left
            assert leg is not None
            renaming = Renaming(one.session, leg, leg, left=one.session.left is not None)
            steps.append(Rehoming(renaming, entries_for(one.session.view), ()))
        self._batches.start(out, steps, done)

    def _unfit(self, deed: Deed, route: Route) -> str:
        """Why this session cannot be taken over now; empty if it can."""
        if self._register.get(deed.session) is not None:
            return "it is at this host already, or on its path"
        if self._register.with_flow(deed.supersession) is not None:
            return f"another session of {deed.supersession} is at this host"
        gone = self._gone.get(deed.session)
        if gone is not None and deed.number <= gone.number:
            return "this host has handed it over once more since then"
        if deed.hop == route.source:
            return "its neighbour on the chain is this host"
        return ""

    def _admit(self, deed: Deed, route: Route) -> _Waiting:
        """Raises :exc:`~m2m.protocol.ports.PortsExhausted`."""
        leg = self._leg(deed, route.source)
        is_client = deed.end is End.CLIENT
        session = Session(
            deed.session, Position.CLIENT if is_client else Position.SERVER, State.ESTABLISHED,
            deed.supersession, None if is_client else leg, leg if is_client else None,
            deed.policy, deed.generation,
        )  # fmt: skip
        session.mss, session.mtu = deed.mss, deed.mtu
        session.client, session.server, session.moves = deed.client, deed.server, deed.moves
        session.sent_left = session.sent_right = None
        set_device(session, deed.end, self._identity.device)
        self._register.list(session)
        gone = self._gone.pop(session.id, None)
        made = self._waiting[session.id] = _Waiting(session, Title(deed.leg, deed.key), gone)
        return made

    def _leg(self, deed: Deed, own: Address) -> Flow:
        """What the leg is to be called here: by the ports it has, where these are free. One that
        comes back is called what the hop calls it: all that a restarted agent has is that name."""
        if deed.device == self._identity.device:
            leg = deed.leg
        else:
            ports = deed.leg.sport, deed.leg.dport
            leg = flow_of(deed.end, deed.leg.proto, own, deed.hop, ports)
        if deed.end is End.CLIENT:
            gone = self._gone.get(deed.session)
            if (gone is not None and gone.ports == leg) or self._ports.claim(leg):
                return leg
            return self._ports.allocate(leg.proto, own, deed.hop)
        while self._register.with_left(leg) is not None:  # the hop will tell the right ones
            leg = leg._replace(dport=leg.dport % 0xFFFF + 1)
        return leg

    def _installed(
        self,
        request: int,
        taken: list[_Waiting],
        refused: list[tuple[int, str]],
        out: Commands,
        outcomes: list[Outcome],
    ) -> None:
        for one, outcome in zip(taken, outcomes, strict=True):
            if not outcome.ok:
                why = "the datapath could not take its entries"
                self._counts["take-over refused"] += 1
                refused.append((one.session.id, why))
                self._let_go(out, one.session, why)
        out.append(Taken(request, tuple(refused)))
        self._arm(out)

    def lead_here(self, out: Commands, event: LeadHere) -> None:
        """Their sockets are there: have the hops send to this host."""
        found = [self._waiting.pop(one) for one in event.sessions if one in self._waiting]
        for one in found:
            if one.other_ports is not None:
                self._ports.release(one.other_ports)
            end = _end(one.session)
            set_number(one.session, end, number_of(one.session, end) + 1)
            if end is End.CLIENT:
                one.session.delay = self._probe
                out.append(SetTimer(one.session.id, one.session.delay))
        if found:
            self._moving.lead(out, [(one.session, one.title) for one in found])

    def void(self, out: Commands, session: Session) -> None:
        """The hop says that the session is another host's."""
        self._let_go(out, session, "another host has it")

    def closing(self, session: Session) -> None:
        """It ends."""
        waiting = self._waiting.pop(session.id, None)
        if waiting is not None and waiting.other_ports is not None:
            self._ports.release(waiting.other_ports)

    def _let_go(self, out: Commands, session: Session, why: str) -> None:
        """It is not this host's: take it out, and say nothing to anybody."""
        waiting = self._waiting.pop(session.id, None)
        gone = None if waiting is None else waiting.gone
        self._closing(out, session)
        out.append(Remove(session.view))
        if gone is not None and waiting is not None and session.right == waiting.title.leg:
            gone.ports = session.right
        elif session.right is not None:
            self._ports.release(session.right)
        self._forget(out, session)
        out.append(Closed(session.view, why))
        if gone is not None:  # as before
            out.append(Keep(((session.id, _note(session)),)))
        else:  # what neighbours have asked meanwhile is not this host's to answer
            gone = _Gone(_ANY)
        self._gone[session.id] = gone
        self._arm(out)

    def _forget(self, out: Commands, session: Session) -> None:
        self._register.unlist(session)
        self._register.forget(session)
        session.state = State.GONE
        session.delay = 0.0
        out.append(CancelTimer(session.id))

    # -- time ---------------------------------------------------------------------------

    def tick(self, out: Commands) -> None:
        """Go on dropping what sockets say that are not quite gone; forget what is worthless."""
        passed, self._delay = self._delay, 0.0
        worthless: list[int] = []
        for number, gone in self._gone.items():
            gone.age += passed
            if gone.age >= GOOD:
                worthless.append(number)
        for number in worthless:
            ports = self._gone.pop(number).ports
            if ports is not None:
                self._ports.release(ports)
        if worthless:
            out.append(Forget(tuple(worthless)))
        for waiting in list(self._waiting.values()):
            waiting.age += passed
            if waiting.age >= GOOD:
                self._let_go(out, waiting.session, f"it was not led here within {GOOD:.0f} s")
        flows = tuple(self._refrained())
        if flows:
            out.append(Refrain(flows))
        self._arm(out)

    def _refrained(self) -> list[Flow]:
        return [
            gone.flow
            for gone in self._gone.values()
            if gone.flow is not None and gone.age < _SOCKETS_LINGER
        ]

    def _arm(self, out: Commands) -> None:
        delay = _AGAIN if self._refrained() else _SLOWLY if self._gone or self._waiting else 0.0
        if delay and (not self._delay or delay < self._delay):
            self._delay = delay
            out.append(SetTimer(0, delay, Timer.HAND))


def _objection(session: Session) -> str:
    """Why it cannot be handed over now; empty if it can."""
    if session.splice is not None:
        return "a proxy has left it, and what is added to its numbers has no place in a deed"
    if session.role is Role.MIDDLE:
        where = format_address((session.left or session.supersession).dst)
        return f"{where} is in the middle of it: only its client's or server's end can move"
    if session.position is Position.PROXY or session.local is not None:
        return "it is one half of a session that a proxy goes on with: these stay together"
    if session.state not in _STANDING:
        return "it is not established (any more)"
    if session.change is not None or session.waiting:
        return "its chain is being changed: try again"
    if number_of(session, _end(session)) >= MAX_NUMBER:
        return "it has moved as often as can be counted"
    return ""


def _note(session: Session) -> bytes:
    """What is kept while a deed of it is open: the number is that of the move before."""
    return open_note_of(session, _end(session))


def _end(session: Session) -> End:
    return _ENDS[session.role]
