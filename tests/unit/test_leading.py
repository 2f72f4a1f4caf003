"""L, one event at a time: it alone decides, and says so until it is known."""

from __future__ import annotations

import pytest
from msgspec import structs

from m2m.protocol.commands import (
    Accept,
    CancelTimer,
    ChangeDone,
    ChangeRefused,
    Command,
    Count,
    Hold,
    Redirect,
    Resume,
    Send,
    SetTimer,
    Switched,
    WatchAck,
    WatchCount,
    Withdraw,
)
from m2m.protocol.events import (
    Acked,
    Adopted,
    Counted,
    Ended,
    Holding,
    HoldOverflow,
    InstallFailed,
    Reached,
    Received,
    Redirected,
    Resumed,
    Timer,
    TimerFired,
)
from m2m.protocol.flow import Proto
from m2m.protocol.splice import Splice
from m2m.protocol.translation import Hook, Toward
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
from m2m.protocol.wire import Cause, Rst
from tests.support.changes import (
    AT_CLIENT,
    AT_CLIENT_TOO,
    CHANGE,
    CLIENT,
    CLIENT_AFTER,
    FW,
    HOP,
    IDS,
    NEW,
    NEW_LEFT,
    OLD_LEFT,
    OLD_RIGHT,
    SUPER,
    TURN_RIGHT,
    leg,
    lock,
    skip,
    standing,
    syn,
    wanted,
)
from tests.support.play import ID, Play

OUT = Hook.OUT, SUPER
BACK_OLD, BACK_NEW = (Hook.IN, OLD_LEFT.reverse()), (Hook.IN, NEW_LEFT.reverse())
TICK = TimerFired(ID, Timer.CHANGE)
EMPTY = Send(NEW, UpdateEmpty(ID, NEW_LEFT, CHANGE))
STRAIGHT = leg(CLIENT, IDS)


def timer(delay: float) -> SetTimer:
    return SetTimer(ID, pytest.approx(delay), Timer.CHANGE)


def making(mode: Mode = Mode.LF) -> Play:
    play = standing(AT_CLIENT) >> wanted(mode) << Send(NEW, syn(mode)) << Send(FW, lock(mode))
    return play << timer(0.02) << Accept(ID, AT_CLIENT_TOO)


def finishing(play: Play) -> Play:
    """The old leg is out: 10 packets went by it."""
    play << Switched(ID, CHANGE) << Send(NEW, UpdateAck(ID, NEW_LEFT, CHANGE, 1))
    return play << Send(FW, UpdateFin(ID, OLD_LEFT, CHANGE, 10)) << timer(0.02)


def undone(play: Play) -> Play:
    """The new leg is out."""
    play << Send(FW, UpdateAck(ID, OLD_LEFT, CHANGE, 1))
    play << Send(NEW, UpdateFin(ID, NEW_LEFT, CHANGE, 0)) << timer(0.02)
    play >> Received(NEW, UpdateFinAck(ID, NEW_LEFT, CHANGE, 0, 0)) << Count(ID, CHANGE, BACK_NEW)
    return play >> Counted(ID, CHANGE, BACK_NEW, 0) << Withdraw(ID, AT_CLIENT_TOO)


def test_a_change() -> None:
    play = making() >> Received(IDS, UpdateSynAck(ID, CHANGE, 1400))
    play << Redirect(ID, CHANGE, TURN_RIGHT)
    finishing(play >> Redirected(ID, CHANGE, 10))
    assert play.node.view(ID) == CLIENT_AFTER
    play >> Received(FW, UpdateFinAck(ID, OLD_LEFT, CHANGE, 12, 0)) << Count(ID, CHANGE, BACK_OLD)
    play >> Counted(ID, CHANGE, BACK_OLD, 11) << WatchCount(ID, CHANGE, BACK_OLD, 12) << timer(0.01)
    (
        play
        >> Reached(ID, Toward.LEFT)
        << Count(ID, CHANGE, BACK_OLD)
        >> Counted(ID, CHANGE, BACK_OLD, 12)
    )
    (withdraw,) = [one for one in play.todo if isinstance(one, Withdraw)]
    assert {entry.key for entry in withdraw.entries} == {BACK_OLD}
    play.todo.remove(withdraw)
    play << EMPTY << ChangeDone(ID, CHANGE, 0, True) << CancelTimer(ID, Timer.CHANGE)
    play.ends()
    assert play.ports.in_use == 1


