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
from typing import ClassVar, Final, NamedTuple, TypeAlias

from m2m.errors import M2MError
from m2m.policy.rules import PolicySet
from m2m.protocol.flow import Address, Flow
from m2m.protocol.translation import Entry, Hook, Toward

__all__ = [
    "ALL_ADDRESSES", "Acked", "Counters", "Datapath", "DatapathError", "DatapathFull", "Ended",
    "EndReason", "Event", "Held", "HoldOverflow", "Holding", "Limits", "NOTE_SIZE", "Reached",
    "Reason", "Row", "Verdict", "check_notes", "check_redirect",
]  # fmt: skip

NOTE_SIZE = 72  # octets that Datapath.keep takes for each session


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
    NOT_SPLICED = 12  # a SYN cannot go through a splice: dropped


ALL_ADDRESSES: Final = bytes(16)
"""Of a host that forwards nothing: what comes is for it, though its address may be a moment old."""


class Limits(NamedTuple):
    """Sizes and times of a datapath, fixed when it is opened."""

    sessions: int = 65536  # entries are preallocated for this many; inline ones count twice
    linger: float = 5.0  # s a finished TCP session is kept for its last retransmissions
    tcp_idle: float = 7200.0  # s without a packet
    udp_idle: float = 60.0  # s without a packet
    hold_packets: int = 1024  # first packets held at most, all flows together; as many of live ones
    hold_time: float = 2.0  # s a live session's packets are held at most


class Counters(NamedTuple):
    """What one entry has seen."""

    packets: int
    bytes: int  # IP total length, each GSO packet counted as its segments would be
    max_seq: int | None  # one past the largest TCP sequence number seen (RFC 1982); None for UDP.
    # Where there is a splice, this and all other numbers are those to its left.
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


class Holding(NamedTuple):
    """From now on the packets of one entry wait (:meth:`Datapath.hold`)."""

    packets: int  # counted by the entry before: that many have gone on, counted as the wire does
    checkpoint: int | None  # for a substream: what ends at or before this number goes on (TCP)


class HoldOverflow(NamedTuple):
    """Too many packets waited, or for too long, and *the datapath has let them go by itself*:
    in order, by the rows as they are. The session is not held any more in this direction."""

    session: int
    toward: Toward


class Acked(NamedTuple):
    """A packet towards *toward* has acknowledged what :meth:`Datapath.watch_ack` asked about."""

    session: int
    toward: Toward


class Reached(NamedTuple):
    """As many packets towards *toward* have passed as :meth:`Datapath.watch_count` asked about."""

    session: int
    toward: Toward


Event: TypeAlias = Held | Ended | HoldOverflow | Acked | Reached


def check_redirect(old: Entry, new: Entry) -> None:
    """Raise :exc:`DatapathError` when one row cannot become the other by a redirection."""
    if _fixed(old) != _fixed(new):
        raise DatapathError(
            f"the row for {old.match} is {_fixed(old)} and cannot be redirected to {_fixed(new)}"
        )
    if old.toward is Toward.LEFT and old.splice != new.splice:
        raise DatapathError(
            f"the row for {old.match} counts in the numbers that its splice makes,"
            f" {old.splice}: it cannot be redirected to {new.splice}"
        )


def check_notes(notes: Mapping[int, bytes]) -> None:
    """Raise :exc:`ValueError` for a note that is not :data:`NOTE_SIZE` octets long."""
    for session, note in notes.items():
        if len(note) != NOTE_SIZE:
            raise ValueError(
                f"the note of session {session:016x} is {len(note)} octets long, not {NOTE_SIZE}"
            )


def _fixed(entry: Entry) -> str:
    """What a redirection leaves as it is."""
    parts = (entry.action, entry.toward, entry.position)
    return f"{' '.join(part.name for part in parts)} of session {entry.session:016x}"


