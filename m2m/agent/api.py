"""What an agent tells: the structs of its control socket and of path reports.

``m2mctl`` and other programs read them as JSON lines (see :mod:`m2m.agent.control`); agents send
:class:`HopReport` to each other as msgpack. Addresses and flows are text here, session ids are 16
hexadecimal digits, times are seconds: everything can be read by a person as it stands.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import msgspec

from m2m.agent.order import Order
from m2m.datapath import Counters
from m2m.errors import M2MError
from m2m.policy.messages import AgentInfo, Role
from m2m.policy.rules import ALLOWED, ChangeMode, Live, PolicySet
from m2m.protocol.flow import Flow, Proto, format_address, parse_address

__all__ = [
    "AgentInfo", "ChangeReport", "ControlSource", "Direction", "Event", "EventKind", "FlowInfo",
    "HopReport", "InstanceInfo", "NfInfo", "PathInfo", "PolicyInfo", "PolicyRow", "Role",
    "SessionInfo", "SessionState", "Stats", "TakenOver",
    "UnknownSession", "describe_policy", "format_session",
    "parse_session",
]  # fmt: skip


class UnknownSession(M2MError):
    """No session with this id is at this host."""


def format_session(session: int) -> str:
    """The text of a session id: 16 hexadecimal digits."""
    return f"{session:016x}"


def parse_session(text: str) -> int:
    """The inverse of :func:`format_session`. Raises :exc:`UnknownSession`."""
    session = int(text, 16) if re.fullmatch(r"[0-9a-fA-F]{1,16}", text) else 0
    if not session:
        raise UnknownSession(
            f"{text!r} is no session id: it has 1 to 16 hexadecimal digits, as "
            "`m2mctl sessions` shows them"
        )
    return session


class FlowInfo(msgspec.Struct, frozen=True):
    """A :class:`~m2m.protocol.flow.Flow` in text."""

    proto: str  # "tcp", "udp" or the protocol's number
    src: str
    sport: int
    dst: str
    dport: int

    @classmethod
    def of(cls, flow: Flow) -> FlowInfo:
        """The text of *flow*."""
        try:
            proto = Proto(flow.proto).name.lower()
        except ValueError:
            proto = str(flow.proto)
        return cls(proto, format_address(flow.src), flow.sport, format_address(flow.dst),
                   flow.dport)  # fmt: skip

    def flow(self) -> Flow:
        """The inverse of :meth:`of`. Raises :exc:`ValueError` when it is no flow."""
        named = {proto.name.lower(): int(proto) for proto in Proto}
        proto = named[self.proto] if self.proto in named else int(self.proto)
        return Flow(proto, parse_address(self.src), self.sport,
                    parse_address(self.dst), self.dport)  # fmt: skip

    def __str__(self) -> str:
        return f"{self.source} > {self.destination} {self.proto}"

    @property
    def source(self) -> str:
        """Address and port it comes from."""
        return _endpoint(self.src, self.sport)

    @property
    def destination(self) -> str:
        """Address and port it goes to."""
        return _endpoint(self.dst, self.dport)


def _endpoint(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


class SessionState(StrEnum):
    """Where a session is in its life, at one host."""

    OPENING = "opening"
    ESTABLISHED = "established"
    CLOSING = "closing"
    UNREACHABLE = "unreachable"  # this hop did not answer the question


class Direction(msgspec.Struct, frozen=True):
    """What a host has seen of a session in one direction (from the datapath's entry)."""

    packets: int
    bytes: int  # IP total length
    max_seq: int | None  # largest TCP sequence number; None for UDP
    idle: float  # s since the last packet
    fin: bool = False
    rst: bool = False

    @classmethod
    def of(cls, counters: Counters) -> Direction:
        """The text form of an entry's counters."""
        return cls(counters.packets, counters.bytes, counters.max_seq, counters.idle,
                   counters.fin, counters.rst)  # fmt: skip


class SessionInfo(msgspec.Struct, frozen=True):
    """One session, as the agent that is asked sees it."""

    id: str
    position: str  # "client", "tap", "inline", "proxy" or "server"
    state: SessionState
    supersession: FlowInfo
    left: FlowInfo | None  # subsession towards the client; None where it begins
    right: FlowInfo | None  # subsession towards the server; None where it ends
    policy: int  # id of the policy it came from
    generation: int  # of the policy set at set-up
    chain: tuple[str, ...] = ()  # NF types in order; () where the policy is not known
    to_server: Direction | None = None  # None while nothing is installed
    to_client: Direction | None = None
    local: FlowInfo | None = None  # of a proxy's socket by which it goes on with a session
    halves: tuple[str, ...] = ()  # at a proxy: of a session, the halves on its other side


class HopReport(msgspec.Struct, frozen=True):
    """One host on a session's path. Also the payload of a PATHREP message (msgpack)."""

    session: str
    host: str  # the agent's name
    address: str  # the host's own address towards its neighbours
    role: Role | None  # None: the hop did not answer
    position: str  # "client", "tap", "inline", "proxy" or "server"; "" when it did not answer
    nf: str | None  # NF type (``type/instance`` where known); None at a client and a server
    state: SessionState
    supersession: FlowInfo | None
    left: FlowInfo | None
    right: FlowInfo | None
    to_server: Direction | None
    to_client: Direction | None
    prev: str | None  # the left neighbour's address
    next: str | None  # the right neighbour's address
    # At an end: what its socket has repeated since the session began; None: nobody knows.
    retransmissions: int | None = None
    watched: bool = False  # a program that m2m-nf runs captures here
    local: FlowInfo | None = None  # of a proxy's socket by which it goes on with a session
    halves: tuple[str, ...] = ()  # at a proxy: of a session, the halves on its other side


class PathInfo(msgspec.Struct, frozen=True):
    """A session hop by hop, from the client to the server."""

    session: str
    hops: tuple[HopReport, ...]
    complete: bool  # whether it reaches from a client or proxy to a proxy or server
    problem: str = ""  # why not
    # Halves that proxies at its ends join to it, client side first; only m2mctl is told of them.
    before: tuple[PathInfo, ...] = ()
    behind: tuple[PathInfo, ...] = ()


class InstanceInfo(msgspec.Struct, frozen=True):
    """One NF instance of the policy."""

    name: str
    address: str
    load: float


class NfInfo(msgspec.Struct, frozen=True):
    """One NF type of the policy."""

    name: str
    kind: str
    choose: str
    instances: tuple[InstanceInfo, ...]


class PolicyRow(msgspec.Struct, frozen=True):
    """One policy in force at this agent."""

    id: int
    text: str
    line: int
    chain: tuple[str, ...]
    fail: str
    change: str = ChangeMode.OP
    live: str = Live.STAY
    allow: tuple[str, ...] = ALLOWED


class PolicyInfo(msgspec.Struct, frozen=True):
    """The policy in force at this agent: the part of the file that concerns its location."""

    generation: int
    server: str  # ``host:port`` of the policy server
    connected: bool  # whether it is reachable now
    policies: tuple[PolicyRow, ...]
    nfs: tuple[NfInfo, ...]
    rules: int  # rows of the flat table that the datapath evaluates


def describe_policy(policy: PolicySet, *, server: str, connected: bool) -> PolicyInfo:
    """The text form of a policy set."""
    return PolicyInfo(
        generation=policy.generation,
        server=server,
        connected=connected,
        policies=tuple(
            PolicyRow(
                row.id, row.text, row.line, row.chain, row.fail.value, row.change.value,
                row.live.value, tuple(one.value for one in row.allow),
            )
            for row in policy.policies
        ),
        nfs=tuple(
            NfInfo(nf.name, nf.kind.value, nf.choose.value,
                   tuple(InstanceInfo(one.name, format_address(one.address), one.load)
                         for one in nf.instances))
            for nf in policy.nfs
        ),
        rules=len(policy.rules),
    )  # fmt: skip


class ChangeReport(msgspec.Struct, frozen=True):
    """What became of a change of one session's chain.

    Paths name the agent at either end and ``type/instance`` between. Times are in seconds.
    """

    session: str
    mode: str  # "lf", "op" or "ss+op"
    before: tuple[str, ...]  # the path, client first; () where it could not be found out
    after: tuple[str, ...]
    # From the beginning until packets to the server take the new path, at the host that leads;
    # until that says that all is done, where another host was asked. None: it was not changed.
    duration: float | None = None
    total: float | None = None  # until nothing of the old path is left; None: there is, still
    held: int = 0  # packets that waited, at both ends of what changed
    # TCP segments that the sockets at both ends repeated meanwhile; None: they cannot be asked.
    retransmissions: int | None = None
    error: str | None = None  # why it was not changed
    by: str | None = None  # who says so: a host as in a path, or its address
    cause: str | None = None  # as the protocol names it, if it was the protocol's


class TakenOver(msgspec.Struct, frozen=True):
    """What became of a file of deeds."""

    taken: tuple[str, ...]  # sessions whose sockets may be made now
    refused: dict[str, str]  # others -> why not


class Stats(msgspec.Struct, frozen=True):
    """Counters of one agent, each since it was started unless said otherwise."""

    agent: str
    role: Role
    uptime: float  # s
    sessions: int  # at this host now
    reasons: dict[str, int]  # packets dropped, held, let go: Reason names in lower case;
    # since the datapath was first opened
    control: dict[str, int]  # control messages: "sent.syn", "received.ack", "dropped.bad-mac", ...
    setups: dict[str, int]  # "established", "failed", "closed", "adopted", ...
    datapath: str = ""  # "ebpf", "fake", ...
    moves: dict[str, int] = {}  # "moved", "rebound", "rebind unproven", ...: legs and refusals
    ports: int = 0  # pairs of subsession ports that this host has allocated, in use now
    functions: dict[str, int] = {}  # "prads (4711)": packets delivered to it


class EventKind(StrEnum):
    """What an :class:`Event` tells."""

    ESTABLISHED = "established"
    CLOSED = "closed"
    CHANGED = "changed"  # packets take another chain from now on; told by the host that leads
    UNCHANGED = "unchanged"  # a change that was asked for here was refused or undone
    MOVED = "moved"  # this host or its neighbour is an end that has moved
    HANDED_OVER = "handed-over"  # its end here is to be another host's
    LEFT = "left"  # a proxy here has left the session
    REFUSED = "refused"  # a chain could not be set up
    POLICY = "policy"  # a new set is in force
    SERVER = "server"  # the policy server went away or came back


class Event(msgspec.Struct, frozen=True):
    """Something that happened at this agent, for ``m2mctl watch``."""

    time: float  # s since 1970
    kind: EventKind
    text: str  # one line that a person reads
    session: str | None = None
    supersession: FlowInfo | None = None


class ControlSource(Protocol):
    """What the control socket asks of the agent."""

    def sessions(self) -> AsyncIterator[SessionInfo]:
        """Every session at this host; one that comes or goes meanwhile may be missed."""

    async def path(self, session: int) -> PathInfo:
        """The session hop by hop. Bounded in time. Raises :exc:`UnknownSession`."""

    async def policy(self) -> PolicyInfo:
        """What is in force."""

    async def agents(self) -> Sequence[AgentInfo]:
        """Every agent of the domain. Raises :exc:`M2MError` when the server is away."""

    async def stats(self) -> Stats:
        """The counters."""

    async def change(
        self,
        order: Order,
        tell: Callable[[ChangeReport], None],
        progress: Callable[[str, str], None],
    ) -> None:
        """Change chains; *tell* gets what became of each session as it ends, *progress* a session
        and how far it is. Raises :exc:`M2MError` when there is nothing to change."""

    async def end(self, session: int) -> None:
        """Tear the session down along its whole path. Raises :exc:`UnknownSession`."""

    async def hand_over(self, sessions: Sequence[int], path: Path) -> None:
        """Make the ends of these sessions another host's, by deeds in a new file. Raises
        :exc:`M2MError` when they stay here."""

    async def take_over(self, path: Path) -> TakenOver:
        """Make them this host's. Raises :exc:`M2MError` when these are no deeds."""

    async def lead_here(self, sessions: Sequence[int]) -> Sequence[str]:
        """Have packets of these sessions, or of all that were taken over, come here; which ones.
        Raises :exc:`M2MError`."""

    def events(self) -> AsyncIterator[Event]:
        """What happens from now on. A reader that is too slow misses the oldest ones."""