def removing() -> Play:
    """The firewall is taken out, and nothing is put in: packets wait here."""
    play = standing(AT_CLIENT) >> wanted()._replace(hops=())
    straight = structs.replace(syn(), subsession=STRAIGHT, hops=())
    play << Send(IDS, straight) << Send(FW, lock()) << timer(0.02)
    (accept,) = skip(play)
    assert isinstance(accept, Accept)
    play >> Received(IDS, UpdateSynAck(ID, CHANGE, 1400)) << Hold(ID, CHANGE, OUT, False)
    play >> Received(IDS, UpdateSynAck(ID, CHANGE, 1400))  # again, as it may come
    return play


def removed(play: Play) -> Play:
    (redirect,) = skip(play)
    assert isinstance(redirect, Redirect)
    play >> Redirected(ID, CHANGE, 10) << Switched(ID, CHANGE)
    play << Send(IDS, UpdateAck(ID, STRAIGHT, CHANGE, 0))
    return play << Send(FW, UpdateFin(ID, OLD_LEFT, CHANGE, 10)) << timer(0.02)


def test_without_a_new_host_it_keeps_back_what_would_overtake() -> None:
    play = removed(removing() >> Holding(ID, CHANGE, 10, None))
    play >> Received(IDS, UpdateEmpty(ID, STRAIGHT, CHANGE)) << Resume(ID, CHANGE, OUT)
    play >> Received(FW, UpdateFinAck(ID, OLD_LEFT, CHANGE, 12, 0)) << Count(ID, CHANGE, BACK_OLD)
    play.ends()


def test_the_old_path_being_gone_is_as_good() -> None:
    play = removed(removing() >> Holding(ID, CHANGE, 10, None))
    play >> Received(FW, UpdateFinAck(ID, OLD_LEFT, CHANGE, 12, 0)) << Resume(ID, CHANGE, OUT)
    play << Count(ID, CHANGE, BACK_OLD) >> Received(IDS, UpdateEmpty(ID, STRAIGHT, CHANGE))
    play.ends()


def test_packets_do_not_wait_long_for_that() -> None:
    play = removed(removing() >> Holding(ID, CHANGE, 10, None))
    done = ticked(play, 4)  # 20, 20, 40 and 80 ms
    assert done.count(Resume(ID, CHANGE, OUT)) == 1


def test_in_lf_too_many_packets_only_overtake() -> None:
    play = removed(removing() >> HoldOverflow(ID, Toward.RIGHT))
    play >> Received(IDS, UpdateEmpty(ID, STRAIGHT, CHANGE))
    play.ends()


def test_what_a_function_has_added_joins_what_the_old_path_has() -> None:
    added, beside = Splice((16, 0), (0, 0), (0, 0)), Splice((1, 2), (3, 4), (1, -1))
    play = standing(AT_CLIENT) >> wanted()._replace(hops=(), added=added)
    accepts = [one for one in skip(play) if isinstance(one, Accept)]
    play >> Received(IDS, UpdateSynAck(ID, CHANGE, 1400, beside))
    accepts += [one for one in play.todo if isinstance(one, Accept)]
    play.todo = [one for one in play.todo if not isinstance(one, Accept)]
    play << Hold(ID, CHANGE, OUT, False) >> Holding(ID, CHANGE, 10, None)
    (redirect,) = skip(play)
    both = added.and_then(beside)
    assert [one.entries[0].splice for one in accepts] == [added, both]
    assert isinstance(redirect, Redirect)
    assert redirect.entry.splice == both


