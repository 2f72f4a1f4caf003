"""The translation core of ``kmod/core``, callable from Python.

It is the same C that the BPF programs and the module are built from. Keys, entries, rules and
configurations are their packed C layouts; functions that take them raise :class:`ValueError`
when the length is wrong. Port numbers, checksums and differences are in host order.
"""

from typing import Final, final

from m2m.policy.rules import PolicySet
from m2m.protocol.flow import Address, Flow
from m2m.protocol.translation import Entry, Hook

REASONS: Final[int]
"""How many reasons there are (``enum m2m_reason``)."""

PROXY_MARK: Final[int]
"""What the first packet of a session bears that is delivered to a proxy."""

def layout() -> dict[str, tuple[int, dict[str, tuple[int, int]]]]:
    """By name of a C structure: its size, and offset and size of each field, in bytes."""

def seq_after(a: int, b: int) -> bool:
    """Whether TCP sequence number *a* comes after *b*, wrapping (RFC 1982)."""

def seq_end(seq: int, payload: int, syn: bool, fin: bool) -> int:
    """One past the last sequence number of a segment with *payload* bytes."""

def address_compare(a: Address, b: Address) -> int:
    """Negative, zero or positive, as *a* is less than, equal to or greater than *b*."""

def csum_diff_addresses(old_src: bytes, new_src: bytes, old_dst: bytes, new_dst: bytes) -> int:
    """What an Internet checksum changes by when these IPv4 addresses, 4 bytes each, change
    (RFC 1624)."""

def csum_diff_ports(old_sport: int, new_sport: int, old_dport: int, new_dport: int) -> int:
    """What an Internet checksum changes by when these ports change (RFC 1624)."""

def csum_apply(check: int, difference: int) -> int:
    """The checksum field *check* after a change of *difference* (RFC 1624, equation 3)."""

def key_tag(key: bytes) -> int:
    """The short hash of a key that its entry carries."""

def seal(key: bytes, entry: bytes) -> bytes:
    """The entry with what follows from its key filled in: tag and checksum difference."""

def pack_key(hook: Hook, flow: Flow) -> bytes: ...
def narrow(key: bytes) -> bytes | None:
    """A key as the table of IPv4 flows has it; None when its addresses are not both IPv4's."""

def idle_ticks(entries: list[bytes | None], now: int) -> list[int | None]:
    """For each of these entries, how long ago at *now* it was last seen, all in ticks; None where
    there is none, or one of no session."""

def pack_entry(entry: Entry, now: int) -> tuple[bytes, bytes] | None:
    """Key and entry, sealed and fresh at *now* (ticks); None when a flow of it is not IPv4's."""

def partner_key(key: bytes, entry: bytes) -> bytes:
    """The key of the entry for the session's other direction."""

def pair_end(config: bytes, proto: int, entry: bytes, partner: bytes | None, now: int) -> int:
    """Whether two entries of a session are over (``enum m2m_end``) at *now*, in ticks."""

def shift_window(window: int, bits: int) -> int:
    """A window field in units that are 2**bits times smaller: at most what there is."""

def add_splice(splice: bytes, right: bytes) -> bytes:
    """``struct m2m_splice`` of a hop that takes over that of its right neighbour, too."""

def apply_splice(splice: bytes, toward: int, packet: bytes) -> bytes:
    """The IPv4 TCP packet, travelling *toward* one side, on the other side of the splice.

    Raises :class:`ValueError` for other packets, those with SYN, and headers that are cut short.
    """

@final
class Translation:
    """One entry under its key, ready to judge and to rewrite packets."""

    def __init__(self, key: bytes, entry: bytes) -> None:
        """Raises :class:`ValueError` when *entry* was not sealed for *key*."""

    def judge(self, *, wire_len: int, ttl: int = 64, now: int = 0) -> tuple[int, int | None]:
        """``enum m2m_verdict`` and, where there is one, the :class:`~m2m.datapath.Reason`.

        *wire_len* is the IP total length of the largest packet this one becomes on the wire,
        *now* the time in ticks.
        """

    def rewrite(self, packet: bytes) -> bytes:
        """The IPv4 packet after the translation.

        Raises :class:`ValueError` for other packets and for headers that are cut short.
        """

    def time_rewrite(self, packet: bytes, rounds: int) -> float:
        """Nanoseconds that one rewrite of *packet* takes, the mean of *rounds*."""

@final
class RuleTable:
    """A policy set's rules in the datapath's own form."""

    def __init__(self, policy: PolicySet) -> None: ...
    def __len__(self) -> int: ...
    def match(self, flow: Flow) -> int | None:
        """The id of the first policy with a rule that holds *flow*, or None."""
