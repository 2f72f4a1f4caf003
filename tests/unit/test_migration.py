"""What is wanted of a host, and what waits there."""

from __future__ import annotations

import pytest

from m2m.protocol.change import Phase
from m2m.protocol.commands import CancelTimer, ChangeRefused, Send
from m2m.protocol.events import Ended, Received, Route, Timer, TimerFired
from m2m.protocol.update import (
    Approve,
    Lock,
    Mode,
    Reject,
    Request,
    Step,
    UpdateAck,
    UpdateFin,
    UpdateReject,
    UpdateSyn,
)
from m2m.protocol.wire import Cause, Hop
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
    SERVER,
    STEP,
    lock,
    skip,
    standing,
    wanted,
)
from tests.support.play import ID, Play

ROUTE = Route(CLIENT, 1500)
REQUEST = Request(ID, CHANGE, Mode.LF, (STEP,), IDS, (HOP,))


def refusals(play: Play) -> list[ChangeRefused]:
    return [one for one in skip(play) if isinstance(one, ChangeRefused)]


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (wanted()._replace(session=9), Cause.UNKNOWN_SESSION),
        (wanted()._replace(steps=(Step(NEW),)), Cause.MOVED),
        (wanted()._replace(steps=()), Cause.MOVED),
        (wanted()._replace(hops=(HOP, HOP)), Cause.LOOP),
        (wanted()._replace(hops=(Hop(IDS, HOP.kind),)), Cause.LOOP),
        (wanted()._replace(hops=(Hop(FW, HOP.kind),)), Cause.LOOP),
        (wanted()._replace(steps=(), right=FW, hops=()), Cause.MODE),
    ],
)
def test_what_cannot_be(change: object, cause: Cause) -> None:
    play = standing(AT_CLIENT) >> change  # type: ignore[operator]
    (refused,) = refusals(play)
    assert refused.cause is cause
    assert play.ports.in_use == 1


def test_a_request_is_approved_and_answered_again() -> None:
    play = standing(AT_CLIENT) >> Received(FW, REQUEST, ROUTE)
    done = skip(play)
    assert done[0] == Send(FW, Approve(ID, CHANGE))
    syns = [one.message for one in done if isinstance(getattr(one, "message", 0), UpdateSyn)]
    assert syns[0].change not in (0, CHANGE)  # each attempt has a number of its own
    play >> Received(FW, REQUEST, ROUTE) << Send(FW, Approve(ID, CHANGE))
    play.ends()
    play >> Received(IDS, UpdateReject(ID, syns[0].change, Cause.NO_PORTS, "none", IDS))
    skip(play)
    session = play.node.sessions[ID]
    session.change.waited = 99.0
    session.change.delay = 1.0
    play >> TimerFired(ID, Timer.CHANGE)
    verdict = Send(FW, Reject(ID, CHANGE, Cause.NO_PORTS, "none", IDS))
    assert verdict in skip(play)
    play >> Received(FW, REQUEST, ROUTE) << verdict  # it was lost
    play.ends()


def test_a_request_without_a_route() -> None:
    play = standing(AT_CLIENT) >> Received(FW, REQUEST)
    (send,) = skip(play)
    assert send.message.cause is Cause.NO_ROUTE


def test_a_wish_waits_for_its_turn() -> None:
    play = standing(AT_FW) >> Received(CLIENT, lock())
    skip(play)
    mine = wanted()._replace(
        change=7, steps=(), right=IDS, hops=(Hop(SERVER, HOP.kind),), route=Route(FW, 1500)
    )
    play >> mine
    play.ends()
    play >> Received(CLIENT, UpdateAck(ID, OLD_LEFT, CHANGE, 0)) << CancelTimer(ID, Timer.CHANGE)
    assert {one.peer for one in skip(play) if isinstance(one, Send)} == {SERVER, IDS}


def test_nobody_waits_for_a_host_that_cannot_be_reached() -> None:
    """R has been told nothing for long: L keeps the old leg, but no next change waits for that."""
    play = standing(AT_CLIENT) >> wanted()
    skip(play)
    session = play.node.sessions[ID]
    session.change.phase = Phase.FINISHING
    play >> wanted()._replace(change=7)
    play.ends()
    session.change.waited, session.change.delay = 4.0, 1.0
    play >> TimerFired(ID, Timer.CHANGE)
    (refused,) = refusals(play)
    assert (refused.change, refused.cause, refused.blame) == (7, Cause.BUSY, CLIENT)
    play >> Received(FW, Request(ID, 8, Mode.LF, (STEP,), IDS, (HOP,)), ROUTE)
    (send,) = skip(play)
    assert (send.peer, send.message.change, send.message.cause) == (FW, 8, Cause.BUSY)


def test_what_waits_at_a_host_that_leaves_or_ends() -> None:
    for last in (UpdateFin(ID, OLD_LEFT, CHANGE, 0), None):
        play = standing(AT_FW) >> Received(CLIENT, lock())
        skip(play)
        play >> Received(IDS, REQUEST, ROUTE)
        skip(play)
        if last is None:
            play >> Ended(ID, "rst")
            sent = skip(play)
        else:
            play >> Received(CLIENT, last)
            skip(play)
            play.node.sessions[ID].change.phase = Phase.LEAVING
            play.node.sessions[ID].change.emptying = None
            play.node.sessions[ID].change.waited = 99.0
            play.node.sessions[ID].change.delay = 1.0
            play >> TimerFired(ID, Timer.CHANGE)
            sent = skip(play)
        answers = [one.message for one in sent if isinstance(getattr(one, "message", 0), Reject)]
        assert [(one.change, one.cause) for one in answers] == [(CHANGE, Cause.MOVED)]


def test_not_too_many_wait() -> None:
    play = standing(AT_FW) >> Received(CLIENT, lock())
    skip(play)
    for number in range(1, 9):
        play >> Received(CLIENT, Lock(ID, OLD_LEFT, number, Mode.LF, CLIENT, (STEP,), IDS))
        assert not any(isinstance(getattr(one, "message", 0), UpdateReject) for one in skip(play))
    play >> Received(CLIENT, Lock(ID, OLD_LEFT, 9, Mode.LF, CLIENT, (STEP,), IDS))
    (send,) = skip(play)
    assert (send.peer, send.message.cause) == (CLIENT, Cause.BUSY)
    play >> Received(CLIENT, Lock(ID, OLD_LEFT, 8, Mode.LF, CLIENT, (STEP,), IDS))
    assert not any(isinstance(getattr(one, "message", 0), UpdateReject) for one in skip(play))
    play >> wanted()._replace(change=10)
    (refused,) = refusals(play)
    assert refused.cause is Cause.BUSY
