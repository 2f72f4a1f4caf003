"""How a scenario of reconfiguration looks, on a terminal of 80 columns."""

from __future__ import annotations

import io

from rich.console import Console

from m2m.lab import scenario_report
from m2m.lab.demo_results import Check
from m2m.lab.passage import Passage
from m2m.lab.trial import Trial
from m2m.lab.two_paths import two_paths
from tests.support.trials import refusal, report, tcp_trial, udp_trial


def shown(trials: list[Trial], checks: list[Check]) -> list[str]:
    console = Console(file=io.StringIO(), width=80)
    scenario_report.summary(console, trials, checks)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_a_row_for_each_trial() -> None:
    slow = tcp_trial(
        "ss+op",
        reports=[report(duration=0.003, held=5), report(duration=0.001), report(duration=0.002)],
        wire=Passage(packets=9, lost=1, lost_acks=2, duplicated=4, reordered=6),
    )
    lines = shown([slow, udp_trial("lf")], [Check("it works", True, "")])
    (row,) = [line.split() for line in lines if "ss+op" in line]
    assert row == ["tcp", "ss+op", "3", "2.00", "3.00", "5", "3", "4", "6", "0"]
    (row,) = [line.split() for line in lines if "udp lf" in line]
    assert row[-1] == "–", "the kernel sends no datagram again"
    assert "All 1 checks held." in lines


def test_a_trial_in_which_every_change_was_refused() -> None:
    (row,) = [
        line.split()
        for line in shown([tcp_trial(reports=[refusal("no", "x/b")])], [])
        if "tcp op" in line
    ]
    assert row[2:5] == ["0", "–", "–"]


def test_failed_checks_are_shown_again() -> None:
    checks = [Check("this", True, ""), Check("that", False, "three of them")]
    lines = shown([tcp_trial()], checks)
    assert "1 of 2 checks failed:" in lines
    assert any("that" in line for line in lines) and not any("this" in line for line in lines)
    assert all(len(line) <= 80 for line in lines)


def test_the_opening_names_the_rate_and_the_other_hosts() -> None:
    console = Console(file=io.StringIO(), width=80)
    scenario_report.opening(console, "contend", "changes that meet", two_paths(before=1, after=1))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "M2M contend: changes that meet" in text
    assert "1gbit on every link" in text and "l1, r1" in text
