"""Why a session is treated as it is: the reasoning behind ``m2m-policy explain``."""

from __future__ import annotations

from enum import StrEnum

import msgspec
from msgspec import structs

from m2m.errors import ConfigError
from m2m.policy.choose import ChainError, resolve
from m2m.policy.compile import compile_policy, evaluate
from m2m.policy.gateways import gateway_of
from m2m.policy.parts import parts_of
from m2m.policy.rules import Choose, Fail, Kind, Policy, PolicySet
from m2m.policy.syntax import Field, PolicyFile, refusals
from m2m.protocol.flow import Flow, Proto, format_address, is_ipv4, parse_address

__all__ = ["Explanation", "Hop", "Missed", "Outcome", "as_predicate", "explain", "parse_flow"]

_FORM = (
    "write it as 'tcp 10.0.1.5:4000 10.0.9.1:80' or '10.0.1.5:4000 > 10.0.9.1:80 tcp', "
    "IPv6 addresses in brackets"
)


class Outcome(StrEnum):
    """What becomes of a session."""

    STEERED = "steered"  # through the chain
    EXEMPT = "exempt"  # a rule with an empty chain leaves it alone
    UNMATCHED = "unmatched"  # no rule matches: left alone
    PASSED = "passed"  # its chain cannot be made, and its rule fails open
    DROPPED = "dropped"  # its chain cannot be made, and its rule fails closed


class Missed(msgspec.Struct, frozen=True):
    """An earlier rule that did not match, and the terms that failed."""

    line: int
    text: str
    why: tuple[str, ...]


class Hop(msgspec.Struct, frozen=True):
    """One middlebox of the chain."""

    nf: str
    kind: str
    choose: str
    instance: str
    address: str


class Explanation(msgspec.Struct, frozen=True):
    """What becomes of a session, by which rule, and why by none before it."""

    session: str
    outcome: Outcome
    line: int | None  # of the rule that matches
    text: str | None
    fail: str | None
    chain: tuple[Hop, ...]
    missed: tuple[Missed, ...]
    notes: tuple[str, ...]
    change: str | None = None  # of the rule, as are the two that follow
    live: str | None = None
    allow: tuple[str, ...] = ()


def parse_flow(text: str) -> Flow:
    """A session written as ``tcp 10.0.1.5:4000 10.0.9.1:80`` or as :class:`Flow` prints it.

    Raises :exc:`ConfigError`.
    """
    words = [word for word in text.split() if word not in (">", "->", "→")]
    if len(words) != 3:
        raise ConfigError(f"cannot read session '{text}': {_FORM}")
    name = words.pop(0 if ":" not in words[0] else 2).lower()
    protos = {proto.name.lower(): proto for proto in Proto}
    protos |= {str(proto.value): proto for proto in Proto}
    if name not in protos:
        raise ConfigError(
            f"cannot read session '{text}': '{name}' is no protocol that M2M steers; use tcp or udp"
        )
    (src, sport), (dst, dport) = (_endpoint(word, text) for word in words)
    if is_ipv4(src) != is_ipv4(dst):
        raise ConfigError(
            f"cannot read session '{text}': both ends of a session are of one address family"
        )
    return Flow(protos[name], src, sport, dst, dport)


def as_predicate(flow: Flow) -> str:
    """The predicate that this session alone matches."""
    return " & ".join(f"{field}={field.text(flow)}" for field in Field)


def explain(policy: PolicyFile, flow: Flow) -> Explanation:
    """Say what becomes of *flow* (client to server). Raises :exc:`PolicyError`.

    Nobody has reported loads here, so ``least-loaded`` chooses as if all were equal.
    """
    policy_set = compile_policy(policy)
    matched = evaluate(policy_set, flow)
    before = policy.rules if matched is None else policy.rules[: matched.id]
    missed = tuple(
        Missed(rule.place.line, rule.text, refusals(rule.predicate, flow)) for rule in before
    )
    if matched is None:
        return Explanation(
            str(flow), Outcome.UNMATCHED, None, None, None, (), missed,
            ("no rule matches; the session goes straight to its destination",),
        )  # fmt: skip
    chain: tuple[Hop, ...] = ()
    notes: tuple[str, ...]
    if not matched.chain:
        outcome = Outcome.EXEMPT
        notes = ("the chain is empty; the session goes straight to its destination",)
    else:
        try:
            chain = _hops(policy_set, matched, flow)
            outcome = Outcome.STEERED
            notes = (*_notes(chain), *_gateways(policy_set, flow))
        except ChainError as error:
            outcome = Outcome.PASSED if matched.fail is Fail.OPEN else Outcome.DROPPED
            notes = (str(error),)
    fail = str(matched.fail) if matched.chain else None
    return Explanation(
        str(flow), outcome, matched.line, matched.text, fail, chain, missed, notes,
        str(matched.change), str(matched.live), tuple(map(str, matched.allow)),
    )  # fmt: skip


def _hops(policy_set: PolicySet, policy: Policy, flow: Flow) -> tuple[Hop, ...]:
    ways = {nf.name: nf.choose for nf in policy_set.nfs}
    return tuple(
        Hop(
            one.nf_type,
            str(one.kind),
            str(ways[one.nf_type]),
            one.instance_name,
            format_address(one.address),
        )
        for part in parts_of(policy_set, policy)
        for one in resolve(
            policy_set, structs.replace(policy, chain=part.types), flow, taken=part.taken
        )
    )


def _notes(chain: tuple[Hop, ...]) -> tuple[str, ...]:
    notes = [
        f"{hop.nf}: the session ends at this proxy; what is behind it is chosen when it connects"
        for hop in chain
        if hop.kind == Kind.PROXY
    ]
    if any(hop.choose == Choose.LEAST_LOADED for hop in chain):
        notes.append("least-loaded: the loads of the moment decide; shown as if all were equal")
    if any(hop.choose == Choose.AGENT for hop in chain):
        notes.append("agent: the client's agent passes over instances that lately did not answer")
    return tuple(notes)


def _gateways(policy_set: PolicySet, flow: Flow) -> tuple[str, ...]:
    """Who stands for its ends. They may run a part of the chain, which then needs no leg to it."""
    notes = []
    for what, host in (("begins", flow.src), ("ends", flow.dst)):
        gateway = gateway_of(policy_set, host)
        if gateway is not None:
            address = format_address(gateway.address)
            notes.append(
                f"it {what} at the gateway {gateway.name}, {address}, which serves "
                f"{format_address(host)}"
            )
    return tuple(notes)


def _endpoint(word: str, text: str) -> tuple[bytes, int]:
    host, colon, port = word.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = parse_address(host[1:-1] if bracketed else host)
    except ValueError:
        raise ConfigError(
            f"cannot read session '{text}': '{word}' is not ADDRESS:PORT; {_FORM}"
        ) from None
    if not colon or (":" in host) != bracketed:
        raise ConfigError(f"cannot read session '{text}': '{word}' needs brackets; {_FORM}")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 0xFFFF):
        raise ConfigError(f"cannot read session '{text}': '{port}' is no port from 0 to 65535")
    return address, int(port)
