"""One host's end of the session protocol: events in, commands out.

:class:`Node` finds the session that an event is about, or makes it, and lets it take its step
(:mod:`m2m.protocol.steps`). What changes the chain of a session that stands is left to
:mod:`m2m.protocol.migration`. None of them has a socket or a clock; time passes by the timers they
ask for, one of each kind per session.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Final

from m2m.errors import M2MError
from m2m.identity import ANONYMOUS, Identity
from m2m.protocol.change import Commands
from m2m.protocol.commands import (
    Command,
    Install,
    Refuse,
    Send,
    SetTimer,
)
from m2m.protocol.events import (
    Acked,
    Adopted,
    ChangeWanted,
    Counted,
    DeedsGiven,
    Ended,
    Event,
    HandedBefore,
    HandOver,
    Holding,
    HoldOverflow,
    InstallFailed,
    LeadHere,
    Moved,
    Opened,
    Reached,
    Received,
    Redirected,
    Rehomed,
    RenamedBefore,
    RequestWanted,
    Resumed,
    Route,
    Spliced,
    SplicedBefore,
    StateExported,
    StateImported,
    TakeOver,
    Timer,
    TimerFired,
)
from m2m.protocol.flow import Address, format_address
from m2m.protocol.joining import Joining
from m2m.protocol.mobility import follow_ends
from m2m.protocol.ports import PortAllocator, PortsExhausted
from m2m.protocol.reasons import (
    LEFT_KNOWS,
    RIGHT_KNOWS,
    SPARE_KNOWS,
    Why,
    describe_hop,
    hop_silent,
    install_failed,
    replaced,
    told,
    unknown,
)
from m2m.protocol.rebind import Rebind, Rebound
from m2m.protocol.register import Register
from m2m.protocol.session import Input, Opening, Role, Session, State
from m2m.protocol.steps import Settings, SetUp, Steps
from m2m.protocol.translation import Position, SessionView, ends_at
from m2m.protocol.update import Join, Joined, UpdateReject, UpdateSyn
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


_ADOPTED_APART = 0.001  # s, about, between questions of a restarted agent


class Node:
    """All sessions of one host.

    *rng* chooses session ids: :class:`random.SystemRandom` outside tests. Every method is
    immediate; commands are to be carried out in order, before the next event is handled. When an
    :class:`Install` fails, the commands behind it are dropped and ``InstallFailed`` comes next.
    """

    def __init__(
        self,
        settings: Settings,
        ports: PortAllocator,
        rng: random.Random,
        identity: Identity,
        devices: Mapping[Address, bytes],
    ) -> None:
        """*devices* tells whose device was seen last at an address (``Association.devices``)."""
        self.settings = settings
        self.ports = ports
        self.sessions: Mapping[int, Session]
        """The sessions of this host by id, closing ones included; to be read only."""
        self.register = self._register = Register()  # to be read by others
        self.sessions = self._register.by_id
        self._rng = rng
        self._device = identity.device
        self._steps = Steps(settings, ports, self._register, rng, self._join, identity, devices)
        self._migration = self._steps.migration
        self.mobility = self._steps.mobility
        self.joining = Joining(self._register, rng, renames=settings.renames)

    def view(self, session: int) -> SessionView | None:
        """A session as the datapath knows it; None when it is not here."""
        found = self._register.get(session)
        return None if found is None else found.view

    def handle(self, event: Event) -> list[Command]:
        """What is to be done about *event*, in order."""
        return self.joining.said(self.mobility.silence(_HANDLERS[type(event)](self, event)))

    # -- events -------------------------------------------------------------------------

    def _opened(self, event: Opened) -> Commands:
        flow, chain, route = event.flow, event.chain, event.route
        out: Commands = []
        old = self._register.with_flow(event.here)
        if old is not None:
            if old.state is State.OPENING and old.role is Role.CLIENT:
                return out  # its packets will go with those that are waiting
            # The kernel knows nothing of it any more, or it would not have held the packet.
            self._steps.take(out, old, Input.REPLACED, replaced(flow))
        try:
            check_chain(chain)
            _check_visits(chain, route.source)
            right = self.ports.allocate(flow.proto, route.source, chain[0].address)
        except M2MError as error:
            out.append(Refuse(event.here, event.fail_open, str(error), None))
            return out
        session = Session(
            self._new_id(), Position.CLIENT, State.OPENING, flow, None, right,
            event.policy, event.generation, event.local,
        )  # fmt: skip
        session.client = self._device
        session.mtu = min(route.mtu, 0xFFFF)
        patience = self.settings.setup_timeout
        syn = Syn(
            session.id, right, flow, chain, session.mtu, event.policy, event.generation,
            min(max(1, round(patience * 1000)), 0xFFFF), self._device,
        )  # fmt: skip
        session.opening = Opening(syn, patience)
        session.held = True
        session.fail_open = event.fail_open
        self._register.list(session)
        out.append(Send(right.dst, syn))
        self._steps.set_timer(out, session)
        return out

    def _received(self, event: Received) -> Commands:
        event = self.joining.heard(event)
        if self._is_handed(event):
            return []
        event = self.mobility.today(event)
        if self.mobility.is_strange(event):
            return []
        session = self._register.get(getattr(event.message, "session", 0))
        if session is not None and session.change is not None:
            follow_ends(session, session.change, event)
        done = self._migration.received(event)
        return (
            done
            if done is not None
            else _RECEIVERS.get(type(event.message), Node._not_ours)(self, event)
        )

    def _is_handed(self, event: Received) -> bool:
        """Whether this is about a session that another host is to have: whatever this host says
        would end it. A batch of moved legs is looked at leg by leg."""
        number = getattr(event.message, "session", 0)
        handed = self.mobility.handing.has_handed(number)
        return handed and not isinstance(event.message, Rebind | Rebound)

    def _not_ours(self, _event: Received) -> Commands:
        return []  # PATHREQ, PATHREP and CHALLENGE are the shell's

    def _syn(self, event: Received) -> Commands:
        message = event.message
        assert isinstance(message, Syn)
        out: Commands = []
        session = self._register.get(message.session)
        setup = SetUp(message, event.route)
        if session is None:
            self._admit(out, setup, event.device)
            return out
        leg = message.subsession
        if session.left is None or session.left.src != leg.src:
            text = f"the chain visits {format_address(leg.dst)} twice: it is on the path already"
            _refuse(out, message, Why(Cause.LOOP, text, leg.dst))
        elif session.position is not message.chain[0].kind:
            text = "the session is here with another kind of network function"
            _refuse(out, message, Why(Cause.NOT_MINE, text, leg.dst))
        else:
            if session.client == ANONYMOUS:  # adopted; nobody takes a session over by a SYN
                session.client = message.client
            same = session.left == leg
            self._steps.take(out, session, Input.SYN if same else Input.SYN_NEW_LEG, setup)
        return out

    def _synack(self, event: Received) -> Commands:
        message = event.message
        assert isinstance(message, SynAck)
        session = self._register.get(message.session)
        if session is not None and self._migration.accepts(session, message.subsession):
            return []  # which of the two legs is in will be told in time
        if session is None or session.right != message.subsession:
            return [Send(event.peer, unknown(message))]
        if session.server == ANONYMOUS:
            session.server = message.server
        out: Commands = []
        self._steps.take(out, session, Input.SYNACK, message)
        return out

    def _ack(self, event: Received) -> Commands:
        message = event.message
        assert isinstance(message, Ack)
        session = self._register.get(message.session)
        leg = message.subsession
        if session is None or not (session.left == leg or self._migration.accepts(session, leg)):
            return [Send(event.peer, unknown(message))]
        out: Commands = []
        self._steps.take(out, session, Input.ACK)
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
                    self._steps.take(out, session, Input.LEFT_DONE, SPARE_KNOWS)
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
        self._steps.take(out, session, what, told(message, by_left=from_left))
        return out

    def _finack(self, event: Received) -> Commands:
        message = event.message
        assert isinstance(message, FinAck)
        out: Commands = []
        session = self._register.get(message.session)
        if session is not None:
            if message.subsession == session.left:
                self._steps.take(out, session, Input.LEFT_DONE, LEFT_KNOWS)
            elif message.subsession == session.right:
                self._steps.take(out, session, Input.RIGHT_DONE, RIGHT_KNOWS)
            elif session.ending is not None and message.subsession == session.ending.spare_leg:
                self._steps.take(out, session, Input.RIGHT_DONE, SPARE_KNOWS)
        return out

    def _timer_fired(self, event: TimerFired) -> Commands:
        if event.timer is Timer.JOIN:
            out: Commands = []
            self.joining.tick(out, event.session)
            return out
        if event.timer in _OF_MOVES:
            return self.mobility.timer_fired(event.timer)
        if event.timer is not Timer.SESSION:
            return self._migration.timer_fired(event, request=event.timer is Timer.REQUEST)
        out = []
        session = self._register.get(event.session)
        if session is None or not session.delay:
            return out
        session.waited += session.delay
        session.delay = 0.0
        if session.waited < self._steps.limit(session) - 1e-6:
            self._steps.take(out, session, Input.TIMER)
        else:
            self._steps.take(out, session, Input.EXPIRED, hop_silent(session))
        return out

    def _install_failed(self, event: InstallFailed) -> Commands:
        out: Commands = []
        session = self._register.get(event.session)
        if session is not None and not self._migration.failed(out, session, event.why):
            session.held = session.role is Role.CLIENT  # it was not Steered after all
            self._steps.take(out, session, Input.FAILED, install_failed(session, event.why))
        return out

    def _ended_event(self, event: Ended) -> Commands:
        out: Commands = []
        session = self._register.get(event.session)
        if session is not None:
            opening = session.state in (State.OPENING, State.CONFIRMING)
            cause = Cause.ABANDONED if opening else None
            self._steps.take(out, session, Input.ENDED, Why(cause, event.why))
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
            view.chain, view.generation, view.local,
        )  # fmt: skip
        session.mss, session.splice = view.mss, view.splice
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
            self._migration.adopted(out, session, event.spare, event.splice)
        self.mobility.adopted(out, session, event)
        return out

    # -- new sessions -------------------------------------------------------------------

    def _admit(self, out: Commands, setup: SetUp, device: bytes) -> None:
        """A SYN of a session that is not here, from *device*: make it, or say why not."""
        syn, route = setup
        leg, me = syn.subsession, syn.chain[0]
        objection = self._objection(setup, device)
        if objection is not None:
            _refuse(out, syn, objection)
            return
        right = None
        if not ends_at(me.kind):
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
        session.client = syn.client
        if right is None:
            session.server = self._device
        self._steps.start(out, session, setup)

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
        self._steps.displace(out, session)
        self._register.list(session)
        session.mtu = min(syn.mtu, route.mtu)
        session.client, session.server = syn.client, syn.server
        # First of all: R answers L and not this host, so packets may come as soon as R knows.
        out.append(Install(session.view))
        self._migration.joined(out, session, syn)
        self._steps.keep(out, session)

    def _objection(self, setup: SetUp, device: bytes) -> Why | None:
        """What speaks against a new session at this host, of which *device* has told."""
        syn, route = setup
        leg, me = syn.subsession, syn.chain[0]
        here = format_address(leg.dst)
        if self._register.has_ended(syn.session):
            return Why(Cause.ABANDONED, "the session is over already", leg.dst)
        if me.address != leg.dst or leg.proto != syn.supersession.proto:
            text = f"the chain starts at {describe_hop(me)} but was sent for {leg}"
            return Why(Cause.NOT_MINE, text, leg.dst)
        rival = self._rival(syn, device)
        if rival is not None:
            text = "another device, which may be back, has a session by the same ports"
            return Why(Cause.NO_PORTS, text, leg.dst)
        if ends_at(me.kind):
            return None
        following = syn.chain[1]
        if route is None:
            text = f"{here} has no route to {describe_hop(following)}"
            return Why(Cause.NO_ROUTE, text, following.address)
        if following.address in (leg.dst, route.source):
            return Why(Cause.LOOP, f"the chain visits {here} twice in a row", leg.dst)
        return None

    def _rival(self, syn: Syn, device: bytes) -> Session | None:
        """A session of another client that this one would end: its own address may be somebody
        else's by now."""
        others = [self._register.with_flow(syn.supersession)]
        if device == syn.client:
            others.append(self._register.with_left(syn.subsession))
        for other in others:
            if other is None or other.client in (ANONYMOUS, syn.client):
                continue
            if syn.subsession == other.left or syn.supersession == other.here:
                return other
        return None

    # -- halves that are one --------------------------------------------------------------

    def _spliced(self, event: Spliced) -> Commands:
        out: Commands = []
        self.joining.spliced(out, event)
        return out

    def _spliced_before(self, event: SplicedBefore) -> Commands:
        out: Commands = []
        self.joining.spliced_before(out, event)
        return out

    def _renamed_before(self, event: RenamedBefore) -> Commands:
        out: Commands = []
        self.joining.renamed_before(out, event)
        return out

    def _join_halves(self, event: Received) -> Commands:
        out: Commands = []
        self.joining.join(out, event)
        return out

    def _joined_halves(self, event: Received) -> Commands:
        out: Commands = []
        self.joining.joined(out, event)
        return out

    # -- bookkeeping --------------------------------------------------------------------

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


