"""The rows that the bench of changes makes of what it has found."""

from __future__ import annotations

import pytest

from m2m.lab.bench.migrate import Timed, _counts, _times
from m2m.lab.netns import LabError
from m2m.lab.passage import Passage
from m2m.lab.traffic import bulk
from m2m.policy.rules import ChangeMode
from tests.support.trials import refusal, report, tcp_trial, udp_trial


def timed(*milliseconds: float, situation: str = "full load") -> Timed:
    reports = [report(duration=each / 1e3) for each in milliseconds]
    return Timed(ChangeMode.OP, situation, reports)


def test_median_and_99th_percentile_beside_a_peer() -> None:
    ours, peer = timed(*range(1, 101)), (10.0, 20.0, 30.0)
    half, nearly_all = _times(ours, peer, "the same, idle", 2.7)
    assert half.name == "replace, op, full load, p50"
    assert (half.ours, half.peer, half.unit) == pytest.approx((51, 20, "ms"))
    assert (half.ratio, half.paper) == pytest.approx((51 / 20, 2.7))
    assert (nearly_all.ours, nearly_all.peer) == pytest.approx((100, 30))
    assert nearly_all.paper is None, "the paper gives no percentiles"


def test_changes_that_were_all_refused_are_no_measurement() -> None:
    none = Timed(ChangeMode.OP, "full load", [refusal("packets wait too long", "proxy/c")])
    with pytest.raises(LabError, match=r"nothing was changed: packets wait too long \(proxy/c\)"):
        _times(none, (1.0,), "idle")


def test_refused_changes_count_for_nothing_in_the_times() -> None:
    some = Timed(ChangeMode.OP, "full load", [report(duration=0.004), refusal("no", "proxy/c")])
    assert some.durations == (4.0,)


def test_what_a_trial_counted_stands_beside_the_calm_one() -> None:
    sent = bulk.Report(1, 2.0, bulk.Way(bytes=250_000_000, wrong=3, retransmitted=5), None)
    wire = Passage(packets=9, lost=1, lost_acks=2, reordered=4, reordered_acks=6)
    rows = _counts(
        tcp_trial(sent=sent, wire=wire, reports=[report(held=7), refusal("no", "c")]),
        tcp_trial(reports=[]),
    )
    found = {row.name.removeprefix("tcp, op, every 100 ms: "): (row.ours, row.peer) for row in rows}
    assert found["changes"] == (1, 0) and found["refused"] == (1, 0) and found["held"] == (7, 0)
    assert found["lost"] == (3, 0) and found["overtaken"] == (10, 0)
    assert found["wrong"] == (3, 0) and found["sent again"] == (5, 0)
    assert found["rate"][0] == pytest.approx(1.0)
    assert {row.peer_name for row in rows} == {"no changes"}


def test_datagrams_have_rows_of_their_own() -> None:
    rows = _counts(udp_trial("lf"), udp_trial("lf", reports=[]))
    assert {row.unit for row in rows} == {"", "packets", "datagrams", "ms"}
