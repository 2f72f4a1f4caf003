"""What a :class:`~m2m.protocol.node.Node` asks of its shell, to be carried out in order."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from m2m.protocol.flow import Address, Flow
from m2m.protocol.translation import SessionView
from m2m.protocol.wire import Message


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


class SetTimer(NamedTuple):
    """Fire once, *delay* seconds from now; replaces the session's earlier timer."""

    session: int
    delay: float


class CancelTimer(NamedTuple):
    """Forget the session's timer."""

    session: int


class Established(NamedTuple):
    """A session stands at this host (for logs, counters and m2mctl)."""

    view: SessionView


class Closed(NamedTuple):
    """A session is gone from this host, whatever its state was."""

    view: SessionView
    why: str


Command: TypeAlias = (
    Send | Install | Remove | Steer | Refuse | SetTimer | CancelTimer | Established | Closed
)
