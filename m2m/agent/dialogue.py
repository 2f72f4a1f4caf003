"""What is said on an agent's control socket: JSON lines over a Unix stream socket.

Each line from the client is a :data:`Request`, an object whose ``request`` names its kind; each
is answered by any number of :data:`Item` lines, whose ``item`` names theirs, and one last line,
``done`` or ``failed``::

    > {"request": "sessions"}
    < {"item": "session", "session": {"id": "4be6...", "state": "established", ...}}
    < {"item": "done"}
    > {"request": "path", "id": "4be6..."}
    < {"item": "path", "path": {"session": "4be6...", "hops": [...], "complete": true}}
    < {"item": "done"}
    > {"request": "policy"}                 < {"item": "policy", "policy": {...}}
    > {"request": "agents"}                 < {"item": "agents", "agents": [...]}
    > {"request": "stats"}                  < {"item": "stats", "stats": {...}}
    > {"request": "end", "id": "0"}         < {"item": "failed", "why": "..."}
    > {"request": "hand-over", "sessions": ["4be6..."], "path": "/run/deeds"}    < {"item": "done"}
    > {"request": "take-over", "path": "/run/deeds"}   < {"item": "taken", "taken": {...}}
    > {"request": "lead-here", "sessions": []}         < {"item": "led", "sessions": ["4be6..."]}
    > {"request": "watch", "interval": 1}   < {"item": "snapshot", ...}  < {"item": "event", ...}
    > {"request": "change", "do": "replace", "old": ["ids1"], "new": ["ids2"], "match": "any"}
    < {"item": "changing", "session": "4be6...", "stage": "asked"}
    < {"item": "changed", "report": {...}}  < {"item": "done"}

A watch has no last line: it goes on until the client closes.

Network functions have a socket of their own, on which nothing can be asked but
``{"request": "me", ...}``, changes about themselves, and said that one runs::

    > {"request": "run", "program": "prads", "pid": 4711, "nf": "ids"}
    < {"item": "quiesce", "number": 1}
    > {"quiet": true, "delivered": 1234, "number": 1}
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec

from m2m.agent.api import (
    AgentInfo,
    ChangeReport,
    Event,
    PathInfo,
    PolicyInfo,
    SessionInfo,
    Stats,
    TakenOver,
    parse_session,
)
from m2m.agent.order import ME, Do, Order, Wish
from m2m.errors import M2MError
from m2m.policy.rules import Asker, ChangeMode

__all__ = [
    "MAX_REQUEST", "SNAPSHOT_SESSIONS",
    "AskAgents", "AskPath", "AskPolicy", "AskSessions", "AskStats", "Change", "End", "HandOver",
    "LeadHere", "NfChange", "NfRequest", "NfRun", "Quiet", "Request", "TakeOver", "Watch",
    "AgentsItem", "ChangedItem", "ChangingItem", "Done", "EventItem", "Failed", "Item", "LedItem",
    "PathItem", "PolicyItem", "Quiesce", "SessionItem", "Snapshot", "StatsItem", "TakenItem",
    "order_of",
]  # fmt: skip

MAX_REQUEST = 1 << 16
"""Bytes of a request's line."""

SNAPSHOT_SESSIONS = 50
"""Sessions that a snapshot shows, at most."""


class AskSessions(msgspec.Struct, frozen=True, tag_field="request", tag="sessions"):
    """Every session at this host: one :class:`SessionItem` each."""


class AskPath(msgspec.Struct, frozen=True, tag_field="request", tag="path"):
    """One session, hop by hop."""

    id: str


class AskPolicy(msgspec.Struct, frozen=True, tag_field="request", tag="policy"):
    """The policy in force."""


class AskAgents(msgspec.Struct, frozen=True, tag_field="request", tag="agents"):
    """All agents of the domain."""


class AskStats(msgspec.Struct, frozen=True, tag_field="request", tag="stats"):
    """The counters."""


class Watch(msgspec.Struct, frozen=True, tag_field="request", tag="watch"):
    """Events as they happen, and a :class:`Snapshot` every *interval* seconds."""

    interval: Annotated[float, msgspec.Meta(ge=0.1, le=3600)] = 1.0


class End(msgspec.Struct, frozen=True, tag_field="request", tag="end"):
    """Tear a session down, along its whole path."""

    id: str


class HandOver(msgspec.Struct, frozen=True, tag_field="request", tag="hand-over"):
    """Make the ends of these sessions another host's. This and the next two are root's."""

    sessions: tuple[str, ...]
    path: str  # absolute, of a new file that holds them from then on


class TakeOver(msgspec.Struct, frozen=True, tag_field="request", tag="take-over"):
    """Make the sessions in a file this host's, ready for sockets: :class:`TakenItem`."""

    path: str  # absolute


class LeadHere(msgspec.Struct, frozen=True, tag_field="request", tag="lead-here"):
    """Their sockets are here, have packets come: :class:`LedItem`."""

    sessions: tuple[str, ...] = ()  # none: all that were taken over


class Change(msgspec.Struct, frozen=True, tag_field="request", tag="change"):
    """Change the chains of live sessions: :class:`ChangingItem` and :class:`ChangedItem` for each.

    What the names mean stands at :class:`m2m.agent.plan.Wish`.
    """

    do: Do
    old: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    after: str | None = None
    before: str | None = None
    sessions: tuple[str, ...] = ()  # ids; none: all at this host that match
    match: str | None = None  # a predicate of the policy language
    mode: ChangeMode | None = None  # None: what each session's policy says


