"""R, one event at a time: it goes over when it hears which leg is in, from whomever."""

from __future__ import annotations

import pytest
from msgspec import structs

from m2m.protocol.commands import (
    Accept,
    CancelTimer,
    Count,
    Hold,
    Redirect,
    Resume,
    Send,
    SetTimer,
    WatchAck,
    WatchCount,
    Withdraw,
)
from m2m.protocol.events import (
    Acked,
    Adopted,
    Counted,
    Holding,
    HoldOverflow,
    InstallFailed,
    Reached,
    Received,
    Redirected,
    Timer,
    TimerFired,
)
from m2m.protocol.translation import Hook, Toward, spare_entries
from m2m.protocol.update import (
    Mode,
    UpdateAck,
    UpdateAsk,
    UpdateDrain,
    UpdateDrained,
    UpdateEmpty,
    UpdateFin,
    UpdateFinAck,
    UpdateReject,
    UpdateSub,
    UpdateSubAck,
    UpdateSynAck,
)
from m2m.protocol.wire import Ack, Cause, Rst
from tests.support.changes import (
    AT_IDS,
    AT_IDS_TOO,
    CHANGE,
    CLIENT,
    FW,
    IDS,
    IDS_AFTER,
    NEW,
    NEW_RIGHT,
    OLD_RIGHT,
    ONWARD,
    SERVER,
    TURN_LEFT,
    leg,
    lock_to_r,
    skip,
    standing,
    syn_to_r,
)
from tests.support.play import ID, Play

FROM_OLD, FROM_NEW = (Hook.IN, OLD_RIGHT), (Hook.IN, NEW_RIGHT)
TO_LEFT = Hook.IN, ONWARD.reverse()  # at a tap, what comes from the right is what goes left
WATCH = SetTimer(ID, 0.3, Timer.CHANGE)
STRAIGHT = leg(CLIENT, IDS)
READY = Send(CLIENT, UpdateSynAck(ID, CHANGE, 1400))
OFF = CancelTimer(ID, Timer.CHANGE)


def locked(mode: Mode = Mode.LF) -> Play:
    play = standing(AT_IDS) >> Received(FW, lock_to_r(mode)) << WATCH
    return play >> Received(NEW, syn_to_r(mode)) << Accept(ID, AT_IDS_TOO) << READY


def test_either_path_may_reach_it_first() -> None:
    play = standing(AT_IDS) >> Received(NEW, syn_to_r())
    play >> Received(FW, lock_to_r()) << Accept(ID, AT_IDS_TOO) << READY << WATCH
    play >> Received(NEW, syn_to_r()) << READY  # again: it was lost
    play >> Received(FW, lock_to_r())
    play.ends()


def switched() -> Play:
    play = locked() >> Received(NEW, UpdateAck(ID, NEW_RIGHT, CHANGE, 0))
    play << Redirect(ID, CHANGE, TURN_LEFT) >> Redirected(ID, CHANGE, 20) << WATCH
    assert play.node.view(ID) == IDS_AFTER
    return play


def emptied(play: Play) -> Play:
    play << Count(ID, CHANGE, FROM_OLD) >> Counted(ID, CHANGE, FROM_OLD, 8)
    play << Withdraw(ID, spare_entries(IDS_AFTER, AT_IDS))
    play << Send(FW, UpdateFinAck(ID, OLD_RIGHT, CHANGE, 20, 0))
    return play << Send(NEW, UpdateEmpty(ID, NEW_RIGHT, CHANGE)) << OFF


def test_the_new_leg_is_in() -> None:
    emptied(switched() >> Received(FW, UpdateFin(ID, OLD_RIGHT, CHANGE, 8))).ends()


