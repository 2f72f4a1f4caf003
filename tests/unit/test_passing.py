"""Old and new hops, one event at a time."""

from __future__ import annotations

import pytest
from msgspec import structs

from m2m.protocol.commands import (
    CancelTimer,
    Closed,
    Count,
    Established,
    ExportState,
    Hold,
    ImportState,
    Install,
    ReleaseState,
    Remove,
    Resume,
    Send,
    SetTimer,
)
from m2m.protocol.events import (
    Counted,
    HoldOverflow,
    Received,
    Route,
    StateExported,
    StateImported,
    Timer,
    TimerFired,
)
from m2m.protocol.session import State
from m2m.protocol.translation import Hook, Position, Toward
from m2m.protocol.update import (
    Lock,
    Mode,
    Progress,
    StateAck,
    StatePart,
    Step,
    UpdateAck,
    UpdateAsk,
    UpdateDrain,
    UpdateDrained,
    UpdateEmpty,
    UpdateFin,
    UpdateFinAck,
    UpdateReject,
)
from m2m.protocol.wire import Cause, Fin, Hop, Rst
from tests.support.changes import (
    AT_FW,
    AT_NEW,
    CHANGE,
    CLIENT,
    FW,
    IDS,
    NEW,
    NEW_LEFT,
    NEW_RIGHT,
    OLD_LEFT,
    OLD_RIGHT,
    SERVER,
    SUPER,
    lock,
    lock_to_r,
    skip,
    standing,
    syn,
    syn_to_r,
)
from tests.support.play import ID, Play

FROM_LEFT, FROM_RIGHT = (Hook.IN, OLD_LEFT), (Hook.IN, OLD_RIGHT.reverse())
TO_RIGHT, TO_LEFT = (Hook.OUT, SUPER), (Hook.OUT, SUPER.reverse())
WATCH = SetTimer(ID, 0.3, Timer.CHANGE)
OFF = CancelTimer(ID, Timer.CHANGE)
TICK = TimerFired(ID, Timer.CHANGE)


def locked(mode: Mode = Mode.LF) -> Play:
    play = standing(AT_FW) >> Received(CLIENT, lock(mode))
    return play << Send(IDS, lock_to_r(mode)) << WATCH


def passed_through(play: Play, came: tuple, goes: tuple, number: int) -> Play:  # type: ignore[type-arg]
    """All has come, and the firewall has let the last of it out."""
    play << Count(ID, CHANGE, came) >> Counted(ID, CHANGE, came, 8) << Count(ID, CHANGE, goes)
    play >> Counted(ID, CHANGE, goes, number) << SetTimer(ID, 0.001, Timer.CHANGE)
    return play >> TICK << Count(ID, CHANGE, goes) >> Counted(ID, CHANGE, goes, number)


def leaving(play: Play) -> Play:
    passed_through(play, FROM_LEFT, TO_RIGHT, 7)
    play << Send(IDS, UpdateFin(ID, OLD_RIGHT, CHANGE, 7)) << SetTimer(ID, 0.02, Timer.CHANGE)
    return play


def gone(play: Play) -> Play:
    play << Remove(AT_FW) << Send(CLIENT, UpdateFinAck(ID, OLD_LEFT, CHANGE, 6, 44)) << OFF
    return play << Closed(AT_FW, "its chain does not lead here any more")


def test_an_old_hop_goes() -> None:
    play = locked() >> Received(CLIENT, UpdateFin(ID, OLD_LEFT, CHANGE, 8)) << CancelTimer(ID)
    leaving(play) >> Received(IDS, UpdateFinAck(ID, OLD_RIGHT, CHANGE, 8, 44))
    gone(passed_through(play, FROM_RIGHT, TO_LEFT, 6)).ends()
    assert play.state() is None
    assert play.ports.in_use == 0
    again = UpdateFinAck(ID, OLD_LEFT, CHANGE, None, 0)
    play >> Received(CLIENT, UpdateFin(ID, OLD_LEFT, CHANGE, 8)) << Send(CLIENT, again)


def test_it_goes_even_if_it_has_forgotten_the_lock() -> None:
    fin = UpdateFin(ID, OLD_LEFT, CHANGE, 8)
    play = standing(AT_FW) >> Received(CLIENT, fin) << CancelTimer(ID)
    leaving(play) >> Received(CLIENT, fin) << Send(IDS, UpdateFin(ID, OLD_RIGHT, CHANGE, 7))
    play.ends()