def test_a_function_that_has_added_something_has_no_heir_and_is_not_udps() -> None:
    added = Splice((16, 0), (0, 0), (0, 0))
    udp = AT_CLIENT._replace(supersession=SUPER._replace(proto=Proto.UDP))
    for play, hops in ((standing(AT_CLIENT), (HOP,)), (standing(udp), ())):
        play >> wanted()._replace(hops=hops, added=added)
        (refused,) = skip(play)
        assert isinstance(refused, ChangeRefused)
        assert refused.cause is Cause.MODE


def test_what_is_lost_is_sent_again() -> None:
    play = making() >> TICK << Send(NEW, syn()) << Send(FW, lock()) << timer(0.02)
    play >> TICK << Send(NEW, syn()) << Send(FW, lock()) << timer(0.04)
    play.ends()


def test_nobody_answers() -> None:
    play = making()
    for _ in range(20):
        play >> TICK
        done = skip(play)
        if any(isinstance(getattr(one, "message", None), UpdateFin) for one in done):
            break
    assert done[:2] == [
        Send(FW, UpdateAck(ID, OLD_LEFT, CHANGE, 1)), Send(NEW, UpdateFin(ID, NEW_LEFT, CHANGE, 0))
    ]  # fmt: skip
    for _ in range(20):
        play >> TICK
        done = skip(play)
        if any(isinstance(one, ChangeRefused) for one in done):
            break
    assert done[0] == Withdraw(ID, AT_CLIENT_TOO)
    assert done[1].cause is Cause.TIMEOUT
    assert play.ports.in_use == 1


def test_a_refusal_says_by_whom_and_why() -> None:
    play = making() >> Received(IDS, UpdateReject(ID, CHANGE, Cause.NO_PORTS, "none left", IDS))
    undone(play) << ChangeRefused(ID, CHANGE, Cause.NO_PORTS, "none left", IDS)
    play << CancelTimer(ID, Timer.CHANGE)
    play.ends()
    assert play.node.view(ID) == AT_CLIENT


def test_the_new_hop_closes_its_leg() -> None:
    play = making() >> Received(NEW, Rst(ID, NEW_LEFT, Cause.INSTALL_FAILED, "it is full", NEW))
    done = skip(play)
    assert Send(NEW, UpdateFin(ID, NEW_LEFT, CHANGE, 0)) in done
    assert play.state() is not None
    play >> Counted(ID, CHANGE, BACK_NEW, 0) << Withdraw(ID, AT_CLIENT_TOO)
    play << ChangeRefused(ID, CHANGE, Cause.INSTALL_FAILED, "it is full", NEW)
    play << CancelTimer(ID, Timer.CHANGE)


@pytest.mark.parametrize("redirecting", [False, True])
def test_the_datapath_refuses(redirecting: bool) -> None:
    play = making()
    if redirecting:
        play >> Received(IDS, UpdateSynAck(ID, CHANGE, 1400)) << Redirect(ID, CHANGE, TURN_RIGHT)
    undone(play >> InstallFailed(ID, "it is full"))
    refused = play.todo.pop(0)
    assert (refused.cause, refused.blame) == (Cause.INSTALL_FAILED, CLIENT)
    assert "it is full" in refused.text


def draining() -> Play:
    play = making(Mode.OP) >> Received(IDS, UpdateSynAck(ID, CHANGE, 1400))
    play << Hold(ID, CHANGE, OUT, False) >> Holding(ID, CHANGE, 10, None)
    return play << Send(FW, UpdateDrain(ID, OLD_LEFT, CHANGE, 10)) << timer(0.02)


