"""The session machines: every state, every transition, and why they end well.

A session is a row of hosts, each with a left and a right neighbour (client to server). Each host
runs one of three machines: :data:`Role.CLIENT`, :data:`Role.MIDDLE`, :data:`Role.SERVER`. This
file holds their tables and nothing that acts; :mod:`m2m.protocol.node` carries the actions out.

Setting up (§4.1)
-----------------

::

    client              middlebox             server
      | -- SYN(L) ----->  |                      |     ports of the left leg: chosen by the client
      |                   | -- SYN(L minus 1) -> |     ports of the right leg: by the middlebox
      |                   |   <------- SYNACK -- |     the server's entries are in
      | <------ SYNACK -- |                      |     the middlebox's are, too
      | -- ACK -------->  | -- ACK ----------->  |     the client's are; packets flow

A host sends SYNACK only after all hosts right of it have, and after its own entries were handed
to the datapath; so when the client lets its packets go, the whole path is in place. Each hop
repeats its own SYN until it has a SYNACK, and its own SYNACK until it has an ACK; what comes
twice is answered again (a SYN by SYNACK, a SYNACK by ACK) and changes nothing. A hop waits for
SYNACK a little less than its left neighbour does (``patience`` in the SYN), so that the one whose
neighbour is silent reports it before anybody else gives up.

Ending
------

Whoever ends a session takes its entries out and tells both neighbours: FIN when the session is
over, RST when it failed. Each of them answers FINACK, does the same, and tells the next one
outward; FINs that cross answer each other. A notice is repeated until it is answered, for a
bounded time. Only then are the ports of the right leg free again: until FINACK the neighbour may
still have entries for them.

Two generals
------------

No protocol over a network that loses messages lets two hosts *know* that they agree. Here is
what is promised instead (I5), and why each state ends:

* OPENING and CLOSING are left by an answer or by a bound on time. CONFIRMING, too: a hop whose
  SYNACK is never answered rolls back, because a client that is gone would never end the session,
  while one that is there hears of it (next point). So no host waits for ever, and once messages
  get through, hosts that have different opinions find out:
* Every message about a session that its receiver does not have, or has with another subsession,
  is answered: a SYNACK or ACK by RST, a FIN or RST by FINACK. A client that has given up and gets
  a late SYNACK so undoes the path; a hop that lost everything so ends what its neighbours hold.
* The hosts right of the client may have rolled back while the client, which saw the SYNACK, lets
  packets go into the dark: its ACKs were all lost. Their RST is repeated for longer than set-up
  can take; should all of these be lost as well, the client finds out by itself, since an
  established client sends its ACK along the whole path again, after a minute and then ever more
  rarely. Any hop that does not have the session answers RST, and the client closes. The same
  probe finds a host that was rebooted and has lost its entries.
* In the other direction no probes are needed: hosts whose client is gone see no packets, and the
  datapath's idle timeout ends the session there.

The client alone decides whether a session stands: it is established where the client says ACK.

A restarted agent finds entries in the kernel and takes them over. A client's entries exist only
since its SYNACK, so the session is ESTABLISHED. At other hosts they are installed before anybody
knows how set-up ends; the session is ADOPTED: it works, but the next message from a neighbour
decides. A SYN then sets up again with the same ports, a SYNACK is passed to the client, which
answers ACK or RST, and an ACK says it is established. As its chain may have been changed meanwhile,
it asks its left neighbour some time whether it is still on the path (UPDATE-ASK).

While the session stands, its chain can be changed: :mod:`m2m.protocol.migration`.

Old and new
-----------

* A session id is chosen at random and is never used again; ids that ended lately are remembered,
  and a SYN of one, come late, is refused instead of bringing the session back half.
* A SYN for a session that is there, from the same host but with another left leg, comes from a
  neighbour that was rebooted in between; the new leg replaces the old one.
* A SYN with another session's left leg or supersession says that this other one is dead: its left
  host, or its client, has used the ports again. The old session is closed first. At a proxy's host
  the session that comes to it and those by which it goes on have one supersession: they are told
  apart by what the host's own stack sees of them.
* A SYN for a session that is there, from another host, has come round: the chain visits this
  host twice. It is refused.

The table
---------

``TABLE[role][state][input]`` is the action and the next state. An input that is not listed
changes nothing: it is late, or a duplicate. Messages that do not fit the session they name are
sorted out before.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from m2m.identity import ANONYMOUS
from m2m.protocol.flow import Address, Flow
from m2m.protocol.splice import Splice
from m2m.protocol.translation import Position, SessionView
from m2m.protocol.wire import Cause, Syn

if TYPE_CHECKING:
    from m2m.protocol.change import Change
    from m2m.protocol.migration import Waiting
    from m2m.protocol.update import UpdateFinAck

__all__ = ["TABLE", "Action", "Ending", "Input", "Opening", "Role", "Session", "State"]


class Role(IntEnum):
    """Which machine a host runs for a session."""

    CLIENT = 0
    MIDDLE = 1
    SERVER = 2


class State(IntEnum):
    """Where a session is in its life, at one host."""

    OPENING = 0  # SYN sent to the right, SYNACK awaited
    CONFIRMING = 1  # SYNACK sent to the left, ACK awaited
    ESTABLISHED = 2
    ADOPTED = 3  # found in the kernel by a restarted agent; works, not confirmed yet
    CLOSING = 4  # entries are out; FINACK awaited
    GONE = 5  # forgotten; no session is kept in this state


class Input(IntEnum):
    """What a session can be told."""

    SYN = 0  # with the left leg it has
    SYN_NEW_LEG = 1  # from the same left host, with another leg
    SYNACK = 2
    ACK = 3
    LEFT_OVER = 4  # FIN or RST from the left
    RIGHT_OVER = 5
    LEFT_DONE = 6  # FINACK from the left
    RIGHT_DONE = 7
    TIMER = 8
    EXPIRED = 9  # the timer, for the last time in this state
    ENDED = 10  # by the datapath (FIN, RST, idle) or by an operator
    FAILED = 11  # the datapath could not take the entries
    REPLACED = 12  # another session has the same left leg or supersession
    IN = 13  # the left neighbour says that this host is on its path


class Action(IntEnum):
    """What a host does about it (:class:`~m2m.protocol.steps.Steps` has a method for each)."""

    SEND_SYN = 0  # again
    SEND_SYNACK = 1  # to the left: for the first time, or again
    ESTABLISH = 2  # client: install, let the held packets go, send ACK
    ACCEPT = 3  # the first ACK: it is established; pass the ACK on
    SEND_ACK = 4  # to the right: passed on, repeated, or as a probe
    PROBE = 5  # client: send ACK, and again after twice the time
    REOPEN = 6  # set up again, with the ports the session has
    CLOSE = 7  # take the entries out, tell the neighbours
    REPEAT = 8  # tell the neighbours again
    TICK_OFF = 9  # a neighbour knows; forget the session when all do
    FORGET = 10  # they never answered
    ASK = 11  # adopted: ask the left neighbour whether this host is on its path
    CONFIRM = 12  # it is; nobody else needs to know


Row: TypeAlias = dict[Input, tuple[Action, State]]

_CLOSE: Final = (Action.CLOSE, State.CLOSING)
_OVER: Final[Row] = {  # in every state before CLOSING
    Input.LEFT_OVER: _CLOSE,
    Input.RIGHT_OVER: _CLOSE,
    Input.EXPIRED: _CLOSE,
    Input.ENDED: _CLOSE,
    Input.FAILED: _CLOSE,
    Input.REPLACED: _CLOSE,
}
_CLOSING: Final[Row] = {
    # The notice was lost, or has crossed with these.
    Input.SYN: (Action.REPEAT, State.CLOSING),
    Input.SYN_NEW_LEG: (Action.REPEAT, State.CLOSING),
    Input.SYNACK: (Action.REPEAT, State.CLOSING),
    Input.ACK: (Action.REPEAT, State.CLOSING),
    Input.TIMER: (Action.REPEAT, State.CLOSING),
    # A neighbour that says so itself knows as well as one that answers.
    Input.LEFT_OVER: (Action.TICK_OFF, State.CLOSING),
    Input.RIGHT_OVER: (Action.TICK_OFF, State.CLOSING),
    Input.LEFT_DONE: (Action.TICK_OFF, State.CLOSING),
    Input.RIGHT_DONE: (Action.TICK_OFF, State.CLOSING),
    Input.EXPIRED: (Action.FORGET, State.GONE),
}

TABLE: Final[dict[Role, dict[State, Row]]] = {
    Role.CLIENT: {
        State.OPENING: {
            Input.TIMER: (Action.SEND_SYN, State.OPENING),
            Input.SYNACK: (Action.ESTABLISH, State.ESTABLISHED),
            **_OVER,
        },
        State.ESTABLISHED: {
            Input.SYNACK: (Action.SEND_ACK, State.ESTABLISHED),  # the ACK was lost
            Input.TIMER: (Action.PROBE, State.ESTABLISHED),
            **_OVER,
        },
        State.CLOSING: _CLOSING,
    },
    Role.MIDDLE: {
        State.OPENING: {
            # The left host's SYN is a duplicate: the right host gets our own.
            Input.SYN_NEW_LEG: (Action.REOPEN, State.OPENING),
            Input.TIMER: (Action.SEND_SYN, State.OPENING),
            Input.SYNACK: (Action.SEND_SYNACK, State.CONFIRMING),
            **_OVER,
        },
        State.CONFIRMING: {
            # The right host's SYNACK is a duplicate: there is no ACK to answer it with yet.
            Input.SYN: (Action.SEND_SYNACK, State.CONFIRMING),
            Input.SYN_NEW_LEG: (Action.REOPEN, State.OPENING),
            Input.TIMER: (Action.SEND_SYNACK, State.CONFIRMING),
            Input.ACK: (Action.ACCEPT, State.ESTABLISHED),
            Input.IN: (Action.CONFIRM, State.ESTABLISHED),
            **_OVER,
        },
        State.ESTABLISHED: {
            Input.SYN: (Action.SEND_SYNACK, State.ESTABLISHED),
            Input.SYN_NEW_LEG: (Action.REOPEN, State.OPENING),
            Input.SYNACK: (Action.SEND_ACK, State.ESTABLISHED),
            Input.ACK: (Action.SEND_ACK, State.ESTABLISHED),
            **_OVER,
        },
        State.ADOPTED: {
            Input.SYN: (Action.REOPEN, State.OPENING),
            Input.SYN_NEW_LEG: (Action.REOPEN, State.OPENING),
            Input.SYNACK: (Action.SEND_SYNACK, State.CONFIRMING),
            Input.ACK: (Action.ACCEPT, State.ESTABLISHED),
            Input.IN: (Action.CONFIRM, State.ESTABLISHED),
            Input.TIMER: (Action.ASK, State.ADOPTED),
            **_OVER,
        },
        State.CLOSING: _CLOSING,
    },
    Role.SERVER: {
        State.CONFIRMING: {
            Input.SYN: (Action.SEND_SYNACK, State.CONFIRMING),
            Input.SYN_NEW_LEG: (Action.REOPEN, State.CONFIRMING),
            Input.TIMER: (Action.SEND_SYNACK, State.CONFIRMING),
            Input.ACK: (Action.ACCEPT, State.ESTABLISHED),
            Input.IN: (Action.CONFIRM, State.ESTABLISHED),
            **_OVER,
        },
        State.ESTABLISHED: {
            Input.SYN: (Action.SEND_SYNACK, State.ESTABLISHED),
            Input.SYN_NEW_LEG: (Action.REOPEN, State.CONFIRMING),
            **_OVER,
        },
        State.ADOPTED: {
            Input.SYN: (Action.REOPEN, State.CONFIRMING),
            Input.SYN_NEW_LEG: (Action.REOPEN, State.CONFIRMING),
            Input.ACK: (Action.ACCEPT, State.ESTABLISHED),
            Input.IN: (Action.CONFIRM, State.ESTABLISHED),
            Input.TIMER: (Action.ASK, State.ADOPTED),
            **_OVER,
        },
        State.CLOSING: _CLOSING,
    },
}


class Opening(NamedTuple):
    """What is needed until the SYNACK is here."""

    syn: Syn  # as it goes to the right
    patience: float  # s


class Ending(NamedTuple):
    """What the neighbours are told, until each has answered."""

    cause: Cause | None  # None: FIN
    text: str
    blame: Address | None
    left: bool  # not answered yet
    right: bool
    spare: bool = False  # the neighbour on a second leg, when the chain was being changed
    spare_leg: Flow | None = None
    spare_ports: bool = False  # whether its ports are ours to free


_NO_MOVES = 0, 0
_NOT_REBOUND = None, None
_ROLES = {
    Position.CLIENT: Role.CLIENT,
    Position.TAP: Role.MIDDLE,
    Position.INLINE: Role.MIDDLE,
    Position.SERVER: Role.SERVER,
    Position.PROXY: Role.SERVER,
}


class Session:
    """A session at one host. To be read by anybody, to be changed by the node alone.

    Hosts hold a million of these: what only some states need is kept apart and dropped.
    """

    __slots__ = (
        "change", "client", "delay", "ending", "fail_open", "generation", "held", "id", "left",
        "local", "more_left", "more_right", "moves", "mss", "mtu", "opening", "policy", "position",
        "rebound", "right", "role", "sent_left", "sent_right", "server", "splice", "state",
        "supersession", "through", "waited", "waiting",
    )  # fmt: skip

    def __init__(
        self,
        id: int,  # noqa: A002 - a session's id is called that everywhere
        position: Position,
        state: State,
        supersession: Flow,
        left: Flow | None,
        right: Flow | None,
        policy: int,
        generation: int,
        local: Flow | None = None,
    ) -> None:
        self.id = id
        self.position = position
        self.role = _ROLES[position]
        self.state = state
        self.supersession = supersession
        self.local = local  # of the socket here, where that is not the supersession
        self.left = left
        self.right = right
        self.splice: Splice | None = None  # of the right leg
        self.policy = policy
        self.generation = generation
        self.mtu = 0  # smallest of the path; of its left part until the SYNACK
        self.mss = 0
        self.held = False  # client: packets wait for Steer or Refuse, and nothing is installed
        self.fail_open = False
        self.opening: Opening | None = None
        self.ending: Ending | None = None
        self.delay = 0.0  # s, of the timer that is set; 0: none
        self.waited = 0.0  # s in this state, up to when that timer was set
        self.change: Change | None = None  # what this host does in a change of the chain
        self.waiting: list[Waiting] | None = None  # other changes that want this host
        # What the entry that sends to a neighbour had counted when it began to use the leg there;
        # None after a restart.
        self.sent_left: int | None = 0
        self.sent_right: int | None = 0
        # Whether the entry for what comes from a side may have counted more than came. That of a
        # tap is also the one that sends to the other side, and counts what it has split.
        self.more_left = False
        self.more_right = False
        self.client = self.server = ANONYMOUS  # devices of both ends
        self.moves = _NO_MOVES  # the numbers of the last moves of client and server
        # What this host has renamed their legs to then: known to be theirs, whatever they are
        # called by who has not heard of it.
        self.rebound: tuple[Flow | None, Flow | None] = _NOT_REBOUND
        self.through: UpdateFinAck | None = None  # what this host has said last as R of a change

    @property
    def here(self) -> Flow:
        """The session as this host's own stack sees it."""
        return self.supersession if self.local is None else self.local

    @property
    def view(self) -> SessionView:
        """What the datapath is told of this session."""
        return self.view_with(self.left, self.right)

    def view_with(self, left: Flow | None, right: Flow | None) -> SessionView:
        """The same with these legs."""
        return SessionView(
            self.id, self.position, self.supersession, left, right,
            self.mss, self.policy, self.generation, self.local, self.splice,
        )  # fmt: skip
