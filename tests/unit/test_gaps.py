"""What an application hears around a move, from arrival times alone."""

from __future__ import annotations

import pytest

from m2m.lab.gaps import interruption, interruptions, silence
from m2m.lab.moves import Moved

MOVE = Moved("a to b", lost=1.0, usable=1.1)


def ms(value: float | None) -> float:
    assert value is not None
    return value * 1e3


def test_the_links_own_outage_does_not_count() -> None:
    arrivals = [0.99, 0.999, 1.105, 1.106, 1.2]
    assert ms(interruption(arrivals, MOVE, until=1.201)) == pytest.approx(6)


def test_a_gap_after_the_link_is_back_counts_as_well() -> None:
    """What was lost by the move and repeated late, too, was lost by the move."""
    arrivals = [0.999, 1.101, 1.102, 1.402]
    assert ms(interruption(arrivals, MOVE, until=1.403)) == pytest.approx(200)


def test_what_was_not_interrupted_at_all_is_no_less_than_zero() -> None:
    arrivals = [0.9 + n / 1000 for n in range(500)]
    assert interruption(arrivals, MOVE, until=1.39) == 0


def test_a_stream_that_dies_is_interrupted_until_the_next_move() -> None:
    assert ms(interruption([0.9, 0.999], MOVE, until=2.0)) == pytest.approx(901)
    assert ms(interruption([0.9, 0.999, 5.0], MOVE, until=2.0)) == pytest.approx(901)


def test_a_stream_that_began_later_says_nothing() -> None:
    assert interruption([1.05, 1.06], MOVE, until=2.0) is None
    assert interruption([], MOVE, until=2.0) is None


def test_each_move_has_its_own_window() -> None:
    second = Moved("b to a", lost=2.0, usable=2.0)
    early = [0.999, 1.199, *(1.2 + n / 100 for n in range(200))]
    late = [0.999, *(1.1 + n / 1000 for n in range(900)), 2.5, 2.999]
    rows = list(interruptions([early, late, [2.9]], [MOVE, second], end=3.0))
    assert [round(ms(one)) for one in rows[0][:2]] == [100, 1]
    assert rows[0][2] is None and round(ms(rows[1][1])) == 501


def test_silence_is_told_only_of_what_is_silent() -> None:
    assert silence([0.5, 0.999], MOVE, end=11.0) == pytest.approx(10.001)
    assert silence([0.5, 0.999, 9.0], MOVE, end=11.0) is None
    assert silence([], MOVE, end=11.0) is None
