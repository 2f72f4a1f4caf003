"""How a scenario of mobility looks, on a terminal of 96 columns."""

from __future__ import annotations

import io

from rich.console import Console

from m2m.agent.api import Direction, FlowInfo, HopReport, PathInfo, Role, SessionState
from m2m.lab import mobility_report
from m2m.lab.demo_results import Check
from m2m.lab.handover import handover
from m2m.lab.mobile_trial import Row
from m2m.lab.mobility import Report
from m2m.lab.moves import Moved
from tests.support.mobile import trial

MOVE = Moved("cell-a to cell-b", 1.0, 1.0005)


def hop(host: str, right: FlowInfo | None) -> HopReport:
    packets = Direction(packets=1234, bytes=99, max_seq=None, idle=0.0)
    return HopReport("1", f"lab-{host}", "10.0.0.1", Role.CLIENT, "client", None,
                     SessionState.ESTABLISHED, None, None, right, packets, None, None,
                     None)  # fmt: skip


def console() -> Console:
    return Console(file=io.StringIO(), width=96)


def text(of: Console) -> str:
    assert isinstance(of.file, io.StringIO)
    return of.file.getvalue()


def test_the_opening_draws_the_lab() -> None:
    out = console()
    mobility_report.opening(out, "handover", "a UE moves", handover())
    for word in ("M2M handover: a UE moves", "cell-a", "rack-b", "1gbit on every link"):
        assert word in text(out)


def test_a_move_is_shown_with_the_path_after_it() -> None:
    leg = FlowInfo("tcp", "10.2.0.2", 4000, "10.0.5.2", 5000)
    path = PathInfo("1", (hop("ue", leg), hop("srv", None)), complete=True)
    lines = mobility_report.described(3, MOVE, path).plain.splitlines()
    assert lines[0] == "  3. cell-a to cell-b, 0.5 ms without a link"
    assert lines[1].split() == ["ue", "10.2.0.2:4000", "→", "10.0.5.2:5000", "1,234", "packets"]
    assert lines[2].split() == ["srv"]
    assert "cannot be told" in mobility_report.described(1, MOVE, None).plain
    broken = PathInfo("1", (hop("ue", leg),), complete=False, problem="fw does not answer")
    assert "fw does not answer" in mobility_report.described(1, MOVE, broken).plain


def test_a_row_for_each_trial() -> None:
    out = console()
    row = Row.of(trial())
    mobility_report.summary(out, Report("handover", [row], [Check("it works", True, "")]))
    (line,) = [line for line in text(out).splitlines() if "a move" in line]
    assert line.split()[-9:] == ["1", "0.5", "1.0", "1.0", "0", "1.0", "1.0", "0", "9"]
    assert "All 1 checks held." in text(out)


def test_failed_checks_are_shown_again() -> None:
    out = console()
    report = Report("handover", [], [Check("this", True, ""), Check("that", False, "no")])
    mobility_report.summary(out, report)
    assert "1 of 2 checks failed" in text(out) and "that" in text(out)
    assert not report.held and not Report("handover").held
