"""One host's end of the session protocol: events in, commands out.

:class:`Node` finds the session that an event is about, looks up what to do in the table of
:mod:`m2m.protocol.session`, and does it. What changes the chain of a session that stands is left
to :mod:`m2m.protocol.migration`. Neither has a socket or a clock; time passes by the timers they
ask for, one of each kind per session.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, TypeAlias

from m2m.errors import M2MError
from m2m.protocol.change import UpdateSettings
from m2m.protocol.commands import (
    CancelTimer,
    Closed,
    Command,
    Established,
    Install,
    Refuse,
    Remove,
    Send,
    SetTimer,
    Steer,
)
from m2m.protocol.events import (
    Acked,
    Adopted,
    ChangeWanted,
    Counted,
    Ended,
    Event,
    Holding,
    HoldOverflow,
    InstallFailed,
    Opened,
    Reached,
    Received,
    Redirected,
    RequestWanted,
    Resumed,
    Route,
    StateExported,
    StateImported,
    Timer,
    TimerFired,
)
from m2m.protocol.flow import Address, Flow, Proto, format_address, is_ipv4
from m2m.protocol.migration import Migration
from m2m.protocol.ports import PortAllocator, PortsExhausted
from m2m.protocol.reasons import (
    LEFT_KNOWS,
    RIGHT_KNOWS,
    SPARE_KNOWS,
    Why,
    describe_hop,
    hop_silent,
    install_failed,
    notice,
    replaced,
    told,
    unknown,
)
from m2m.protocol.register import Register
from m2m.protocol.session import TABLE, Action, Ending, Input, Opening, Role, Session, State
from m2m.protocol.translation import Position, SessionView
from m2m.protocol.update import UpdateReject, UpdateSyn
from m2m.protocol.wire import (
    Ack,
    Cause,
    Fin,
    FinAck,
    Hop,
    Rst,
    Syn,
    SynAck,
    check_chain,
    clip,
)

__all__ = ["Node", "Settings"]


class Settings(NamedTuple):
    """Times, in seconds."""

    setup_timeout: float = 1.0  # a client waits this long for its chain
    confirm_timeout: float = 3.0  # other hosts for the client's ACK
    teardown_timeout: float = 10.0  # and all for a neighbour's FINACK
    retry: float = 0.02  # before a message is sent again; doubles each time
    retry_max: float = 1.0
    # Nobody waits for a teardown, and thousands of sessions may end at once.
    teardown_retry: float = 0.2
    probe: float = 60.0  # before a client asks whether its path is still there; doubles
    probe_max: float = 3600.0
    update: UpdateSettings = UpdateSettings()


_PATIENCE_SHARE = 0.9  # of what the left neighbour waits
_ADOPTED_APART = 0.001  # s, about, between questions of a restarted agent
_HEADERS_V4 = 40  # IP and TCP headers without options: MTU - MSS
_HEADERS_V6 = 60

Commands: TypeAlias = list[Command]


class _SetUp(NamedTuple):
    """A SYN, and the way to the next host if there is one."""

    syn: Syn
    route: Route | None


class Node:
    """All sessions of one host.

    *rng* chooses session ids: :class:`random.SystemRandom` outside tests. Every method is
    immediate; commands are to be carried out in order, before the next event is handled. When an
    :class:`Install` fails, the commands behind it are dropped and ``InstallFailed`` comes next.
    """

    def __init__(self, settings: Settings, ports: PortAllocator, rng: random.Random) -> None:
        self.settings = settings
        self.ports = ports
        self.sessions: Mapping[int, Session]
        """The sessions of this host by id, closing ones included; to be read only."""
        self._register = Register()
        self.sessions = self._register.by_id
        self._rng = rng
        self._migration = Migration(
            settings.update, ports, self._register, rng, self._step, self._join, self._claim
        )
        self._limits: Final = {
            State.CONFIRMING: settings.confirm_timeout,
            State.CLOSING: settings.teardown_timeout,
        }

    def view(self, session: int) -> SessionView | None:
        """A session as the datapath knows it; None when it is not here."""
        found = self._register.get(session)
        return None if found is None else found.view

    def handle(self, event: Event) -> list[Command]:
        """What is to be done about *event*, in order."""
        return _HANDLERS[type(event)](self, event)

    # -- events -------------------------------------------------------------------------

    def _opened(self, event: Opened) -> Commands:
        flow, chain, route = event.flow, event.chain, event.route
        out: Commands = []
        old = self._register.with_supersession(flow)
        if old is not None:
            if old.state is State.OPENING and old.role is Role.CLIENT:
                return out  # its packets will go with those that are waiting
            # The kernel knows nothing of it any more, or it would not have held the packet.
            self._step(out, old, Input.REPLACED, replaced(flow))
        try:
            check_chain(chain)
            _check_visits(chain, route.source)
            right = self.ports.allocate(flow.proto, route.source, chain[0].address)
        except M2MError as error:
            out.append(Refuse(flow, event.fail_open, str(error), None))
            return out
        session = Session(
            self._new_id(), Position.CLIENT, State.OPENING, flow, None, right,
            event.policy, event.generation,
        )  # fmt: skip
        session.mtu = min(route.mtu, 0xFFFF)
        patience = self.settings.setup_timeout
        syn = Syn(
            session.id, right, flow, chain, session.mtu, event.policy, event.generation,
            min(max(1, round(patience * 1000)), 0xFFFF),
        )  # fmt: skip
        session.opening = Opening(syn, patience)
        session.held = True
        session.fail_open = event.fail_open
        self._register.list(session)
        out.append(Send(right.dst, syn))
        self._set_timer(out, session)
        return out

    def _received(self, event: Received) -> Commands:
        done = self._migration.received(event)
        return (
            done
            if done is not None
            else _RECEIVERS.get(type(event.message), Node._not_ours)(self, event)
        )

    def _not_ours(self, _event: Received) -> Commands:
        return []  # PATHREQ, PATHREP and CHALLENGE are the shell's

    def _syn(self, event: Received) -> Commands:
        message = event.message
        assert isinstance(message, Syn)
        out: Commands = []
        session = self._register.get(message.session)
        setup = _SetUp(message, event.route)
        if session is None:
            self._admit(out, setup)
            return out
        leg = message.subsession
        if session.left is None or session.left.src != leg.src:
            text = f"the chain visits {format_address(leg.dst)} twice: it is on the path already"
            _refuse(out, message, Why(Cause.LOOP, text, leg.dst))
        elif session.position is not message.chain[0].kind:
            text = "the session is here with another kind of network function"
            _refuse(out, message, Why(Cause.NOT_MINE, text, leg.dst))
        else:
            same = session.left == leg
            self._step(out, session, Input.SYN if same else Input.SYN_NEW_LEG, setup)
        return out

    def _synack(self, event: Received) -> Commands:
        message = event.message
        assert isinstance(message, SynAck)
        session = self._register.get(message.session)
        if session is not None and self._migration.accepts(session, message.subsession):
            return []  # which of the two legs is in will be told in time
        if session is None or session.right != message.subsession:
            return [Send(event.peer, unknown(message))]
        out: Commands = []
        self._step(out, session, Input.SYNACK, message)
        return out

    def _ack(self, event: Received) -> Commands:
        message = event.message
        assert isinstance(message, Ack)
        session = self._register.get(message.session)
        leg = message.subsession
        if session is None or not (session.left == leg or self._migration.accepts(session, leg)):
            return [Send(event.peer, unknown(message))]
        out: Commands = []
        self._step(out, session, Input.ACK)
        return out

    def _over(self, event: Received) -> Commands:
        message = event.message
        assert isinstance(message, Fin | Rst)
        leg = message.subsession
        session = self._register.get(message.session)
        if session is None:
            self._register.remember_ended(message.session)
        out: Commands = []
        if session is None or leg not in (session.left, session.right):
            out.append(Send(event.peer, FinAck(message.session, leg)))
            if session is not None:
                if session.ending is not None and session.ending.spare_leg == leg:
                    self._step(out, session, Input.LEFT_DONE, SPARE_KNOWS)
                else:
                    self._migration.spare_over(out, session, leg, told(message, by_left=False))
            return out
        from_left = leg == session.left
        if self._migration.spare_over(out, session, leg, told(message, by_left=from_left)):
            out.append(Send(event.peer, FinAck(message.session, leg)))
            return out  # this host is leaving: what its neighbours say is that they know
        ending = session.ending
        if ending is None or not (ending.left if from_left else ending.right):
            out.append(Send(event.peer, FinAck(message.session, leg)))
        # else our own notice is on its way, and repeated until it is there: it is the answer
        what = Input.LEFT_OVER if from_left else Input.RIGHT_OVER
        self._step(out, session, what, told(message, by_left=from_left))
        return out

    def _finack(self, event: Received) -> Commands:
        message = event.message
        assert isinstance(message, FinAck)
        out: Commands = []
        session = self._register.get(message.session)
        if session is not None:
            if message.subsession == session.left:
                self._step(out, session, Input.LEFT_DONE, LEFT_KNOWS)
            elif message.subsession == session.right:
                self._step(out, session, Input.RIGHT_DONE, RIGHT_KNOWS)
            elif session.ending is not None and message.subsession == session.ending.spare_leg:
                self._step(out, session, Input.RIGHT_DONE, SPARE_KNOWS)
        return out

    def _timer_fired(self, event: TimerFired) -> Commands:
        if event.timer is not Timer.SESSION:
            return self._migration.timer_fired(event, request=event.timer is Timer.REQUEST)
        out: Commands = []
        session = self._register.get(event.session)
        if session is None or not session.delay:
            return out
        session.waited += session.delay
        session.delay = 0.0
        if session.waited < self._limit(session) - 1e-6:
            self._step(out, session, Input.TIMER)
        else:
            self._step(out, session, Input.EXPIRED, hop_silent(session))
        return out

    def _install_failed(self, event: InstallFailed) -> Commands:
        out: Commands = []
        session = self._register.get(event.session)
        if session is not None and not self._migration.failed(out, session, event.why):
            session.held = session.role is Role.CLIENT  # it was not Steered after all
            self._step(out, session, Input.FAILED, install_failed(session, event.why))
        return out

    def _ended_event(self, event: Ended) -> Commands:
        out: Commands = []
        session = self._register.get(event.session)
        if session is not None:
            opening = session.state in (State.OPENING, State.CONFIRMING)
            cause = Cause.ABANDONED if opening else None
            self._step(out, session, Input.ENDED, Why(cause, event.why))
        return out

    def _adopted(self, event: Adopted) -> Commands:
        view = event.view
        out: Commands = []
        if view.session in self.sessions:
            return out
        client = view.position is Position.CLIENT
        state = State.ESTABLISHED if client else State.ADOPTED
        session = Session(
            view.session, view.position, state, view.supersession, view.left, view.right,
            view.chain, view.generation,
        )  # fmt: skip
        session.mss = view.mss
        session.sent_left = session.sent_right = None
        session.more_left = session.more_right = view.position is Position.TAP
        self._register.list(session)
        if session.right is not None:
            self.ports.adopt(session.right)
        # The client's last ACK may have died with the agent; others may have been taken out of
        # the chain while there was none. Soon, but spread: there may be 100 000 of these.
        spread = self.settings.update.ask + len(self.sessions) * _ADOPTED_APART
        session.delay = self._rng.uniform(0.0, min(spread, self.settings.probe)) + 1e-3
        out.append(SetTimer(session.id, session.delay))
        if event.spare is not None:
            self._migration.adopted(out, session, event.spare)
        return out

    # -- new sessions -------------------------------------------------------------------

    def _admit(self, out: Commands, setup: _SetUp) -> None:
        """A SYN of a session that is not here: make it, or say why not."""
        syn, route = setup
        leg, me = syn.subsession, syn.chain[0]
        objection = self._objection(setup)
        if objection is not None:
            _refuse(out, syn, objection)
            return
        right = None
        if me.kind is not Position.SERVER:
            assert route is not None
            try:
                right = self.ports.allocate(leg.proto, route.source, syn.chain[1].address)
            except PortsExhausted as error:
                _refuse(out, syn, Why(Cause.NO_PORTS, str(error), leg.dst))
                return
        session = Session(
            syn.session, me.kind, State.CONFIRMING if right is None else State.OPENING,
            syn.supersession, leg, right, syn.policy, syn.generation,
        )  # fmt: skip
        self._start(out, session, setup)

    def _start(self, out: Commands, session: Session, setup: _SetUp) -> None:
        """Pass a SYN on and install; at the server, install and answer it."""
        syn, route = setup
        assert session.left is not None
        self._displace(out, session)
        self._register.list(session)
        session.mtu = syn.mtu if route is None else min(syn.mtu, route.mtu)
        if session.right is not None:
            patience = syn.patience / 1000 * _PATIENCE_SHARE
            onward = Syn(
                syn.session, session.right, syn.supersession, syn.chain[1:], session.mtu,
                syn.policy, syn.generation, max(1, int(patience * 1000)),
            )  # fmt: skip
            session.opening = Opening(onward, patience)
            # First the SYN: while this host installs, the next one is at work already.
            out.append(Send(session.right.dst, onward))
            out.append(Install(session.view))
        else:
            session.mss = _mss(session)
            out.append(Install(session.view))
            out.append(Send(session.left.src, SynAck(session.id, session.left, session.mtu)))
        self._set_timer(out, session)

    def _join(self, out: Commands, syn: UpdateSyn, route: Route | None) -> None:
        """An UPDATE-SYN has come to a host that is to be a new hop of a session that stands."""
        leg, me = syn.subsession, syn.hops[0]
        following = syn.hops[1].address if len(syn.hops) > 1 else syn.right
        here = format_address(leg.dst)
        right = None
        if me.address != leg.dst or leg.proto != syn.supersession.proto:
            text = f"the new path leads to {describe_hop(me)} but was sent for {leg}"
            why = Why(Cause.NOT_MINE, text, leg.dst)
        elif route is None:
            text = f"{here} has no route to {format_address(following)}"
            why = Why(Cause.NO_ROUTE, text, following)
        elif following in (leg.dst, route.source) or leg.src == following:
            why = Why(Cause.LOOP, f"the chain visits {here} twice in a row", leg.dst)
        else:
            try:
                right = self.ports.allocate(leg.proto, route.source, following)
            except PortsExhausted as error:
                why = Why(Cause.NO_PORTS, str(error), leg.dst)
        if right is None or route is None:
            assert why.cause is not None
            refusal = UpdateReject(syn.session, syn.change, why.cause, clip(why.text), why.blame)
            out.append(Send(syn.leader, refusal))
            return
        session = Session(
            syn.session, me.kind, State.ADOPTED, syn.supersession, leg, right, syn.policy,
            syn.generation,
        )  # fmt: skip
        self._displace(out, session)
        self._register.list(session)
        session.mtu = min(syn.mtu, route.mtu)
        # First of all: R answers L and not this host, so packets may come as soon as R knows.
        out.append(Install(session.view))
        self._migration.joined(out, session, syn)

    def _displace(self, out: Commands, session: Session) -> None:
        """End what cannot be beside this session."""
        for old in sorted(self._register.rivals(session), key=lambda old: old.id):
            if session.left is not None and self._migration.accepts(old, session.left):
                self._migration.drop_spare(out, old)
            else:
                self._step(out, old, Input.REPLACED, replaced(session.supersession))

    def _claim(self, out: Commands, session: Session, leg: Flow) -> None:
        """Whoever else has this left leg has it from a host that has forgotten it."""
        old = self._register.with_left(leg)
        if old is not None and old is not session:
            if self._migration.accepts(old, leg):
                self._migration.drop_spare(out, old)
            else:
                self._step(out, old, Input.REPLACED, replaced(old.supersession))

    def _objection(self, setup: _SetUp) -> Why | None:
        """What speaks against a new session at this host."""
        syn, route = setup
        leg, me = syn.subsession, syn.chain[0]
        here = format_address(leg.dst)
        if self._register.has_ended(syn.session):
            return Why(Cause.ABANDONED, "the session is over already", leg.dst)
        if me.address != leg.dst or leg.proto != syn.supersession.proto:
            text = f"the chain starts at {describe_hop(me)} but was sent for {leg}"
            return Why(Cause.NOT_MINE, text, leg.dst)
        if me.kind is Position.SERVER:
            return None
        following = syn.chain[1]
        if route is None:
            text = f"{here} has no route to {describe_hop(following)}"
            return Why(Cause.NO_ROUTE, text, following.address)
        if following.address in (leg.dst, route.source):
            return Why(Cause.LOOP, f"the chain visits {here} twice in a row", leg.dst)
        return None

    # -- actions, one method for each of the table's ------------------------------------

    def _step(self, out: Commands, session: Session, what: Input, detail: object = None) -> None:
        """Take one transition of the table."""
        found = TABLE[session.role][session.state].get(what)
        if found is None:
            return
        action, state = found
        if state is not session.state:
            session.state = state
            session.waited = session.delay = 0.0
        _ACTIONS[action](self, out, session, detail)

    def _send_syn(self, out: Commands, session: Session, _detail: object) -> None:
        assert session.right is not None
        assert session.opening is not None
        out.append(Send(session.right.dst, session.opening.syn))
        self._set_timer(out, session)

    def _send_synack(self, out: Commands, session: Session, detail: object) -> None:
        assert session.left is not None
        if isinstance(detail, SynAck):
            session.mtu = detail.mtu
            session.opening = None
        elif isinstance(detail, _SetUp) and not session.mtu:  # adopted: nobody knows, and the
            session.mtu = detail.syn.mtu  # client, being established, does not care
        out.append(Send(session.left.src, SynAck(session.id, session.left, session.mtu)))
        if session.state is State.CONFIRMING:
            self._set_timer(out, session)

    def _establish(self, out: Commands, session: Session, detail: object) -> None:
        assert isinstance(detail, SynAck)
        assert session.opening is not None
        if detail.mtu < session.mtu:
            session.mtu = detail.mtu
            session.mss = _mss(session)
        session.held = False
        session.opening = None
        out.append(Install(session.view))
        out.append(Steer(session.supersession))
        self._send_ack(out, session, None)
        out.append(Established(session.view))
        session.delay = self.settings.probe
        out.append(SetTimer(session.id, session.delay))

    def _accept(self, out: Commands, session: Session, _detail: object) -> None:
        if session.right is not None:
            self._send_ack(out, session, None)
        out.append(CancelTimer(session.id))
        out.append(Established(session.view))

    def _send_ack(self, out: Commands, session: Session, _detail: object) -> None:
        if session.right is not None:
            out.append(Send(session.right.dst, Ack(session.id, session.right)))

    def _probe(self, out: Commands, session: Session, _detail: object) -> None:
        self._send_ack(out, session, None)
        self._probe_later(out, session)

    def _probe_later(self, out: Commands, session: Session) -> None:
        settings = self.settings
        session.delay = min(max(session.waited, settings.probe), settings.probe_max)
        out.append(SetTimer(session.id, session.delay))

    def _reopen(self, out: Commands, session: Session, detail: object) -> None:
        assert isinstance(detail, _SetUp)
        syn = detail.syn
        if session.right is not None and session.right.dst != syn.chain[1].address:
            text = "the session was set up again with another chain"
            self._step(out, session, Input.REPLACED, Why(Cause.NOT_MINE, text))
            return
        self._migration.closing(out, session, Why(Cause.REPLACED, "the session is set up anew"))
        if session.left != syn.subsession:
            out.append(Remove(session.view))
            self._register.unlist(session)
            session.left = syn.subsession
        self._start(out, session, detail)

    def _close(self, out: Commands, session: Session, detail: object) -> None:
        assert isinstance(detail, Why)
        cause, text, blame, left_knows, right_knows, _ = detail
        leg, ours = self._migration.closing(out, session, detail)
        self._register.unlist(session)
        if session.held:
            session.held = False
            out.append(Refuse(session.supersession, session.fail_open, text, blame))
        else:
            out.append(Remove(session.view))
        session.opening = None
        session.ending = Ending(
            cause, clip(text), blame,
            left=session.left is not None and not left_knows,
            right=session.right is not None and not right_knows,
            spare=leg is not None, spare_leg=leg, spare_ports=ours,
        )  # fmt: skip
        self._repeat(out, session, None)

    def _repeat(self, out: Commands, session: Session, _detail: object) -> None:
        ending = session.ending
        assert ending is not None
        if not (ending.left or ending.right or ending.spare):
            self._forget(out, session, None)
            return
        if ending.spare and ending.spare_leg is not None:
            leg = ending.spare_leg
            peer = leg.dst if ending.spare_ports else leg.src
            out.append(Send(peer, notice(session.id, leg, ending)))
        if ending.left and session.left is not None:
            out.append(Send(session.left.src, notice(session.id, session.left, ending)))
        if ending.right and session.right is not None:
            out.append(Send(session.right.dst, notice(session.id, session.right, ending)))
        self._set_timer(out, session)

    def _tick_off(self, out: Commands, session: Session, detail: object) -> None:
        assert isinstance(detail, Why)
        assert session.ending is not None
        session.ending = ending = session.ending._replace(
            left=session.ending.left and not detail.left_knows,
            right=session.ending.right and not detail.right_knows,
            spare=session.ending.spare and not detail.spare_knows,
        )
        if not (ending.left or ending.right or ending.spare):
            self._forget(out, session, None)

    def _forget(self, out: Commands, session: Session, _detail: object) -> None:
        assert session.ending is not None
        session.state = State.GONE
        session.delay = 0.0
        self._register.forget(session)
        if session.right is not None:
            self.ports.release(session.right)
        if session.ending.spare_leg is not None and session.ending.spare_ports:
            self.ports.release(session.ending.spare_leg)
        out.append(CancelTimer(session.id))
        out.append(Closed(session.view, session.ending.text))

    def _ask(self, out: Commands, session: Session, _detail: object) -> None:
        self._migration.ask_left(out, session)
        self._probe_later(out, session)

    def _confirm(self, out: Commands, session: Session, _detail: object) -> None:
        out.append(CancelTimer(session.id))
        out.append(Established(session.view))

    # -- bookkeeping --------------------------------------------------------------------

    def _limit(self, session: Session) -> float:
        """How long a session may stay in its state, in seconds."""
        if session.state is State.OPENING and session.opening is not None:
            return session.opening.patience
        return self._limits.get(session.state, float("inf"))

    def _set_timer(self, out: Commands, session: Session) -> None:
        """Come back after twice the last time, or when the state may last no longer.

        The times double, so what a session has waited is what it waits next: 1 + 1 + 2 + 4 ...
        """
        if session.delay:
            return  # one is running
        settings = self.settings
        closing = session.state is State.CLOSING
        first = settings.teardown_retry if closing else settings.retry
        delay = min(max(session.waited, first), settings.retry_max)
        session.delay = min(delay, self._limit(session) - session.waited)
        out.append(SetTimer(session.id, session.delay))

    def _new_id(self) -> int:
        while True:
            session = self._rng.getrandbits(64)
            if session and session not in self.sessions and not self._register.has_ended(session):
                return session


def _check_visits(chain: tuple[Hop, ...], own: Address) -> None:
    visited = {own}
    for hop in chain:
        if hop.address in visited:
            raise M2MError(f"the chain visits {describe_hop(hop)} twice: name each host once")
        visited.add(hop.address)


def _refuse(out: Commands, syn: Syn, why: Why) -> None:
    """Refuse without remembering: a SYN that comes again is refused again."""
    leg = syn.subsession
    assert why.cause is not None
    out.append(Send(leg.src, Rst(syn.session, leg, why.cause, clip(why.text), why.blame)))


def _mss(session: Session) -> int:
    """What to clamp the MSS option to, so that segments fit the path; 0: leave it alone."""
    flow = session.supersession
    if flow.proto != Proto.TCP:
        return 0
    return session.mtu - (_HEADERS_V4 if is_ipv4(flow.dst) else _HEADERS_V6)


_HANDLERS: Final[dict[type, Callable[..., Commands]]] = {
    Opened: Node._opened,
    Received: Node._received,
    TimerFired: Node._timer_fired,
    InstallFailed: Node._install_failed,
    Ended: Node._ended_event,
    Adopted: Node._adopted,
    ChangeWanted: lambda node, event: node._migration.change_wanted(event),
    RequestWanted: lambda node, event: node._migration.request_wanted(event),
    Redirected: lambda node, event: node._migration.redirected(event),
    Counted: lambda node, event: node._migration.counted(event),
    Holding: lambda node, event: node._migration.holding(event),
    Resumed: lambda node, event: node._migration.resumed(event),
    HoldOverflow: lambda node, event: node._migration.overflow(event),
    Acked: lambda node, event: node._migration.acked(event),
    Reached: lambda node, event: node._migration.reached(event),
    StateExported: lambda node, event: node._migration.exported(event),
    StateImported: lambda node, event: node._migration.imported(event),
}
_RECEIVERS: Final[dict[type, Callable[[Node, Received], Commands]]] = {
    Syn: Node._syn,
    SynAck: Node._synack,
    Ack: Node._ack,
    Fin: Node._over,
    Rst: Node._over,
    FinAck: Node._finack,
}
_ACTIONS: Final[dict[Action, Callable[[Node, Commands, Session, object], None]]] = {
    Action.SEND_SYN: Node._send_syn,
    Action.SEND_SYNACK: Node._send_synack,
    Action.ESTABLISH: Node._establish,
    Action.ACCEPT: Node._accept,
    Action.SEND_ACK: Node._send_ack,
    Action.PROBE: Node._probe,
    Action.REOPEN: Node._reopen,
    Action.CLOSE: Node._close,
    Action.REPEAT: Node._repeat,
    Action.TICK_OFF: Node._tick_off,
    Action.FORGET: Node._forget,
    Action.ASK: Node._ask,
    Action.CONFIRM: Node._confirm,
}