def test_it_stays_while_its_right_neighbour_may_send_by_it() -> None:
    play = locked() >> Received(CLIENT, UpdateFin(ID, OLD_LEFT, CHANGE, 8)) << CancelTimer(ID)
    leaving(play)
    for _ in range(30):
        play >> TICK << Send(IDS, UpdateFin(ID, OLD_RIGHT, CHANGE, 7))
        (again,) = skip(play)
    assert again == SetTimer(ID, 5.0, Timer.CHANGE)  # ever more rarely
    play >> Received(IDS, UpdateFinAck(ID, OLD_RIGHT, CHANGE, 8, 44))
    gone(passed_through(play, FROM_RIGHT, TO_LEFT, 6)).ends()


@pytest.mark.parametrize("over", [Fin(ID, OLD_LEFT), Rst(ID, OLD_LEFT, Cause.TIMEOUT, "gone")])
def test_it_goes_when_the_session_ends_on_its_left(over: Fin | Rst) -> None:
    play = locked() >> Received(CLIENT, UpdateFin(ID, OLD_LEFT, CHANGE, 8)) << CancelTimer(ID)
    leaving(play) >> Received(CLIENT, over)
    assert Remove(AT_FW) in skip(play)
    assert play.state() is None
    assert play.ports.in_use == 0


def test_a_lock_of_another_chain() -> None:
    wrong = Lock(ID, OLD_LEFT, CHANGE, Mode.LF, CLIENT, lock().steps, NEW)
    play = standing(AT_FW) >> Received(CLIENT, wrong)
    (send,) = skip(play)
    assert (send.peer, send.message.cause, send.message.blame) == (CLIENT, Cause.MOVED, FW)
    assert "followed by 10.0.2.2" in send.message.text


def test_another_lock_waits_and_asks() -> None:
    other = Lock(ID, OLD_LEFT, 0xBEEF, Mode.LF, CLIENT, lock().steps, IDS)
    play = locked() >> Received(CLIENT, other) << Send(CLIENT, UpdateAsk(ID, OLD_LEFT, CHANGE))
    play >> Received(CLIENT, UpdateAck(ID, OLD_LEFT, CHANGE, 0)) << OFF
    play << Send(IDS, Lock(ID, OLD_RIGHT, 0xBEEF, Mode.LF, CLIENT, (), IDS)) << WATCH
    play.ends()


def test_a_lock_that_is_taken_back() -> None:
    other = Lock(ID, OLD_LEFT, 0xBEEF, Mode.LF, CLIENT, lock().steps, IDS)
    play = locked() >> Received(CLIENT, other)
    skip(play)
    play >> Received(CLIENT, UpdateAck(ID, OLD_LEFT, 0xBEEF, 1))
    play << Send(IDS, UpdateAck(ID, OLD_RIGHT, 0xBEEF, 0))
    play >> Received(CLIENT, UpdateAck(ID, OLD_LEFT, CHANGE, 1)) << OFF
    play << Send(IDS, UpdateAck(ID, OLD_RIGHT, CHANGE, 0))
    play.ends()


def moving() -> Play:
    """op: both directions are empty, the NF's state can go."""
    play = locked(Mode.OP) >> Received(CLIENT, UpdateDrain(ID, OLD_LEFT, CHANGE, 8))
    passed_through(play, FROM_LEFT, TO_RIGHT, 7)
    play << Send(IDS, UpdateDrain(ID, OLD_RIGHT, CHANGE, 7)) << WATCH
    play >> Received(IDS, UpdateDrained(ID, OLD_RIGHT, CHANGE, 8))
    passed_through(play, FROM_RIGHT, TO_LEFT, 6) << ExportState(ID, CHANGE) << WATCH
    return play


def moved() -> Play:
    play = moving() >> StateExported(ID, CHANGE, b"established")
    part = Send(NEW, StatePart(ID, CHANGE, 0, 1, b"established"))
    play << part << SetTimer(ID, 0.02, Timer.CHANGE)
    play >> TICK << part << SetTimer(ID, 0.02, Timer.CHANGE)
    play >> Received(NEW, StateAck(ID, CHANGE, 0, Progress.RECEIVED))
    play >> Received(NEW, StateAck(ID, CHANGE, 0, Progress.IMPORTED))
    return play << Send(CLIENT, UpdateDrained(ID, OLD_LEFT, CHANGE, 6)) << WATCH