_HANDLERS: Final[dict[type, Callable[..., Commands]]] = {
    Opened: Node._opened,
    Received: Node._received,
    TimerFired: Node._timer_fired,
    InstallFailed: Node._install_failed,
    Ended: Node._ended_event,
    Adopted: Node._adopted,
    ChangeWanted: lambda node, event: node._migration.change_wanted(event),
    Moved: lambda node, event: node.mobility.moved(event),
    Rehomed: lambda node, event: node.mobility.rehomed(event),
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
    Spliced: Node._spliced,
    SplicedBefore: Node._spliced_before,
    RenamedBefore: Node._renamed_before,
    **dict.fromkeys(
        (HandOver, DeedsGiven, TakeOver, LeadHere, HandedBefore),
        lambda node, event: node.mobility.handed(event),
    ),
}
_RECEIVERS: Final[dict[type, Callable[[Node, Received], Commands]]] = {
    Syn: Node._syn,
    SynAck: Node._synack,
    Ack: Node._ack,
    Fin: Node._over,
    Rst: Node._over,
    FinAck: Node._finack,
    Rebind: lambda node, event: node.mobility.rebind(event),
    Rebound: lambda node, event: node.mobility.rebound(event),
    Join: Node._join_halves,
    Joined: Node._joined_halves,
}
_OF_MOVES: Final = frozenset((Timer.MOVE, Timer.FADE, Timer.HAND))
