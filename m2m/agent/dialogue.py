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
    > {"request": "watch", "interval": 1}   < {"item": "snapshot", ...}  < {"item": "event", ...}

A watch has no last line: it goes on until the client closes.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec

from m2m.agent.api import AgentInfo, Event, PathInfo, PolicyInfo, SessionInfo, Stats

__all__ = [
    "MAX_REQUEST", "SNAPSHOT_SESSIONS",
    "AskAgents", "AskPath", "AskPolicy", "AskSessions", "AskStats", "End", "Request", "Watch",
    "AgentsItem", "Done", "EventItem", "Failed", "Item", "PathItem", "PolicyItem", "SessionItem",
    "Snapshot", "StatsItem",
]  # fmt: skip

MAX_REQUEST = 4096
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


Request: TypeAlias = AskSessions | AskPath | AskPolicy | AskAgents | AskStats | Watch | End


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


class Done(msgspec.Struct, frozen=True, tag_field="item", tag="done"):
    """The request has been answered in full."""


class Failed(msgspec.Struct, frozen=True, tag_field="item", tag="failed"):
    """The request could not be answered, or only in part."""

    why: str


Item: TypeAlias = (
    SessionItem | PathItem | PolicyItem | AgentsItem | StatsItem | EventItem | Snapshot
    | Done | Failed
)  # fmt: skip