def test_op_holds_until_the_old_path_is_empty() -> None:
    play = draining() >> Received(FW, UpdateDrained(ID, OLD_LEFT, CHANGE, 5))
    play << Count(ID, CHANGE, BACK_OLD) >> Counted(ID, CHANGE, BACK_OLD, 5)
    play << Redirect(ID, CHANGE, TURN_RIGHT) >> Redirected(ID, CHANGE, 10)
    finishing(play << Resume(ID, CHANGE, OUT)) >> Resumed(ID, CHANGE, 33)
    play >> Received(FW, UpdateFinAck(ID, OLD_LEFT, CHANGE, 5, 44)) << Count(ID, CHANGE, BACK_OLD)
    play >> Counted(ID, CHANGE, BACK_OLD, 5)
    assert ChangeDone(ID, CHANGE, 77, True) in skip(play)


def test_op_lets_go_when_it_takes_too_long() -> None:
    play = draining()
    for _ in range(20):
        play >> TICK
        done = skip(play)
        if done[0] == Resume(ID, CHANGE, OUT):
            break
    assert Send(NEW, UpdateFin(ID, NEW_LEFT, CHANGE, 0)) in done


def test_op_is_undone_by_an_overflow() -> None:
    play = draining() >> HoldOverflow(ID, Toward.RIGHT)
    undone(play)  # the datapath has resumed by itself
    assert play.todo.pop(0).cause is Cause.OVERFLOW
    skip(play)


def test_ss_op_waits_for_both_acknowledgements() -> None:
    for order in (0, 1):
        play = making(Mode.SS_OP) >> Received(IDS, UpdateSynAck(ID, CHANGE, 1400))
        play << Hold(ID, CHANGE, OUT, True) >> Holding(ID, CHANGE, 9, 5000)
        play << Send(IDS, UpdateSub(ID, CHANGE)) << WatchAck(ID, CHANGE, BACK_OLD, 5000)
        play << timer(0.02)
        both = [Acked(ID, Toward.LEFT), Received(IDS, UpdateSubAck(ID, CHANGE))]
        play >> both[order]
        play >> both[1 - order] << Hold(ID, CHANGE, OUT, False)
        play.ends()


def test_who_asks_is_told_what_is_decided() -> None:
    play = making() >> Received(FW, UpdateAsk(ID, OLD_LEFT, CHANGE))
    play >> Received(NEW, UpdateAsk(ID, NEW_LEFT, CHANGE))  # nothing yet, to either
    play >> Received(FW, UpdateAsk(ID, OLD_LEFT, 0xBEEF))  # an earlier change is over
    play << Send(FW, UpdateAck(ID, OLD_LEFT, 0xBEEF, 0))
    play >> Received(IDS, UpdateSynAck(ID, CHANGE, 1400)) << Redirect(ID, CHANGE, TURN_RIGHT)
    finishing(play >> Redirected(ID, CHANGE, 10)) >> Received(NEW, UpdateAsk(ID, NEW_LEFT, CHANGE))
    play << Send(NEW, UpdateAck(ID, NEW_LEFT, CHANGE, 0))
    play >> Received(FW, UpdateAsk(ID, OLD_LEFT, CHANGE))
    play << Send(FW, UpdateFin(ID, OLD_LEFT, CHANGE, 10))
    play.ends()


def committed() -> Play:
    play = making() >> Received(IDS, UpdateSynAck(ID, CHANGE, 1400))
    play << Redirect(ID, CHANGE, TURN_RIGHT)
    return finishing(play >> Redirected(ID, CHANGE, 10))


def ticked(play: Play, times: int) -> list[Command]:
    """All that was done meanwhile; the last is the timer that is set."""
    done = []
    for _ in range(times):
        play >> TICK
        done += skip(play)
    return done


