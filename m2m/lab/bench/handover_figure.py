"""The handovers of the bench ``handover``: every one as a line of CSV, and their distribution."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from m2m.lab.bench.report import percentile

if TYPE_CHECKING:
    from m2m.lab.bench.handover import Series

_LEAST = 0.01  # ms: where the logarithmic axis begins


def write(directory: Path, series: Sequence[Series]) -> None:
    """Write ``handover.csv`` and ``handover.png`` into *directory*."""
    directory.mkdir(parents=True, exist_ok=True)
    _write_moves(directory / "handover.csv", series)
    _draw(directory / "handover.png", series)


def _write_moves(path: Path, series: Sequence[Series]) -> None:
    """Every handover, one a line: over its probes, in milliseconds beyond the link's outage."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ("series", "move", "outage_ms", "probes", "p50_ms", "p99_ms", "worst_ms")
        )  # fmt: skip
        for one in series:
            for moved, added in one.handovers:
                spread = [percentile(added, rank) for rank in (0.5, 0.99, 1.0)] if added else []
                writer.writerow((
                    one.name, moved.what, f"{moved.outage * 1e3:.3f}", len(added),
                    *(f"{value:.3f}" for value in spread),
                ))  # fmt: skip


def _draw(path: Path, series: Sequence[Series]) -> None:
    # Only here: nobody else needs it, and it is slow to load.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for place, one in enumerate(one for one in series if one.every):
        ours = one.name.startswith("M2M")
        axes.ecdf(
            [max(value, _LEAST) for value in one.every],
            label=f"{one.name}, {len(one.handovers)} handovers",
            color=f"C{place % 10}",
            linestyle="-" if ours else "--",
        )
    axes.set(
        xscale="log", xlabel="interruption beyond the link's own outage [ms]",
        ylabel="share of probes and handovers", title="A UE moves between two cells",
    )  # fmt: skip
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="x-small")
    figure.savefig(path, dpi=150)
