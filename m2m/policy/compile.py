"""From syntax tree to the flat table that a datapath evaluates without Python.

Every rule becomes rows, boxes in 5-tuple space (:mod:`m2m.policy.regions`); the first row that
holds a session decides. A row for both protocols spans 6 to 17: the table is only ever asked
about TCP and UDP, and :func:`evaluate` keeps to that.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import NamedTuple

from m2m.policy.choose import assign
from m2m.policy.language import parse_source
from m2m.policy.parts import taken_before
from m2m.policy.regions import (
    MIXED,
    PROTOCOLS,
    Box,
    Empty,
    TooMany,
    boxes_of,
    cover,
    families,
    region_of,
)
from m2m.policy.rules import (
    FlatRule,
    Gateway,
    Instance,
    Kind,
    Network,
    NfType,
    Policy,
    PolicySet,
)
from m2m.policy.source import PolicyError, Source
from m2m.policy.syntax import STEERED, NfDecl, PolicyFile, RuleDecl
from m2m.protocol.flow import Address, Flow, Proto, format_address, is_ipv4

__all__ = ["MAX_ROWS", "compile_file", "compile_policy", "evaluate", "unserved_families"]

MAX_ROWS = 1024
"""Rows of a table, at most, all rules together."""

_COMPARISONS = 2_000_000  # of two boxes, per rule: a second or two, and far beyond sane rules


def compile_file(
    path: str | os.PathLike[str], generation: int = 0, max_rows: int = MAX_ROWS
) -> PolicySet:
    """Read and compile the policy file at *path*.

    Raises :exc:`~m2m.errors.ConfigError` when it cannot be read and :exc:`PolicyError` when
    something in it is wrong.
    """
    return compile_policy(parse_source(Source.read(path)), generation, max_rows)


def compile_policy(policy: PolicyFile, generation: int = 0, max_rows: int = MAX_ROWS) -> PolicySet:
    """Compile a parsed policy into at most *max_rows* rows. Raises :exc:`PolicyError`."""
    nfs = tuple(
        NfType(
            nf.name, nf.kind, nf.choose, tuple(Instance(i.name, i.address) for i in nf.instances),
            nf.port, nf.shows,
        )
        for nf in policy.nfs
    )  # fmt: skip
    _check_proxies(policy)
    named = {nf.name: nf for nf in nfs}
    table = _Table(policy.source, max_rows)
    policies = []
    for number, rule in enumerate(policy.rules):
        boxes = table.add(number, rule)
        matched = set[int]().union(*(families(box[0], box[1]) for box in boxes))
        _check_chain(policy.source, rule, named, matched)
        _check_protocol(policy.source, rule, named, boxes)
        chain = tuple(step.nf for step in rule.chain)
        policies.append(
            Policy(
                number, rule.text, rule.place.line, chain, rule.fail, rule.change, rule.live,
                rule.allow,
            )
        )  # fmt: skip
    gateways = tuple(
        Gateway(
            one.name,
            one.address,
            tuple(Network(low.to_bytes(16), high.to_bytes(16)) for low, high in one.serves),
        )
        for one in policy.gateways
    )
    return PolicySet(generation, tuple(policies), tuple(map(_flat, table.rows)), nfs, gateways)


def evaluate(policy_set: PolicySet, flow: Flow) -> Policy | None:
    """The policy that decides over *flow* (client to server); None: the session is left alone.

    The reference for every datapath's own evaluation of the table.
    """
    if flow.proto not in STEERED:
        return None
    for rule in policy_set.rules:
        if (
            rule.src_lo <= flow.src <= rule.src_hi
            and rule.dst_lo <= flow.dst <= rule.dst_hi
            and rule.sport_lo <= flow.sport <= rule.sport_hi
            and rule.dport_lo <= flow.dport <= rule.dport_hi
            and rule.proto_lo <= flow.proto <= rule.proto_hi
        ):
            # By its id, not its place: an agent's set lacks the policies that do not concern it.
            return next(policy for policy in policy_set.policies if policy.id == rule.policy)
    return None


def unserved_families(policy_set: PolicySet, policy: Policy) -> tuple[str, ...]:
    """The families that *policy* matches but whose sessions no choice of instances can serve.

    Their sessions meet the policy's ``fail``. Worth a note, not an error: a predicate that
    names no address covers both families.
    """
    matched: set[int] = set()
    for rule in policy_set.rules:
        if rule.policy == policy.id:
            matched |= families(
                (int.from_bytes(rule.src_lo), int.from_bytes(rule.src_hi)),
                (int.from_bytes(rule.dst_lo), int.from_bytes(rule.dst_hi)),
            )
    nfs = {nf.name: nf for nf in policy_set.nfs}
    chain = [nfs[name] for name in policy.chain]
    return tuple(f"IPv{family}" for family in sorted(matched) if not _servable(chain, family))


class _Row(NamedTuple):
    policy: int
    line: int
    box: Box


class _Table:
    """The rows so far. A row that earlier ones cover is left out; a rule may not lose all."""

    def __init__(self, source: Source, max_rows: int) -> None:
        self.rows: list[_Row] = []
        self._source = source
        self._max_rows = max_rows

    def add(self, number: int, rule: RuleDecl) -> list[Box]:
        """Append the rows of *rule*; returns all its boxes, the left-out ones too."""
        boxes = self._boxes(rule)
        lines: set[int] = set()
        free = undecided = False
        budget = _COMPARISONS
        for box in boxes:
            earlier = [*MIXED, *(row.box for row in self.rows)]
            try:
                by, budget = cover(box, earlier, budget)
            except TooMany:
                undecided = True
                budget = 0
            else:
                if by is not None:
                    lines |= {self.rows[i - len(MIXED)].line for i in by if i >= len(MIXED)}
                    continue
                free = True
            self.rows.append(_Row(number, rule.place.line, box))
        if undecided and not free:
            raise self._error(
                rule,
                "rules simple enough to tell whether this one can be reached",
                f"{len(self.rows)} rows that overlap in too many ways",
                "write fewer alternatives over several fields, or disjoint ones",
            )
        if not free:
            raise self._error(
                rule,
                "a rule that some session reaches",
                f"one whose every session {_lines(lines)} already",
                "the first match wins; move this rule up, narrow the earlier ones, or delete it",
            )
        if len(self.rows) > self._max_rows:
            rows = Counter(row.line for row in self.rows)
            line, most = rows.most_common(1)[0]
            raise self._error(
                rule,
                f"at most {self._max_rows} rows in the whole table",
                f"{len(self.rows)} with the {rows[rule.place.line]} of this rule",
                f"the rule in line {line} has most, {most}; simplify it",
            )
        return boxes

    def _boxes(self, rule: RuleDecl) -> list[Box]:
        try:
            region = region_of(rule.predicate, self._max_rows)
            if not region:
                raise Empty(rule.predicate, mixed=False)
            return boxes_of(region, self._max_rows)
        except TooMany:
            raise self._error(
                rule,
                f"a rule of at most {self._max_rows} rows",
                "one that needs more",
                "alternatives over several fields multiply with what & joins them to; split the "
                "rule, or exempt some sessions by an earlier rule with an empty chain {}",
            ) from None
        except Empty as empty:
            expected = "terms that one session can satisfy together"
            if empty.mixed:
                found, advice = (
                    "an IPv4 address for one end and an IPv6 address for the other",
                    "both ends of a session are of one family; write a rule for each, or use |",
                )
            else:
                found, advice = (
                    "terms that exclude each other",
                    "this part never matches; did you mean | instead of &?",
                )
            raise PolicyError(self._source, empty.node.place, expected, found, advice) from None

    def _error(self, rule: RuleDecl, expected: str, found: str, advice: str) -> PolicyError:
        return PolicyError(self._source, rule.place, expected, found, advice)


def _lines(lines: set[int]) -> str:
    numbers = [str(line) for line in sorted(lines)]
    if len(numbers) == 1:
        return f"line {numbers[0]} takes"
    return f"lines {', '.join(numbers[:-1])} and {numbers[-1]} take"


def _check_chain(source: Source, rule: RuleDecl, nfs: dict[str, NfType], matched: set[int]) -> None:
    """Point at the first step that leaves no family of the rule a choice of instances."""
    for count, step in enumerate(rule.chain, start=1):
        chain = [nfs[earlier.nf] for earlier in rule.chain[:count]]
        if any(_servable(chain, family) for family in matched):
            continue
        served = {family for family in matched if all(_of_family(nf, family) for nf in chain[:-1])}
        if not any(_of_family(chain[-1], family) for family in served):
            names = " or ".join(f"IPv{family}" for family in sorted(served))
            raise PolicyError(
                source,
                step.place,
                f"an NF type with an instance for {names}",
                f"'{step.nf}' without one",
                "what the rule matches and its chain so far are of that family, and headers are "
                "not translated between families; declare such an instance",
            )
        raise PolicyError(
            source,
            step.place,
            "a chain whose instances can be on different hosts",
            f"'{step.nf}', whose hosts earlier NF types of the chain need",
            "a session passes a host once; declare another instance on a host of its own",
        )


def _check_proxies(policy: PolicyFile) -> None:
    """What comes to a host's proxy is led to one port."""
    seen: dict[Address, NfDecl] = {}
    for nf in policy.nfs:
        for one in nf.instances if nf.kind is Kind.PROXY else ():
            other = seen.setdefault(one.address, nf)
            if other is not nf:
                raise PolicyError(
                    policy.source,
                    one.place,
                    "a host that runs no other proxy",
                    f"{format_address(one.address)}, which runs {other.name}",
                    "a host runs one proxy at most; use another address of it, or another host",
                )


