"""What is made of the downloads of ``m2m-lab run proxy-removal``: checks, CSV and picture."""

from __future__ import annotations

import csv
from pathlib import Path

from m2m.lab import removal_figure
from m2m.lab.removal_results import Moment, Report, Trial, Way, around, checks

BIN = 0.05
FAST, SLOW = 10_000_000, 4_000_000  # octets in a bin


def moments(busy_until: float) -> list[Moment]:
    found, packets, cpu = [], 0, 0.0
    for number in range(60):
        at = number * 0.1
        found.append(Moment(at, cpu, packets))
        if at < busy_until:
            packets, cpu = packets + 1000, cpu + 0.07
    return found


def a_turn(turn: int, after: int, longest: float, rest: int) -> list[Trial]:
    removed = [SLOW] * 40 + [after] * 80
    left = [1.9, 2.0]
    return [
        Trial(Way.REMOVED, turn, 2, BIN, removed, moments(2.0), 2, 0, left, longest, rest),
        Trial(Way.DIRECT, turn, 2, BIN, [FAST] * 120, [], 2, 0, [], 0.03),
    ]


def a_report(*, after: int = FAST, longest: float = 0.01, rest: int = 0) -> Report:
    """Of three turns, the second of which is as told."""
    through = Trial(Way.THROUGH, 0, 2, BIN, [SLOW] * 120, moments(6.0), 2, 0, [], 0.02)
    return Report(
        trials=[
            through,
            *a_turn(0, after, 0.01, 0),
            *a_turn(1, after, longest, rest),
            *a_turn(2, FAST, 0.01, 0),
        ]
    )


def failed(report: Report) -> list[str]:
    return [check.what for check in checks(report, 2) if not check.held]


def test_what_must_hold() -> None:
    assert failed(a_report()) == []
    (slow,) = failed(a_report(after=FAST * 9 // 10))
    assert "goodput" in slow
    # Of goodput the median counts: one turn in which the machine was busy is none of M2M's.
    one = a_report()
    one.of(Way.REMOVED, 2)[1].bytes[40:] = [SLOW] * 80
    assert failed(one) == []
    (stalls,) = failed(a_report(longest=0.06))
    assert "stalls" in stalls
    (stays,) = failed(a_report(rest=1))
    assert "all chains" in stays


def test_what_it_says_of_a_trial() -> None:
    removed = a_report().of(Way.REMOVED, 2)[0]
    assert removed.before() == SLOW / BIN
    assert removed.after() == FAST / BIN
    assert round(removed.cpu(0.0, 1.9), 2) == 0.7
    assert removed.packets(3.0, 5.0) == 0


def test_gaps_around_a_moment() -> None:
    gaps = {10: 0.03, 40: 0.02, 90: 0.5}
    assert around(gaps, 2.0, BIN) == 0.02
    assert around(gaps, 3.5, BIN) == 0.0


def test_picture_and_table(tmp_path: Path) -> None:
    removal_figure.write(tmp_path / "new", a_report())
    with (tmp_path / "new/proxy-removal.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 7 * 120
    last = [row for row in rows if row["way"] == Way.REMOVED][-1]
    assert (last["left"], last["gbit_s"]) == ("2", "1.6000")
    assert (tmp_path / "new/proxy-removal.png").read_bytes().startswith(b"\x89PNG")