def test_the_old_leg_is_kept_until_the_other_end_has_heard() -> None:
    play = committed()
    done = ticked(play, 30)
    assert done.count(ChangeDone(ID, CHANGE, 0, False)) == 1  # who asked need not wait for that
    assert not any(isinstance(one, Withdraw) for one in done)
    assert done[-2:] == [Send(FW, UpdateFin(ID, OLD_LEFT, CHANGE, 10)), timer(5.0)]
    assert play.ports.in_use == 2
    play >> Received(FW, UpdateFinAck(ID, OLD_LEFT, CHANGE, 12, 3)) << Count(ID, CHANGE, BACK_OLD)
    play >> Counted(ID, CHANGE, BACK_OLD, 12)
    (withdraw, empty, off) = skip(play)
    assert empty == EMPTY
    assert {entry.key for entry in withdraw.entries} == {BACK_OLD}
    assert off == CancelTimer(ID, Timer.CHANGE)
    assert play.ports.in_use == 1


def test_a_new_leg_that_is_out_is_not_kept() -> None:
    play = making() >> Received(IDS, UpdateReject(ID, CHANGE, Cause.NO_PORTS, "none left", IDS))
    skip(play)
    for _ in range(20):
        play >> TICK
        if Withdraw(ID, AT_CLIENT_TOO) in skip(play):
            break
    assert play.ports.in_use == 1


def test_the_other_end_says_itself_that_it_is_through() -> None:
    play = committed() >> Received(IDS, UpdateAsk(ID, OLD_RIGHT, CHANGE))
    play << Send(IDS, UpdateFin(ID, OLD_RIGHT, CHANGE, None))
    assert Send(IDS, UpdateFin(ID, OLD_RIGHT, CHANGE, None)) in ticked(play, 1)  # if it was lost
    play >> Received(IDS, UpdateFinAck(ID, OLD_RIGHT, CHANGE, 12, 3))
    play << Count(ID, CHANGE, BACK_OLD) >> Counted(ID, CHANGE, BACK_OLD, 4) << timer(0.001)
    for _ in range(20):
        play >> TICK << Count(ID, CHANGE, BACK_OLD) >> Counted(ID, CHANGE, BACK_OLD, 4)
        if ChangeDone(ID, CHANGE, 3, True) in skip(play):
            break
    assert play.ports.in_use == 1


@pytest.mark.parametrize("late", [False, True])
def test_not_about_another_change_nor_before_it_is_decided(late: bool) -> None:
    play = committed() if late else making()
    number = CHANGE + 1 if late else CHANGE
    play >> Received(IDS, UpdateAsk(ID, OLD_RIGHT, number))
    skip(play)
    play >> Received(IDS, UpdateFinAck(ID, OLD_RIGHT, number, 12, 3))
    play.ends()


def test_a_restarted_agent_does_not_know_whether_it_may_stop() -> None:
    play = Play() >> Adopted(AT_CLIENT, NEW_LEFT)
    skip(play)
    again = Send(NEW, UpdateFin(ID, NEW_LEFT, 0, None))
    assert ticked(play, 30)[-2:] == [again, timer(5.0)]
    assert play.ports.in_use == 2


def test_a_restarted_agent_finishes_by_what_its_kernel_does() -> None:
    play = Play() >> Adopted(AT_CLIENT, NEW_LEFT)
    assert play.todo[1] == Send(NEW, UpdateFin(ID, NEW_LEFT, 0, None))
    skip(play)
    assert play.ports.in_use == 2
    play >> Received(NEW, UpdateFinAck(ID, NEW_LEFT, CHANGE, 0, 0)) << Count(ID, 0, BACK_NEW)
    play >> Counted(ID, 0, BACK_NEW, 0) << Withdraw(ID, AT_CLIENT_TOO)
    play << CancelTimer(ID, Timer.CHANGE)
    assert play.ports.in_use == 1


def test_the_session_ends_meanwhile() -> None:
    play = draining() >> Ended(ID, "rst") << Resume(ID, CHANGE, OUT)
    refused = play.todo.pop(0)
    assert isinstance(refused, ChangeRefused)
    play << Withdraw(ID, AT_CLIENT_TOO)
    told = {one.peer for one in skip(play) if isinstance(one, Send)}
    assert told == {FW, NEW}
