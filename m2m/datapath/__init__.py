"""The contract between the agent and the kernel part.

Three implementations keep it: ``ebpf`` (tc programs, the default), ``kmod`` (netfilter module)
and ``fake`` (in memory). ``tests/datapath`` holds each of them to the same tests.

An agent only ever decides; every packet of an established session is translated below this
line, and goes on being translated when the agent is gone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from enum import Enum, IntEnum
from typing import ClassVar, NamedTuple, TypeAlias

from m2m.errors import M2MError
from m2m.policy.rules import PolicySet
from m2m.protocol.flow import Address, Flow
from m2m.protocol.translation import Entry, Hook

__all__ = [
    "Counters", "Datapath", "DatapathError", "DatapathFull", "Ended", "EndReason", "Event",
    "Held", "Limits", "Reason", "Row", "Verdict",
]  # fmt: skip


class DatapathError(M2MError):
    """The kernel refused; the message says what and why."""


class DatapathFull(DatapathError):
    """No room for another entry. Nothing was installed."""


class Reason(IntEnum):
    """Why a packet was dropped, held or let go unsteered (``enum m2m_reason`` of ``kmod/core``)."""

    NO_ENTRY = 0  # addressed to our subsession ports, but no session has them: dropped
    TOO_BIG = 1  # larger than the next link's MTU and not to be fragmented: dropped
    TTL_EXPIRED = 2  # dropped
    NO_NEIGHBOUR = 3  # the next hop could not be reached: dropped
    TRUNCATED = 4  # headers cut short: dropped
    FRAGMENT_UNKNOWN = 5  # a later fragment whose first was not seen: dropped
    REFUSED = 6  # its chain could not be set up and its policy fails closed: dropped
    PASSED = 7  # its chain could not be set up and its policy fails open: sent on unsteered
    HELD = 8  # waiting for its chain
    HOLD_OVERFLOW = 9  # too many packets waiting: dropped
    AGENT_AWAY_OPEN = 10  # no agent, policy fails open: sent on unsteered
    AGENT_AWAY_CLOSED = 11  # no agent, policy fails closed: dropped


class Limits(NamedTuple):
    """Sizes and times of a datapath, fixed when it is opened."""

    sessions: int = 65536  # entries are preallocated for this many; inline ones count twice
    linger: float = 5.0  # s a finished TCP session is kept for its last retransmissions
    tcp_idle: float = 7200.0  # s without a packet
    udp_idle: float = 60.0  # s without a packet
    hold_packets: int = 1024  # held at most, all flows together


class Counters(NamedTuple):
    """What one entry has seen."""

    packets: int
    bytes: int  # IP total length, each GSO packet counted as its segments would be
    max_seq: int | None  # one past the largest TCP sequence number seen (RFC 1982); None for UDP
    idle: float  # s since the last packet, or since the entry was installed
    fin: bool
    rst: bool


class Row(NamedTuple):
    """An entry and what it has seen."""

    entry: Entry
    counters: Counters


class Verdict(Enum):
    """What becomes of held packets."""

    STEER = "steer"  # entries are installed: go through the chain
    PASS = "pass"  # go straight on; the flow is left alone until it is idle
    DROP = "drop"  # and refuse the flow for a second, so that retries do not pile up


class Held(NamedTuple):
    """The first packet of a flow that a policy matches is waiting for :meth:`Datapath.release`."""

    flow: Flow


class EndReason(Enum):
    """Why a session is over."""

    FIN = "fin"  # both directions closed, lingering over
    RST = "rst"
    IDLE = "idle"


class Ended(NamedTuple):
    """A session is over; its entries stay until :meth:`Datapath.remove`."""

    session: int
    reason: EndReason


Event: TypeAlias = Held | Ended


class Datapath(ABC):
    """The kernel part of one host.

    All methods may be called from one task at a time. Methods are cancelled only between whole
    steps: after a :exc:`trio.Cancelled` each call has happened or has not.
    """

    name: ClassVar[str]

    @abstractmethod
    async def attach(self, ifindexes: Iterable[int]) -> None:
        """Translate on exactly these interfaces from now on; others are let go.

        Raises :exc:`DatapathError` naming the interface that cannot be served.
        """

    @abstractmethod
    async def set_addresses(self, addresses: Iterable[Address]) -> None:
        """The host's own addresses, as a whole (see :attr:`Reason.NO_ENTRY`)."""

    @abstractmethod
    async def load_policy(self, policy: PolicySet) -> None:
        """Hold first packets by these rules; every packet meets the old set or the new one."""

    @abstractmethod
    async def install(self, entries: Sequence[Entry]) -> None:
        """Put in all entries or none. An entry with the same key is replaced.

        Entries for packets coming back are in place before those for packets going out.
        Raises :exc:`DatapathFull`.
        """

    @abstractmethod
    async def remove(self, keys: Iterable[tuple[Hook, Flow]]) -> None:
        """Take out the entries with these keys; unknown keys are ignored."""

    @abstractmethod
    async def rows(self, keys: Iterable[tuple[Hook, Flow]]) -> list[Row]:
        """The entries with these keys that are there, with their counters."""

    @abstractmethod
    def dump(self) -> AsyncIterator[Row]:
        """Every entry of every session, in no order; one added meanwhile may be missed."""

    @abstractmethod
    async def release(self, flow: Flow, verdict: Verdict) -> None:
        """Let the held packets of *flow* go, in their order, ahead of any later one."""

    @abstractmethod
    def events(self) -> AsyncIterator[Event]:
        """Held flows and ended sessions, as they come; one consumer. Also keeps the kernel
        told that an agent is there (:attr:`Reason.AGENT_AWAY_OPEN`)."""

    @abstractmethod
    async def reasons(self) -> Mapping[Reason, int]:
        """Packets per reason since the datapath was first opened."""

    @abstractmethod
    async def close(self, *, keep: bool) -> None:
        """Let go. With *keep* the kernel goes on translating for the next agent to take over;
        without, everything is taken out: programs, tables, rules, pins."""
