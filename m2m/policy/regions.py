"""Sets of sessions as unions of boxes in 5-tuple space.

A session is a point with five coordinates: source address, destination address, source port,
destination port, protocol (0 for TCP, 1 for UDP; nothing else is steered). A :data:`Block` is a
product of five sets of numbers, each a tuple of spans; a *region* is a list of blocks, which may
overlap. A :data:`Box` is a block with one span in every dimension.

Addresses of both families share one axis (:mod:`m2m.protocol.flow`), so the space also has points
with an IPv4 source and an IPv6 destination, or the reverse. No session is there; :data:`MIXED`
is that void, and counts as covered wherever it matters.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from m2m.policy.syntax import And, Anything, Field, Not, Or, Predicate, Span, Term
from m2m.policy.values import LAST_ADDRESS, LAST_PORT, V4
from m2m.protocol.flow import Proto

__all__ = [
    "MIXED", "PROTOCOLS", "Block", "Box", "Cover", "Empty", "Spans", "TooMany", "boxes_of",
    "cover", "families", "region_of",
]  # fmt: skip

Spans: TypeAlias = tuple[Span, ...]
"""Numbers as inclusive ranges, in order, not touching each other."""
Block: TypeAlias = tuple[Spans, Spans, Spans, Spans, Spans]
Box: TypeAlias = tuple[Span, Span, Span, Span, Span]

PROTOCOLS = tuple(sorted(Proto))
"""What the coordinates 0, 1, ... of the protocol axis stand for."""

_PAIRS = 256  # products looked at for one &, per block allowed: bounds the time
_DIMENSION = {field: index for index, field in enumerate(Field)}
_ALL: Box = (
    (0, LAST_ADDRESS),
    (0, LAST_ADDRESS),
    (0, LAST_PORT),
    (0, LAST_PORT),
    (0, len(PROTOCOLS) - 1),
)
_V6 = ((0, V4[0] - 1), (V4[1] + 1, LAST_ADDRESS))
MIXED: tuple[Box, ...] = tuple(
    (source, destination, *_ALL[2:]) for v6 in _V6 for source, destination in ((V4, v6), (v6, V4))
)
"""The boxes in which source and destination are of different families: no session is there."""


class Empty(Exception):
    """*node* of a predicate matches nothing; *mixed* when only because it mixes families."""

    def __init__(self, node: Predicate, mixed: bool) -> None:
        super().__init__(node, mixed)
        self.node = node
        self.mixed = mixed


class Cover(NamedTuple):
    """What :func:`cover` found."""

    by: frozenset[int] | None  # indices of the boxes that cover; None when a piece is left
    budget: int  # what is left of it


class TooMany(Exception):
    """A region needs more blocks, or a comparison more steps, than allowed."""


def region_of(predicate: Predicate, limit: int, *, negated: bool = False) -> list[Block]:
    """What *predicate* matches, as at most *limit* blocks; or what it does not (*negated*).

    Raises :exc:`TooMany`, and :exc:`Empty` for a part that combines terms no session satisfies
    together.
    """
    match predicate:
        case Anything():
            return [_whole()]
        case Not(inner):
            return region_of(inner, limit, negated=not negated)
        case Term():
            return _term(predicate, negated)
        case And(parts) | Or(parts):
            regions = [region_of(part, limit, negated=negated) for part in parts]
            if isinstance(predicate, And) == negated:  # De Morgan
                joined = _tidy([block for region in regions for block in region])
                _bound(joined, limit)
                return joined
            return _met(predicate, regions, limit)


def boxes_of(region: Sequence[Block], limit: int) -> list[Box]:
    """The boxes of *region*, without those where no session is. Raises :exc:`TooMany`."""
    boxes: list[Box] = []
    for block in region:
        for source, destination, *rest in itertools.product(*block):
            if families(source, destination):
                boxes.append((source, destination, rest[0], rest[1], rest[2]))
            if len(boxes) > limit:
                raise TooMany
    return boxes


def families(source: Span, destination: Span) -> set[int]:
    """Of which families, 4 and 6, sessions between these addresses can be."""
    return _families((source,)) & _families((destination,))


def cover(box: Box, earlier: Sequence[Box], budget: int) -> Cover:
    """Which *earlier* boxes together hold every point of *box*, if they do.

    *budget* bounds the comparisons of two boxes; raises :exc:`TooMany` when it runs out. Depth
    first: where something of the box is left, a free piece usually shows after a few cuts.
    """
    needed: set[int] = set()
    near = [index for index, other in enumerate(earlier) if _meet(box, other) is not None]
    pending: list[tuple[Box, list[int]]] = [(box, near)]
    while pending:
        piece, candidates = pending.pop()
        budget -= 1 + len(candidates)
        if budget < 0:
            raise TooMany
        touching = [
            (overlap, index)
            for index in candidates
            if (overlap := _meet(piece, earlier[index])) is not None
        ]
        if not touching:
            return Cover(None, budget)
        overlap, index = max(touching, key=lambda pair: _size(pair[0]))
        needed.add(index)
        rest = [other for _, other in touching if other != index]
        pending.extend((part, rest) for part in _cut(piece, overlap))
    return Cover(frozenset(needed), budget)


def _whole() -> Block:
    source, destination, sport, dport, proto = _ALL
    return (source,), (destination,), (sport,), (dport,), (proto,)


def _term(term: Term, negated: bool) -> list[Block]:
    dimension = _DIMENSION[term.field]
    spans = term.spans
    if term.field is Field.PROTO:
        spans = tuple((at, at) for at, proto in enumerate(PROTOCOLS) if (proto, proto) in spans)
    if term.negated != negated:
        spans = _complement(spans, _ALL[dimension])
    return [_replaced(_whole(), dimension, spans)] if spans else []


def _met(node: Predicate, regions: list[list[Block]], limit: int) -> list[Block]:
    """The blocks common to all *regions*; smallest first, so that products stay small."""
    result = [_whole()]
    for region in sorted(regions, key=len):
        if len(result) * len(region) > _PAIRS * limit:
            raise TooMany
        pairs = itertools.product(result, region)
        result = _tidy([block for one, other in pairs if (block := _common(one, other))])
        _bound(result, limit)
    if not result:
        raise Empty(node, mixed=False)
    if not any(_families(block[0]) & _families(block[1]) for block in result):
        raise Empty(node, mixed=True)
    return result


def _bound(region: list[Block], limit: int) -> None:
    if len(region) > limit or any(len(spans) > limit for block in region for spans in block):
        raise TooMany


def _common(one: Block, other: Block) -> Block | None:
    spans = [_intersection(a, b) for a, b in zip(one, other, strict=True)]
    return (spans[0], spans[1], spans[2], spans[3], spans[4]) if all(spans) else None


def _tidy(region: list[Block]) -> list[Block]:
    """The same region in fewer blocks: joins blocks that differ in one dimension only."""
    before = -1
    while len(region) != before:
        before = len(region)
        for dimension in range(len(_ALL)):
            groups: dict[tuple[Spans, ...], list[Block]] = {}
            for block in region:
                others = (*block[:dimension], *block[dimension + 1 :])
                groups.setdefault(others, []).append(block)
            region = [
                _replaced(group[0], dimension, _union([block[dimension] for block in group]))
                for group in groups.values()
            ]
    return region


def _replaced(block: Block, dimension: int, spans: Spans) -> Block:
    changed = [*block]
    changed[dimension] = spans
    return (changed[0], changed[1], changed[2], changed[3], changed[4])


def _union(sets: list[Spans]) -> Spans:
    joined: list[Span] = []
    for lo, hi in sorted(span for spans in sets for span in spans):
        if joined and lo <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(hi, joined[-1][1]))
        else:
            joined.append((lo, hi))
    return tuple(joined)


def _intersection(one: Spans, other: Spans) -> Spans:
    common: list[Span] = []
    i = j = 0
    while i < len(one) and j < len(other):
        lo, hi = max(one[i][0], other[j][0]), min(one[i][1], other[j][1])
        if lo <= hi:
            common.append((lo, hi))
        if one[i][1] < other[j][1]:
            i += 1
        else:
            j += 1
    return tuple(common)


def _complement(spans: Spans, whole: Span) -> Spans:
    gaps: list[Span] = []
    start, end = whole
    for lo, hi in spans:
        if start < lo:
            gaps.append((start, lo - 1))
        start = hi + 1
    if start <= end:
        gaps.append((start, end))
    return tuple(gaps)


def _families(spans: Spans) -> set[int]:
    v4 = any(lo <= V4[1] and hi >= V4[0] for lo, hi in spans)
    v6 = any(lo < V4[0] or hi > V4[1] for lo, hi in spans)
    return ({4} if v4 else set()) | ({6} if v6 else set())


def _meet(one: Box, other: Box) -> Box | None:
    (a, b), (c, d), (e, f), (g, h), (i, j) = one
    (k, m), (n, o), (p, q), (r, s), (t, u) = other
    if k > b or a > m or n > d or c > o or p > f or e > q or r > h or g > s or t > j or i > u:
        return None
    return (
        (max(a, k), min(b, m)),
        (max(c, n), min(d, o)),
        (max(e, p), min(f, q)),
        (max(g, r), min(h, s)),
        (max(i, t), min(j, u)),
    )


def _size(box: Box) -> int:
    size = 1
    for lo, hi in box:
        size *= hi - lo + 1
    return size


def _cut(box: Box, hole: Box) -> list[Box]:
    """*box* without *hole*, which lies in it, as boxes that do not overlap."""
    parts: list[Box] = []
    rest = [*box]
    for dimension, (lo, hi) in enumerate(hole):
        first, last = rest[dimension]
        for part in ((first, lo - 1), (hi + 1, last)):
            if part[0] <= part[1]:
                rest[dimension] = part
                parts.append((rest[0], rest[1], rest[2], rest[3], rest[4]))
        rest[dimension] = (lo, hi)
    return parts
