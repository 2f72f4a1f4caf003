"""Old names of legs fade: after a while they go, and never too many at a time."""

from __future__ import annotations

import random

from m2m.protocol.change import Commands
from m2m.protocol.commands import SetTimer, Withdraw
from m2m.protocol.events import Timer
from m2m.protocol.flow import Flow
from m2m.protocol.ports import PortAllocator
from m2m.protocol.register import Register
from m2m.protocol.renaming import PERIOD, Fading, rows_of
from m2m.protocol.session import Session, State
from m2m.protocol.translation import Position, SessionView, entries_for, spare_entries

SUPER = Flow.of(17, "10.0.1.2", 40000, "10.0.9.2", 80)
LEFT = Flow.of(17, "10.0.1.2", 61001, "10.0.2.2", 64001)
RIGHT = Flow.of(17, "10.0.2.2", 61002, "10.0.9.2", 64002)
OLD = Flow.of(17, "10.0.3.2", 61003, "10.0.2.2", 64003)


def session(number: int = 1, position: Position = Position.INLINE) -> Session:
    left = LEFT._replace(sport=LEFT.sport + number)
    return Session(number, position, State.ESTABLISHED, SUPER, left, RIGHT, 0, 0)


def test_thousands_of_old_names_go_in_turns() -> None:
    fading = Fading(Register(), PortAllocator(61000, 65535, random.Random(1)))
    out: Commands = []
    for number in range(1, 201):
        one = session(number)
        assert one.left is not None
        fading.found(out, one, OLD._replace(sport=OLD.sport + number), one.left, left=True)
    assert out == [SetTimer(0, PERIOD, Timer.FADE)]
    withdrawn, waits = 0, []
    while out:
        out = []
        fading.tick(out)
        gone = [one for one in out if isinstance(one, Withdraw)]
        assert len(gone) <= 64
        withdrawn += len(gone)
        waits += [one.delay for one in out if isinstance(one, SetTimer)]
    assert withdrawn == 200
    assert waits[0] == PERIOD  # the first tick takes nothing: they are young
    assert sum(waits[1:]) < 0.1 * PERIOD
    assert not fading


def test_the_rows_of_another_name_are_those_that_a_second_leg_has() -> None:
    for position in Position:
        one = session(position=position)
        one.left = None if position is Position.CLIENT else one.left
        one.right = None if position is Position.SERVER else one.right
        for left in (True, False):
            now = one.left if left else one.right
            if now is None:
                continue
            name = now._replace(sport=now.sport + 7)
            beside: SessionView = one.view._replace(**{"left" if left else "right": name})
            expected = spare_entries(one.view, beside)
            assert rows_of(one, name, left=left) == expected
            assert len(expected) == 1
            assert rows_of(one, now, left=left) == ()
            assert {row.key for row in expected}.isdisjoint(
                row.key for row in entries_for(one.view)
            )
