#!/usr/bin/python3
"""What the module's steps cost inside the kernel (kmod/bench.c): the paper's Figure 10.

    sudo .venv/bin/python tests/vm/costs.py [--rows N] [--figures DIR] [--here | BOOT-OPTION...]

In a virtual machine (options are those of boot.py), or in the kernel that runs. Prints nanoseconds
by percentile; DIR gets `figure10.csv` (each batch of a hundred, less what the timer costs) and
`figure10.png`. In an emulated processor only how the steps compare means anything.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from m2m.lab.bench.report import percentile

BOOT = Path(__file__).with_name("boot.py")
BUILT = Path(os.environ.get("M2M_KMOD", Path.home() / ".cache/m2m/headers/built"))
RESULTS = Path("/sys/kernel/debug/m2m_bench")
SHOWN = (5, 25, 50, 75, 95, 99)
PAPER = {"lookup": 131, "rewrite": 214, "insert": 251}  # ns on average (§7.1.1)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000, metavar="N")
    parser.add_argument("--figures", type=Path, default=Path("bench-results"), metavar="DIR")
    parser.add_argument("--here", action="store_true", help="in the kernel that runs")
    parser.add_argument("--raw", action="store_true", help=argparse.SUPPRESS)
    args, options = parser.parse_known_args()
    if args.raw:
        for step, times in measured(args.rows).items():
            sys.stdout.write(f"{step},{','.join(map(str, times))}\n")
        return 0
    times = measured(args.rows) if args.here else measured_in_a_machine(args.rows, options)
    show(times, args.rows)
    args.figures.mkdir(parents=True, exist_ok=True)
    write(args.figures / "figure10.csv", times)
    where = platform.release() if args.here else "an emulated processor"
    draw(args.figures / "figure10.png", times, f"{args.rows:,} rows, {where}")
    sys.stdout.write(f"drawing and table: {args.figures}/figure10.*\n")
    return 0


def measured_in_a_machine(rows: int, options: list[str]) -> dict[str, list[int]]:
    """The same there; its files are gone with it, so it says what it has found."""
    inside = [sys.executable, Path(__file__).resolve(), "--raw", "--rows", str(rows)]
    command = [sys.executable, BOOT, *options, "--", *inside]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"costs.py: {done.stdout}")
    lines = [line.split(",") for line in done.stdout.splitlines()]
    return {step: [int(time) for time in times] for step, *times in lines}


def measured(rows: int) -> dict[str, list[int]]:
    """Nanoseconds of each step's batches, in the order in which they ran."""
    with loaded(rows):
        return {step: list(map(int, (RESULTS / step).read_text().split())) for step in PAPER}


@contextmanager
def loaded(rows: int) -> Iterator[None]:
    if not RESULTS.parent.is_dir() or not any(RESULTS.parent.iterdir()):
        subprocess.run(["mount", "-t", "debugfs", "debugfs", RESULTS.parent], check=True)
    module = BUILT / platform.release() / "m2m_bench.ko"
    subprocess.run(["insmod", module, f"rows={rows}"], check=True)
    try:
        yield
    finally:
        subprocess.run(["rmmod", "m2m_bench"], check=True)


def show(times: dict[str, list[int]], rows: int) -> None:
    names = [*(f"p{percent}" for percent in SHOWN), "mean", "paper"]
    sys.stdout.write(f"ns, {rows} rows".ljust(20) + "".join(f"{name:>7}" for name in names) + "\n")
    for step, found in times.items():
        figures = [percentile(found, percent / 100) for percent in SHOWN]
        figures += [round(statistics.mean(found)), PAPER[step]]
        sys.stdout.write(step.ljust(20) + "".join(f"{figure:>7}" for figure in figures) + "\n")


def write(path: Path, times: dict[str, list[int]]) -> None:
    """Every batch that was timed, one a line."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("step", "ns"))
        writer.writerows((step, time) for step, found in times.items() for time in found)


def draw(path: Path, times: dict[str, list[int]], where: str) -> None:
    # Only here: it is slow to load, and what runs in the machine has no need of it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, step in enumerate(PAPER):
        axes.ecdf(times[step], label=step, color=f"C{number}")
    for number, (step, mean) in enumerate(PAPER.items()):
        axes.axvline(mean, color=f"C{number}", linestyle=":", label=f"{step}, the paper's mean")
    # A batch that was interrupted took what the interruption did.
    most = 1.5 * max(percentile(found, 0.98) for found in times.values())
    axes.set(
        xscale="log", xlim=(min(PAPER.values()) / 1.5, most),
        xlabel="each of a hundred operations [ns]", ylabel="share of batches",
        title=f"What the module's steps take: {where}",
    )  # fmt: skip
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