def test_it_asks_l_itself_when_the_old_path_is_dead() -> None:
    play = switched()
    asked = Send(CLIENT, UpdateAsk(ID, OLD_RIGHT, CHANGE))
    waited, done = 0.0, []
    while asked not in done:
        waited += 0.3 if not done else done[-1].delay
        play >> TimerFired(ID, Timer.CHANGE)
        done = skip(play)
    assert waited == pytest.approx(5.0)
    play >> Received(CLIENT, UpdateFin(ID, OLD_RIGHT, CHANGE, None)) << Count(ID, CHANGE, FROM_OLD)
    play >> Counted(ID, CHANGE, FROM_OLD, 8)
    while not play.todo or not isinstance(play.todo[0], Withdraw):
        skip(play)
        play >> TimerFired(ID, Timer.CHANGE) << Count(ID, CHANGE, FROM_OLD)
        play >> Counted(ID, CHANGE, FROM_OLD, 8)
    play << Withdraw(ID, spare_entries(IDS_AFTER, AT_IDS))
    through = UpdateFinAck(ID, OLD_RIGHT, CHANGE, 20, 0)
    play << Send(FW, through) << Send(CLIENT, through)
    play << Send(NEW, UpdateEmpty(ID, NEW_RIGHT, CHANGE)) << OFF
    play.ends()


def straight() -> Play:
    """The firewall is taken out and nothing put in: what goes left is kept back here."""
    play = standing(AT_IDS) >> Received(FW, lock_to_r()) << WATCH
    play >> Received(CLIENT, structs.replace(syn_to_r(), subsession=STRAIGHT))
    skip(play)
    play >> Received(CLIENT, UpdateAck(ID, STRAIGHT, CHANGE, 0))
    play << Hold(ID, CHANGE, TO_LEFT, False)
    (redirect,) = skip(play)
    assert isinstance(redirect, Redirect)
    play >> Holding(ID, CHANGE, 20, None) >> Redirected(ID, CHANGE, 20) << WATCH
    play >> Received(FW, UpdateFin(ID, OLD_RIGHT, CHANGE, 8)) << Count(ID, CHANGE, FROM_OLD)
    return play >> Counted(ID, CHANGE, FROM_OLD, 8)


def through_with_the_old_path(play: Play) -> Play:
    assert isinstance(play.todo.pop(0), Withdraw)
    play << Send(FW, UpdateFinAck(ID, OLD_RIGHT, CHANGE, 20, 0))
    return play << Send(CLIENT, UpdateEmpty(ID, STRAIGHT, CHANGE))


def test_without_a_new_host_it_keeps_back_what_would_overtake() -> None:
    play = through_with_the_old_path(straight()) << SetTimer(ID, 0.05, Timer.CHANGE)
    play >> Received(FW, UpdateFin(ID, OLD_RIGHT, CHANGE, 8))  # the answer was lost
    play << Send(FW, UpdateFinAck(ID, OLD_RIGHT, CHANGE, None, 0))
    play >> Received(CLIENT, UpdateEmpty(ID, STRAIGHT, CHANGE))
    play << Resume(ID, CHANGE, TO_LEFT) << OFF
    play.ends()


def test_it_does_not_wait_long_for_that() -> None:
    play = through_with_the_old_path(straight()) << SetTimer(ID, 0.05, Timer.CHANGE)
    play >> TimerFired(ID, Timer.CHANGE) << Resume(ID, CHANGE, TO_LEFT) << OFF
    play.ends()


def test_in_lf_too_many_packets_only_overtake() -> None:
    play = through_with_the_old_path(straight()) << SetTimer(ID, 0.05, Timer.CHANGE)
    play >> HoldOverflow(ID, Toward.LEFT) << OFF
    play.ends()


def test_the_old_leg_is_out() -> None:
    """UPDATE-ACK was lost; a restarted L does not know the change's number any more."""
    play = locked() >> Received(FW, UpdateFin(ID, OLD_RIGHT, 0, 8))
    play << Redirect(ID, CHANGE, TURN_LEFT) >> Redirected(ID, CHANGE, 20)
    emptied(play).ends()


def test_the_new_leg_is_out() -> None:
    play = locked() >> Received(NEW, UpdateFin(ID, NEW_RIGHT, CHANGE, 0))
    play << Withdraw(ID, AT_IDS_TOO) << OFF
    play << Send(NEW, UpdateFinAck(ID, NEW_RIGHT, CHANGE, 0, 0))
    play >> Received(NEW, UpdateFin(ID, NEW_RIGHT, CHANGE, 0))
    play << Send(NEW, UpdateFinAck(ID, NEW_RIGHT, CHANGE, None, 0))
    assert play.node.view(ID) == AT_IDS


