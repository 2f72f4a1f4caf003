"""What can happen to a :class:`~m2m.protocol.node.Node`: everything it is ever told."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple, TypeAlias

from m2m.identity import ANONYMOUS
from m2m.protocol.deed import Deed
from m2m.protocol.flow import Address, Flow
from m2m.protocol.splice import Splice
from m2m.protocol.translation import Entry, Hook, SessionView, Toward
from m2m.protocol.update import Mode, Step
from m2m.protocol.wire import Hop, Message


class Timer(IntEnum):
    """What a session's timer is for; it can have one of each."""

    SESSION = 0
    CHANGE = 1
    REQUEST = 2
    JOIN = 6  # until all know that its halves are one
    # Of all sessions together; set for session 0.
    MOVE = 3
    FADE = 4  # old names of legs
    HAND = 5  # sessions handed over, and such as wait to be led here


class Route(NamedTuple):
    """How this host reaches the next one of a chain."""

    source: Address  # this host's address as the next host sees it
    mtu: int


class Opened(NamedTuple):
    """The first packet of a session that a policy matches is held (client only).

    ``chain`` holds the middleboxes and, last, the server or the first proxy; ``route`` leads to the
    first of them. *local*: instead, a socket of a proxy here is to go on with *flow*, and waits.
    """

    flow: Flow
    chain: tuple[Hop, ...]
    fail_open: bool
    policy: int
    generation: int
    route: Route
    local: Flow | None = None

    @property
    def here(self) -> Flow:
        """What waits."""
        return self.flow if self.local is None else self.local


class Received(NamedTuple):
    """An authenticated, fresh message has come from the agent at *peer*.

    *route* leads to the host that :func:`m2m.protocol.wire.next_host` tells, if any.
    """

    peer: Address
    message: Message
    route: Route | None = None
    device: bytes = ANONYMOUS  # the sender's


class TimerFired(NamedTuple):
    """A timer set by :class:`~m2m.protocol.commands.SetTimer` has run out."""

    session: int
    timer: Timer = Timer.SESSION


class InstallFailed(NamedTuple):
    """The datapath could not take a session's entries; none of them is in (or redirected)."""

    session: int
    why: str


class Ended(NamedTuple):
    """The datapath says that a session is over, or an operator ends it."""

    session: int
    why: str


class Adopted(NamedTuple):
    """A session found in the kernel by a restarted agent.

    *spare*: a second left or right leg from which packets are accepted, of an unfinished change.
    *moved*: rows of a leg's old names, or of a proposed one. *note*: what was kept of it.
    """

    view: SessionView
    spare: Flow | None = None
    moved: tuple[Entry, ...] = ()
    note: bytes = b""
    splice: Splice | None = None  # of *spare*, if that is a right leg


class Counts(NamedTuple):
    """What the four rows of two halves had counted when they became one's."""

    came_right: int  # what came from the left,
    came_left: int  # from the right,
    sent_left: int  # and what the proxy's sockets had sent
    sent_right: int
    # Whether the first two may have counted what had not come: a part of a packet that was split.
    more_right: bool = False
    more_left: bool = False


class Spliced(NamedTuple):
    """A proxy here has left: in the datapath, session and *half* are one, a tap's."""

    session: int
    half: int
    splice: Splice
    counts: Counts


class SplicedBefore(NamedTuple):
    """An earlier agent of this host knew that a proxy here has left: the names of right halves, and
    of the sessions that these belong to."""

    names: tuple[tuple[int, int], ...]


class RenamedBefore(NamedTuple):
    """An earlier agent of this host had not heard that right neighbours know their sessions by new
    names: the former names, and the new ones."""

    names: tuple[tuple[int, int], ...]


class Moved(NamedTuple):
    """The legs of these sessions between an own address and a neighbour have to go by another
    route from now on."""

    own: Address
    neighbour: Address
    route: Route
    sessions: tuple[int, ...]


class Rehomed(NamedTuple):
    """The answer to Rehome: what each redirected row had counted; None: nothing was done."""

    batch: int
    packets: tuple[int, ...] | None


