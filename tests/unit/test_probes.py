"""One end of a probe's session: records numbered, taken apart, and noted."""

from __future__ import annotations

from pathlib import Path

import pytest

from m2m.lab.traffic import probes
from m2m.lab.traffic.numbered import header_of
from m2m.lab.traffic.probes import SIZE, Session

PROBE = 0x8000


class Wire:
    """What a session has sent; takes at most *room* bytes at a time."""

    def __init__(self, room: int = 10_000) -> None:
        self.sent = b""
        self.room = room

    def send(self, data: bytes) -> int:
        if not self.room:
            raise BlockingIOError
        self.sent += data[: self.room]
        return min(len(data), self.room)


def numbers(data: bytes) -> list[int]:
    found = (header_of(data[at : at + SIZE]) for at in range(0, len(data), SIZE))
    return [header.number for header in found if header is not None]


def test_records_are_numbered() -> None:
    wire = Wire()
    session = Session(3, wire.send)
    for _ in range(3):
        session.send()
    assert numbers(wire.sent) == [0, 1, 2]


def test_a_record_of_which_a_part_was_sent_is_completed_first() -> None:
    wire = Wire(room=SIZE - 10)
    session = Session(3, wire.send)
    session.send()
    session.send()
    wire.room = SIZE
    session.send()
    assert numbers(wire.sent) == [0, 1]


def test_a_full_socket_delays_and_loses_nothing() -> None:
    wire = Wire(room=0)
    session = Session(3, wire.send)
    session.send()
    wire.room = SIZE
    session.send()
    assert numbers(wire.sent) == [0]


def test_an_error_ends_the_session_once() -> None:
    def fails(_: bytes) -> int:
        raise OSError(110, "Connection timed out")

    session = Session(3, fails)
    session.send()
    session.fail(OSError(104, "later"))
    stream = session.stream()
    assert stream.error == "Connection timed out" and stream.error_at is not None


@pytest.mark.parametrize("cut", [1, 10, SIZE, SIZE + 1, 3 * SIZE])
def test_a_byte_stream_is_taken_apart_wherever_it_was_cut(cut: int) -> None:
    wire = Wire()
    sender = Session(PROBE | 5, wire.send)
    for _ in range(4):
        sender.send()
    taker = Session(PROBE | 5, wire.send)
    whole = sum(taker.take_bytes(wire.sent[at : at + cut]) for at in range(0, len(wire.sent), cut))
    stream = taker.stream()
    assert whole == len(stream.arrivals) == 4
    assert (stream.flow, stream.probe) == (5, True)
    assert (stream.account.lost, stream.account.reordered, stream.account.corrupted) == (0, 0, 0)


def test_lost_are_the_holes_below_the_highest_number() -> None:
    wire = Wire()
    sender = Session(1, wire.send)
    for _ in range(5):
        sender.send()
    taker = Session(1, wire.send)
    for number in (3, 0, 1):
        taker.take(wire.sent[number * SIZE : (number + 1) * SIZE])
    stream = taker.stream()
    assert (stream.account.lost, stream.account.reordered) == (1, 2)
    assert not stream.arrivals, "it is no probe"


def test_a_report_is_read_back(tmp_path: Path) -> None:
    session = Session(PROBE | 2, Wire().send)
    out = tmp_path / "report"
    probes._write(out, "tcp", 0.001, [session])
    report = probes.read(out)
    assert [stream.flow for stream in report.probes] == [2]
    assert list(tmp_path.iterdir()) == [out]