def _check_protocol(
    source: Source, rule: RuleDecl, nfs: dict[str, NfType], boxes: list[Box]
) -> None:
    if all(PROTOCOLS[box[4][1]] == Proto.TCP for box in boxes):
        return
    for step in rule.chain:
        if nfs[step.nf].kind is Kind.PROXY:
            raise PolicyError(
                source,
                step.place,
                "a rule of TCP sessions alone",
                f"a proxy, '{step.nf}', in one that matches UDP",
                "proxies have TCP connections: add & proto=tcp",
            )


def _servable(chain: list[NfType], family: int) -> bool:
    options = [
        [one for one in _of_family(nf, family) if one.address not in taken]
        for nf, taken in zip(chain, taken_before(chain), strict=False)
    ]
    return assign(options) is not None


def _of_family(nf: NfType, family: int) -> list[Instance]:
    return [one for one in nf.instances if is_ipv4(one.address) == (family == 4)]


def _flat(row: _Row) -> FlatRule:
    (src_lo, src_hi), (dst_lo, dst_hi), sports, dports, (proto_lo, proto_hi) = row.box
    return FlatRule(
        row.policy,
        src_lo.to_bytes(16),
        src_hi.to_bytes(16),
        dst_lo.to_bytes(16),
        dst_hi.to_bytes(16),
        *sports,
        *dports,
        PROTOCOLS[proto_lo],
        PROTOCOLS[proto_hi],
    )
