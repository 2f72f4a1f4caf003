"""What can happen to a :class:`~m2m.protocol.node.Node`: everything it is ever told."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from m2m.protocol.flow import Address, Flow
from m2m.protocol.translation import SessionView
from m2m.protocol.wire import Hop, Message


class Route(NamedTuple):
    """How this host reaches the next one of a chain."""

    source: Address  # this host's address as the next host sees it
    mtu: int


class Opened(NamedTuple):
    """The first packet of a session that a policy matches is held (client only).

    ``chain`` holds the middleboxes and, last, the server; ``route`` leads to the first of them.
    """

    flow: Flow
    chain: tuple[Hop, ...]
    fail_open: bool
    policy: int
    generation: int
    route: Route


class Received(NamedTuple):
    """An authenticated, fresh message has come from the agent at *peer*.

    *route* leads to the next host of the chain when the message is a SYN that has one.
    """

    peer: Address
    message: Message
    route: Route | None = None


class TimerFired(NamedTuple):
    """A timer set by :class:`~m2m.protocol.commands.SetTimer` has run out."""

    session: int


class InstallFailed(NamedTuple):
    """The datapath could not take a session's entries; none of them is in."""

    session: int
    why: str


class Ended(NamedTuple):
    """The datapath says that a session is over, or an operator ends it."""

    session: int
    why: str


class Adopted(NamedTuple):
    """A session found in the kernel by a restarted agent."""

    view: SessionView


Event: TypeAlias = Opened | Received | TimerFired | InstallFailed | Ended | Adopted