class NfChange(msgspec.Struct, frozen=True, tag_field="request", tag="me"):
    """A network function asks about itself: *do* is to remove it, to insert something behind it,
    or to replace it. Answered as :class:`Change` is."""

    do: Do
    new: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    match: str | None = None
    mode: ChangeMode | None = None
    nf: str | None = None  # its NF type, where this host runs several
    # Octets that it has added to the session's streams to server and client, and adds no more; for
    # removals of one session (``docs/splicing.md``).
    added: tuple[int, int] | None = None


class NfRun(msgspec.Struct, frozen=True, tag_field="request", tag="run"):
    """A passive network function runs for as long as the conversation lasts (``m2m-nf run``). The
    agent asks by :class:`Quiesce`; what the other side says from now on is :class:`Quiet`."""

    program: str
    pid: int
    nf: str | None = None  # its NF type


class Quiet(msgspec.Struct, frozen=True):
    """What a network function has got: an answer, or without *number* just an account."""

    quiet: bool  # all that was captured before the question came has been delivered to it
    delivered: int  # packets, since it was started
    number: int = 0


Request: TypeAlias = (
    AskSessions | AskPath | AskPolicy | AskAgents | AskStats | Watch | End | Change
    | HandOver | TakeOver | LeadHere
)  # fmt: skip
NfRequest: TypeAlias = NfChange | NfRun


def order_of(request: Change | NfChange) -> Order:
    """What is asked for, in the agent's own terms.

    Raises :exc:`~m2m.agent.api.UnknownSession` and :exc:`~m2m.policy.source.PolicyError`.
    """
    sessions = tuple(map(parse_session, request.sessions))
    predicate = None
    if request.match is not None:
        from m2m.policy.language import parse_predicate  # a parser that most agents never need

        predicate = parse_predicate(request.match, "match")
    if isinstance(request, Change):
        if not sessions and predicate is None and request.do is not Do.DRAIN:
            raise M2MError("name sessions, or a predicate that they match ('any': all of them)")
        wish = Wish(request.do, request.old, request.new, request.after, request.before)
        return Order(wish, Asker.OPERATOR, sessions, predicate, request.mode)
    if request.do is Do.DRAIN:
        raise M2MError("a network function is not drained, it migrates: say replace")
    if request.added is not None and request.do is not Do.REMOVE:
        raise M2MError("what was added is told for a removal alone")
    if request.do is Do.INSERT:
        wish = Wish(Do.INSERT, new=request.new, after=ME)
    else:
        wish = Wish(request.do, (ME,), request.new)
    return Order(wish, Asker.NF, sessions, predicate, request.mode, request.nf, request.added)


class SessionItem(msgspec.Struct, frozen=True, tag_field="item", tag="session"):
    """One of the sessions."""

    session: SessionInfo


class PathItem(msgspec.Struct, frozen=True, tag_field="item", tag="path"):
    """Answer to :class:`AskPath`."""

    path: PathInfo


class PolicyItem(msgspec.Struct, frozen=True, tag_field="item", tag="policy"):
    """Answer to :class:`AskPolicy`."""

    policy: PolicyInfo


class AgentsItem(msgspec.Struct, frozen=True, tag_field="item", tag="agents"):
    """Answer to :class:`AskAgents`."""

    agents: tuple[AgentInfo, ...]


class StatsItem(msgspec.Struct, frozen=True, tag_field="item", tag="stats"):
    """Answer to :class:`AskStats`."""

    stats: Stats


class EventItem(msgspec.Struct, frozen=True, tag_field="item", tag="event"):
    """Something has happened."""

    event: Event


class Snapshot(msgspec.Struct, frozen=True, tag_field="item", tag="snapshot"):
    """How things are now: the counters, and up to :data:`SNAPSHOT_SESSIONS` sessions."""

    time: float  # s since 1970
    stats: Stats
    sessions: tuple[SessionInfo, ...]


class ChangingItem(msgspec.Struct, frozen=True, tag_field="item", tag="changing"):
    """How far a change is: ``asked``, or ``switched`` (only where this host leads)."""

    session: str
    stage: str


class ChangedItem(msgspec.Struct, frozen=True, tag_field="item", tag="changed"):
    """What became of the change of one session."""

    report: ChangeReport


class TakenItem(msgspec.Struct, frozen=True, tag_field="item", tag="taken"):
    """Answer to :class:`TakeOver`."""

    taken: TakenOver


class LedItem(msgspec.Struct, frozen=True, tag_field="item", tag="led"):
    """Answer to :class:`LeadHere`: these."""

    sessions: tuple[str, ...]


class Quiesce(msgspec.Struct, frozen=True, tag_field="item", tag="quiesce"):
    """Say :class:`Quiet` with this number when all that is captured by now has been delivered."""

    number: int


class Done(msgspec.Struct, frozen=True, tag_field="item", tag="done"):
    """The request has been answered in full."""


class Failed(msgspec.Struct, frozen=True, tag_field="item", tag="failed"):
    """The request could not be answered, or only in part."""

    why: str


Item: TypeAlias = (
    SessionItem | PathItem | PolicyItem | AgentsItem | StatsItem | EventItem | Snapshot
    | ChangingItem | ChangedItem | TakenItem | LedItem | Quiesce | Done | Failed
)  # fmt: skip
