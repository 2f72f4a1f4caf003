"""What must hold after changes under load, for each mode."""

from __future__ import annotations

from typing import Any

import pytest

from m2m.lab.passage import Passage
from m2m.lab.traffic import bulk, datagrams
from m2m.lab.traffic.numbered import Account
from m2m.lab.trial import Trial, checks
from tests.support.trials import refusal, report, tcp_trial, udp_trial

MODES = ("lf", "op", "ss+op")


def failed(trial: Trial, promised: int = 2) -> list[str]:
    return [check.what for check in checks(trial, promised) if not check.held]


@pytest.mark.parametrize("mode", MODES)
def test_nothing_went_wrong(mode: str) -> None:
    assert failed(tcp_trial(mode)) == []
    assert failed(udp_trial(mode)) == []


def test_a_refused_change_is_told_with_who_and_why() -> None:
    trial = tcp_trial(reports=[report(), refusal("packets wait too long", "x/c")])
    (check,) = [check for check in checks(trial, 2) if not check.held]
    assert check.what == "every change was made"
    assert check.seen == "packets wait too long (x/c)"
    assert len(trial.done) == 1


def test_too_few_changes() -> None:
    assert failed(tcp_trial(), promised=3) == ["every change was made"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("harm", ["lost", "lost_acks", "duplicated"])
def test_harm_on_the_wire(mode: str, harm: str) -> None:
    values: dict[str, Any] = {harm: 1}
    trial = tcp_trial(mode, wire=Passage(packets=10, **values))
    assert failed(trial) == ["no packet was lost or doubled between client and server, by the wire"]


def test_overtaking_is_wrong_but_in_lf() -> None:
    wire = Passage(packets=10, reordered=3)
    assert failed(tcp_trial("lf", wire=wire)) == []
    for mode in ("op", "ss+op"):
        assert failed(tcp_trial(mode, wire=wire)) == ["no packet overtook another, by the wire"]
    for acks in (Passage(packets=10, reordered_acks=1), Passage(packets=10, acks_ahead=1)):
        assert failed(tcp_trial("op", wire=acks)) == ["no packet overtook another, by the wire"]
        assert failed(tcp_trial("ss+op", wire=acks)) == []


def test_one_stretch_of_a_stream_more_per_change_of_its_session() -> None:
    assert failed(tcp_trial("ss+op", stretches=[3, 1])) == []
    assert failed(tcp_trial("ss+op", stretches=[3, 4])) == [
        "the stream was parted at one byte per change and direction"
    ]
    two = [report("1"), report("2")]
    assert failed(tcp_trial("ss+op", flows=2, reports=two, stretches=[2, 2, 2, 3])) == [
        "the stream was parted at one byte per change and direction"
    ]


def test_wrong_bytes_in_either_direction() -> None:
    for up, down in ((1, 0), (0, 1)):
        sent = bulk.Report(1, 1.0, bulk.Way(bytes=9, wrong=up), bulk.Way(bytes=9, wrong=down))
        assert failed(tcp_trial(sent=sent)) == ["every byte is right at the other end"]


@pytest.mark.parametrize("mode", MODES)
def test_segments_that_were_taken_for_lost(mode: str) -> None:
    """With many flows there is not room for all that should wait."""
    assert failed(tcp_trial(mode, taken_for_lost=1)) == ["TCP took nothing for lost that was not"]
    assert failed(tcp_trial(mode, taken_for_lost=1, flows=20)) == []


def test_a_probe_takes_nothing_for_lost() -> None:
    sent = bulk.Report(1, 1.0, bulk.Way(bytes=9, retransmitted=1, unneeded=1), bulk.Way(bytes=9))
    assert failed(tcp_trial(sent=sent)) == []


def test_no_bytes_at_all() -> None:
    sent = bulk.Report(1, 1.0, bulk.Way(), None)
    assert failed(tcp_trial(sent=sent)) == ["every byte is right at the other end"]


@pytest.mark.parametrize("harm", ["lost", "duplicated", "corrupted"])
def test_harmed_datagrams(harm: str) -> None:
    values: dict[str, Any] = {harm: 1}
    sent = datagrams.Report(1, 1.0, 1e6, Account(arrived=9), Account(arrived=9, **values))
    assert failed(udp_trial(sent=sent)) == ["every datagram arrived once and unchanged"]


def test_what_was_held_is_added_up() -> None:
    assert tcp_trial(reports=[report(held=3), report(held=4)]).held == 7
