"""What a :class:`~m2m.protocol.node.Node` asks of its shell, to be carried out in order."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from m2m.protocol.deed import Deed
from m2m.protocol.events import Timer
from m2m.protocol.flow import Address, Flow
from m2m.protocol.translation import Entry, Hook, SessionView
from m2m.protocol.wire import Cause, Message


class Send(NamedTuple):
    """Send a message to the agent at *peer*."""

    peer: Address
    message: Message


class Install(NamedTuple):
    """Put the entries of this view into the datapath.

    If it cannot, the commands behind this one are not carried out: InstallFailed is handled, and
    what it brings is done in their place.
    """

    view: SessionView


class Remove(NamedTuple):
    """Take the entries of this view out of the datapath."""

    view: SessionView


class Steer(NamedTuple):
    """The chain stands: let the held packets of *flow* go through it."""

    flow: Flow


class Refuse(NamedTuple):
    """The chain could not be set up: pass the held packets on (*fail_open*) or drop them."""

    flow: Flow
    fail_open: bool
    why: str
    blame: Address | None  # the host that failed, when known
    silent: bool = False  # by not answering


class SetTimer(NamedTuple):
    """Fire once, *delay* seconds from now; replaces the session's earlier timer of this kind."""

    session: int
    delay: float
    timer: Timer = Timer.SESSION


class CancelTimer(NamedTuple):
    """Forget the session's timer of this kind."""

    session: int
    timer: Timer = Timer.SESSION


class Established(NamedTuple):
    """A session stands at this host (for logs, counters and m2mctl)."""

    view: SessionView


class Closed(NamedTuple):
    """A session is gone from this host, whatever its state was."""

    view: SessionView
    why: str


class Accept(NamedTuple):
    """Put these entries, by which packets of a second leg are accepted, beside the others.

    *entries* have no next hop yet. Fails as :class:`Install` does.
    """

    session: int
    entries: tuple[Entry, ...]


class Withdraw(NamedTuple):
    """Take these entries out, and no others of the session."""

    session: int
    entries: tuple[Entry, ...]


class Redirect(NamedTuple):
    """Give the entry with this one's key its rewrite and next hop, at one moment; its counters
    live on. Answered by Redirected; fails as :class:`Install` does."""

    session: int
    change: int
    entry: Entry


class Rename(NamedTuple):
    """The session of this view, and its rows, are called *name* from now on."""

    view: SessionView
    name: int


class HalvesJoined(NamedTuple):
    """All hosts of a session that a proxy here has left know that it is one."""

    session: int


class Count(NamedTuple):
    """Tell what this entry has seen. Answered by Counted."""

    session: int
    change: int
    key: tuple[Hook, Flow]


class Hold(NamedTuple):
    """Let packets of this entry wait, in order. Answered by Holding.

    *substream*: only data beyond the largest sequence number seen up to this moment (all data, if
    none was seen); a packet that lies across is split; of one that waits and acknowledges
    something, a pure acknowledgement goes on. A Hold of all keeps what a Hold of a substream has.
    """

    session: int
    change: int
    key: tuple[Hook, Flow]
    substream: bool


class Resume(NamedTuple):
    """Let what waits go, in order and before any later packet, by the rows as they are now.
    Answered by Resumed."""

    session: int
    change: int
    key: tuple[Hook, Flow]


class WatchAck(NamedTuple):
    """Tell, by Acked, when a packet of this entry acknowledges at least *number*; at once when
    one has already. Replaces an earlier watch of the same entry."""

    session: int
    change: int
    key: tuple[Hook, Flow]
    number: int


class WatchCount(NamedTuple):
    """Tell, by Reached, when this entry has seen *number* wire packets; at once when it has
    already. Replaces an earlier watch of the same entry."""

    session: int
    change: int
    key: tuple[Hook, Flow]
    number: int


class ExportState(NamedTuple):
    """Quiet the NF for this session and tell its state, by StateExported."""

    session: int
    change: int


class ImportState(NamedTuple):
    """Give the NF here this state. Answered by StateImported."""

    session: int
    change: int
    data: bytes


class ReleaseState(NamedTuple):
    """The NF here is to go on with the session (*keep*), or to forget it."""

    session: int
    keep: bool


class Rehome(NamedTuple):
    """Accept packets by new names of legs, then send by them: for all sessions of a batch, or for
    none; then nothing is accepted by these names. *redirected* live on as with :class:`Redirect`.
    Answered by Rehomed."""

    batch: int
    accepted: tuple[Entry, ...]
    redirected: tuple[Entry, ...]


class Keep(NamedTuple):
    """Keep these notes with sessions, for a restarted agent. Each replaces an earlier one."""

    notes: tuple[tuple[int, bytes], ...]


class Rebound(NamedTuple):
    """A leg leads to where its mover is now (for reports). At the hop, *mover* is the other end."""

    view: SessionView
    leg: Flow
    here: bool  # whether it is this host that has moved


class GiveDeeds(NamedTuple):
    """Put these where the host that takes over will find them. Answered by DeedsGiven."""

    request: int
    deeds: tuple[Deed, ...]


class NotHanded(NamedTuple):
    """Nothing is handed over (for whoever has asked)."""

    request: int
    why: str


class Refrain(NamedTuple):
    """Send nothing of these flows for a second, whatever their sockets say: drop it."""

    flows: tuple[Flow, ...]


class HandedOver(NamedTuple):
    """A session has left this host without an end (for reports). Its note stays."""

    view: SessionView


class Taken(NamedTuple):
    """A TakeOver is done, but for these sessions (for whoever has asked)."""

    request: int
    refused: tuple[tuple[int, str], ...]


class Forget(NamedTuple):
    """The notes of these sessions are of no use any more."""

    sessions: tuple[int, ...]


class Switched(NamedTuple):
    """Packets towards the server take the new path from now on (for reports)."""

    session: int
    change: int


class ChangeDone(NamedTuple):
    """A change that was wanted of this host, or asked for by it, is done. *held*: packets that
    waited. *gone*: nothing of the old path is left."""

    session: int
    change: int
    held: int
    gone: bool


class ChangeRefused(NamedTuple):
    """It was refused or undone; the session goes as before."""

    session: int
    change: int
    cause: Cause
    text: str
    blame: Address | None


Command: TypeAlias = (
    Send | Install | Remove | Steer | Refuse | SetTimer | CancelTimer | Established | Closed
    | Accept | Withdraw | Redirect | Count | Hold | Resume | WatchAck | WatchCount
    | ExportState | ImportState | ReleaseState | Switched | ChangeDone | ChangeRefused
    | Rehome | Keep | Rebound
    | GiveDeeds | NotHanded | Refrain | HandedOver | Taken | Forget | Rename | HalvesJoined
)  # fmt: skip
