"""The paper's Figure 12 and Table 2, from what the bench ``migrate`` has measured."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from m2m.policy.rules import ChangeMode

if TYPE_CHECKING:
    from m2m.lab.bench.migrate import Timed

# Milliseconds that other systems take, as the paper's Table 2 has them.
_OTHERS = (
    ("Split/Merge", "500", "", ""),
    ("Dionysus", "600-1200", "", ""),
    ("OpenNF", "84", "96", ""),
)
_DRAWN = ("full load", "with reordering")


def write(directory: Path, timed: Sequence[Timed], paper: Mapping[ChangeMode, float]) -> None:
    """Write ``figure12.csv``, ``figure12.png`` and ``table2.csv`` into *directory*."""
    directory.mkdir(parents=True, exist_ok=True)
    _write_changes(directory / "figure12.csv", timed)
    _write_table(directory / "table2.csv", timed, paper)
    _draw(directory / "figure12.png", timed, paper)


def _write_changes(path: Path, timed: Sequence[Timed]) -> None:
    """Every change that was made, one a line."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ("mode", "situation", "duration_ms", "total_ms", "held", "retransmissions", "error")
        )
        for one in timed:
            for report in one.reports:
                times = (report.duration, report.total)
                writer.writerow((
                    one.mode, one.situation,
                    *("" if time is None else f"{time * 1e3:.3f}" for time in times),
                    report.held,
                    "" if report.retransmissions is None else report.retransmissions,
                    report.error or "",
                ))  # fmt: skip


def _write_table(path: Path, timed: Sequence[Timed], paper: Mapping[ChangeMode, float]) -> None:
    ours = {one.mode: f"{statistics.median(one.durations):.2f}"
            for one in timed if one.situation == "full load"}  # fmt: skip
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("ms", *ChangeMode))
        writer.writerows(_OTHERS)
        writer.writerow(("M2M (paper)", *(paper[mode] for mode in ChangeMode)))
        writer.writerow(("M2M (this run, median)", *(ours[mode] for mode in ChangeMode)))


def _draw(path: Path, timed: Sequence[Timed], paper: Mapping[ChangeMode, float]) -> None:
    # Only here: nobody else needs it, and it is slow to load.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    colours = {mode: f"C{i}" for i, mode in enumerate(ChangeMode)}
    for one in timed:
        if one.situation in _DRAWN:
            axes.ecdf(
                one.durations,
                label=f"{one.mode}, {one.situation}, {len(one.durations)} changes",
                color=colours[one.mode],
                linestyle="-" if one.situation == "full load" else "--",
            )
    for mode, value in paper.items():
        axes.axvline(value, color=colours[mode], linestyle=":", label=f"{mode}, paper (Table 2)")
    axes.set(
        xscale="log", xlabel="until packets take the new path [ms]", ylabel="share of changes",
        title="Replacing a middlebox under full load at 1 Gbit/s",
    )  # fmt: skip
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)
