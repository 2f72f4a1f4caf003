"""Figure 12 and Table 2 as files."""

from __future__ import annotations

import csv
from pathlib import Path

from m2m.lab.bench import migrate_figure
from m2m.lab.bench.migrate import PAPER, Timed
from m2m.policy.rules import ChangeMode
from tests.support.trials import refusal, report

TIMED = [
    Timed(
        mode,
        situation,
        [report(mode=mode, duration=0.001 * n, held=n, retransmissions=None) for n in (1, 2, 9)],
    )
    for mode in ChangeMode
    for situation in ("full load", "idle", "with reordering")
]


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_every_change_is_a_line(tmp_path: Path) -> None:
    late = Timed(ChangeMode.OP, "5 hosts", [refusal("packets wait too long", "x/c")])
    migrate_figure.write(tmp_path / "new", [*TIMED, late], PAPER)
    heading, *lines = rows(tmp_path / "new" / "figure12.csv")
    assert heading == [
        "mode", "situation", "duration_ms", "total_ms", "held", "retransmissions", "error",
    ]  # fmt: skip
    assert len(lines) == 9 * 3 + 1
    assert lines[0] == ["lf", "full load", "1.000", "2.000", "1", "", ""]
    assert lines[-1] == ["op", "5 hosts", "", "", "0", "", "packets wait too long"]


def test_our_medians_stand_under_the_papers_table(tmp_path: Path) -> None:
    migrate_figure.write(tmp_path, TIMED, PAPER)
    table = rows(tmp_path / "table2.csv")
    assert table[0] == ["ms", "lf", "op", "ss+op"]
    assert table[-2:] == [
        ["M2M (paper)", "0.5", "2.7", "3.6"],
        ["M2M (this run, median)", "2.00", "2.00", "2.00"],
    ]


def test_the_figure_is_a_png(tmp_path: Path) -> None:
    migrate_figure.write(tmp_path, TIMED, PAPER)
    assert (tmp_path / "figure12.png").read_bytes().startswith(b"\x89PNG")
