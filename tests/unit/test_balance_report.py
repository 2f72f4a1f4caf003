"""What is made of the rounds of ``m2m-lab run balance``: checks, table, CSV and picture."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from rich.console import Console

from m2m.lab import balance_figure, balance_report
from m2m.lab.balance_results import Load, Report, Round, Way, evenness
from m2m.lab.prefix_flows import Weights


def a_report(shares: dict[Way, tuple[int, int]]) -> Report:
    """Two draws of each kind of weights, in which nf1 has so many of 100 flows."""
    return Report(
        rounds=[
            Round(
                weights, draw, way, 4 if way.routed else None, 4 if way.routed else 0,
                {"nf1": Load(flows, flows * 1000), "nf2": Load(100 - flows, (100 - flows) * 1000)},
                100, 100, 100,
            )
            for way, both in shares.items()
            for weights in Weights
            for draw, flows in enumerate(both)
        ]
    )  # fmt: skip


EVEN = {Way.HALVES: (60, 56), Way.BEST: (46, 47), Way.HASH: (52, 51), Way.LEAST: (50, 51)}


def test_shares_are_of_the_busier_one_whichever_that_is() -> None:
    first, second = a_report({Way.BEST: (46, 54)}).of(Weights.BIMODAL, Way.BEST)
    assert first.flow_share == second.flow_share == first.byte_share == 0.54


def test_checks_hold_where_flows_are_shared_out_better_than_by_both_bits() -> None:
    checks = list(evenness(a_report(EVEN)))
    assert len(checks) == 6 and all(check.held for check in checks)
    assert "50.5%; most significant bit 58.0%, best single bit 53.5%" in checks[0].seen


@pytest.mark.parametrize(
    ("ours", "held"), [((52, 46), [True, True, False]), ((54, 54), [False] * 3)]
)
def test_and_fail_where_one_bit_does_as_well(ours: tuple[int, int], held: list[bool]) -> None:
    checks = list(evenness(a_report({**EVEN, Way.LEAST: ours})))
    assert [check.held for check in checks] == held * 2


def test_the_table_fits_a_terminal() -> None:
    out = io.StringIO()
    console = Console(file=out, width=80)
    balance_report.opening(console, 2, 100)
    balance_report.table(console, a_report(EVEN))
    lines = out.getvalue().splitlines()
    assert "…" not in out.getvalue()
    assert max(map(len, lines)) <= 80
    rows = [line.split() for line in lines if "most significant bit" in line]
    assert rows[0][-5:] == ["58.0%", "60.0%", "58.0%", "60.0%", "4"]


def test_every_round_is_a_line_and_there_is_a_picture(tmp_path: Path) -> None:
    balance_figure.write(tmp_path / "new", a_report(EVEN))
    with (tmp_path / "new/balance.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 16
    assert (rows[0]["way"], rows[0]["bit"], rows[0]["rules"]) == ("most significant bit", "4", "4")
    assert (rows[-1]["nf1_flows"], rows[-1]["nf2_bytes"], rows[-1]["bit"]) == ("51", "49000", "")
    assert (tmp_path / "new/balance.png").read_bytes().startswith(b"\x89PNG")
