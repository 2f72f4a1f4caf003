"""One host's end of the session protocol: events in, commands out.

:class:`Node` finds the session that an event is about, looks up what to do in the table of
:mod:`m2m.protocol.session`, and does it. It has no socket and no clock; time passes by the
timers it asks for, one per session.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple, TypeAlias

from m2m.errors import M2MError
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
    Adopted,
    Ended,
    Event,
    InstallFailed,
    Opened,
    Received,
    Route,
    TimerFired,
)
from m2m.protocol.flow import Address, Flow, Proto, format_address, is_ipv4
from m2m.protocol.ports import PortAllocator, PortsExhausted
from m2m.protocol.session import TABLE, Action, Ending, Input, Opening, Role, Session, State
from m2m.protocol.translation import Position, SessionView
from m2m.protocol.wire import (
    Ack,
    Cause,
    Fin,
    FinAck,
    Hop,
    Message,
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
    probe: float = 60.0  # before a client asks whether its path is still there; doubles
    probe_max: float = 3600.0


_ENDED_IDS = 4096  # ids remembered, lest a late SYN bring one back
_PATIENCE_SHARE = 0.9  # of what the left neighbour waits
_HEADERS_V4 = 40  # IP and TCP headers without options: MTU - MSS
_HEADERS_V6 = 60

Commands: TypeAlias = list[Command]


class _Why(NamedTuple):
    """Why a session ends, and which neighbours know already."""

    cause: Cause | None  # None: it is simply over
    text: str
    blame: Address | None = None
    left_knows: bool = False
    right_knows: bool = False


_LEFT_KNOWS = _Why(None, "", left_knows=True)
_RIGHT_KNOWS = _Why(None, "", right_knows=True)


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
        self._sessions: dict[int, Session] = {}
        self.sessions = MappingProxyType(self._sessions)
        # Sessions that are not CLOSING, by what no two of them may share in the datapath.
        self._by_left: dict[Flow, Session] = {}
        self._by_supersession: dict[Flow, Session] = {}
        self._rng = rng
        self._ended: set[int] = set()
        self._ended_order: deque[int] = deque()
        self._limits: Final = {
            State.CONFIRMING: settings.confirm_timeout,
            State.CLOSING: settings.teardown_timeout,
        }

    def view(self, session: int) -> SessionView | None:
        """A session as the datapath knows it; None when it is not here."""
        found = self._sessions.get(session)
        return None if found is None else found.view

    def handle(self, event: Event) -> list[Command]:
        """What is to be done about *event*, in order."""
        return _HANDLERS[type(event)](self, event)

    # -- events -------------------------------------------------------------------------

    def _opened(self, event: Opened) -> Commands:
        flow, chain, route = event.flow, event.chain, event.route
        out: Commands = []
        old = self._by_supersession.get(flow)
        if old is not None:
            if old.state is State.OPENING and old.role is Role.CLIENT:
                return out  # its packets will go with those that are waiting
            # The kernel knows nothing of it any more, or it would not have held the packet.
            self._step(out, old, Input.REPLACED, _replaced(flow))
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
        self._sessions[session.id] = self._by_supersession[flow] = session
        out.append(Send(right.dst, syn))
        self._set_timer(out, session)
        return out

    def _received(self, event: Received) -> Commands:
        return _RECEIVERS.get(type(event.message), Node._not_ours)(self, event)

    def _not_ours(self, _event: Received) -> Commands:
        return []  # PATHREQ, PATHREP and CHALLENGE are the shell's

    def _syn(self, event: Received) -> Commands:
        message = event.message
        assert isinstance(message, Syn)
        out: Commands = []
        session = self._sessions.get(message.session)
        setup = _SetUp(message, event.route)
        if session is None:
            self._admit(out, setup)
            return out
        if session.left is None or session.left.src != message.subsession.src:
            self._refuse(
                out, message, Cause.LOOP, "the chain visits "
                f"{format_address(message.subsession.dst)} twice: its host is on the path already",
            )  # fmt: skip
        elif session.position is not message.chain[0].kind:
            self._refuse(out, message, Cause.NOT_MINE, "the session is here with another kind")
        else:
            same = session.left == message.subsession
            self._step(out, session, Input.SYN if same else Input.SYN_NEW_LEG, setup)
        return out

    def _synack(self, event: Received) -> Commands:
        message = event.message
        assert isinstance(message, SynAck)
        session = self._sessions.get(message.session)
        if session is None or session.right != message.subsession:
            return _unknown(event.peer, message)
        out: Commands = []
        self._step(out, session, Input.SYNACK, message)
        return out

    def _ack(self, event: Received) -> Commands:
        message = event.message
        assert isinstance(message, Ack)
        session = self._sessions.get(message.session)
        if session is None or session.left != message.subsession:
            return _unknown(event.peer, message)
        out: Commands = []
        self._step(out, session, Input.ACK)
        return out

    def _over(self, event: Received) -> Commands:
        message = event.message
        assert isinstance(message, Fin | Rst)
        leg = message.subsession
        session = self._sessions.get(message.session)
        if session is None:
            self._remember_ended(message.session)
        if session is None or leg not in (session.left, session.right):
            return [Send(event.peer, FinAck(message.session, leg))]
        out: Commands = []
        from_left = leg == session.left
        ending = session.ending
        if ending is None or not (ending.left if from_left else ending.right):
            out.append(Send(event.peer, FinAck(message.session, leg)))
        # else our own notice is on its way, and repeated until it is there: it is the answer
        if isinstance(message, Rst):
            why = _Why(message.cause, message.text, message.blame, from_left, not from_left)
        else:
            why = _Why(None, "closed by the other side", None, from_left, not from_left)
        self._step(out, session, Input.LEFT_OVER if from_left else Input.RIGHT_OVER, why)
        return out

    def _finack(self, event: Received) -> Commands:
        message = event.message
        assert isinstance(message, FinAck)
        out: Commands = []
        session = self._sessions.get(message.session)
        if session is not None:
            if message.subsession == session.left:
                self._step(out, session, Input.LEFT_DONE, _LEFT_KNOWS)
            elif message.subsession == session.right:
                self._step(out, session, Input.RIGHT_DONE, _RIGHT_KNOWS)
        return out

    def _timer_fired(self, event: TimerFired) -> Commands:
        out: Commands = []
        session = self._sessions.get(event.session)
        if session is None or not session.delay:
            return out
        session.waited += session.delay
        session.delay = 0.0
        if session.waited < self._limit(session) - 1e-6:
            self._step(out, session, Input.TIMER)
        else:
            self._step(out, session, Input.EXPIRED, _silent(session))
        return out

    def _install_failed(self, event: InstallFailed) -> Commands:
        out: Commands = []
        session = self._sessions.get(event.session)
        if session is not None:
            own = _own_address(session)
            session.held = session.role is Role.CLIENT  # it was not Steered after all
            text = f"{format_address(own)} cannot take the session: {event.why}"
            self._step(out, session, Input.FAILED, _Why(Cause.INSTALL_FAILED, text, own))
        return out

    def _ended_event(self, event: Ended) -> Commands:
        out: Commands = []
        session = self._sessions.get(event.session)
        if session is not None:
            opening = session.state in (State.OPENING, State.CONFIRMING)
            cause = Cause.ABANDONED if opening else None
            self._step(out, session, Input.ENDED, _Why(cause, event.why))
        return out

    def _adopted(self, event: Adopted) -> Commands:
        view = event.view
        out: Commands = []
        if view.session in self._sessions:
            return out
        client = view.position is Position.CLIENT
        state = State.ESTABLISHED if client else State.ADOPTED
        session = Session(
            view.session, view.position, state, view.supersession, view.left, view.right,
            view.chain, view.generation,
        )  # fmt: skip
        session.mss = view.mss
        self._sessions[session.id] = session
        self._index(session)
        if session.right is not None:
            self.ports.adopt(session.right)
        if client:
            # The last ACK may have died with the agent. Spread: there may be 100 000 of these.
            session.delay = self._rng.uniform(0.0, self.settings.probe) + 1e-3
            out.append(SetTimer(session.id, session.delay))
        return out

    # -- new sessions -------------------------------------------------------------------

    def _admit(self, out: Commands, setup: _SetUp) -> None:
        """A SYN of a session that is not here: make it, or say why not."""
        syn, route = setup
        leg, me = syn.subsession, syn.chain[0]
        if syn.session in self._ended:
            self._refuse(out, syn, Cause.ABANDONED, "the session is over already")
            return
        if me.address != leg.dst or leg.proto != syn.supersession.proto:
            self._refuse(out, syn, Cause.NOT_MINE, f"the chain starts at {_hop(me)} but was "
                         f"sent for {leg}")  # fmt: skip
            return
        right = None
        if me.kind is not Position.SERVER:
            following = syn.chain[1]
            if route is None:
                self._refuse(out, syn, Cause.NO_ROUTE, f"{format_address(leg.dst)} has no route "
                             f"to {_hop(following)}", following.address)  # fmt: skip
                return
            if following.address in (leg.dst, route.source):
                self._refuse(out, syn, Cause.LOOP, "the chain visits "
                             f"{format_address(leg.dst)} twice in a row")  # fmt: skip
                return
            try:
                right = self.ports.allocate(leg.proto, route.source, following.address)
            except PortsExhausted as error:
                self._refuse(out, syn, Cause.NO_PORTS, str(error))
                return
        session = Session(
            syn.session, me.kind, State.CONFIRMING if right is None else State.OPENING,
            syn.supersession, leg, right, syn.policy, syn.generation,
        )  # fmt: skip
        self._sessions[session.id] = session
        self._start(out, session, setup)

    def _start(self, out: Commands, session: Session, setup: _SetUp) -> None:
        """Pass a SYN on and install; at the server, install and answer it."""
        syn, route = setup
        assert session.left is not None
        for old in (
            self._by_left.get(session.left),
            self._by_supersession.get(session.supersession),
        ):
            if old is not None and old is not session and old.state < State.CLOSING:
                self._step(out, old, Input.REPLACED, _replaced(session.supersession))
        self._index(session)
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

    def _refuse(
        self, out: Commands, syn: Syn, cause: Cause, text: str, blame: Address | None = None
    ) -> None:
        """Refuse without remembering: a SYN that comes again is refused again."""
        leg = syn.subsession
        out.append(Send(leg.src, Rst(syn.session, leg, cause, clip(text), blame or leg.dst)))

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
        settings = self.settings
        session.delay = min(max(session.waited, settings.probe), settings.probe_max)
        out.append(SetTimer(session.id, session.delay))

    def _reopen(self, out: Commands, session: Session, detail: object) -> None:
        assert isinstance(detail, _SetUp)
        syn = detail.syn
        if session.right is not None and session.right.dst != syn.chain[1].address:
            text = "the session was set up again with another chain"
            self._step(out, session, Input.REPLACED, _Why(Cause.NOT_MINE, text))
            return
        if session.left != syn.subsession:
            out.append(Remove(session.view))
            self._unindex(session)
            session.left = syn.subsession
        self._start(out, session, detail)

    def _close(self, out: Commands, session: Session, detail: object) -> None:
        assert isinstance(detail, _Why)
        cause, text, blame, left_knows, right_knows = detail
        self._unindex(session)
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
        )  # fmt: skip
        self._repeat(out, session, None)

    def _repeat(self, out: Commands, session: Session, _detail: object) -> None:
        ending = session.ending
        assert ending is not None
        if not (ending.left or ending.right):
            self._forget(out, session, None)
            return
        if ending.left and session.left is not None:
            out.append(Send(session.left.src, _notice(session.id, session.left, ending)))
        if ending.right and session.right is not None:
            out.append(Send(session.right.dst, _notice(session.id, session.right, ending)))
        self._set_timer(out, session)

    def _tick_off(self, out: Commands, session: Session, detail: object) -> None:
        assert isinstance(detail, _Why)
        assert session.ending is not None
        session.ending = ending = session.ending._replace(
            left=session.ending.left and not detail.left_knows,
            right=session.ending.right and not detail.right_knows,
        )
        if not (ending.left or ending.right):
            self._forget(out, session, None)

    def _forget(self, out: Commands, session: Session, _detail: object) -> None:
        assert session.ending is not None
        session.state = State.GONE
        session.delay = 0.0
        del self._sessions[session.id]
        self._remember_ended(session.id)
        if not self._sessions:  # give the memory of a busy day back, which deleting does not
            self._sessions.clear()
            self._by_left.clear()
            self._by_supersession.clear()
        if session.right is not None:
            self.ports.release(session.right)
        out.append(CancelTimer(session.id))
        out.append(Closed(session.view, session.ending.text))

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
        delay = min(max(session.waited, settings.retry), settings.retry_max)
        session.delay = min(delay, self._limit(session) - session.waited)
        out.append(SetTimer(session.id, session.delay))

    def _index(self, session: Session) -> None:
        self._by_supersession[session.supersession] = session
        if session.left is not None:
            self._by_left[session.left] = session

    def _unindex(self, session: Session) -> None:
        if self._by_supersession.get(session.supersession) is session:
            del self._by_supersession[session.supersession]
        if session.left is not None and self._by_left.get(session.left) is session:
            del self._by_left[session.left]

    def _remember_ended(self, session: int) -> None:
        if session not in self._ended:
            self._ended.add(session)
            self._ended_order.append(session)
            if len(self._ended_order) > _ENDED_IDS:
                self._ended.remove(self._ended_order.popleft())

    def _new_id(self) -> int:
        while True:
            session = self._rng.getrandbits(64)
            if session and session not in self._sessions and session not in self._ended:
                return session


def _check_visits(chain: tuple[Hop, ...], own: Address) -> None:
    visited = {own}
    for hop in chain:
        if hop.address in visited:
            raise M2MError(f"the chain visits {_hop(hop)} twice: name each host once")
        visited.add(hop.address)


def _hop(hop: Hop) -> str:
    return f"{hop.nf or 'server'} at {format_address(hop.address)}"


def _own_address(session: Session) -> Address:
    if session.left is not None:
        return session.left.dst
    assert session.right is not None
    return session.right.src


def _mss(session: Session) -> int:
    """What to clamp the MSS option to, so that segments fit the path; 0: leave it alone."""
    flow = session.supersession
    if flow.proto != Proto.TCP:
        return 0
    return session.mtu - (_HEADERS_V4 if is_ipv4(flow.dst) else _HEADERS_V6)


def _replaced(flow: Flow) -> _Why:
    return _Why(Cause.REPLACED, f"{flow} was opened anew")


def _silent(session: Session) -> _Why:
    """Whose fault it is that a session stayed in its state too long."""
    if session.opening is not None:
        silent = session.opening.syn.chain[0]
        return _Why(Cause.TIMEOUT, f"{_hop(silent)} does not answer", silent.address)
    if session.left is not None:
        text = f"{format_address(session.left.src)} does not confirm the session"
        return _Why(Cause.TIMEOUT, text, session.left.src)
    return _Why(Cause.TIMEOUT, "the next host does not answer")


def _unknown(peer: Address, message: Ack | SynAck) -> Commands:
    leg = message.subsession
    own = leg.dst if isinstance(message, Ack) else leg.src
    text = f"{format_address(own)} has no such session"
    return [Send(peer, Rst(message.session, leg, Cause.UNKNOWN_SESSION, text, own))]


def _notice(session: int, leg: Flow, ending: Ending) -> Message:
    if ending.cause is None:
        return Fin(session, leg)
    return Rst(session, leg, ending.cause, ending.text, ending.blame)


_HANDLERS: Final[dict[type, Callable[..., Commands]]] = {
    Opened: Node._opened,
    Received: Node._received,
    TimerFired: Node._timer_fired,
    InstallFailed: Node._install_failed,
    Ended: Node._ended_event,
    Adopted: Node._adopted,
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
}
