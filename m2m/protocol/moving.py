"""The mover: an endpoint whose address or interface has changed rebinds its legs.

A move of one leg goes through two stages. First packets are accepted by the proposed name; then the
hop is told, again and again, until it confirms the move: only now this host sends by the new name.
A leg whose move is not confirmed keeps its name, and nothing else is said about it.
"""

from __future__ import annotations

import hmac
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Final, NamedTuple

from m2m.identity import ANONYMOUS, Identity, proof_by
from m2m.protocol.change import Commands, Part
from m2m.protocol.commands import Command, Keep, Send, SetTimer, Withdraw
from m2m.protocol.commands import Rebound as Told
from m2m.protocol.devices import MAX_NUMBER, note_of, number_of, open_note_of, set_number
from m2m.protocol.events import Moved, Received, Route, Timer
from m2m.protocol.flow import Address, Flow
from m2m.protocol.ports import PortAllocator, PortsExhausted
from m2m.protocol.rebind import MAX_LEGS, Bound, End, Leg, Rebind, Rebound, Result, flow_of
from m2m.protocol.register import Register
from m2m.protocol.renaming import Batches, Fading, Outcome, Rehoming, Renaming, rows_of
from m2m.protocol.session import Role, Session, State
from m2m.protocol.update import UpdateFin
from m2m.protocol.wire import Challenge, Fin, FinAck, Rst

__all__ = ["Moving", "Title"]

_STANDING: Final = (State.ESTABLISHED, State.ADOPTED)
_RETRY = 0.02  # s before a REBIND is sent again; doubles
_RETRY_MAX = 1.0


class Title(NamedTuple):
    """By what a host proves that another's session is its own: what the hop calls the leg, and the
    key that the session has between that other host and the hop. Valid for one move."""

    leg: Flow
    key: bytes


class _Move:
    """One leg on its way to another name."""

    __slots__ = (
        "device", "end", "hop", "is_open", "leg", "names", "new", "number", "ready", "refused",
        "session", "title", "turn",
    )  # fmt: skip

    def __init__(self, session: Session, end: End, leg: Flow, new: Flow, number: int) -> None:
        self.session = session
        self.end = end
        self.leg = leg  # as the hop has confirmed it last
        self.new = new  # as proposed
        self.hop = _hop(end, leg)
        self.number = number
        self.ready = False  # packets are accepted by the new name
        self.device = ANONYMOUS  # the hop's, to which the last REBIND was proved
        self.names: list[Flow] = []  # proposed earlier; the hop may know the leg by one of these
        self.turn = 0
        self.title: Title | None = None  # of a session that has been another host's
        self.is_open = False  # whether the session is this host's, or another's by now
        self.refused: set[Flow] = set()  # names by which the hop has not followed it

    @property
    def key(self) -> tuple[int, Address]:
        return self.session.id, self.hop

    @property
    def is_wanted(self) -> bool:
        """Whether the session still has this leg: the spare one of a change may have gone."""
        return (self.end, self.leg) in _own_legs(self.session)

    def renaming(self) -> Renaming:
        return Renaming(self.session, self.leg, self.new, left=self.end is End.SERVER)

    @property
    def known(self) -> list[Flow]:
        """All names by which the hop may call the leg."""
        return [self.leg, *self.names]

    def former(self) -> Flow:
        """What the hop may call the leg: at each repetition another of the possible names."""
        if self.title is not None:
            return self.title.leg
        return self.known[self.turn % len(self.known)]


