"""Goodput and the proxy's processor over time, from what the scenario of removal has measured.

The picture shows the first trial of each way.
"""

from __future__ import annotations

import csv
from itertools import pairwise
from pathlib import Path

from m2m.lab.removal_results import Report, Trial, Way
from m2m.lab.traffic.downloads import Turn

_COLOURS = {Way.REMOVED: "C0", Way.THROUGH: "C1", Way.DIRECT: "C2"}
_SMOOTH = 4  # bins that one point of the picture is the mean of


def write(directory: Path, report: Report) -> None:
    """Write ``proxy-removal.csv`` and ``proxy-removal.png`` into *directory*."""
    directory.mkdir(parents=True, exist_ok=True)
    _write_bins(directory / "proxy-removal.csv", report)
    _draw(directory / "proxy-removal.png", report)


def _write_bins(path: Path, report: Report) -> None:
    """Every bin of every trial, one a line; every turn, of those that took turns."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow((
            "way", "by_turns", "trial", "flows", "s", "gbit_s", "cpu", "proxy_packets_s", "left"
        ))  # fmt: skip
        for trial in [*report.trials, *report.compared]:
            bins = [Turn(n * trial.bin, size, trial.bin) for n, size in enumerate(trial.bytes)]
            for one in trial.turns or bins:
                # Squid's work is looked at less often than bytes come.
                near = one.at - 2 * trial.bin, one.at + 3 * trial.bin
                writer.writerow((
                    trial.way, int(bool(trial.turns)), trial.number, trial.flows,
                    f"{one.at:.3f}", f"{one.octets * 8e-9 / one.seconds:.4f}",
                    f"{trial.cpu(*near):.3f}", f"{trial.packets(*near):.0f}",
                    sum(left <= one.at for left in trial.left),
                ))  # fmt: skip


def _draw(path: Path, report: Report) -> None:
    # Only here: nobody else needs it, and it is slow to load.
    from matplotlib.figure import Figure

    bundles = sorted({trial.flows for trial in report.trials})
    figure = Figure(figsize=(4.5 * len(bundles), 6), layout="constrained")
    panels = figure.subplots(2, len(bundles), sharex="col", squeeze=False)
    for column, flows in enumerate(bundles):
        goodput, work = panels[0][column], panels[1][column]
        for trial in report.trials:
            if trial.flows != flows or trial.number:
                continue
            colour = _COLOURS[trial.way]
            goodput.plot(*_rates(trial), color=colour, label=trial.way)
            moments = trial.moments
            work.plot(
                [one.at for one in moments[1:]],
                [
                    100 * (after.cpu - before.cpu) / (after.at - before.at)
                    for before, after in pairwise(moments)
                ],
                color=colour,
            )
            if trial.left:
                for axes in (goodput, work):
                    axes.axvspan(trial.first, trial.last, color=colour, alpha=0.15)
                    axes.axvline(trial.last, color=colour, linewidth=0.8, linestyle=":")
        goodput.set_title(f"{flows} download{'s' * (flows > 1)}", fontsize="medium")
        goodput.set_ylim(bottom=0)
        work.set_ylim(bottom=0)
        work.set_xlabel("s")
        for axes in (goodput, work):
            axes.grid(alpha=0.3)
    panels[0][0].set_ylabel("goodput of all [Gbit/s]")
    panels[1][0].set_ylabel("Squid's processor [%]")
    panels[0][0].legend(fontsize="small")
    figure.suptitle("Squid leaves downloads that it may not keep", fontsize="medium")
    figure.savefig(path, dpi=150)


def _rates(trial: Trial) -> tuple[list[float], list[float]]:
    times, rates = [], []
    for at in range(0, len(trial.bytes) - _SMOOTH + 1, _SMOOTH):
        times.append((at + _SMOOTH / 2) * trial.bin)
        rates.append(sum(trial.bytes[at : at + _SMOOTH]) * 8e-9 / (_SMOOTH * trial.bin))
    return times, rates
