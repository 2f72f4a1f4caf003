"""When a leg is empty, and how state travels in parts."""

from __future__ import annotations

import pytest

from m2m.protocol.events import Queued
from m2m.protocol.flow import Flow, Proto
from m2m.protocol.ordering import Emptying, Incoming, Outgoing
from m2m.protocol.translation import Hook
from m2m.protocol.update import MAX_PART, StatePart
from m2m.protocol.wire import WireError

KEY = Hook.IN, Flow.of(Proto.TCP, "10.0.0.1", 61000, "10.0.1.2", 61001)


def looks(emptying: Emptying, counts: list[int | None], every: float) -> list[bool]:
    found = []
    for packets in counts:
        found.append(emptying.look(packets, 1.0))
        emptying.delay = every
    return found


def test_empty_when_all_have_come() -> None:
    assert looks(Emptying(KEY, 3, 0.05), [0, 2, 3], 0.01) == [False, False, True]
    assert looks(Emptying(KEY, 3, 0.05), [7], 0.01) == [True]


def test_empty_when_nothing_comes_any_more() -> None:
    assert looks(Emptying(KEY, 9, 0.02), [3, 3, 3], 0.01) == [False, False, True]
    assert looks(Emptying(KEY, 9, 0.02), [3, 3, 4, 4, 4], 0.01) == [False] * 4 + [True]


def test_nobody_knows_how_many_there_are() -> None:
    assert looks(Emptying(KEY, None, 0.01), [5, 5], 0.01) == [False, True]


@pytest.mark.parametrize("given", [10, 1])
def test_not_empty_while_something_waits_that_was_queued_before(given: int) -> None:
    """Numbers of packets wrap; of what has come since, nothing is waited for."""
    emptying, found = Emptying(KEY, None, 0.01), []
    for done in (given - 3, given - 1, given, given + 5):
        queues = (Queued(0, given + 9 * len(found), done & 0xFFFFFFFF), Queued(7, 0, 0))
        found.append(emptying.look(5, 1.0, queues))
        emptying.delay = 0.01
    assert found == [False, False, True, True]


def test_a_queue_that_was_made_anew_is_not_waited_for() -> None:
    emptying = Emptying(KEY, None, 0.01)
    assert not emptying.look(5, 1.0, (Queued(0, 1000, 990),))
    emptying.delay = 0.01
    assert emptying.look(5, 1.0, (Queued(0, 3, 1),))


def test_empty_after_so_long_in_any_case() -> None:
    found = looks(Emptying(KEY, 99, 0.05), list(range(12)), 0.1)
    assert found == [False] * 10 + [True] * 2


def test_empty_when_its_entry_is_gone() -> None:
    emptying = Emptying(KEY, 99, 0.05)
    assert looks(emptying, [None], 0.01) == [True]
    assert emptying.seen is None


def test_state_in_parts_that_are_lost_and_doubled() -> None:
    state = bytes(range(256)) * 10
    outgoing = Outgoing(state)
    parts = list(outgoing.to_send(1, 2))
    assert [part.part for part in parts] == [0, 1, 2]
    incoming = Incoming(parts[0].parts)
    incoming.add(parts[2])
    incoming.add(parts[2])
    incoming.add(StatePart(1, 2, 0, 2, b"of another division"))
    assert incoming.whole is None
    outgoing.acknowledged(2)
    outgoing.acknowledged(7)
    assert [part.part for part in outgoing.to_send(1, 2)] == [0, 1]
    incoming.add(parts[1])
    incoming.add(parts[0])
    assert incoming.whole == state


def test_the_verdict_is_asked_for_by_the_last_part() -> None:
    outgoing = Outgoing(b"")
    (only,) = outgoing.to_send(1, 2)
    assert only == StatePart(1, 2, 0, 1, b"")
    outgoing.acknowledged(0)
    assert list(outgoing.to_send(1, 2)) == [only]


def test_too_much_state() -> None:
    with pytest.raises(WireError, match="at most"):
        Outgoing(bytes(MAX_PART * 65))
