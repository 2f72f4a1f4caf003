"""What is made of the downloads of ``m2m-lab run proxy-removal``: checks, CSV and picture."""

from __future__ import annotations

import csv
from pathlib import Path

from m2m.lab import removal_figure
from m2m.lab.removal_results import Moment, Report, Trial, Way, around, checks, checks_of_whole

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


def a_trial(number: int, after: int, longest: float = 0.01, rest: int = 0) -> Trial:
    removed = [SLOW] * 40 + [after] * 80
    return Trial(
        Way.REMOVED, number, 2, BIN, removed, moments(2.0), 2, [1.9, 2.0], longest, rest
    )  # fmt: skip


def by_turns(rates: list[int], place: int) -> list[int]:
    """Octets in bins, every other turn its own; what had waited comes first."""
    bins = []
    for rate in rates:
        own = [5 * rate] + [rate] * 8
        bins += [0] * 9 + own if place else own + [0] * 9
    return bins


def a_pair(after: list[int]) -> list[Trial]:
    """The first removed after two seconds."""
    removed, direct = by_turns([SLOW, SLOW, *after], 0), by_turns([FAST] * (2 + len(after)), 1)
    return [
        Trial(Way.REMOVED, 0, 2, BIN, removed, moments(2.0), 2, [1.4, 1.5], 0.5),
        Trial(Way.DIRECT, 0, 2, BIN, direct, [], 2, [], 0.5, place=1),
    ]


def a_report(*, after: list[int] | None = None, longest: float = 0.01, rest: int = 0) -> Report:
    """The second trial is as told, and goodput in a comparison's turns after the removal."""
    ends = {"moments": moments(6.0), "right": 2, "left": []}
    through = Trial(Way.THROUGH, 0, 2, BIN, [SLOW] * 120, longest=0.02, **ends)
    direct = Trial(Way.DIRECT, 0, 2, BIN, [FAST] * 120, longest=0.03, **ends)
    removed = [a_trial(0, FAST), a_trial(1, FAST, longest, rest), a_trial(2, FAST)]
    return Report(trials=[through, direct, *removed], compared=a_pair(after or [FAST] * 5))


def failed(report: Report) -> list[str]:
    return [check.what for check in checks(report, 2) if not check.held]


def test_what_must_hold() -> None:
    assert failed(a_report()) == []
    (slow,) = failed(a_report(after=[FAST * 9 // 10] * 5))
    assert "goodput" in slow
    assert failed(a_report(after=[FAST * 98 // 100] * 5)) == []
    (stalls,) = failed(a_report(longest=0.06))
    assert "stalls" in stalls
    (stays,) = failed(a_report(rest=1))
    assert "all chains" in stays


def test_what_must_hold_of_a_whole_download() -> None:
    whole = a_trial(0, FAST)
    whole.flows, whole.right, whole.left = 1, 1, [0.02]
    size = sum(whole.bytes)
    assert all(check.held for check in checks_of_whole(whole, size) if "packet" not in check.what)
    cut_short, *_ = checks_of_whole(whole, size + 1)
    assert not cut_short.held
    # Its host has seen 1000 packets in each tenth of a second until 2.0.
    (counters,) = (check for check in checks_of_whole(whole, size) if "packet" in check.what)
    assert not counters.held


def test_what_it_says_of_a_trial() -> None:
    removed = a_report().of(Way.REMOVED, 2)[0]
    assert (removed.goodput(0.1, 2.0), removed.goodput(2.2, 5.0)) == (SLOW / BIN, FAST / BIN)
    assert round(removed.cpu(0.0, 1.9), 2) == 0.7
    assert removed.packets(3.0, 5.0) == 0


def test_the_second_half_of_each_turn_counts() -> None:
    removed, direct = a_report(after=[FAST, SLOW, FAST]).pair(2)
    assert removed.turns(1.5) == [FAST / BIN, SLOW / BIN, FAST / BIN]
    assert direct.turns(1.5) == [FAST / BIN] * 3


def test_gaps_around_a_moment() -> None:
    gaps = {10: 0.03, 40: 0.02, 90: 0.5}
    assert around(gaps, 2.0, BIN) == 0.02
    assert around(gaps, 3.5, BIN) == 0.0


def test_picture_and_table(tmp_path: Path) -> None:
    removal_figure.write(tmp_path / "new", a_report())
    with (tmp_path / "new/proxy-removal.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5 * 120 + 2 * 126
    last = [row for row in rows if (row["way"], row["by_turns"]) == (Way.REMOVED, "0")][-1]
    assert (last["left"], last["gbit_s"]) == ("2", "1.6000")
    assert (tmp_path / "new/proxy-removal.png").read_bytes().startswith(b"\x89PNG")