class Moving:
    """All moves of this host's own ends that are not confirmed yet."""

    def __init__(
        self,
        identity: Identity,
        devices: Mapping[Address, bytes],
        ports: PortAllocator,
        register: Register,
        fading: Fading,
        batches: Batches,
        over: Callable[[Commands, Session, Flow], None],
        void: Callable[[Commands, Session], None],
        counts: Counter[str],
    ) -> None:
        """*devices* tells whose device is at an address; *over* ends a session whose hop does not
        know it by this leg; *void* lets go of one that turns out to be another host's."""
        self._identity = identity
        self._devices = devices
        self._ports = ports
        self._register = register
        self._fading = fading
        self._batches = batches
        self._over = over
        self._void = void
        self._counts = counts
        self._moves: dict[tuple[int, Address], _Move] = {}
        self._delay = 0.0  # s; 0: no timer is set
        self._heard = False  # some have been confirmed since the timer was set

    # -- what is known ------------------------------------------------------------------

    def __bool__(self) -> bool:
        return bool(self._moves)

    def ends(self) -> dict[tuple[End, Address, Address], list[int]]:
        """The sessions with legs that end here, by end, own address and neighbour."""
        found: dict[tuple[End, Address, Address], list[int]] = {}
        for session in self._register.by_id.values():
            if session.state in _STANDING:
                for end, leg in _own_legs(session):
                    key = end, _own(end, leg), _hop(end, leg)
                    found.setdefault(key, []).append(session.id)
        return found

    def unconfirmed(self) -> dict[tuple[Address, Address], list[int]]:
        """The sessions of legs whose move is open, by own address, as confirmed last, and
        neighbour."""
        found: dict[tuple[Address, Address], list[int]] = {}
        for move in self._moves.values():
            found.setdefault((_own(move.end, move.leg), move.hop), []).append(move.session.id)
        return found

    def present(self, session: int, leg: Flow) -> Flow | None:
        """What *leg*, a name that was proposed to the hop, is called here still; None if it is no
        such name."""
        for hop in (leg.dst, leg.src):
            move = self._moves.get((session, hop))
            if move is not None and leg in (move.new, *move.names):
                return move.leg
        return None

    def going_to(self, session: Session) -> Address | None:
        """Where the end is going that the session has here; None: nowhere."""
        if session.role is not Role.MIDDLE:
            end, leg = next(_own_legs(session))
            move = self._moves.get((session.id, _hop(end, leg)))
            if move is not None and move.leg == leg:
                return _own(end, move.new)
        return None

    def is_strange(self, event: Received) -> bool:
        """Whether the hop names a leg whose move is open by a name that is not known here."""
        message = event.message
        leg = getattr(message, "subsession", None)
        if leg is None or isinstance(message, Challenge):
            return False
        session = self._register.get(message.session)
        move = self._moves.get((message.session, event.peer))
        if session is None or move is None or not move.is_wanted:
            return False
        return all(leg != own for _, own in _own_legs(session))

    def ports_in_use(self) -> int:
        """How many pairs of ports have been taken for names that are not confirmed."""
        return sum(
            name != move.leg
            for move in self._moves.values()
            for name in (move.new, *move.names)
            if move.end is End.CLIENT
        )

    def sessions(self) -> set[int]:
        """The sessions of which a leg is on its way."""
        return {session for session, _ in self._moves}

    def silence(self, commands: list[Command]) -> list[Command]:
        """Without what names a leg whose name is open: it is repeated until it is answered."""
        return [one for one in commands if not isinstance(one, Send) or not self._is_open(one)]

    def _is_open(self, send: Send) -> bool:
        message = send.message
        leg = getattr(message, "subsession", None)
        if leg is None or isinstance(message, Challenge | Fin | Rst | FinAck):
            return False
        move = self._moves.get((message.session, send.peer))
        if move is None or leg not in (move.leg, move.new):
            return False
        # A leg that is out may be gone at the hop already: then only this is answered.
        return not (isinstance(message, UpdateFin) and move.refused.issuperset(move.known))

    # -- the network has changed --------------------------------------------------------

    def moved(self, out: Commands, event: Moved) -> None:
        """These legs go by another route from now on."""
        begun: list[_Move] = []
        for number in event.sessions:
            session = self._register.get(number)
            if session is None or session.state not in _STANDING:
                continue
            for end, leg in _own_legs(session):
                if (_own(end, leg), _hop(end, leg)) == (event.own, event.neighbour):
                    move = self._begin(out, session, end, leg, event.route)
                    if move is not None:
                        begun.append(move)
        if begun:
            # Before anybody hears of a number: a restarted agent must not use it for another move.
            out.append(Keep(tuple((move.session.id, _note_of(move)) for move in begun)))
            self._delay = 0.0
            self._prepare(out, begun)
            self._arm(out)

    def found(
        self,
        out: Commands,
        session: Session,
        leg: Flow,
        names: list[Flow],
        *,
        is_open: bool = False,
    ) -> None:
        """A restarted agent has found other names of an end's leg: nobody knows by which of these
        the hop calls it. So it moves to where it is. *is_open*: the session was being handed over;
        the hop tells whose it is."""
        end = End.CLIENT if session.role is Role.CLIENT else End.SERVER
        set_number(session, end, number_of(session, end) + 1)
        move = _Move(session, end, leg, leg, number_of(session, end))
        move.names, move.ready, move.is_open = names, True, is_open
        self._moves[move.key] = move
        out.append(Keep(((session.id, _note_of(move)),)))
        self._delay = 0.0
        self._arm(out)

    def lead(self, out: Commands, taken: Iterable[tuple[Session, Title]]) -> None:
        """Sessions of other hosts are to be led here, where everything is ready for them."""
        begun = []
        for session, title in taken:
            end, leg = next(_own_legs(session))
            move = _Move(session, end, leg, leg, number_of(session, end))
            move.title, move.ready, move.is_open = title, True, True
            self._moves[move.key] = move
            begun.append(move)
        self._delay = 0.0
        self._tell(out, begun)
        self._arm(out)

    def _begin(
        self, out: Commands, session: Session, end: End, leg: Flow, route: Route
    ) -> _Move | None:
        before = self._moves.get((session.id, _hop(end, leg)))
        if before is not None and before.leg != leg:  # an earlier leg, which is gone
            self._drop(out, before)
            before = None
        if before is not None and _own(end, before.new) == route.source:
            return None  # that is where it is going already
        if before is not None and before.title is not None:
            return None  # it is valid for that move alone; the next news of the network come later
        if before is None and _own(end, leg) == route.source:
            return None
        new = self._name(session, end, leg, before, route.source)
        if new is None:
            self._counts["no ports"] += 1
            return None
        number = number_of(session, end) + 1
        if number > MAX_NUMBER:
            return None
        set_number(session, end, number)
        move = _Move(session, end, leg, new, number)
        # After a restart this host may have told the hop a name that it has forgotten since.
        known = self._fading.take_all(session, leg)
        if before is not None:
            known += [*before.names, before.new]
        move.names = [name for name in known if name != new]
        move.is_open = before is not None and before.is_open
        self._moves[move.key] = move
        return move

    def _name(
        self, session: Session, end: End, leg: Flow, before: _Move | None, address: Address
    ) -> Flow | None:
        """The name to propose: the ports the leg has had, where they are free."""
        hop = _hop(end, leg)
        new = flow_of(end, leg.proto, address, hop, (leg.sport, leg.dport))
        known = [leg] if before is None else [leg, before.new, *before.names]
        if end is End.SERVER:  # the hop decides
            return new
        if new in known or self._fading.present(session.id, new) or self._ports.claim(new):
            return new
        try:
            return self._ports.allocate(leg.proto, address, hop)
        except PortsExhausted:
            return None

    # -- stage one: accept --------------------------------------------------------------

    def _prepare(self, out: Commands, moves: list[_Move]) -> None:
        for chunk in _chunks(moves):
            renamings = [one.renaming() for one in chunk]
            steps = [Rehoming(one, one.accepted(moved=True), ()) for one in renamings]
            self._batches.start(out, steps, partial(self._prepared, chunk))

    def _prepared(self, moves: list[_Move], out: Commands, outcomes: list[Outcome]) -> None:
        ready = []
        for move, outcome in zip(moves, outcomes, strict=True):
            if not outcome.ok:
                self._counts["not accepted"] += 1  # the timer tries again
            elif self._moves.get(move.key) is move:
                move.ready = True
                ready.append(move)
        self._tell(out, ready)

    # -- stage two: tell the hop --------------------------------------------------------

    def _tell(self, out: Commands, moves: Iterable[_Move]) -> None:
        batches: dict[tuple[Address, Address, Address], list[_Move]] = {}
        for move in moves:
            key = _own(move.end, move.former()), _own(move.end, move.new), move.hop
            batches.setdefault(key, []).append(move)
        for (old, new, hop), together in batches.items():
            for chunk in _chunks(together):
                out.append(Send(hop, self._rebind(chunk, old, new, hop)))

    def _rebind(self, moves: list[_Move], old: Address, new: Address, hop: Address) -> Rebind:
        device = self._devices.get(hop, ANONYMOUS)
        legs = []
        for move in moves:
            former, proposed = move.former(), move.new
            # That it is refused without a proof must not be mistaken for an answer to one.
            asks = device == ANONYMOUS and move.is_open and move.title is None
            legs.append(
                Leg(
                    move.session.id, move.end, proposed.proto, 0 if asks else move.number,
                    (former.sport, former.dport), (proposed.sport, proposed.dport),
                )
            )  # fmt: skip
        bare = Rebind(legs[0].session, old, new, hop, self._identity.device, tuple(legs))
        for move in moves:
            move.device = device
        if device == ANONYMOUS and not any(move.title for move in moves):
            return bare  # the answer tells
        proved = tuple(
            Leg(*leg[:-1], self._prove(move, leg, bare.content(leg)))
            for move, leg in zip(moves, legs, strict=True)
        )
        return Rebind(bare.session, old, new, hop, bare.device, proved)

    def _prove(self, move: _Move, leg: Leg, content: bytes) -> bytes:
        if move.title is not None:
            return proof_by(move.title.key, content)
        return self._identity.prove(move.device, leg.session, content)

    def tick(self, out: Commands) -> None:
        """Tell again, unless the hop is busy with them: it answers one batch after the other."""
        waited, self._delay = self._delay, 0.0
        for move in list(self._moves.values()):
            if not move.is_wanted:
                self._drop(out, move)
        if not self._moves:
            return
        if self._heard:
            self._arm(out)
            return
        self._prepare(out, [move for move in self._moves.values() if not move.ready])
        ready = [move for move in self._moves.values() if move.ready]
        for move in ready:
            move.turn += 1
        self._tell(out, ready)
        self._arm(out, waited)

    def _arm(self, out: Commands, waited: float = 0.0) -> None:
        self._delay = min(max(2 * waited, _RETRY), _RETRY_MAX)
        self._heard = False
        out.append(SetTimer(0, self._delay, Timer.MOVE))

    # -- what the hop says --------------------------------------------------------------

    def rebound(self, out: Commands, message: Rebound) -> None:
        """The hop's answer to a batch."""
        confirmed: list[_Move] = []
        again: list[_Move] = []
        device = self._devices.get(message.hop, ANONYMOUS)
        for bound in message.legs:
            move = self._moves.get((bound.session, message.hop))
            if move is None or move.end is not bound.end or not move.is_wanted:
                continue
            mine = bound.number == move.number
            if bound.result is Result.UNPROVEN:
                if mine and move.title is None and move.device != device:
                    again.append(move)  # the hop's was not known yet, or is another
                elif mine and move.is_open:
                    self._is_void(out, move)
            elif bound.result is Result.UNKNOWN:
                if mine:
                    self._counts["unknown to the hop"] += 1
                    self._over(out, move.session, move.leg)
            elif not self._answers(move, device, bound, message.content(bound)):
                self._counts["unproven answer"] += 1
            elif bound.result is Result.OLD and move.title is not None:
                self._is_void(out, move)
            elif bound.result is Result.OLD:
                if move.number <= bound.number < MAX_NUMBER:  # this agent has forgotten its moves
                    move.number = bound.number + 1
                    set_number(move.session, move.end, move.number)
                    out.append(Keep(((bound.session, _note_of(move)),)))
                    again.append(move)
            elif bound.result is Result.FAILED and mine:
                move.refused.add(move.former())
            elif bound.result is Result.DONE and mine and _own(move.end, move.new) == message.new:
                self._take_ports(move, bound.ports)
                confirmed.append(move)
        self._heard |= bool(confirmed)
        self._tell(out, again)
        self._confirm(out, confirmed)

    def _answers(self, move: _Move, device: bytes, bound: Bound, content: bytes) -> bool:
        """Whether it is the hop that says so: to this host, or to the one that had the session."""
        if self._identity.proves(device, bound.session, content, bound.proof):
            return True
        title = None if bound.result is Result.DONE else move.title
        return title is not None and hmac.compare_digest(proof_by(title.key, content), bound.proof)

    def _is_void(self, out: Commands, move: _Move) -> None:
        """The session is another host's: that one's agent has been faster, or this agent's file of
        deeds is an old one."""
        self._counts["deed void"] += 1
        self._void(out, move.session)

    def _take_ports(self, move: _Move, ports: tuple[int, int]) -> None:
        """The left host of a leg decides about its ports; and those of a session that was taken
        over may have been told the hop by an agent before this one."""
        if ports != (move.new.sport, move.new.dport):
            own = _own(move.end, move.new)
            move.names.append(move.new)
            move.new = flow_of(move.end, move.new.proto, own, move.hop, ports)
            move.ready = False
            if move.end is End.CLIENT:
                self._ports.adopt(move.new)

    def _confirm(self, out: Commands, moves: list[_Move]) -> None:
        for chunk in _chunks(moves):
            steps = []
            for one in chunk:
                renaming = one.renaming()
                accepted = () if one.ready else renaming.accepted()
                steps.append(Rehoming(renaming, accepted, renaming.redirected()))
            self._batches.start(out, steps, partial(self._confirmed, chunk, steps))

    def _confirmed(
        self,
        moves: list[_Move],
        steps: list[Rehoming],
        out: Commands,
        outcomes: list[Outcome],
    ) -> None:
        for move, step, outcome in zip(moves, steps, outcomes, strict=True):
            if not outcome.ok:
                self._counts["not redirected"] += 1  # told again, and confirmed again
            elif self._moves.get(move.key) is move and move.is_wanted:
                del self._moves[move.key]
                self._done(out, move, step.renaming, outcome.packets)

    def _done(self, out: Commands, move: _Move, renaming: Renaming, packets: int | None) -> None:
        renaming.apply(self._register, packets)
        for name in (move.leg, *move.names):
            if name != move.new:
                self._fading.begin(out, renaming, name)
        if move.is_open:
            out.append(Keep(((move.session.id, note_of(move.session)),)))
        self._counts["moved" if move.title is None else "taken over"] += 1
        out.append(Told(move.session.view, move.new, here=True))

    # -- the session ends ---------------------------------------------------------------

    def closing(self, out: Commands, session: Session) -> None:
        """The session ends: what accepts packets by a proposed name goes with it."""
        for move in [one for one in self._moves.values() if one.session is session]:
            self._drop(out, move)

    def _drop(self, out: Commands, move: _Move) -> None:
        del self._moves[move.key]
        for name in (move.new, *move.names):
            if name != move.leg:
                rows = rows_of(move.session, name, left=move.end is End.SERVER)
                out.append(Withdraw(move.session.id, rows))
                if move.end is End.CLIENT:
                    self._ports.release(name)


def _note_of(move: _Move) -> bytes:
    """What a restarted agent has to know of the session until the move is confirmed."""
    return open_note_of(move.session, move.end) if move.is_open else note_of(move.session)


def _own_legs(session: Session) -> Iterator[tuple[End, Flow]]:
    """The legs of an endpoint, which end here."""
    change = session.change
    spare = None if change is None else change.spare
    if session.role is Role.CLIENT:
        assert session.right is not None
        yield End.CLIENT, session.right
        if change is not None and spare is not None and change.part is Part.LEFT:
            yield End.CLIENT, spare
    elif session.role is Role.SERVER:
        assert session.left is not None
        yield End.SERVER, session.left
        if change is not None and spare is not None and change.part is Part.RIGHT:
            yield End.SERVER, spare


def _hop(end: End, leg: Flow) -> Address:
    return leg.dst if end is End.CLIENT else leg.src


def _own(end: End, leg: Flow) -> Address:
    return leg.src if end is End.CLIENT else leg.dst


def _chunks(moves: list[_Move]) -> Iterator[list[_Move]]:
    for start in range(0, len(moves), MAX_LEGS):
        yield moves[start : start + MAX_LEGS]