class Datapath(ABC):
    """The kernel part of one host.

    All methods may be called from one task at a time. Methods are cancelled only between whole
    steps: after a :exc:`trio.Cancelled` each call has happened or has not.
    """

    name: ClassVar[str]
    splices: ClassVar[bool] = True  # whether :meth:`splice` and holds of what is delivered work
    why: str = ""  # this one was taken, where there was a choice; for the agent's log

    @abstractmethod
    async def attach(self, ifindexes: Iterable[int]) -> None:
        """Translate on exactly these interfaces from now on; others are let go.

        Raises :exc:`DatapathError` naming the interface that cannot be served.
        """

    @abstractmethod
    async def set_addresses(self, addresses: Iterable[Address]) -> None:
        """The host's own addresses, as a whole (see :attr:`Reason.NO_ENTRY`).
        :data:`ALL_ADDRESSES` stands for all that packets may come to."""

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
        """Take out the entries with these keys; unknown keys are ignored. What is held for them
        goes first; so it does for entries that :meth:`install` replaces."""

    @abstractmethod
    async def redirect(self, entries: Sequence[Entry]) -> list[int]:
        """Let the rows with these keys rewrite and send as *entries* say, each at one moment.

        Make before break (§4.2.1): each packet goes wholly the old way or wholly the new one, and
        counters and what is held live on. Returns, for each entry, how many packets it had
        counted by then, as :attr:`Counters.packets` does: never fewer than went the old way.
        Session, direction, action and position must be what they were, and of what travels to the
        left the splice, too. Raises :exc:`DatapathError`, and redirects nothing, when a row is not
        there or differs in these.
        """

    @abstractmethod
    async def hold(
        self, keys: Iterable[tuple[Hook, Flow]], *, substream: bool = False
    ) -> list[Holding]:
        """From now on packets that match these keys wait in the kernel, in the order they come.

        Held packets count in no entry before they go. For sessions being changed (§5.2): the
        entries' action must be SEND, or DELIVER where :attr:`splices`. The other direction goes on.

        With *substream* (TCP, §5.3) only what is new waits: the checkpoint is the largest sequence
        number that has passed at this moment (:attr:`Counters.max_seq`), and packets that end at
        or before it go on, as do pure acknowledgements. A packet that lies across it is split.
        When a held packet acknowledges more than any before it, a pure acknowledgement, made from
        it, goes on at once. A hold of all after that of a substream keeps what is held, in order,
        and holds the rest behind it; any other repetition changes nothing.

        What waits is bounded by :attr:`Limits.hold_packets` (packets, all live sessions together)
        and :attr:`Limits.hold_time` (see :class:`HoldOverflow`), and by the agent's life: when that
        is over, packets go by the rows as they are. Raises :exc:`DatapathError`, and holds
        nothing, when a row is not there or cannot be held.
        """

    @abstractmethod
    async def resume(self, keys: Iterable[tuple[Hook, Flow]]) -> list[int]:
        """Let what is held for these keys go, in order and before any later packet, by the rows
        as they are now; they have left when this returns.

        Returns for each key how many packets had been held (a burst counts once); 0 when none was.
        """

    @abstractmethod
    async def watch_ack(self, keys: Iterable[tuple[Hook, Flow]], number: int) -> None:
        """Tell once, by :class:`Acked`, when a TCP packet that matches one of these keys
        acknowledges *number* or more; at once when one already has.

        It is told when the packet has been translated and is on its way. One number at a time for
        each key: a later call replaces the earlier one. Raises :exc:`DatapathError` when a row is
        not there.
        """

    @abstractmethod
    async def watch_count(self, keys: Iterable[tuple[Hook, Flow]], number: int) -> None:
        """Tell once, by :class:`Reached`, when one of these rows has counted *number* packets
        (:attr:`Counters.packets`); at once when it already has. Forgotten when that takes more than
        a second: some may have been lost.

        Otherwise as :meth:`watch_ack`.
        """

    @abstractmethod
    async def inherit(self, old: tuple[Hook, Flow], new: tuple[Hook, Flow]) -> None:
        """What has passed under the key *old* counts as seen under the key *new*: the largest TCP
        sequence and acknowledgement numbers, where they are larger.

        For a leg that takes another's place. Nothing happens when either row is not there.
        """

    @abstractmethod
    async def splice(
        self, rows: tuple[Entry, Entry], silent: tuple[tuple[Hook, Flow], tuple[Hook, Flow]]
    ) -> tuple[bool, bool]:
        """Two sessions become one at a moment at which all waits (``docs/splicing.md``).

        The rows with the keys of *rows*, towards the right and towards the left, are those of a
        tap with a splice from now on. All that comes to them is held, and stays so; counters live
        on, in the numbers left of the splice. What meets the keys *silent* is dropped for some
        seconds, as of a refused flow. Returns whether each row may have counted more packets than
        came: such as were made while it was held, of a substream. Raises :exc:`DatapathError`, and
        does nothing, when a row is not there, or not held.
        """

    @abstractmethod
    async def rename(self, keys: Iterable[tuple[Hook, Flow]], session: int, name: int) -> None:
        """The rows with these keys that are of *session* are of the session *name* from now on."""

    @abstractmethod
    async def rows(self, keys: Iterable[tuple[Hook, Flow]]) -> list[Row]:
        """The entries with these keys that are there, with their counters."""

    @abstractmethod
    async def idle(self, keys: Iterable[tuple[Hook, Flow]]) -> list[float | None]:
        """For each of these keys, :attr:`Counters.idle` of its entry; None where there is none.

        A small part of what :meth:`rows` costs, for thousands of them.
        """

    @abstractmethod
    def dump(self) -> AsyncIterator[Row]:
        """Every entry of every session, in no order; one added meanwhile may be missed."""

    @abstractmethod
    async def keep(self, notes: Mapping[int, bytes]) -> None:
        """Keep a note with each of these sessions for the next agent: :data:`NOTE_SIZE` octets by
        session id, which replace an earlier note. For an agent that is killed at any moment, each
        note is the earlier one or the later one, and whole.

        They are no part of the sessions' entries: :meth:`remove` leaves them, :meth:`forget` takes
        them out. Raises :exc:`DatapathFull` when there is no room for all (there is for
        :attr:`Limits.sessions`); then some of several have been kept.
        """

    @abstractmethod
    async def forget(self, sessions: Iterable[int]) -> None:
        """Take out the notes of these sessions; those that have none are ignored."""

    @abstractmethod
    async def kept(self) -> dict[int, bytes]:
        """All notes by session id, those included whose session has no entry any more."""

    @abstractmethod
    async def release(self, flow: Flow, verdict: Verdict) -> None:
        """Let the held packets of *flow* go, in their order, ahead of any later one.

        What is decided but :attr:`Verdict.STEER` takes the place of a row that sends *flow*, at
        one moment; it can be decided of a flow of which nothing is held.
        """

    @abstractmethod
    def events(self) -> AsyncIterator[Event]:
        """Held flows, ended sessions and what happens to changed ones, as it comes; one consumer.
        Also keeps the kernel told that an agent is there (:attr:`Reason.AGENT_AWAY_OPEN`)."""

    @abstractmethod
    async def reasons(self) -> Mapping[Reason, int]:
        """Packets per reason since the datapath was first opened."""

    @abstractmethod
    async def close(self, *, keep: bool) -> None:
        """Let go. With *keep* the kernel goes on translating for the next agent to take over;
        without, everything is taken out: programs, tables, rules, pins."""
