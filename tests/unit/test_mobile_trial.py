"""What must hold of a move under load, and its numbers."""

from __future__ import annotations

from typing import Any

import pytest

from m2m.lab.mobile_trial import Row, checks
from m2m.lab.mobile_witness import Seen
from m2m.lab.ssh import Echoed
from m2m.lab.traffic import bulk
from m2m.lab.traffic.numbered import Account
from m2m.lab.traffic.probes import Report
from tests.support.mobile import BACK, FLOW, SERVER, UE, probed, stream, trial


def failed(lossless: bool = False, **other: Any) -> list[str]:
    return [one.what for one in checks(trial(**other), UE, SERVER, lossless=lossless)
            if not one.held]  # fmt: skip


def way(**other: Any) -> Report:
    return Report("udp", 0.0005, [stream([0.9, 1.2], **other)], end=1.5)


def test_a_trial_in_which_nothing_went_wrong() -> None:
    assert failed(lossless=True) == []


@pytest.mark.parametrize(
    ("part", "what"),
    [
        ({"sent": bulk.Report(1, 1.0, bulk.Way(bytes=9, wrong=1), bulk.Way(bytes=9))}, "byte"),
        ({"sent": bulk.Report(1, 1.0, bulk.Way(bytes=9), bulk.Way())}, "byte"),
        ({"echoed": Echoed(lines=3, ended="ssh has ended")}, "SSH"),
        ({"echoed": Echoed(lines=3, wrong=1)}, "SSH"),
        ({"tcp": probed("tcp", up=way(account=Account(5, 4, lost=1)))}, "record of TCP"),
        ({"tcp": probed("tcp", down=way(error="reset", error_at=1.1))}, "record of TCP"),
        ({"udp": probed("udp", up=Report("udp", 0.001, [stream([0.9])], 2.0))}, "both ways"),
        ({"seen": Seen(9, 1, frozenset({FLOW, BACK}))}, "5-tuple"),
        ({"seen": Seen(9, 0, frozenset({FLOW}))}, "5-tuple"),
        ({"seen": Seen(9, 0, frozenset({("udp", "10.2.0.2", 1, SERVER, 2), FLOW, BACK}))}, "tuple"),
        ({"seen": Seen(0, 0, frozenset())}, "5-tuple"),
    ],
)
def test_what_went_wrong_is_told(part: dict[str, Any], what: str) -> None:
    (found,) = failed(**part)
    assert what in found


def test_datagrams_may_be_lost_unless_it_is_make_before_break() -> None:
    lossy = probed("udp", up=way(account=Account(5, 4, lost=1)))
    assert failed(udp=lossy) == []
    assert len(failed(udp=lossy, lossless=True)) == 1


def test_the_numbers_are_milliseconds_beyond_the_outage() -> None:
    row = Row.of(trial())
    assert (row.moves, row.bytes, row.lines, row.udp_lost) == (1, 1500, 9, 0)
    assert row.outage == pytest.approx(0.5)
    assert row.udp_p50 == row.udp_worst == pytest.approx(1.0, abs=0.01)