class ChangeWanted(NamedTuple):
    """This host is to lead a change: replace *steps*, which end at *right*, by *hops*.

    ``steps[0]`` is its right neighbour, or *right* is when there are none. *change* is a random
    number, not 0. *route* leads to the first of *hops*, or to *right* when there are none. *added*
    is what a function of the old run has added to the streams (``docs/splicing.md``).
    """

    session: int
    change: int
    mode: Mode
    steps: tuple[Step, ...]
    right: Address
    hops: tuple[Hop, ...]
    route: Route
    added: Splice | None = None


class RequestWanted(NamedTuple):
    """This host is to ask *left* to lead a change.

    With *left* None the request is about this host itself: its left neighbour is asked to
    replace it by *hops* (none: to remove it), and asked again when neighbours change meanwhile;
    *steps* and *right* are then not looked at. Its NF's state goes to the first of *hops*.
    """

    session: int
    change: int
    mode: Mode
    left: Address | None
    steps: tuple[Step, ...]
    right: Address | None
    hops: tuple[Hop, ...]
    added: Splice | None = None  # to the streams, by a function here


class Redirected(NamedTuple):
    """A Redirect is done. *packets*: counted up to that moment, never fewer than went before."""

    session: int
    change: int
    packets: int


class Queued(NamedTuple):
    """A queue by which packets come to a network function: how many have been put into it, and how
    many have left it, since it was made (modulo 2**32)."""

    number: int
    given: int
    done: int


class Counted(NamedTuple):
    """The answer to Count: wire packets this entry has seen; None when it is not there. For one of
    packets that leave the host's stack, the queues that packets can wait in before."""

    session: int
    change: int
    key: tuple[Hook, Flow]
    packets: int | None
    queues: tuple[Queued, ...] = ()


class Holding(NamedTuple):
    """A Hold is on. *packets*: passed before it, never fewer. *checkpoint*: one past the largest
    sequence number among these; None for UDP, and when nothing has passed."""

    session: int
    change: int
    packets: int
    checkpoint: int | None


class Resumed(NamedTuple):
    """A Resume is done: so many packets had waited."""

    session: int
    change: int
    packets: int


class HoldOverflow(NamedTuple):
    """More packets than may be held; all that waited go by the present rows already."""

    session: int
    toward: Toward  # which way those packets travel


class Acked(NamedTuple):
    """The acknowledgement that WatchAck waits for has passed."""

    session: int
    toward: Toward  # which way that acknowledgement travels


class Reached(NamedTuple):
    """As many packets have passed as WatchCount waits for: worth another look."""

    session: int
    toward: Toward  # which way they travel


class StateExported(NamedTuple):
    """The NF is quiet and this is its state of the session; None: it could not be had."""

    session: int
    change: int
    data: bytes | None


class StateImported(NamedTuple):
    """The NF here has taken the state over, or (not *ok*) could not."""

    session: int
    change: int
    ok: bool


class HandOver(NamedTuple):
    """The ends of these sessions, which are here, are to be another host's: all, or none."""

    request: int
    sessions: tuple[int, ...]


class DeedsGiven(NamedTuple):
    """The answer to GiveDeeds: whether they are where they will be found."""

    request: int
    ok: bool


class TakeOver(NamedTuple):
    """The ends that these deeds are about are to be this host's. Routes lead to their hops."""

    request: int
    deeds: tuple[tuple[Deed, Route], ...]


class LeadHere(NamedTuple):
    """Sockets for these sessions, which have been taken over, are here: packets may come."""

    sessions: tuple[int, ...]


class HandedBefore(NamedTuple):
    """An earlier agent of this host has handed these over, some time ago: what was kept of them."""

    notes: tuple[tuple[int, bytes], ...]


Event: TypeAlias = (
    Opened | Received | TimerFired | InstallFailed | Ended | Adopted
    | ChangeWanted | RequestWanted | Redirected | Counted | Holding | Resumed | HoldOverflow
    | Acked | Reached | StateExported | StateImported | Moved | Rehomed
    | HandOver | DeedsGiven | TakeOver | LeadHere | HandedBefore
    | Spliced | SplicedBefore | RenamedBefore
)  # fmt: skip