def test_op_moves_the_state_when_all_is_empty() -> None:
    play = moved() >> Received(CLIENT, UpdateDrain(ID, OLD_LEFT, CHANGE, 8))
    play << Send(CLIENT, UpdateDrained(ID, OLD_LEFT, CHANGE, 6))  # it was lost
    play >> Received(CLIENT, UpdateFin(ID, OLD_LEFT, CHANGE, 8)) << CancelTimer(ID)
    leaving(play) >> Received(IDS, UpdateFinAck(ID, OLD_RIGHT, CHANGE, 8, 44))
    gone(passed_through(play, FROM_RIGHT, TO_LEFT, 6) << ReleaseState(ID, keep=False)).ends()


def test_op_undone_leaves_the_state_where_it_was() -> None:
    play = moved() >> Received(CLIENT, UpdateAck(ID, OLD_LEFT, CHANGE, 1))
    play << ReleaseState(ID, keep=True) << OFF << Send(IDS, UpdateAck(ID, OLD_RIGHT, CHANGE, 0))
    play.ends()


@pytest.mark.parametrize("state", [None, bytes(100_000)], ids=["none", "too long"])
def test_a_state_that_cannot_be_had(state: bytes | None) -> None:
    play = moving() >> StateExported(ID, CHANGE, state) << ReleaseState(ID, keep=True)
    send = play.todo.pop(0)
    assert isinstance(send.message, UpdateReject)
    assert (send.peer, send.message.cause, send.message.blame) == (CLIENT, Cause.STATE, FW)
    play << WATCH


def test_a_state_that_is_not_taken() -> None:
    play = moving() >> StateExported(ID, CHANGE, b"x")
    skip(play)
    play >> Received(NEW, StateAck(ID, CHANGE, 0, Progress.FAILED)) << ReleaseState(ID, keep=True)
    assert play.todo.pop(0).message.cause is Cause.STATE
    play << WATCH


def test_an_heir_that_is_not_there() -> None:
    play = moving() >> StateExported(ID, CHANGE, b"x")
    skip(play)
    for _ in range(20):
        play >> TICK
        if Send(CLIENT, UpdateAsk(ID, OLD_LEFT, CHANGE)) in skip(play):
            return
    pytest.fail("it never asks what became of the change")


# --- a new hop ----------------------------------------------------------------------------------


def joined(mode: Mode = Mode.LF) -> Play:
    play = Play() >> Received(CLIENT, syn(mode), Route(NEW, 1400)) << Install(AT_NEW)
    if mode is Mode.LF:
        play << Hold(ID, CHANGE, TO_RIGHT, False)
    play << Send(IDS, syn_to_r(mode))
    if mode is Mode.LF:
        play << Hold(ID, CHANGE, TO_LEFT, False)
    return play << WATCH


def confirmed(mode: Mode = Mode.LF) -> Play:
    play = joined(mode) >> Received(CLIENT, UpdateAck(ID, NEW_LEFT, CHANGE, 1)) << CancelTimer(ID)
    over = SetTimer(ID, 0.05, Timer.CHANGE) if mode is Mode.LF else OFF
    play << Established(AT_NEW) << over << Send(IDS, UpdateAck(ID, NEW_RIGHT, CHANGE, 0))
    return play


def test_a_new_hop_joins() -> None:
    play = joined() >> Received(CLIENT, syn(), Route(NEW, 1400)) << Send(IDS, syn_to_r())
    assert play.state() is State.ADOPTED
    play = confirmed(Mode.OP)
    play >> Received(CLIENT, UpdateAck(ID, NEW_LEFT, CHANGE, 1))  # the next host may not have it
    play << Send(IDS, UpdateAck(ID, NEW_RIGHT, CHANGE, 0))
    play.ends()


