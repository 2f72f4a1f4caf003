"""The values of a policy file: addresses, prefixes, ports, ranges, protocols.

Each function takes the word as written and returns spans of numbers, or raises :exc:`Wrong`.
"""

from __future__ import annotations

import ipaddress
import re

from m2m.policy.source import shown
from m2m.policy.syntax import Field, Span
from m2m.protocol.flow import Address, Proto, format_address

__all__ = ["LAST_ADDRESS", "LAST_PORT", "V4", "Wrong", "host_address", "spans_of"]

LAST_ADDRESS = (1 << 128) - 1
LAST_PORT = 0xFFFF
V4: Span = (0xFFFF << 32, (0xFFFF << 32) + 0xFFFF_FFFF)
"""Where IPv4 addresses lie among all addresses (RFC 4291 §2.5.5.2)."""

_NUMBER = re.compile(r"[0-9]{1,9}", re.ASCII)
_AN_ADDRESS = "an address such as 10.0.1.2 or 2001:db8::2"


class Wrong(Exception):
    """A value that cannot stand; *at* is its offset within the word."""

    def __init__(self, expected: str, found: str, advice: str = "", at: int = 0) -> None:
        super().__init__(expected, found, advice)
        self.expected = expected
        self.found = found
        self.advice = advice
        self.at = at


def spans_of(field: Field, word: str) -> tuple[Span, ...]:
    """The numbers that *word* stands for as a value of *field*."""
    match field:
        case Field.SRCIP | Field.DSTIP:
            return _addresses(word)
        case Field.SRCPORT | Field.DSTPORT:
            return (_ports(word),)
        case Field.PROTO:
            return (_protocol(word),)


def host_address(word: str) -> Address:
    """The address of an NF instance: one that a packet can be sent to."""
    if "/" in word or "-" in word:
        raise Wrong(_AN_ADDRESS, shown(word), "an instance runs on one host; name each by itself")
    value = _address(word)
    address = value.to_bytes(16)
    ip = ipaddress.ip_address(format_address(address))
    if ip.is_multicast or ip.is_unspecified or word == "255.255.255.255":
        raise Wrong(
            "the address of one host", shown(word), "nothing can be sent to one NF instance there"
        )
    return address


def _addresses(word: str) -> tuple[Span, ...]:
    if "/" in word:
        return _family(_prefix(word))
    low, dash, high = word.partition("-")
    lo = _address(low)
    hi = _address(high, len(low) + 1) if dash else lo
    if _is_v4(lo) != _is_v4(hi):
        raise Wrong(
            "both ends of a range in one family",
            shown(word),
            "IPv4 and IPv6 addresses have no order between them; write two terms with |",
        )
    if lo > hi:
        raise Wrong("a range whose first address is the lower", shown(word), f"write {high}-{low}")
    return _family((lo, hi))


def _family(span: Span) -> tuple[Span, ...]:
    """An IPv6 span without the block that stands for IPv4: ``::/0`` means all IPv6 only."""
    lo, hi = span
    if _is_v4(lo) or hi < V4[0] or lo > V4[1]:
        return (span,)
    return ((lo, V4[0] - 1), (V4[1] + 1, hi))


def _prefix(word: str) -> Span:
    base, _, length = word.partition("/")
    start = _address(base)
    bits = 32 if _is_v4(start) else 128
    at = len(base) + 1
    if not _NUMBER.fullmatch(length) or int(length) > bits:
        raise Wrong(
            f"a prefix length from 0 to {bits}",
            shown(length),
            "it is the number of leading bits that count, as in 10.0.0.0/8",
            at,
        )
    host_bits = bits - int(length)
    lo = start >> host_bits << host_bits
    if lo != start:
        network = format_address(lo.to_bytes(16))
        raise Wrong(
            "a prefix without host bits",
            shown(word),
            f"write {network}/{length} for the network or {base} for the one host",
        )
    return lo, lo + (1 << host_bits) - 1


def _address(word: str, at: int = 0) -> int:
    try:
        ip = ipaddress.ip_address(word)
    except ValueError:
        advice = "names are not looked up; write the number" if word[:1].isalpha() else ""
        raise Wrong(_AN_ADDRESS, shown(word), advice, at) from None
    if ip.version == 4:
        return V4[0] + int(ip)
    if _is_v4(int(ip)):
        raise Wrong(
            "an IPv4 address in its usual form",
            shown(word),
            f"write {format_address(ip.packed)}",
            at,
        )
    return int(ip)


def _ports(word: str) -> Span:
    low, dash, high = word.partition("-")
    lo = _port(low, 0)
    hi = _port(high, len(low) + 1) if dash else lo
    if lo > hi:
        raise Wrong("a range whose first port is the lower", shown(word), f"write {hi}-{lo}")
    return lo, hi


def _port(word: str, at: int) -> int:
    if not _NUMBER.fullmatch(word):
        advice = "names of services are not looked up; write the number" if word.isalpha() else ""
        raise Wrong("a port such as 80 or a range such as 8000-8099", shown(word), advice, at)
    if int(word) > LAST_PORT:
        raise Wrong(f"a port from 0 to {LAST_PORT}", word, "ports have 16 bits", at)
    return int(word)


def _protocol(word: str) -> Span:
    for proto in Proto:
        if word.lower() in (proto.name.lower(), str(proto.value)):
            return proto, proto
    raise Wrong(
        "tcp, udp, 6 or 17",
        shown(word),
        "M2M steers TCP and UDP sessions and never touches other packets",
    )


def _is_v4(value: int) -> bool:
    return V4[0] <= value <= V4[1]
