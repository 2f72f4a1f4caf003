"""What a bench hands back: one row per thing measured, always beside a peer of the same run.

This kind of machine is shared and noisy, so a single figure says little: ours and the peer take
turns, and each is set against the other's figure of the same moment. A machine that runs at half
its speed for a while then changes what was measured, not how the two compare.
"""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
from rich.console import Console
from rich.table import Table

T = TypeVar("T")
Measure = Callable[[], Awaitable[float]]
Say = Callable[[str], None]
"""Tells the person at the terminal what is being measured."""


class Plan(msgspec.Struct, frozen=True):
    """How thorough a run is. Quick figures show the order of magnitude, not more."""

    quick: bool
    figures: Path = Path("bench-results")  # the directory that drawings and tables go into

    def pick(self, full: T, quick: T) -> T:
        """One of two settings."""
        return quick if self.quick else full


class Samples(msgspec.Struct, frozen=True):
    """Every figure as it was measured, in the order of measuring."""

    ours: tuple[float, ...]
    peer: tuple[float, ...]


class Result(msgspec.Struct, frozen=True):
    """One row: medians. *ratio* is that of ours / peer, turn by turn where they took turns.

    *paper* is the figure M2M's paper gives, where it gives one.
    """

    name: str
    unit: str
    ours: float
    peer: float
    peer_name: str
    ratio: float
    samples: Samples
    paper: float | None = None

    @classmethod
    def of(
        cls,
        name: str,
        unit: str,
        samples: Samples,
        peer_name: str,
        paper: float | None = None,
    ) -> Result:
        """A row of medians. Raises :class:`ValueError` when a side has no samples."""
        if not samples.ours or not samples.peer:
            raise ValueError(f"{name}: nothing was measured")
        ours, peer = statistics.median(samples.ours), statistics.median(samples.peer)
        if len(samples.ours) == len(samples.peer):
            turns = list(zip(samples.ours, samples.peer, strict=True))
        else:
            turns = [(ours, peer)]
        ratio = statistics.median(mine / theirs if theirs else 0.0 for mine, theirs in turns)
        return cls(name, unit, ours, peer, peer_name, ratio, samples, paper)


def percentile(values: Sequence[float], rank: float) -> float:
    """The value below which a share of *rank* of them lies (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(rank * len(ordered)))]


async def interleave(ours: Measure, peer: Measure, rounds: int) -> Samples:
    """Measure both in turns, *rounds* times, the order swapped each time."""
    mine: list[float] = []
    theirs: list[float] = []
    for number in range(rounds):
        turns = [(ours, mine), (peer, theirs)]
        for measure, figures in turns if number % 2 == 0 else reversed(turns):
            figures.append(await measure())
    return Samples(tuple(mine), tuple(theirs))


def joined(parts: Sequence[Samples]) -> Samples:
    """Samples of several runs as if of one."""
    return Samples(
        tuple(figure for part in parts for figure in part.ours),
        tuple(figure for part in parts for figure in part.peer),
    )


def show(console: Console, results: Sequence[Result]) -> None:
    """Print the results as one table; a line of its own says what a peer is when it changes."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    for heading in ("ours", "peer", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("ratio", justify="right", no_wrap=True)
    table.add_column("paper", justify="right", no_wrap=True)
    peer = None
    for row in results:
        if row.peer_name != peer:
            peer = row.peer_name
            table.add_row()
            table.add_row(f"[dim]beside {peer}[/]")
        paper = "" if row.paper is None else f"{row.paper:g}"
        table.add_row(
            row.name, figure(row.ours), figure(row.peer), row.unit, f"{row.ratio:.2f}", paper
        )
    console.print(table)


def figure(value: float) -> str:
    """Three significant digits, without an exponent."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def write_json(path: Path, results: Sequence[Result]) -> None:
    """Write the results as a JSON list, one object per row."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n")
