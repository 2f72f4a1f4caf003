"""What is made of the downloads of ``m2m-lab run proxy-removal``: checks, CSV and picture."""

from __future__ import annotations

import csv
from pathlib import Path

from m2m.lab import removal_figure
from m2m.lab.removal_results import (
    Moment,
    Report,
    Share,
    Trial,
    Way,
    around,
    checks,
    checks_of_whole,
)
from m2m.lab.traffic.downloads import Turn

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


TURN = 0.02  # s


def by_turns(rates: list[int], place: int) -> list[Turn]:
    """So many octets in each turn, every other one its own."""
    return [Turn((2 * number + place) * TURN, rate, TURN) for number, rate in enumerate(rates)]


def a_pair(after: list[int]) -> list[Trial]:
    """The first removed after 1.5 seconds."""
    before = 44  # turns until a quarter of a second later
    removed = by_turns([SLOW] * before + after, 0)
    direct = by_turns([FAST] * (before + len(after)), 1)
    ends = {"right": 2, "longest": 0.5}
    return [
        Trial(
            Way.REMOVED,
            0,
            2,
            BIN,
            [SLOW] * 60,
            moments(2.0),
            left=[1.4, 1.5],
            turns=removed,
            **ends,
        ),
        Trial(Way.DIRECT, 0, 2, BIN, [FAST] * 60, [], left=[], turns=direct, **ends),
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


def test_turns_after_the_removal_count() -> None:
    removed, direct = a_report(after=[FAST, SLOW, FAST]).pair(2)
    assert removed.rates(1.75) == [FAST / TURN, SLOW / TURN, FAST / TURN]
    assert direct.rates(1.75) == [FAST / TURN] * 3


def test_a_turn_in_which_nothing_came_counts() -> None:
    (slow,) = failed(a_report(after=[FAST] * 9 + [0]))
    assert "goodput" in slow


def test_a_share_of_pairs() -> None:
    alike = Share.of([(9.0, 10.0), (18.0, 20.0), (0.9, 1.0)])
    assert (round(alike.share, 9), round(alike.error, 9), alike.pairs) == (0.9, 0.0, 3)
    # By hand: the means are 1 and 1; what is left over 1, -1, 0, 0: (2 / 3 / 4) ** 0.5.
    apart = Share.of([(2.0, 1.0), (0.0, 1.0), (1.0, 1.0), (1.0, 1.0)])
    assert (apart.share, round(apart.error, 6)) == (1.0, 0.408248)
    assert Share.of([]).share == 0.0


def test_gaps_around_a_moment() -> None:
    gaps = {10: 0.03, 40: 0.02, 90: 0.5}
    assert around(gaps, 2.0, BIN) == 0.02
    assert around(gaps, 3.5, BIN) == 0.0


def test_picture_and_table(tmp_path: Path) -> None:
    removal_figure.write(tmp_path / "new", a_report())
    with (tmp_path / "new/proxy-removal.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5 * 120 + 2 * (44 + 5)
    last = [row for row in rows if (row["way"], row["by_turns"]) == (Way.REMOVED, "0")][-1]
    assert (last["left"], last["gbit_s"]) == ("2", "1.6000")
    assert (tmp_path / "new/proxy-removal.png").read_bytes().startswith(b"\x89PNG")
