"""The rows and the files of the bench of handovers."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from m2m.lab.bench import handover_figure
from m2m.lab.bench.handover import Series, _beside_dead, _rows
from m2m.lab.netns import LabError
from m2m.lab.traffic.probes import Report
from tests.support.mobile import probed, stream

OURS = Series("M2M, UDP, 1 session", (probed(),))
NEVER = Series("M2M, TCP, 1 session",
               (probed(up=Report("udp", 0.1, [stream([])], 2.0)),))  # fmt: skip


def test_milliseconds_of_each_probe_in_each_handover() -> None:
    assert OURS.every == (pytest.approx(1.0, abs=0.01),)


def test_of_two_ways_the_longer_interruption_counts() -> None:
    slow = Report("udp", 0.0005, [stream([0.9995, 1.1, 1.5])], end=1.5005)
    assert Series("", (probed(down=slow), probed())).every[0] == pytest.approx(400 - 0.5)


def test_a_row_for_the_median_and_one_for_the_slowest() -> None:
    rows = _rows(OURS, OURS, "itself")
    assert [row.name.rsplit(", ", 1)[1] for row in rows] == ["p50", "p99"]
    assert all(row.ratio == 1 and row.unit == "ms" for row in rows)
    with pytest.raises(LabError, match="no probe was heard"):
        _rows(NEVER, OURS, "itself")


def test_plain_tcp_is_silent_for_seconds() -> None:
    row = _beside_dead(OURS, 30.2)
    assert row.peer == 30200 and "all the 30 s" in row.peer_name


def test_every_handover_is_a_line(tmp_path: Path) -> None:
    handover_figure.write(tmp_path / "new", [OURS, NEVER])
    with (tmp_path / "new" / "handover.csv").open(newline="") as file:
        heading, *lines = csv.reader(file)
    assert heading == ["series", "move", "outage_ms", "probes", "p50_ms", "p99_ms", "worst_ms"]
    assert [line[:4] for line in lines] == [
        ["M2M, UDP, 1 session", "cell-a to cell-b", "0.500", "1"],
        ["M2M, TCP, 1 session", "cell-a to cell-b", "0.500", "0"],
    ]
    assert (tmp_path / "new" / "handover.png").read_bytes().startswith(b"\x89PNG")
