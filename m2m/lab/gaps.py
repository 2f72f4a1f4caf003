"""How long a stream was interrupted around a move: pure computation on arrival times.

A probe's records come at a steady pace. The *interruption* of a move is the largest gap between two
arrivals of which at least a part lies in the move's window, less the link's own outage: what was
added by everything but the link. It includes the pace itself, some 0.5 ms.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise

from m2m.lab.moves import Moved

__all__ = ["Moved", "interruption", "interruptions", "silence"]


def interruption(arrivals: Sequence[float], moved: Moved, until: float) -> float | None:
    """Seconds beyond the link's own outage; None when nothing came before the move.

    *arrivals* are in order. *until* is when the next move begins, or the watching ended: the gap
    of a stream that never came back reaches from its last arrival to there.
    """
    before = bisect_right(arrivals, moved.lost) - 1
    if before < 0:
        return None
    window = arrivals[before : bisect_left(arrivals, until)]
    largest = max(b - a for a, b in pairwise([*window, until]))
    return max(0.0, largest - moved.outage)


def interruptions(
    streams: Sequence[Sequence[float]], moves: Sequence[Moved], end: float
) -> Iterator[list[float | None]]:
    """For each move, the interruption of each stream; None where it was not there before it."""
    nexts = [*(moved.lost for moved in moves[1:]), end]
    for moved, until in zip(moves, nexts, strict=True):
        yield [interruption(arrivals, moved, until) for arrivals in streams]


def silence(arrivals: Sequence[float], moved: Moved, end: float) -> float | None:
    """Seconds from the last arrival before a move to *end*, if nothing came since; else None."""
    after = bisect_right(arrivals, moved.usable)
    return None if after < len(arrivals) or not arrivals else end - arrivals[-1]
