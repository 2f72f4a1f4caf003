"""Flows: the 5-tuple by which everything in M2M is named.

Addresses are kept as 16 bytes in network order, IPv4 as IPv4-mapped IPv6 (RFC 4291 §2.5.5.2),
so that one key layout serves both families in the protocol, in the policy rules and in the
kernel's tables (``kmod/core/``).
"""

from __future__ import annotations

import ipaddress
import struct
from enum import IntEnum
from typing import NamedTuple, TypeAlias

Address: TypeAlias = bytes
"""An IP address: 16 bytes in network order, IPv4 mapped into ``::ffff:0:0/96``."""

V4_PREFIX = b"\0" * 10 + b"\xff\xff"
_PACKED = struct.Struct("!16s16sHHB3x")
PACKED_SIZE = _PACKED.size


class Proto(IntEnum):
    """The transport protocols M2M steers (IANA protocol numbers)."""

    TCP = 6
    UDP = 17


def parse_address(text: str) -> Address:
    """Turn ``10.0.1.2`` or ``2001:db8::1`` into an :data:`Address`.

    Raises :class:`ValueError` when *text* is not an IP address.
    """
    ip = ipaddress.ip_address(text)
    return ip.packed if ip.version == 6 else V4_PREFIX + ip.packed


def format_address(address: Address) -> str:
    """The usual text of an address: dotted quad for IPv4, RFC 5952 for IPv6."""
    if address.startswith(V4_PREFIX):
        return "%d.%d.%d.%d" % tuple(address[12:])
    return str(ipaddress.IPv6Address(address))


def is_ipv4(address: Address) -> bool:
    """Whether *address* is an IPv4 address in its mapped form."""
    return address.startswith(V4_PREFIX)


class Flow(NamedTuple):
    """One direction of a conversation, as seen in a packet's headers."""

    proto: int
    src: Address
    sport: int
    dst: Address
    dport: int

    @classmethod
    def of(cls, proto: int, src: str, sport: int, dst: str, dport: int) -> Flow:
        """Build a flow from addresses in text form."""
        return cls(proto, parse_address(src), sport, parse_address(dst), dport)

    def reverse(self) -> Flow:
        """The same conversation seen in the other direction."""
        return Flow(self.proto, self.dst, self.dport, self.src, self.sport)

    def pack(self) -> bytes:
        """40 bytes: src, dst, sport, dport (network order), proto, three zero bytes.

        This is ``struct m2m_tuple`` of ``kmod/core``.
        """
        return _PACKED.pack(self.src, self.dst, self.sport, self.dport, self.proto)

    @classmethod
    def unpack(cls, data: bytes) -> Flow:
        """The inverse of :meth:`pack`; *data* must be exactly 40 bytes."""
        src, dst, sport, dport, proto = _PACKED.unpack(data)
        return cls(proto, src, sport, dst, dport)

    def __str__(self) -> str:
        def end(address: Address, port: int) -> str:
            text = format_address(address)
            return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"

        try:
            name = Proto(self.proto).name.lower()
        except ValueError:
            name = f"proto {self.proto}"
        return f"{end(self.src, self.sport)} > {end(self.dst, self.dport)} {name}"
