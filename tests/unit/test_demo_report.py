"""The demo's terminal output: it fits, and a failure cannot be overlooked."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from m2m.agent.api import (
    Direction,
    FlowInfo,
    HopReport,
    PathInfo,
    PolicyInfo,
    Role,
    SessionState,
)
from m2m.lab import demo_report
from m2m.lab.demo import FILE
from m2m.lab.demo_results import Check, Compared, LegSeen, LinkSeen, NfSeen, Report
from m2m.lab.topology import load

SUPER = FlowInfo("tcp", "10.0.1.2", 40000, "10.0.4.2", 5201)
LEFT = FlowInfo("tcp", "10.0.1.2", 61000, "10.0.2.2", 64000)
RIGHT = FlowInfo("tcp", "10.0.2.2", 61001, "10.0.3.2", 64001)


def hop(host: str, position: str, left: FlowInfo | None, right: FlowInfo | None) -> HopReport:
    return HopReport(
        session="00000000000000aa", host=f"demo-{host}", address="10.0.2.2", role=Role.MIDDLEBOX,
        position=position, nf=None, state=SessionState.ESTABLISHED, supersession=SUPER, left=left,
        right=right, to_server=Direction(1_234_567, 10**12, None, 0.0), to_client=None, prev=None,
        next=None,
    )  # fmt: skip


@pytest.fixture
def report() -> Report:
    return Report(
        checks=[Check("it works", True, "seen [bold] it", "I1")],
        policy=PolicyInfo(1, "10.0.5.2:5263", True, (), (), 3),
        path=PathInfo("00000000000000aa", (
            hop("client", "client", None, LEFT), hop("firewall", "inline", LEFT, RIGHT),
            hop("ids", "tap", LEFT, RIGHT), hop("server", "server", RIGHT, None),
        ), complete=True),
        links=[
            LinkSeen("firewall", ["client - firewall"], 10**6, [
                LegSeen("client > firewall", 123_456, 123_456, 10**9, 65226)] * 2)
        ],
        nfs=[NfSeen("ids", "tap", 144, [str(LEFT), str(RIGHT)], "subsessions")],
        throughput=Compared("Gbit/s", [10.0, 12.0, 11.0], [10.0, 10.0, 9.0]),
        setup=Compared("µs", [500.0, 510.0], [40.0, 50.0]),
    )  # fmt: skip


def shown(report: Report, width: int, *, kept: str | None = None) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, highlight=False)
    demo_report.opening(console, load(FILE))
    parts = (demo_report.policy, demo_report.chain, demo_report.live)
    for part in (*parts, demo_report.throughput, demo_report.setup):
        demo_report.heading(console, part.__name__)
        part(console, report)
    demo_report.checks(console, report.checks)
    demo_report.summary(console, report, kept=kept)
    return out.getvalue()


@pytest.mark.parametrize("width", [80, demo_report.WIDTH])
def test_it_fits_and_nothing_is_cut(report: Report, width: int) -> None:
    text = shown(report, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for part in (LEFT, RIGHT, SUPER, "123,456", "65,226", "seen [bold] it", "10.0.5.2"):
        assert str(part) in text


def test_the_ratio_of_medians_and_the_added_time(report: Report) -> None:
    text = shown(report, 96)
    assert "1.10 of plain forwarding" in text
    assert "adds 460 µs" in text


def test_all_held(report: Report) -> None:
    assert report.held
    assert "All 1 checks held" in shown(report, 80)


def test_a_failed_check_is_repeated_at_the_end(report: Report) -> None:
    report.checks.append(Check("nothing is lost", False, "3 of 4 packets"))
    end = shown(report, 80)[-200:]
    assert not report.held
    assert "1 of 2 checks failed" in end
    assert "nothing is lost" in end and "3 of 4 packets" in end and "held" not in end


def test_no_checks_at_all_is_no_success() -> None:
    assert not Report().held


def test_a_kept_lab_is_told(report: Report) -> None:
    assert "m2m-lab down demo" in shown(report, 80, kept="demo")
