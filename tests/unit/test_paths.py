"""What neighbours say of a leg: rules that hold whatever a host has forgotten."""

from __future__ import annotations

from m2m.protocol.commands import Accept, Send
from m2m.protocol.events import Received, Route
from m2m.protocol.update import (
    Lock,
    Mode,
    UpdateAck,
    UpdateAsk,
    UpdateFin,
    UpdateFinAck,
    UpdateSyn,
)
from m2m.protocol.wire import Cause, FinAck, Rst
from tests.support.changes import (
    AT_FW,
    AT_IDS,
    CHANGE,
    CLIENT,
    FW,
    IDS,
    NEW,
    NEW_LEFT,
    NEW_RIGHT,
    OLD_LEFT,
    OLD_RIGHT,
    SUPER,
    lock_to_r,
    skip,
    standing,
    syn,
    syn_to_r,
)
from tests.support.play import ID, Play


def test_a_leg_that_nobody_knows_is_out() -> None:
    for play in (Play(), standing(AT_FW)):
        play >> Received(CLIENT, UpdateFin(ID, NEW_LEFT, CHANGE, 5))
        play << Send(CLIENT, UpdateFinAck(ID, NEW_LEFT, CHANGE, None, 0))
        play >> Received(IDS, UpdateAsk(ID, NEW_RIGHT, CHANGE))
        play << Send(IDS, UpdateFin(ID, NEW_RIGHT, CHANGE, None))
        play.ends()


def test_a_leg_that_nobody_knows_cannot_be_in() -> None:
    for play in (Play(), standing(AT_FW)):
        play >> Received(CLIENT, UpdateAck(ID, NEW_LEFT, CHANGE, 1))
        (send,) = skip(play)
        assert isinstance(send.message, Rst)
        assert send.message.cause is Cause.UNKNOWN_SESSION
        play >> Received(CLIENT, FinAck(ID, NEW_LEFT))
        play.ends()


def test_a_host_that_stands_says_so() -> None:
    play = standing(AT_FW) >> Received(IDS, UpdateAsk(ID, OLD_RIGHT, CHANGE))
    play << Send(IDS, UpdateAck(ID, OLD_RIGHT, CHANGE, 0))
    play.ends()


def test_a_lock_by_a_leg_that_is_out() -> None:
    stale = Lock(ID, NEW_LEFT, CHANGE, Mode.LF, CLIENT, (), FW)
    play = standing(AT_FW) >> Received(CLIENT, stale)
    (send,) = skip(play)
    assert (send.peer, send.message.cause, send.message.blame) == (CLIENT, Cause.MOVED, NEW)


def test_a_new_hop_that_is_on_the_path() -> None:
    play = standing(AT_FW) >> Received(CLIENT, syn(), Route(FW, 1500))
    (send,) = skip(play)
    assert (send.peer, send.message.cause) == (CLIENT, Cause.LOOP)


def test_an_early_leg_that_is_out_is_forgotten() -> None:
    play = standing(AT_IDS) >> Received(NEW, syn_to_r())
    play >> Received(NEW, UpdateFin(ID, NEW_RIGHT, CHANGE, 0))
    play << Send(NEW, UpdateFinAck(ID, NEW_RIGHT, CHANGE, None, 0))
    play >> Received(FW, lock_to_r())
    assert not any(isinstance(one, Accept) for one in skip(play))


def test_an_end_that_has_no_such_session() -> None:
    lost = UpdateSyn(ID, NEW_RIGHT, CHANGE, Mode.LF, CLIENT, SUPER, (), IDS, 1400, 3, 7)
    play = Play() >> Received(NEW, lost)
    (send,) = skip(play)
    assert (send.peer, send.message.cause, send.message.blame) == (CLIENT, Cause.MOVED, IDS)


def test_an_old_hop_asked_by_a_neighbour_while_it_leaves() -> None:
    play = standing(AT_FW) >> Received(CLIENT, UpdateFin(ID, OLD_LEFT, CHANGE, 0))
    skip(play)
    play >> Received(IDS, UpdateAsk(ID, OLD_RIGHT, CHANGE))  # it has not sent all yet
    play.ends()
