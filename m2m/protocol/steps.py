"""What is done in each step of a session's life.

:mod:`m2m.protocol.session` has the table: in which state what input leads to which action and
state. Here are the actions, one method for each, and the timers between them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from m2m.identity import Identity
from m2m.protocol.change import Commands, UpdateSettings
from m2m.protocol.commands import (
    CancelTimer,
    Closed,
    Established,
    Install,
    Keep,
    Refuse,
    Remove,
    Send,
    SetTimer,
    Steer,
)
from m2m.protocol.devices import note_of
from m2m.protocol.events import Route
from m2m.protocol.flow import Address, Flow, Proto, is_ipv4
from m2m.protocol.migration import Migration
from m2m.protocol.mobility import Mobility
from m2m.protocol.paths import Admit
from m2m.protocol.ports import PortAllocator
from m2m.protocol.reasons import Why, hop_gone, notice, replaced
from m2m.protocol.register import Register
from m2m.protocol.session import TABLE, Action, Ending, Input, Opening, Session, State
from m2m.protocol.translation import Hook
from m2m.protocol.wire import Ack, Cause, Syn, SynAck, clip

__all__ = ["SetUp", "Settings", "Steps"]


class Settings(NamedTuple):
    """Times, in seconds, and what can be done."""

    setup_timeout: float = 1.0  # a client waits this long for its chain
    confirm_timeout: float = 3.0  # other hosts for the client's ACK
    teardown_timeout: float = 10.0  # and all for a neighbour's FINACK
    retry: float = 0.02  # before a message is sent again; doubles each time
    retry_max: float = 1.0
    # Nobody waits for a teardown, and thousands of sessions may end at once.
    teardown_retry: float = 0.2
    probe: float = 60.0  # before a client asks whether its path is still there; doubles
    probe_max: float = 3600.0
    renames: bool = True  # whether the datapath can give sessions other names
    update: UpdateSettings = UpdateSettings()


_PATIENCE_SHARE = 0.9  # of what the left neighbour waits
_HEADERS_V4 = 40  # IP and TCP headers without options: MTU - MSS
_HEADERS_V6 = 60


class SetUp(NamedTuple):
    """A SYN, and the way to the next host if there is one."""

    syn: Syn
    route: Route | None


class Steps:
    """The steps of all sessions of one host, and with them its :class:`Migration` and
    :class:`Mobility`."""

    def __init__(
        self,
        settings: Settings,
        ports: PortAllocator,
        register: Register,
        rng: random.Random,
        admit: Admit,
        identity: Identity,
        devices: Mapping[Address, bytes],
    ) -> None:
        """*admit* makes a new hop of a session that stands; *devices* tells whose device is at an
        address."""
        self._settings = settings
        self._ports = ports
        self._register = register
        self.mobility = Mobility(
            identity,
            devices,
            ports,
            register,
            self.claim,
            self._unknown,
            self._renamed,
            settings.probe,
        )
        self.migration = Migration(
            settings.update, ports, register, rng, self.take, admit, self.claim,
            self.mobility.closing, self.mobility.marked, self.mobility.where,
            self.mobility.leg_gone,
        )  # fmt: skip
        self._limits: Final = {
            State.CONFIRMING: settings.confirm_timeout,
            State.CLOSING: settings.teardown_timeout,
        }

    def take(self, out: Commands, session: Session, what: Input, detail: object = None) -> None:
        """Take one transition of the table."""
        found = TABLE[session.role][session.state].get(what)
        if found is None:
            return
        action, state = found
        if state is not session.state:
            session.state = state
            session.waited = session.delay = 0.0
        _ACTIONS[action](self, out, session, detail)

    def start(self, out: Commands, session: Session, setup: SetUp) -> None:
        """Pass a SYN on and install; at the server, install and answer it."""
        syn, route = setup
        assert session.left is not None
        self.displace(out, session)
        self._register.list(session)
        session.mtu = syn.mtu if route is None else min(syn.mtu, route.mtu)
        if session.right is not None:
            patience = syn.patience / 1000 * _PATIENCE_SHARE
            onward = Syn(
                syn.session, session.right, syn.supersession, syn.chain[1:], session.mtu,
                syn.policy, syn.generation, max(1, int(patience * 1000)), session.client,
            )  # fmt: skip
            session.opening = Opening(onward, patience)
            # First the SYN: while this host installs, the next one is at work already.
            out.append(Send(session.right.dst, onward))
            out.append(Install(session.view))
        else:
            session.mss = _mss(session)
            out.append(Install(session.view))
            answer = SynAck(session.id, session.left, session.mtu, session.server)
            out.append(Send(session.left.src, answer))
        self.set_timer(out, session)

    def displace(self, out: Commands, session: Session) -> None:
        """End what cannot be beside this session."""
        for old in sorted(self._register.rivals(session), key=lambda old: old.id):
            if session.left is not None and self.migration.accepts(old, session.left):
                self.migration.drop_spare(out, old)
            elif (
                session.left is None
                or old.here == session.here
                or not self.mobility.unused(out, old, session.left)
            ):
                self.take(out, old, Input.REPLACED, replaced(session.supersession))

    def claim(self, out: Commands, session: Session, leg: Flow) -> None:
        """Whoever else has this left leg has it from a host that has forgotten it."""
        old = self._register.with_left(leg)
        if old is not None and old is not session:
            if self.migration.accepts(old, leg):
                self.migration.drop_spare(out, old)
            elif not self.mobility.unused(out, old, leg):
                self.take(out, old, Input.REPLACED, replaced(old.supersession))

    def keep(self, out: Commands, session: Session) -> None:
        """A restarted agent has to know whose the session is."""
        out.append(Keep(((session.id, note_of(session)),)))

    def _unknown(self, out: Commands, session: Session, leg: Flow) -> None:
        """The neighbour by this leg, which has moved, has no such session."""
        by_left = leg == session.left
        why = hop_gone(leg, by_left=by_left)
        if not self.migration.spare_over(out, session, leg, why):
            self.take(out, session, Input.LEFT_OVER if by_left else Input.RIGHT_OVER, why)

    def _renamed(self, out: Commands, session: Session, former: tuple[Hook, Flow]) -> None:
        self.migration.renamed(out, session, former)

    # -- actions, one method for each of the table's ------------------------------------

    def _send_syn(self, out: Commands, session: Session, _detail: object) -> None:
        assert session.right is not None
        assert session.opening is not None
        out.append(Send(session.right.dst, session.opening.syn))
        self.set_timer(out, session)

    def _send_synack(self, out: Commands, session: Session, detail: object) -> None:
        assert session.left is not None
        if isinstance(detail, SynAck):
            session.mtu = detail.mtu
            session.opening = None
        elif isinstance(detail, SetUp) and not session.mtu:  # adopted: nobody knows, and the
            session.mtu = detail.syn.mtu  # client, being established, does not care
        answer = SynAck(session.id, session.left, session.mtu, session.server)
        out.append(Send(session.left.src, answer))
        if session.state is State.CONFIRMING:
            self.set_timer(out, session)

    def _establish(self, out: Commands, session: Session, detail: object) -> None:
        assert isinstance(detail, SynAck)
        assert session.opening is not None
        if detail.mtu < session.mtu:
            session.mtu = detail.mtu
            session.mss = _mss(session)
        session.held = False
        session.opening = None
        out.append(Install(session.view))
        out.append(Steer(session.here))
        self._send_ack(out, session, None)
        out.append(Established(session.view))
        self.keep(out, session)
        session.delay = self._settings.probe
        out.append(SetTimer(session.id, session.delay))

    def _accept(self, out: Commands, session: Session, _detail: object) -> None:
        if session.right is not None:
            self._send_ack(out, session, None)
        out.append(CancelTimer(session.id))
        out.append(Established(session.view))
        self.keep(out, session)

    def _send_ack(self, out: Commands, session: Session, _detail: object) -> None:
        if session.right is not None:
            out.append(Send(session.right.dst, Ack(session.id, session.right)))

    def _probe(self, out: Commands, session: Session, _detail: object) -> None:
        self._send_ack(out, session, None)
        self._probe_later(out, session)

    def _probe_later(self, out: Commands, session: Session) -> None:
        settings = self._settings
        session.delay = min(max(session.waited, settings.probe), settings.probe_max)
        out.append(SetTimer(session.id, session.delay))

    def _reopen(self, out: Commands, session: Session, detail: object) -> None:
        assert isinstance(detail, SetUp)
        syn = detail.syn
        if session.right is not None and session.right.dst != syn.chain[1].address:
            text = "the session was set up again with another chain"
            self.take(out, session, Input.REPLACED, Why(Cause.NOT_MINE, text))
            return
        self.mobility.closing(out, session)
        self.migration.closing(out, session, Why(Cause.REPLACED, "the session is set up anew"))
        if session.left != syn.subsession:
            out.append(Remove(session.view))
            self._register.unlist(session)
            session.left = syn.subsession
        self.start(out, session, detail)

    def _close(self, out: Commands, session: Session, detail: object) -> None:
        assert isinstance(detail, Why)
        cause, text, blame, left_knows, right_knows, _ = detail
        self.mobility.closing(out, session)
        leg, ours = self.migration.closing(out, session, detail)
        self._register.unlist(session)
        if session.held:
            session.held = False
            silent = cause is Cause.TIMEOUT
            out.append(Refuse(session.here, session.fail_open, text, blame, silent))
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
        self.set_timer(out, session)

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
            self._ports.release(session.right)
        if session.ending.spare_leg is not None and session.ending.spare_ports:
            self._ports.release(session.ending.spare_leg)
        out.append(CancelTimer(session.id))
        out.append(Closed(session.view, session.ending.text))

    def _ask(self, out: Commands, session: Session, _detail: object) -> None:
        self.migration.ask_left(out, session)
        self._probe_later(out, session)

    def _confirm(self, out: Commands, session: Session, _detail: object) -> None:
        out.append(CancelTimer(session.id))
        out.append(Established(session.view))

    # -- time ---------------------------------------------------------------------------

    def limit(self, session: Session) -> float:
        """How long a session may stay in its state, in seconds."""
        if session.state is State.OPENING and session.opening is not None:
            return session.opening.patience
        return self._limits.get(session.state, float("inf"))

    def set_timer(self, out: Commands, session: Session) -> None:
        """Come back after twice the last time, or when the state may last no longer.

        The times double, so what a session has waited is what it waits next: 1 + 1 + 2 + 4 ...
        """
        if session.delay:
            return  # one is running
        settings = self._settings
        closing = session.state is State.CLOSING
        first = settings.teardown_retry if closing else settings.retry
        delay = min(max(session.waited, first), settings.retry_max)
        session.delay = min(delay, self.limit(session) - session.waited)
        out.append(SetTimer(session.id, session.delay))


def _mss(session: Session) -> int:
    """What to clamp the MSS option to, so that segments fit the path; 0: leave it alone."""
    flow = session.supersession
    if flow.proto != Proto.TCP:
        return 0
    return session.mtu - (_HEADERS_V4 if is_ipv4(flow.dst) else _HEADERS_V6)


_ACTIONS: Final[dict[Action, Callable[[Steps, Commands, Session, object], None]]] = {
    Action.SEND_SYN: Steps._send_syn,
    Action.SEND_SYNACK: Steps._send_synack,
    Action.ESTABLISH: Steps._establish,
    Action.ACCEPT: Steps._accept,
    Action.SEND_ACK: Steps._send_ack,
    Action.PROBE: Steps._probe,
    Action.REOPEN: Steps._reopen,
    Action.CLOSE: Steps._close,
    Action.REPEAT: Steps._repeat,
    Action.TICK_OFF: Steps._tick_off,
    Action.FORGET: Steps._forget,
    Action.ASK: Steps._ask,
    Action.CONFIRM: Steps._confirm,
}
