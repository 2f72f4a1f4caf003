"""What became of a session's packets between two places, counted from what passed both of them.

The two places are the hosts at the ends of a chain (:mod:`m2m.lab.sightings` watches them), with
any number of paths between. Neither agents nor addresses are asked what belongs together: legs
come and go when a chain changes, but sequence numbers and datagram numbers stay, so a new leg is
that of the session whose numbers it continues.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import NamedTuple

import msgspec

from m2m.lab.sightings import Seen
from m2m.protocol.flow import Proto

_NEAR, _FAR = 0, 1
_UP, _DOWN = 0, 1
_CLOSE = 1 << 28  # numbers of one session differ by less at any moment: 2 s at 1 Gbit/s


class Passage(msgspec.Struct):
    """One direction of one session. A packet is what passed in one piece, such as 64 kB of TCP.

    *units* are bytes of TCP's sequence space (retransmissions count again) or datagrams.
    """

    packets: int = 0  # that entered
    units: int = 0
    lost: int = 0  # packets that entered and did not leave as a whole
    lost_units: int = 0
    lost_acks: int = 0  # packets without data that did not leave
    duplicated: int = 0  # packets that left once more than they entered
    duplicated_units: int = 0
    # Packets that left behind one that their sender had sent later: with data; without (mere
    # acknowledgements of TCP) among each other; one kind behind the other.
    reordered: int = 0
    reordered_acks: int = 0
    acks_ahead: int = 0
    repeated: int = 0  # packets that entered with nothing but units that had entered before
    pause: float = 0.0  # s, the longest time in which no data left
    ways: list[tuple[str, str]] = []  # links by which data entered and left, each time it changed

    def add(self, other: Passage) -> None:
        """Count another session, or the other direction, in; its ways are not kept."""
        for name in self.__struct_fields__:
            mine, others = getattr(self, name), getattr(other, name)
            if name == "pause":
                setattr(self, name, max(mine, others))
            elif name != "ways":
                setattr(self, name, mine + others)

    @property
    def unharmed(self) -> bool:
        """Whether nothing was lost or came twice."""
        return not (self.lost or self.lost_acks or self.duplicated)


class Crossing(NamedTuple):
    """Both directions of one session, as seen from the near place."""

    up: Passage
    down: Passage


class _Frame(NamedTuple):
    seen: Seen
    first: int  # unwrapped

    @property
    def end(self) -> int:
        return self.first + self.seen.units


@dataclass
class _Session:
    """What has passed of one session at either place, in either direction."""

    # Next number of each direction, unwrapped; None where none was seen.
    following: list[int | None] = field(default_factory=lambda: [None, None])
    frames: dict[tuple[int, int], list[_Frame]] = field(
        default_factory=lambda: {(p, d): [] for p in (_NEAR, _FAR) for d in (_UP, _DOWN)}
    )

    def distance(self, seen: Seen, way: int) -> int | None:
        """How far the numbers of *seen* are from this session's; None: too far to be of it."""
        total = 0
        for number, following in ((seen.first, self.following[way]),
                                  (seen.ack, self.following[1 - way])):  # fmt: skip
            if number is None or following is None:
                continue
            apart = abs(_signed(number - following))
            if apart >= _CLOSE:
                return None
            total += apart
        return total

    def add(self, place: int, way: int, seen: Seen) -> None:
        base = self.following[way]
        tcp = seen.proto == Proto.TCP
        first = seen.first if base is None or not tcp else base + _signed(seen.first - base)
        self.frames[place, way].append(_Frame(seen, first))
        self.following[way] = max(first + seen.units, base or 0)
        if seen.ack is not None and self.following[1 - way] is None:
            self.following[1 - way] = seen.ack


def _signed(difference: int) -> int:
    """The difference of two sequence numbers, which wrap around."""
    return (difference + (1 << 31)) % (1 << 32) - (1 << 31)


def crossings(near: Iterable[Seen], far: Iterable[Seen]) -> list[Crossing]:
    """The sessions that passed *near* or *far*, and what became of their packets in between."""
    streams = _Streams()
    datagrams: dict[int | None, _Session] = {}
    merged = heapq.merge(
        ((seen.time, _NEAR, seen) for seen in near),
        ((seen.time, _FAR, seen) for seen in far),
        key=lambda one: one[:2],
    )
    for _, place, seen in merged:
        way = _UP if seen.outgoing == (place == _NEAR) else _DOWN
        if seen.proto == Proto.UDP:
            session = datagrams.setdefault(seen.flow, _Session())
        else:
            session = streams.of(place, way, seen)
        session.add(place, way, seen)
    return [
        Crossing(
            _passage(one.frames[_NEAR, _UP], one.frames[_FAR, _UP]),
            _passage(one.frames[_FAR, _DOWN], one.frames[_NEAR, _DOWN]),
        )
        for one in (*streams.sessions, *datagrams.values())
    ]


def total(found: Iterable[Crossing]) -> Passage:
    """Both directions of all sessions together."""
    added = Passage()
    for crossing in found:
        added.add(crossing.up)
        added.add(crossing.down)
    return added


