"""The paper's Figure 1, from what the scenario of balance has counted."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterator
from pathlib import Path

from m2m.lab.balance_results import Report, Way
from m2m.lab.prefix_flows import Weights

_LABELS = {
    Way.HALVES: "routing:\nmost significant\nbit",
    Way.BEST: "routing:\nbest single\nbit",
    Way.HASH: "M2M:\nhash of\neach flow",
    Way.LEAST: "M2M:\nleast-loaded\nfor each flow",
}


def write(directory: Path, report: Report) -> None:
    """Write ``balance.csv`` and ``balance.png`` into *directory*."""
    directory.mkdir(parents=True, exist_ok=True)
    _write_rounds(directory / "balance.csv", report)
    _draw(directory / "balance.png", report)


def _write_rounds(path: Path, report: Report) -> None:
    """Every round, one a line."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        names = list(report.rounds[0].loads)
        writer.writerow((
            "weights", "draw", "way", "bit", "rules", *(f"{nf}_flows" for nf in names),
            *(f"{nf}_bytes" for nf in names), "flow_share", "byte_share",
        ))  # fmt: skip
        for one in report.rounds:
            loads = [one.loads[nf] for nf in names]
            writer.writerow((
                one.weights, one.draw, one.way, "" if one.bit is None else one.bit, one.rules,
                *(load.flows for load in loads), *(load.bytes for load in loads),
                f"{one.flow_share:.4f}", f"{one.byte_share:.4f}",
            ))  # fmt: skip


def _draw(path: Path, report: Report) -> None:
    # Only here: nobody else needs it, and it is slow to load.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    panels = figure.subplots(1, len(Weights), sharey=True)
    for axes, weights in zip(panels, Weights, strict=True):
        for place, way in enumerate(Way):
            shares = [100 * one.byte_share for one in report.of(weights, way)]
            mean = statistics.fmean(shares)
            colour = "C1" if way.routed else "C0"
            axes.bar(place, mean - 50, bottom=50, width=0.6, color=colour, alpha=0.6)
            axes.plot(list(_beside(place, len(shares))), shares, "o", color="black", markersize=3.5)
            axes.annotate(
                f"mean {mean:.1f} %", (place, max(shares)), xytext=(0, 6),
                textcoords="offset points", ha="center", fontsize="small",
            )  # fmt: skip
        axes.set_xticks(range(len(Way)), [_LABELS[way] for way in Way], fontsize="small")
        axes.set_title(f"{weights} weights of client prefixes", fontsize="medium")
        axes.grid(alpha=0.3, axis="y")
        axes.set_axisbelow(True)
    worst = max(100 * one.byte_share for one in report.rounds)
    panels[0].set_ylabel("busier instance's share of the bytes [%]")
    panels[0].set_ylim(50, 50 + 1.12 * (worst - 50))
    figure.suptitle(
        "Two instances of one NF share the load: 50 % is even, each dot a draw of flows"
    )
    figure.savefig(path, dpi=150)


def _beside(place: int, count: int) -> Iterator[float]:
    """Places for *count* dots beside each other in a bar."""
    for n in range(count):
        yield place + (n - (count - 1) / 2) * 0.1