def test_a_new_hop_keeps_back_what_would_overtake_the_old_path() -> None:
    play = confirmed() >> Received(IDS, UpdateEmpty(ID, NEW_RIGHT, CHANGE))
    play << Resume(ID, CHANGE, TO_RIGHT)
    play >> Received(CLIENT, UpdateAck(ID, NEW_LEFT, CHANGE, 1))  # repeated: nothing new
    play << Send(IDS, UpdateAck(ID, NEW_RIGHT, CHANGE, 0))
    play >> Received(IDS, UpdateAsk(ID, NEW_RIGHT, CHANGE))  # it is in
    play << Send(IDS, UpdateAck(ID, NEW_RIGHT, CHANGE, 0))
    play >> Received(CLIENT, UpdateEmpty(ID, NEW_LEFT, CHANGE))
    play << Resume(ID, CHANGE, TO_LEFT) << OFF
    play >> Received(CLIENT, UpdateEmpty(ID, NEW_LEFT, CHANGE))
    play.ends()


def test_it_does_not_wait_long_to_hear_that() -> None:
    play = confirmed() >> TICK << Resume(ID, CHANGE, TO_RIGHT) << Resume(ID, CHANGE, TO_LEFT) << OFF
    play.ends()


def test_it_keeps_back_no_more_than_there_is_room_for() -> None:
    play = confirmed() >> HoldOverflow(ID, Toward.RIGHT)
    play >> Received(IDS, UpdateEmpty(ID, NEW_RIGHT, CHANGE))
    play >> HoldOverflow(ID, Toward.LEFT) << OFF
    play.ends()


def test_only_the_last_new_hop_to_either_side_keeps_anything_back() -> None:
    further = (Hop(IDS, Position.TAP, "ids"),)  # behind this one
    longer = structs.replace(syn(), hops=syn().hops + further, right=SERVER)
    play = Play() >> Received(CLIENT, longer, Route(NEW, 1400))
    held = [one.key for one in skip(play) if isinstance(one, Hold)]
    assert held == [TO_LEFT]
    play = Play() >> Received(CLIENT, structs.replace(syn(), leader=FW), Route(NEW, 1400))
    held = [one.key for one in skip(play) if isinstance(one, Hold)]
    assert held == [TO_RIGHT]


def test_a_lock_of_another_change_shows_that_it_is_in() -> None:
    other = Lock(ID, NEW_LEFT, 0xBEEF, Mode.LF, CLIENT, (Step(NEW),), IDS)
    play = joined() >> Received(CLIENT, other) << CancelTimer(ID) << Established(AT_NEW)
    play << Resume(ID, CHANGE, TO_RIGHT) << Resume(ID, CHANGE, TO_LEFT) << OFF
    (send, watch) = skip(play)
    assert (send.peer, send.message.change, watch) == (IDS, 0xBEEF, WATCH)


def test_a_new_hop_that_is_not_confirmed_confirms_nobody() -> None:
    joined() >> Received(IDS, UpdateAsk(ID, NEW_RIGHT, CHANGE))


def test_a_new_hop_asks() -> None:
    joined() >> TICK << Send(CLIENT, UpdateAsk(ID, NEW_LEFT, CHANGE)) << WATCH


def test_a_new_hop_without_a_way_on() -> None:
    play = Play() >> Received(CLIENT, syn())
    (send,) = skip(play)
    assert (send.peer, send.message.cause) == (CLIENT, Cause.NO_ROUTE)
    assert play.state() is None


def test_a_new_hop_takes_the_state_over() -> None:
    play = joined(Mode.OP)
    first, second = StatePart(ID, CHANGE, 0, 2, b"a"), StatePart(ID, CHANGE, 1, 2, b"b")
    play >> Received(FW, second) << Send(FW, StateAck(ID, CHANGE, 1, Progress.RECEIVED))
    play >> Received(FW, first) << Send(FW, StateAck(ID, CHANGE, 0, Progress.RECEIVED))
    play << ImportState(ID, CHANGE, b"ab") >> StateImported(ID, CHANGE, True)
    play << Send(FW, StateAck(ID, CHANGE, 0, Progress.IMPORTED))
    play >> Received(FW, second) << Send(FW, StateAck(ID, CHANGE, 1, Progress.IMPORTED))
    play.ends()


def test_state_for_a_host_that_knows_nothing_of_it() -> None:
    play = Play() >> Received(FW, StatePart(ID, CHANGE, 0, 1, b"a"))
    play << Send(FW, StateAck(ID, CHANGE, 0, Progress.FAILED))
    play.ends()