class _Streams:
    """The TCP sessions, and which legs are theirs."""

    def __init__(self) -> None:
        self.sessions: list[_Session] = []
        self._legs: dict[tuple[int, bytes], _Session] = {}
        self._opened: dict[int, _Session] = {}  # by the number of their SYN

    def of(self, place: int, way: int, seen: Seen) -> _Session:
        """The session whose numbers *seen* continues; a new one if there is none."""
        leg = (place, seen.leg if way == _UP else _reversed(seen.leg))
        if seen.syn and seen.ack is None:
            if seen.first not in self._opened:
                self._opened[seen.first] = self._new()
            session = self._legs[leg] = self._opened[seen.first]
            return session
        known = self._legs.get(leg)
        if known is None or known.distance(seen, way) is None:
            known = self._legs[leg] = self._nearest(seen, way) or self._new()
        return known

    def _nearest(self, seen: Seen, way: int) -> _Session | None:
        near = [
            (apart, i)
            for i, session in enumerate(self.sessions)
            if (apart := session.distance(seen, way)) is not None
        ]
        return self.sessions[min(near)[1]] if near else None

    def _new(self) -> _Session:
        self.sessions.append(_Session())
        return self.sessions[-1]


def _reversed(leg: bytes) -> bytes:
    return leg[4:8] + leg[:4] + leg[10:12] + leg[8:10]


def _passage(entered: Sequence[_Frame], left: Sequence[_Frame]) -> Passage:
    lost, duplicated = _differences(entered, left)
    data = [frame for frame in left if frame.seen.units]
    of_data, of_acks = _late(data), _late(frame for frame in left if not frame.seen.units)
    acks_in = Counter(frame.seen.ack for frame in entered if not frame.seen.units)
    acks_out = Counter(frame.seen.ack for frame in left if not frame.seen.units)
    # Where ACK and data were parted on the way, more of them leave than entered.
    return Passage(
        packets=len(entered),
        units=sum(frame.seen.units for frame in entered),
        lost=lost.packets,
        lost_units=lost.units,
        lost_acks=(acks_in - acks_out).total(),
        duplicated=duplicated.packets,
        duplicated_units=duplicated.units,
        reordered=of_data,
        reordered_acks=of_acks,
        acks_ahead=max(0, _late(left) - of_data - of_acks),
        repeated=_repeated(entered),
        pause=max((b.seen.time - a.seen.time for a, b in pairwise(data)), default=0) / 1e9,
        ways=_ways(entered, left),
    )


class _Surplus(NamedTuple):
    packets: int
    units: int


def _differences(entered: Sequence[_Frame], left: Sequence[_Frame]) -> tuple[_Surplus, _Surplus]:
    """What entered more often than it left, and the other way round.

    What went through in other pieces than it came in is no difference.
    """
    came = Counter((frame.first, frame.end) for frame in entered if frame.seen.units)
    went = Counter((frame.first, frame.end) for frame in left if frame.seen.units)
    more, less = came - went, went - came
    changes = sorted(
        [change for (first, end), n in more.items() for change in ((first, n), (end, -n))]
        + [change for (first, end), n in less.items() for change in ((first, -n), (end, n))]
    )
    lost: list[tuple[int, int, int]] = []  # first, end, how often
    doubled: list[tuple[int, int, int]] = []
    level, since = 0, 0
    for at, step in groupby(changes, key=lambda change: change[0]):
        if level:
            (lost if level > 0 else doubled).append((since, at, abs(level)))
        level, since = level + sum(change for _, change in step), at
    return _surplus(lost, more), _surplus(doubled, less)


def _surplus(ranges: Sequence[tuple[int, int, int]], frames: Counter[tuple[int, int]]) -> _Surplus:
    units = sum((end - first) * often for first, end, often in ranges)
    packets = 0
    for (first, end), number in frames.items():
        touching = [often for a, b, often in ranges if a < end and first < b]
        packets += min(number, max(touching, default=0))
    return _Surplus(packets, units)


def _late(left: Iterable[_Frame]) -> int:
    """Packets behind one that their sender had sent later: by IP identification, or number."""
    late, highest = 0, None
    for frame in left:
        seen = frame.seen
        if seen.proto == Proto.UDP:
            order = seen.first
            behind = highest is not None and order < highest
        elif seen.syn or not seen.ident:
            continue  # sent for a socket that is not there yet, or not any more
        else:
            order = seen.ident
            behind = highest is not None and (order - highest) % (1 << 16) >= 1 << 15
        if behind:
            late += 1
        else:
            highest = order
    return late


def _repeated(entered: Iterable[_Frame]) -> int:
    """Packets all of whose units had entered before."""
    repeated, top = 0, None
    gaps: list[tuple[int, int]] = []
    for frame in entered:
        if not frame.seen.units:
            continue
        if top is None or frame.end > top:
            if top is not None and frame.first > top:
                gaps.append((top, frame.first))
            top = frame.end if top is None else max(top, frame.end)
            continue
        filled = [(a, b) for a, b in gaps if a < frame.end and frame.first < b]
        repeated += not filled
        for a, b in filled:
            gaps.remove((a, b))
            gaps += [(a, frame.first)] * (a < frame.first) + [(frame.end, b)] * (frame.end < b)
    return repeated


def _ways(entered: Iterable[_Frame], left: Iterable[_Frame]) -> list[tuple[str, str]]:
    """By which links the data went, in the order of its units, without equal neighbours."""
    first_in = {frame.first: frame.seen.link for frame in entered if frame.seen.units}
    ways: list[tuple[str, str]] = []
    for frame in sorted((f for f in left if f.seen.units), key=lambda f: f.first):
        entry = first_in.get(frame.first)
        way = (entry or (ways[-1][0] if ways else "?"), frame.seen.link)
        if not ways or ways[-1] != way:
            ways.append(way)
    return ways