def test_the_old_leg_is_in() -> None:
    play = locked() >> Received(FW, UpdateAck(ID, OLD_RIGHT, 0xBEEF, 0))  # of an earlier change
    play >> Received(FW, UpdateAck(ID, OLD_RIGHT, 0, 0))  # in some time: of no matter
    play >> Received(FW, UpdateAck(ID, OLD_RIGHT, CHANGE, 0)) << Withdraw(ID, AT_IDS_TOO) << OFF
    play.ends()


def test_no_news() -> None:
    play = locked()
    for delay in (0.3, 0.6, 1.2, 2.4, 4.8, 5.0):
        play >> TimerFired(ID, Timer.CHANGE) << Send(FW, UpdateAsk(ID, OLD_RIGHT, CHANGE))
        play << Send(NEW, UpdateAsk(ID, NEW_RIGHT, CHANGE))
        play << SetTimer(ID, pytest.approx(delay), Timer.CHANGE)


def test_the_client_may_ask_by_either_leg() -> None:
    play = locked()
    for either in (OLD_RIGHT, NEW_RIGHT):
        play >> Received(either.src, Ack(ID, either)) << Send(SERVER, Ack(ID, ONWARD))


def test_a_new_hop_that_closes_leaves_it_locked() -> None:
    play = locked() >> Received(NEW, Rst(ID, NEW_RIGHT, Cause.TIMEOUT, "gone"))
    done = skip(play)
    assert Withdraw(ID, AT_IDS_TOO) in done
    play >> Received(NEW, syn_to_r()) << Accept(ID, AT_IDS_TOO) << READY


def test_the_datapath_does_not_take_the_new_leg() -> None:
    play = locked() >> InstallFailed(ID, "it is full")
    (send,) = skip(play)
    assert send.peer == CLIENT
    assert isinstance(send.message, UpdateReject)
    assert (send.message.cause, send.message.blame) == (Cause.INSTALL_FAILED, IDS)


def draining() -> Play:
    play = locked(Mode.OP) >> Received(FW, UpdateDrain(ID, OLD_RIGHT, CHANGE, 8))
    play << Hold(ID, CHANGE, TO_LEFT, False) >> Holding(ID, CHANGE, 20, None)
    return play << Count(ID, CHANGE, FROM_OLD)


def test_op_holds_and_says_when_nothing_more_comes() -> None:
    drained = Send(FW, UpdateDrained(ID, OLD_RIGHT, CHANGE, 20))
    play = draining() >> Counted(ID, CHANGE, FROM_OLD, 8) << drained << WATCH
    play >> Received(FW, UpdateDrain(ID, OLD_RIGHT, CHANGE, 8)) << drained  # it was lost
    play >> Received(NEW, UpdateAck(ID, NEW_RIGHT, CHANGE, 0)) << Redirect(ID, CHANGE, TURN_LEFT)
    play >> Redirected(ID, CHANGE, 20) << Resume(ID, CHANGE, TO_LEFT) << WATCH
    play.ends()


def test_op_undone() -> None:
    play = draining() >> Received(FW, UpdateAck(ID, OLD_RIGHT, CHANGE, 0))
    play << Resume(ID, CHANGE, TO_LEFT) << Withdraw(ID, AT_IDS_TOO) << OFF


def test_op_without_anybody_who_leads_it() -> None:
    play = draining() >> Counted(ID, CHANGE, FROM_OLD, 8)
    skip(play)
    for _ in range(6):
        play >> TimerFired(ID, Timer.CHANGE)
        if Resume(ID, CHANGE, TO_LEFT) in skip(play):
            return
    pytest.fail("packets are held for ever")


def test_op_overflows() -> None:
    play = draining() >> HoldOverflow(ID, Toward.LEFT)
    (send,) = skip(play)
    assert (send.peer, send.message.cause) == (CLIENT, Cause.OVERFLOW)


