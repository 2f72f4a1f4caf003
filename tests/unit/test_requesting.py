"""A host that asks to be replaced, until it hears what came of it."""

from __future__ import annotations

import pytest
from msgspec import structs

from m2m.protocol.commands import CancelTimer, ChangeDone, ChangeRefused, Send, SetTimer
from m2m.protocol.events import Received, RequestWanted, Timer, TimerFired
from m2m.protocol.splice import Splice
from m2m.protocol.update import Approve, Done, Mode, Reject, Request, Step, UpdateFin
from m2m.protocol.wire import Cause
from tests.support.changes import (
    AT_CLIENT,
    AT_FW,
    CHANGE,
    CLIENT,
    FW,
    HOP,
    IDS,
    NEW,
    OLD_LEFT,
    STEP,
    skip,
    standing,
)
from tests.support.play import ID, Play

ME = RequestWanted(ID, CHANGE, Mode.OP, None, (), None, (HOP,))
REQUEST = Request(ID, CHANGE, Mode.OP, (STEP,), IDS, (HOP,))
TICK = TimerFired(ID, Timer.REQUEST)
OFF = CancelTimer(ID, Timer.REQUEST)


def timer(delay: float) -> SetTimer:
    return SetTimer(ID, pytest.approx(delay), Timer.REQUEST)


def asking() -> Play:
    return standing(AT_FW) >> ME << Send(CLIENT, REQUEST) << timer(0.02)


def test_asked_until_it_is_done() -> None:
    play = asking() >> TICK << Send(CLIENT, REQUEST) << timer(0.02)
    play >> TICK << Send(CLIENT, REQUEST) << timer(0.04)
    play >> Received(CLIENT, Approve(ID, CHANGE))
    play >> TICK << Send(CLIENT, REQUEST) << timer(0.5)
    play >> Received(CLIENT, Done(ID, 0xBEEF, 1, True))  # of another one
    play >> Received(CLIENT, Done(ID, CHANGE, 33, False)) << OFF
    play << ChangeDone(ID, CHANGE, 33, False)
    play >> Received(CLIENT, Done(ID, CHANGE, 33, False))
    play.ends()


def test_refused_says_by_whom_and_why() -> None:
    play = asking() >> Received(CLIENT, Reject(ID, CHANGE, Cause.NO_PORTS, "none left", NEW))
    play << OFF << ChangeRefused(ID, CHANGE, Cause.NO_PORTS, "none left", NEW)
    play.ends()


def test_asked_anew_when_neighbours_have_changed() -> None:
    play = asking()
    play.node.sessions[ID].right = NEW_NEIGHBOUR
    play >> Received(CLIENT, Reject(ID, CHANGE, Cause.MOVED, "followed by another"))
    play >> TICK << Send(CLIENT, Request(ID, ID, Mode.OP, (STEP,), NEW, (HOP,))) << timer(0.02)
    play >> Received(CLIENT, Done(ID, CHANGE, 1, True))  # an answer to the first
    play >> Received(CLIENT, Done(ID, ID, 2, True)) << OFF << ChangeDone(ID, CHANGE, 2, True)


def test_what_a_function_has_added_is_told_each_time() -> None:
    added = Splice((16, 0), (0, 0), (0, 0))
    request = Request(ID, CHANGE, Mode.LF, (Step(FW),), IDS, (), added)
    play = standing(AT_FW) >> ME._replace(mode=Mode.LF, hops=(), added=added)
    play << Send(CLIENT, request) << timer(0.02) >> TICK << Send(CLIENT, request) << timer(0.02)
    play >> Received(CLIENT, Reject(ID, CHANGE, Cause.MOVED, "another left neighbour"))
    play >> TICK << Send(CLIENT, structs.replace(request, change=ID)) << timer(0.04)
    play.ends()


NEW_NEIGHBOUR = AT_FW.right._replace(dst=NEW) if AT_FW.right is not None else OLD_LEFT


def test_told_though_it_has_left_the_chain() -> None:
    play = asking() >> Received(CLIENT, UpdateFin(ID, OLD_LEFT, CHANGE, 0))
    skip(play)
    play >> TICK << Send(CLIENT, REQUEST) << timer(0.02)
    play >> Received(CLIENT, Done(ID, CHANGE, 3, True)) << OFF << ChangeDone(ID, CHANGE, 3, True)


def test_nobody_answers() -> None:
    play = asking()
    for _ in range(100):
        play >> TICK
        done = skip(play)
        if done[0] == OFF:
            break
    refused = done[1]
    assert isinstance(refused, ChangeRefused)
    assert (refused.cause, refused.blame) == (Cause.TIMEOUT, CLIENT)


def test_one_request_at_a_time() -> None:
    play = asking() >> ME._replace(change=7)
    (refused,) = skip(play)
    assert (refused.change, refused.cause) == (7, Cause.BUSY)


@pytest.mark.parametrize("session", [ID, 9])
def test_only_a_middlebox_can_be_replaced(session: int) -> None:
    play = standing(AT_CLIENT) >> ME._replace(session=session)
    (refused,) = skip(play)
    assert refused.cause is Cause.MODE


def test_a_request_to_any_host() -> None:
    steps = (Step(FW),)
    play = Play() >> RequestWanted(ID, CHANGE, Mode.LF, CLIENT, steps, IDS, ())
    play << Send(CLIENT, Request(ID, CHANGE, Mode.LF, steps, IDS, ())) << timer(0.02)
    play >> Received(CLIENT, Reject(ID, CHANGE, Cause.MOVED, "other", CLIENT)) << OFF
    play << ChangeRefused(ID, CHANGE, Cause.MOVED, "other", CLIENT)
