"""The syntax tree of a policy file, and the plain meaning of its predicates.

:func:`matches` is the definition that the compiled table has to agree with; it is what
``m2m-policy explain`` reasons with, too, because it knows which term decided.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple, TypeAlias

from m2m.policy.rules import Asker, ChangeMode, Choose, Fail, Kind, Live, Shows
from m2m.policy.source import Place, Source
from m2m.protocol.flow import Address, Flow, Proto, format_address

__all__ = [
    "STEERED", "And", "Anything", "Field", "GatewayDecl", "InstanceDecl", "NfDecl", "Not", "Or",
    "PolicyFile", "Predicate", "RuleDecl", "Span", "Step", "Term", "matches", "refusals",
]  # fmt: skip

STEERED = frozenset(Proto)
"""The protocols a rule can match at all; packets of others are never touched."""

Span: TypeAlias = tuple[int, int]
"""An inclusive range of numbers: addresses as 128-bit integers, ports, protocol numbers."""


class Field(StrEnum):
    """What a term of a predicate looks at."""

    SRCIP = "srcip"
    DSTIP = "dstip"
    SRCPORT = "srcport"
    DSTPORT = "dstport"
    PROTO = "proto"

    def of(self, flow: Flow) -> int:
        """The field's number in *flow*."""
        match self:
            case Field.SRCIP:
                return int.from_bytes(flow.src)
            case Field.DSTIP:
                return int.from_bytes(flow.dst)
            case Field.SRCPORT:
                return flow.sport
            case Field.DSTPORT:
                return flow.dport
            case Field.PROTO:
                return flow.proto

    def text(self, flow: Flow) -> str:
        """The field of *flow* as a person writes it."""
        match self:
            case Field.SRCIP:
                return format_address(flow.src)
            case Field.DSTIP:
                return format_address(flow.dst)
            case Field.PROTO if flow.proto in STEERED:
                return Proto(flow.proto).name.lower()
            case _:
                return str(self.of(flow))


class Term(NamedTuple):
    """``field = value``, or ``!=`` when *negated*; *spans* are in order and do not touch."""

    field: Field
    negated: bool
    spans: tuple[Span, ...]
    text: str
    place: Place


class Anything(NamedTuple):
    """``match(*)``: every session."""

    place: Place


class Not(NamedTuple):
    """``~ inner``."""

    inner: Predicate
    text: str
    place: Place


class And(NamedTuple):
    """``a & b & ...``."""

    parts: tuple[Predicate, ...]
    place: Place


class Or(NamedTuple):
    """``a | b | ...``."""

    parts: tuple[Predicate, ...]
    place: Place


Predicate: TypeAlias = Term | Anything | Not | And | Or


class InstanceDecl(NamedTuple):
    """``name = address`` within an NF type."""

    name: str
    address: Address
    place: Place


class NfDecl(NamedTuple):
    """``nf name kind [port=...] [shows=...] [choose=...] { ... }``."""

    name: str
    kind: Kind
    choose: Choose
    instances: tuple[InstanceDecl, ...]
    place: Place
    port: int = 0  # a proxy: where it listens
    shows: Shows = Shows.CLIENT  # a proxy: what is seen behind it


class Step(NamedTuple):
    """One NF type of a chain."""

    nf: str
    place: Place


class RuleDecl(NamedTuple):
    """``match(predicate) >> {chain} [fail=...] [change=...] ...``; an empty chain exempts what it
    matches."""

    predicate: Predicate
    chain: tuple[Step, ...]
    fail: Fail
    change: ChangeMode
    live: Live
    allow: tuple[Asker, ...]
    text: str
    place: Place


class GatewayDecl(NamedTuple):
    """``gateway name = address serves network, ...``."""

    name: str
    address: Address
    serves: tuple[Span, ...]
    place: Place


class PolicyFile(NamedTuple):
    """A whole policy file: NF types, rules and gateways, each in the file's order."""

    source: Source
    nfs: tuple[NfDecl, ...]
    rules: tuple[RuleDecl, ...]
    gateways: tuple[GatewayDecl, ...] = ()


def matches(predicate: Predicate, flow: Flow) -> bool:
    """Whether *flow*, in the direction client to server, satisfies *predicate*."""
    match predicate:
        case Anything():
            return flow.proto in STEERED
        case Term(field, negated, spans):
            value = field.of(flow)
            inside = any(lo <= value <= hi for lo, hi in spans)
            return flow.proto in STEERED and inside != negated
        case Not(inner):
            return flow.proto in STEERED and not matches(inner, flow)
        case And(parts):
            return all(matches(part, flow) for part in parts)
        case Or(parts):
            return any(matches(part, flow) for part in parts)


def refusals(predicate: Predicate, flow: Flow) -> tuple[str, ...]:
    """Why *predicate* does not match *flow*: the terms that failed, one sentence each.

    Of an ``&`` the first failing part is told, of an ``|`` every part. Empty when it matches.
    """
    if matches(predicate, flow):
        return ()
    match predicate:
        case Term(field, _, _, text):
            return (f"{text} failed: {field} is {field.text(flow)}",)
        case Not(_, text):
            return (f"{text} failed: what it negates is true of this session",)
        case And(parts):
            return next(why for part in parts if (why := refusals(part, flow)))
        case Or(parts):
            return tuple(why for part in parts for why in refusals(part, flow))
        case Anything():
            return (f"protocol {flow.proto} is not steered, only TCP and UDP are",)