def test_ss_op_says_when_its_substream_is_acknowledged() -> None:
    play = locked(Mode.SS_OP) >> Received(CLIENT, UpdateSub(ID, CHANGE))
    play << Hold(ID, CHANGE, TO_LEFT, True) >> Holding(ID, CHANGE, 20, 700)
    play << WatchAck(ID, CHANGE, FROM_OLD, 700) << WATCH
    play >> Received(CLIENT, UpdateSub(ID, CHANGE))  # not yet
    done = Send(CLIENT, UpdateSubAck(ID, CHANGE))
    play >> Acked(ID, Toward.RIGHT) << done
    play >> Received(CLIENT, UpdateSub(ID, CHANGE)) << done
    play >> Received(FW, UpdateDrain(ID, OLD_RIGHT, CHANGE, 8)) << Hold(ID, CHANGE, TO_LEFT, False)
    play.ends()


def test_a_tap_still_counts_what_comes_from_where_it_does_not_split() -> None:
    """What R holds back travels to the left; what it has to count travels to the right."""
    play = locked(Mode.SS_OP) >> Received(CLIENT, UpdateSub(ID, CHANGE))
    play << Hold(ID, CHANGE, TO_LEFT, True) >> Holding(ID, CHANGE, 20, None)
    skip(play)
    play >> Received(FW, UpdateDrain(ID, OLD_RIGHT, CHANGE, 8)) << Hold(ID, CHANGE, TO_LEFT, False)
    play >> Holding(ID, CHANGE, 21, None) << Count(ID, CHANGE, FROM_OLD)
    play >> Counted(ID, CHANGE, FROM_OLD, 7) << WatchCount(ID, CHANGE, FROM_OLD, 8)
    skip(play)
    play >> Reached(ID, Toward.RIGHT) << Count(ID, CHANGE, FROM_OLD)
    play >> Counted(ID, CHANGE, FROM_OLD, 8)
    play << Send(FW, UpdateDrained(ID, OLD_RIGHT, CHANGE, 21))
    skip(play)


def test_a_tap_does_not_count_where_it_has_split() -> None:
    play = standing(AT_IDS)
    play.node.sessions[ID].more_left = True  # as L of an earlier change
    play >> Received(FW, lock_to_r(Mode.OP)) << WATCH
    play >> Received(NEW, syn_to_r(Mode.OP)) << Accept(ID, AT_IDS_TOO) << READY
    play >> Received(FW, UpdateDrain(ID, OLD_RIGHT, CHANGE, 8)) << Hold(ID, CHANGE, TO_LEFT, False)
    play >> Holding(ID, CHANGE, 20, None) << Count(ID, CHANGE, FROM_OLD)
    play >> Counted(ID, CHANGE, FROM_OLD, 9)  # more than were sent: some were split
    (timer,) = skip(play)
    assert isinstance(timer, SetTimer)
    play >> Received(NEW, UpdateAck(ID, NEW_RIGHT, CHANGE, 0))
    play << Redirect(ID, CHANGE, TURN_LEFT) >> Redirected(ID, CHANGE, 20)
    session = play.node.sessions[ID]
    assert not session.more_left, "by the new leg nothing has come yet"
    assert session.change is not None
    assert session.change.more, "by the old one it has"
    skip(play)


def test_a_restarted_agent_takes_no_lock_until_it_knows() -> None:
    play = Play() >> Adopted(AT_IDS, NEW_RIGHT)
    skip(play)
    play >> Received(FW, lock_to_r())
    assert CLIENT not in {one.peer for one in skip(play) if isinstance(one, Send)}
    play >> TimerFired(ID, Timer.CHANGE) << Send(FW, UpdateAsk(ID, OLD_RIGHT, 0))
    play << Send(NEW, UpdateAsk(ID, NEW_RIGHT, 0))
    skip(play)
    play >> Received(NEW, UpdateFin(ID, NEW_RIGHT, 0, None)) << Withdraw(ID, AT_IDS_TOO)
    play << OFF << WATCH  # and the lock that has waited
