"""The session machines, one host at a time. A test reads as a trace: ``>>`` what the host is told,
``<<`` what it does about it, command by command, and nothing else.

Every host here has a single pair of ports, so all subsessions are known beforehand.
"""

from __future__ import annotations

import random
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from m2m.identity import Identity
from m2m.protocol.commands import (
    CancelTimer,
    Closed,
    Established,
    Install,
    Refuse,
    Remove,
    Send,
    SetTimer,
    Steer,
)
from m2m.protocol.events import (
    Adopted,
    Ended,
    InstallFailed,
    Opened,
    Received,
    Route,
    TimerFired,
)
from m2m.protocol.flow import Flow, Proto, parse_address
from m2m.protocol.node import Node, Settings
from m2m.protocol.ports import PortAllocator
from m2m.protocol.session import TABLE, Action, Input, Role, State
from m2m.protocol.translation import Position, SessionView
from m2m.protocol.update import UpdateAck, UpdateAsk
from m2m.protocol.wire import (
    MAX_TEXT,
    Ack,
    Cause,
    Fin,
    FinAck,
    Hop,
    PathReq,
    Rst,
    Syn,
    SynAck,
)
from tests.support.play import ID, OTHER, Play

CLIENT, FW, IDS, SERVER = (
    parse_address(text) for text in ("10.0.0.1", "10.0.1.2", "10.0.2.2", "10.0.9.9")
)
SUPER = Flow(Proto.TCP, CLIENT, 40000, SERVER, 80)
CHAIN = (
    Hop(FW, Position.INLINE, "firewall"),
    Hop(IDS, Position.TAP, "ids"),
    Hop(SERVER, Position.SERVER),
)


def leg(src: bytes, dst: bytes, proto: int = Proto.TCP) -> Flow:
    return Flow(proto, src, 61000, dst, 61001)


FIRST, SECOND, THIRD = leg(CLIENT, FW), leg(FW, IDS), leg(IDS, SERVER)
ELSE = FIRST._replace(sport=61500)  # a left leg of the firewall, with other ports

SYN = Syn(ID, FIRST, SUPER, CHAIN, 1500, 3, 7, 1000)
ONWARD = Syn(ID, SECOND, SUPER, CHAIN[1:], 1400, 3, 7, 900)
LAST = Syn(ID, THIRD, SUPER, CHAIN[2:], 1400, 3, 7, 810)

AT_CLIENT = SessionView(ID, Position.CLIENT, SUPER, None, FIRST, 0, 3, 7)
AT_FW = SessionView(ID, Position.INLINE, SUPER, FIRST, SECOND, 0, 3, 7)
AT_SERVER = SessionView(ID, Position.SERVER, SUPER, THIRD, None, 1360, 3, 7)

OPENED = Opened(SUPER, CHAIN, False, 3, 7, Route(CLIENT, 1500))
TO_IDS = Route(FW, 1400)

TIMEOUT_TEXT = "firewall at 10.0.1.2 does not answer"


@pytest.fixture
def play() -> Iterator[Play]:
    one = Play()
    yield one
    one.ends()


def opening_client(play: Play) -> Play:
    return play >> OPENED << Send(FW, SYN) << SetTimer(ID, 0.02)


def established_client(play: Play) -> Play:
    return (
        opening_client(play)
        >> Received(FW, SynAck(ID, FIRST, 1500))
        << Install(AT_CLIENT)
        << Steer(SUPER)
        << Send(FW, Ack(ID, FIRST))
        << Established(AT_CLIENT)
        << SetTimer(ID, 60.0)
    )


def opening_firewall(play: Play) -> Play:
    return (
        play
        >> Received(CLIENT, SYN, TO_IDS)
        << Send(IDS, ONWARD)
        << Install(AT_FW)
        << SetTimer(ID, 0.02)
    )


def confirming_firewall(play: Play) -> Play:
    return (
        opening_firewall(play)
        >> Received(IDS, SynAck(ID, SECOND, 1300))
        << Send(CLIENT, SynAck(ID, FIRST, 1300))
        << SetTimer(ID, 0.02)
    )


def established_firewall(play: Play) -> Play:
    return (
        confirming_firewall(play)
        >> Received(CLIENT, Ack(ID, FIRST))
        << Send(IDS, Ack(ID, SECOND))
        << CancelTimer(ID)
        << Established(AT_FW)
    )


def confirming_server(play: Play) -> Play:
    return (
        play
        >> Received(IDS, LAST)
        << Install(AT_SERVER)
        << Send(IDS, SynAck(ID, THIRD, 1400))
        << SetTimer(ID, 0.02)
    )


def established_server(play: Play) -> Play:
    return (
        confirming_server(play)
        >> Received(IDS, Ack(ID, THIRD))
        << CancelTimer(ID)
        << Established(AT_SERVER)
    )


SOME_TIME = pytest.approx(0.15, abs=0.01)  # s: they do not all ask at once


def adopted_firewall(play: Play) -> Play:
    return play >> Adopted(AT_FW) << SetTimer(ID, SOME_TIME)


# --- setting up ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting_up", "state"),
    [
        (opening_client, State.OPENING),
        (established_client, State.ESTABLISHED),
        (opening_firewall, State.OPENING),
        (confirming_firewall, State.CONFIRMING),
        (established_firewall, State.ESTABLISHED),
        (confirming_server, State.CONFIRMING),
        (established_server, State.ESTABLISHED),
        (adopted_firewall, State.ADOPTED),
    ],
)
def test_set_up(play: Play, setting_up: Callable[[Play], Play], state: State) -> None:
    setting_up(play)
    assert play.state() is state


def test_a_tap_is_installed_as_one(play: Play) -> None:
    syn = Syn(ID, SECOND, SUPER, CHAIN[1:], 1500, 3, 7, 900)
    view = SessionView(ID, Position.TAP, SUPER, SECOND, THIRD, 0, 3, 7)
    onward = Syn(ID, THIRD, SUPER, CHAIN[2:], 1500, 3, 7, 810)
    (
        play
        >> Received(FW, syn, Route(IDS, 9000))
        << Send(SERVER, onward)
        << Install(view)
        << SetTimer(ID, 0.02)
    )


def test_a_smaller_path_clamps_the_mss(play: Play) -> None:
    clamped = AT_CLIENT._replace(mss=1260)
    (
        opening_client(play)
        >> Received(FW, SynAck(ID, FIRST, 1300))
        << Install(clamped)
        << Steer(SUPER)
        << Send(FW, Ack(ID, FIRST))
        << Established(clamped)
        << SetTimer(ID, 60.0)
    )


@pytest.mark.parametrize(
    ("flow", "mss"),
    [
        (Flow.of(Proto.UDP, "10.0.0.1", 5000, "10.0.9.9", 53), 0),
        (Flow.of(Proto.TCP, "2001:db8::1", 5000, "2001:db8::2", 80), 1340),
    ],
    ids=["udp", "ipv6"],
)
def test_the_clamp_fits_the_headers(play: Play, flow: Flow, mss: int) -> None:
    left = THIRD._replace(proto=flow.proto)
    view = AT_SERVER._replace(supersession=flow, left=left, mss=mss)
    (
        play
        >> Received(IDS, Syn(ID, left, flow, CHAIN[2:], 1400, 3, 7, 810))
        << Install(view)
        << Send(IDS, SynAck(ID, left, 1400))
        << SetTimer(ID, 0.02)
    )


def test_the_wire_has_room_for_any_route(play: Play) -> None:
    loopback = OPENED._replace(route=Route(CLIENT, 65536))
    syn = Syn(ID, FIRST, SUPER, CHAIN, 65535, 3, 7, 1000)
    play >> loopback << Send(FW, syn) << SetTimer(ID, 0.02)


# --- lost and doubled ---------------------------------------------------------------------------


def test_a_client_repeats_its_syn_and_gives_up_after_a_second(play: Play) -> None:
    opening_client(play)
    for delay in (0.02, 0.04, 0.08, 0.16, 0.32):
        play >> TimerFired(ID) << Send(FW, SYN) << SetTimer(ID, pytest.approx(delay))
    play >> TimerFired(ID) << Send(FW, SYN) << SetTimer(ID, pytest.approx(1 - 0.64))
    rst = Rst(ID, FIRST, Cause.TIMEOUT, TIMEOUT_TEXT, FW)
    play >> TimerFired(ID) << Refuse(SUPER, False, TIMEOUT_TEXT, FW, silent=True) << Send(FW, rst)
    play << SetTimer(ID, 0.2) >> TimerFired(ID) << Send(FW, rst) << SetTimer(ID, 0.2)
    play >> Received(FW, SynAck(ID, FIRST, 1500)) << Send(FW, rst)  # it comes too late
    play >> Received(FW, FinAck(ID, FIRST)) << CancelTimer(ID) << Closed(AT_CLIENT, TIMEOUT_TEXT)
    assert play.ports.in_use == 0


def test_a_notice_is_repeated_for_ten_seconds_at_most(play: Play) -> None:
    established_client(play)
    play >> Ended(ID, "rst") << Remove(AT_CLIENT) << Send(FW, Fin(ID, FIRST)) << SetTimer(ID, 0.2)
    waited, delay = 0.0, 0.2
    while True:
        waited += delay
        play >> TimerFired(ID)
        if play.state() is None:
            break
        play << Send(FW, Fin(ID, FIRST))
        (timer,) = play.todo
        assert isinstance(timer, SetTimer)
        delay = timer.delay
        assert delay <= 1.0
        assert play.ports.in_use == 1  # the firewall may still have entries for them
        play << timer
    play << CancelTimer(ID) << Closed(AT_CLIENT, "rst")
    assert waited == pytest.approx(10.0)
    assert play.ports.in_use == 0


def test_doubled_answers_are_answered_and_change_nothing(play: Play) -> None:
    established_client(play)
    play >> Received(FW, SynAck(ID, FIRST, 1300)) << Send(FW, Ack(ID, FIRST))
    assert play.node.view(ID) == AT_CLIENT


def test_a_firewall_repeats_what_its_neighbour_has_not_answered(play: Play) -> None:
    opening_firewall(play)
    play >> TimerFired(ID) << Send(IDS, ONWARD) << SetTimer(ID, 0.02)
    play >> Received(CLIENT, SYN, TO_IDS)  # the client repeats, too; one of us is enough
    play >> Received(CLIENT, Ack(ID, FIRST))
    synack = SynAck(ID, FIRST, 1300)
    play >> Received(IDS, SynAck(ID, SECOND, 1300)) << Send(CLIENT, synack) << SetTimer(ID, 0.02)
    play >> Received(CLIENT, SYN, TO_IDS) << Send(CLIENT, synack)
    play >> TimerFired(ID) << Send(CLIENT, synack) << SetTimer(ID, 0.02)
    play >> Received(IDS, SynAck(ID, SECOND, 1300))  # no ACK to answer it with yet
    ack = Send(IDS, Ack(ID, SECOND))
    play >> Received(CLIENT, Ack(ID, FIRST)) << ack << CancelTimer(ID) << Established(AT_FW)
    play >> Received(CLIENT, SYN, TO_IDS) << Send(CLIENT, synack)
    play >> Received(IDS, SynAck(ID, SECOND, 1300)) << ack
    play >> Received(CLIENT, Ack(ID, FIRST)) << ack  # a probe goes all the way
    assert play.node.view(ID) == AT_FW


def test_a_server_repeats_its_synack_and_answers_a_syn_again(play: Play) -> None:
    synack = Send(IDS, SynAck(ID, THIRD, 1400))
    confirming_server(play) >> TimerFired(ID) << synack << SetTimer(ID, 0.02)
    play >> Received(IDS, LAST) << synack
    play >> Received(IDS, Ack(ID, THIRD)) << CancelTimer(ID) << Established(AT_SERVER)
    play >> Received(IDS, LAST) << synack
    play >> Received(IDS, Ack(ID, THIRD))


def test_a_late_timer_is_nothing(play: Play) -> None:
    established_server(play) >> TimerFired(ID) >> TimerFired(OTHER)


# --- failing ------------------------------------------------------------------------------------


def test_a_refusal_travels_to_the_client_with_its_reason(play: Play) -> None:
    rst = Rst(ID, SECOND, Cause.NO_ROUTE, "no route to server", IDS)
    to_left = Rst(ID, FIRST, Cause.NO_ROUTE, "no route to server", IDS)
    opening_firewall(play) >> Received(IDS, rst) << Send(IDS, FinAck(ID, SECOND))
    play << Remove(AT_FW) << Send(CLIENT, to_left) << SetTimer(ID, 0.2)
    play >> Received(CLIENT, SYN, TO_IDS) << Send(CLIENT, to_left)
    play >> Received(CLIENT, FinAck(ID, FIRST))
    play << CancelTimer(ID) << Closed(AT_FW, "no route to server")
    assert play.ports.in_use == 0


@pytest.mark.parametrize("fail_open", [False, True])
def test_a_refused_client_lets_the_policy_decide(play: Play, fail_open: bool) -> None:
    play >> OPENED._replace(fail_open=fail_open) << Send(FW, SYN) << SetTimer(ID, 0.02)
    play >> Received(FW, Rst(ID, FIRST, Cause.NO_PORTS, "none left", IDS))
    play << Send(FW, FinAck(ID, FIRST)) << Refuse(SUPER, fail_open, "none left", IDS)
    play << CancelTimer(ID) << Closed(AT_CLIENT, "none left")
    assert play.ports.in_use == 0


def test_a_silent_next_hop_is_reported_before_the_client_gives_up(play: Play) -> None:
    opening_firewall(play)
    waited, delay = 0.0, 0.02
    while True:
        waited += delay
        play >> TimerFired(ID)
        if play.state() is State.CLOSING:
            break
        play << Send(IDS, ONWARD)
        (timer,) = play.todo
        assert isinstance(timer, SetTimer)
        delay = timer.delay
        play << timer
    assert waited == pytest.approx(0.9)
    text = "ids at 10.0.2.2 does not answer"
    play << Remove(AT_FW) << Send(CLIENT, Rst(ID, FIRST, Cause.TIMEOUT, text, IDS))
    play << Send(IDS, Rst(ID, SECOND, Cause.TIMEOUT, text, IDS)) << SetTimer(ID, 0.2)


def test_a_client_that_never_confirms_is_rolled_back(play: Play) -> None:
    confirming_server(play)
    while play.state() is State.CONFIRMING:
        play.todo.clear()
        play >> TimerFired(ID)
    text = "10.0.2.2 does not confirm the session"
    play << Remove(AT_SERVER) << Send(IDS, Rst(ID, THIRD, Cause.TIMEOUT, text, IDS))
    play << SetTimer(ID, 0.2)


def test_a_full_datapath_rolls_back_both_ways(play: Play) -> None:
    text = "10.0.1.2 cannot take the session: no room"
    opening_firewall(play) >> InstallFailed(ID, "no room") << Remove(AT_FW)
    play << Send(CLIENT, Rst(ID, FIRST, Cause.INSTALL_FAILED, text, FW))
    play << Send(IDS, Rst(ID, SECOND, Cause.INSTALL_FAILED, text, FW)) << SetTimer(ID, 0.2)


def test_a_client_with_a_full_datapath_refuses_what_it_did_not_steer(play: Play) -> None:
    text = "10.0.0.1 cannot take the session: no room"
    opening_client(play) >> Received(FW, SynAck(ID, FIRST, 1500))
    assert play.todo[0] == Install(AT_CLIENT)
    play.todo.clear()  # what follows a failed Install is not carried out
    play >> InstallFailed(ID, "no room") << Refuse(SUPER, False, text, CLIENT)
    play << Send(FW, Rst(ID, FIRST, Cause.INSTALL_FAILED, text, CLIENT)) << SetTimer(ID, 0.2)


def test_the_text_of_an_error_fits_the_wire(play: Play) -> None:
    opening_firewall(play) >> InstallFailed(ID, "x\n" * 300)
    sent = [command.message for command in play.todo if isinstance(command, Send)]
    assert all(isinstance(rst, Rst) and len(rst.text) == MAX_TEXT for rst in sent)
    assert all("\n" not in rst.text for rst in sent if isinstance(rst, Rst))
    play.todo.clear()


@pytest.mark.parametrize(
    ("opened", "why"),
    [
        (OPENED._replace(chain=(CHAIN[0], CHAIN[1], CHAIN[0], CHAIN[2])), "10.0.1.2 twice"),
        (OPENED._replace(route=Route(IDS, 1500)), "ids at 10.0.2.2 twice"),
        (OPENED._replace(chain=CHAIN[:2]), "stands at the end of a chain"),
        (OPENED._replace(chain=()), "0 hops"),
        (OPENED._replace(chain=(*CHAIN[:2] * 8, CHAIN[2])), "17 hops"),
        (OPENED._replace(chain=(Hop(FW, Position.TAP, "n" * 16), CHAIN[2])), "16 bytes"),
    ],
)
def test_a_chain_that_cannot_be_is_refused_at_once(play: Play, opened: Opened, why: str) -> None:
    play >> opened
    (refuse,) = play.todo
    assert isinstance(refuse, Refuse)
    assert why in refuse.why
    play << refuse
    assert not play.node.sessions
    assert play.ports.in_use == 0


def test_a_client_without_ports_refuses(play: Play) -> None:
    established_client(play)
    another = OPENED._replace(flow=SUPER._replace(sport=40001), fail_open=True)
    play >> another
    (refuse,) = play.todo
    assert isinstance(refuse, Refuse)
    assert refuse.fail_open
    assert "10.0.0.1 to 10.0.1.2 are in use" in refuse.why
    play << refuse


@pytest.mark.parametrize(
    ("syn", "route", "cause", "blame"),
    [
        (SYN, None, Cause.NO_ROUTE, IDS),
        (Syn(ID, FIRST, SUPER, CHAIN[1:], 1500, 3, 7, 1000), TO_IDS, Cause.NOT_MINE, FW),
        (Syn(ID, FIRST._replace(proto=Proto.UDP), SUPER, CHAIN, 1500, 3, 7, 1000), TO_IDS,
         Cause.NOT_MINE, FW),
        (Syn(ID, FIRST, SUPER, (CHAIN[0], *CHAIN), 1500, 3, 7, 1000), TO_IDS, Cause.LOOP, FW),
        (SYN, Route(IDS, 1500), Cause.LOOP, FW),
    ],
    ids=["no route", "another's chain", "another protocol", "twice in a row", "next is myself"],
)  # fmt: skip
def test_a_hop_refuses_without_remembering(
    play: Play, syn: Syn, route: Route | None, cause: Cause, blame: bytes
) -> None:
    for _ in range(2):
        play >> Received(CLIENT, syn, route)
        (send,) = play.todo
        assert isinstance(send, Send)
        rst = send.message
        assert isinstance(rst, Rst)
        assert (send.peer, rst.session, rst.subsession) == (CLIENT, ID, syn.subsession)
        assert (rst.cause, rst.blame) == (cause, blame)
        assert rst.text
        play << send
    assert not play.node.sessions
    assert play.ports.in_use == 0


def test_a_hop_without_ports_refuses_and_keeps_what_it_has(play: Play) -> None:
    established_firewall(play)
    second = Syn(OTHER, ELSE, SUPER._replace(sport=40001), CHAIN, 1500, 3, 7, 1000)
    play >> Received(CLIENT, second, TO_IDS)
    (send,) = play.todo
    assert isinstance(send, Send)
    assert isinstance(send.message, Rst)
    assert send.message.cause is Cause.NO_PORTS
    play << send
    assert play.state() is State.ESTABLISHED


def test_a_chain_that_comes_round_is_refused(play: Play) -> None:
    """The same host under another address: only the session's id tells."""
    established_firewall(play)
    back = leg(IDS, parse_address("10.0.3.2"))
    play >> Received(IDS, Syn(ID, back, SUPER, (Hop(back.dst, Position.TAP, "x"), CHAIN[2]),
                              1500, 3, 7, 700), TO_IDS)  # fmt: skip
    (send,) = play.todo
    assert isinstance(send, Send)
    assert isinstance(send.message, Rst)
    assert (send.message.cause, send.message.subsession) == (Cause.LOOP, back)
    play << send
    assert play.state() is State.ESTABLISHED


def test_a_chain_that_comes_back_to_its_client_is_refused(play: Play) -> None:
    opening_client(play)
    back = leg(IDS, CLIENT)
    play >> Received(IDS, Syn(ID, back, SUPER, (Hop(CLIENT, Position.SERVER),), 1500, 3, 7, 700))
    (send,) = play.todo
    assert isinstance(send, Send)
    assert isinstance(send.message, Rst)
    assert send.message.cause is Cause.LOOP
    play << send


def test_a_session_does_not_change_its_kind(play: Play) -> None:
    established_firewall(play)
    tap = Syn(ID, FIRST, SUPER, (Hop(FW, Position.TAP, "x"), *CHAIN[1:]), 1500, 3, 7, 1000)
    play >> Received(CLIENT, tap, TO_IDS)
    (send,) = play.todo
    assert isinstance(send, Send)
    assert isinstance(send.message, Rst)
    assert send.message.cause is Cause.NOT_MINE
    play << send


# --- ending -------------------------------------------------------------------------------------


def test_an_end_is_told_outward_both_ways(play: Play) -> None:
    established_firewall(play) >> Ended(ID, "idle") << Remove(AT_FW)
    play << Send(CLIENT, Fin(ID, FIRST)) << Send(IDS, Fin(ID, SECOND)) << SetTimer(ID, 0.2)
    play >> Received(IDS, FinAck(ID, SECOND))
    play >> TimerFired(ID) << Send(CLIENT, Fin(ID, FIRST)) << SetTimer(ID, 0.2)
    play >> Received(CLIENT, FinAck(ID, FIRST)) << CancelTimer(ID) << Closed(AT_FW, "idle")
    assert play.ports.in_use == 0


def test_a_fin_is_answered_and_passed_on(play: Play) -> None:
    established_firewall(play) >> Received(CLIENT, Fin(ID, FIRST))
    play << Send(CLIENT, FinAck(ID, FIRST)) << Remove(AT_FW)
    play << Send(IDS, Fin(ID, SECOND)) << SetTimer(ID, 0.2)
    play >> Received(CLIENT, Fin(ID, FIRST)) << Send(CLIENT, FinAck(ID, FIRST))
    play >> Received(IDS, FinAck(ID, SECOND))
    play << CancelTimer(ID) << Closed(AT_FW, "closed by the other side")


def test_fins_that_cross_answer_each_other(play: Play) -> None:
    established_firewall(play) >> Ended(ID, "fin") << Remove(AT_FW)
    play << Send(CLIENT, Fin(ID, FIRST)) << Send(IDS, Fin(ID, SECOND)) << SetTimer(ID, 0.2)
    play >> Received(CLIENT, Fin(ID, FIRST)) >> Received(IDS, Fin(ID, SECOND))
    play << CancelTimer(ID) << Closed(AT_FW, "fin")
    play >> Received(IDS, Fin(ID, SECOND)) << Send(IDS, FinAck(ID, SECOND))  # ours was lost


def test_a_server_that_is_told_has_nobody_to_tell(play: Play) -> None:
    established_server(play) >> Received(IDS, Fin(ID, THIRD)) << Send(IDS, FinAck(ID, THIRD))
    play << Remove(AT_SERVER) << CancelTimer(ID) << Closed(AT_SERVER, "closed by the other side")


def test_an_end_in_the_middle_of_set_up_is_a_failure(play: Play) -> None:
    rst = Rst(ID, FIRST, Cause.ABANDONED, "ended by the operator")
    opening_client(play) >> Ended(ID, "ended by the operator")
    play << Refuse(SUPER, False, "ended by the operator", None) << Send(FW, rst)
    play << SetTimer(ID, 0.2) >> Ended(ID, "ended by the operator")


@pytest.mark.parametrize(
    "late",
    [
        Received(CLIENT, SYN, TO_IDS),
        Received(CLIENT, Syn(ID, ELSE, SUPER, CHAIN, 1500, 3, 7, 1000), TO_IDS),
        Received(CLIENT, Ack(ID, FIRST)),
        Received(IDS, SynAck(ID, SECOND, 1300)),
    ],
)
def test_who_has_missed_the_end_hears_of_it_again(play: Play, late: Received) -> None:
    established_firewall(play) >> Ended(ID, "fin") << Remove(AT_FW)
    fins = Send(CLIENT, Fin(ID, FIRST)), Send(IDS, Fin(ID, SECOND))
    play << fins[0] << fins[1] << SetTimer(ID, 0.2)
    play >> late << fins[0] << fins[1]
    play >> TimerFired(ID) << fins[0] << fins[1] << SetTimer(ID, 0.2)


# --- what is not here, or not like that -----------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "blame"), [(Ack(OTHER, FIRST), FW), (SynAck(OTHER, FIRST, 1500), CLIENT)]
)
def test_an_unknown_session_is_reset(play: Play, message: Ack | SynAck, blame: bytes) -> None:
    play >> Received(IDS, message)
    (send,) = play.todo
    assert isinstance(send, Send)
    assert isinstance(send.message, Rst)
    assert (send.peer, send.message.session, send.message.subsession) == (IDS, OTHER, FIRST)
    assert (send.message.cause, send.message.blame) == (Cause.UNKNOWN_SESSION, blame)
    play << send


@pytest.mark.parametrize(
    "message", [Fin(OTHER, FIRST), Rst(OTHER, FIRST, Cause.ABANDONED, "gave up")]
)
def test_an_unknown_session_is_over(play: Play, message: Fin | Rst) -> None:
    play >> Received(CLIENT, message) << Send(CLIENT, FinAck(OTHER, FIRST))


def test_an_answer_about_an_unknown_session_ends_the_talk(play: Play) -> None:
    play >> Received(CLIENT, FinAck(OTHER, FIRST)) >> Ended(OTHER, "fin")
    play >> InstallFailed(OTHER, "full") >> Received(CLIENT, PathReq(OTHER))


@pytest.mark.parametrize("make", [Ack, Fin, FinAck, lambda s, f: SynAck(s, f, 1500),
                                  lambda s, f: Rst(s, f, Cause.ABANDONED, "")])  # fmt: skip
def test_another_subsession_is_another_session(play: Play, make: Callable[..., Any]) -> None:
    """What is meant for this host's former self neither harms the session nor goes unanswered."""
    established_firewall(play)
    play >> Received(CLIENT, make(ID, ELSE))
    answers = [type(command.message) for command in play.todo if isinstance(command, Send)]
    assert len(answers) == len(play.todo)
    assert answers == {Ack: [Rst], SynAck: [Rst], Fin: [FinAck], Rst: [FinAck], FinAck: []}[
        type(make(ID, ELSE))
    ]  # fmt: skip
    play.todo.clear()
    assert play.state() is State.ESTABLISHED


@pytest.mark.parametrize("told", [True, False], ids=["never seen", "ended here"])
def test_a_late_syn_does_not_bring_a_session_back(play: Play, told: bool) -> None:
    if told:
        play >> Received(CLIENT, Fin(ID, FIRST)) << Send(CLIENT, FinAck(ID, FIRST))
    else:
        established_firewall(play) >> Ended(ID, "fin")
        play.todo.clear()
        play >> Received(CLIENT, FinAck(ID, FIRST)) >> Received(IDS, FinAck(ID, SECOND))
        play.todo.clear()
    rst = Rst(ID, FIRST, Cause.ABANDONED, "the session is over already", FW)
    play >> Received(CLIENT, SYN, TO_IDS) << Send(CLIENT, rst)
    assert not play.node.sessions


def test_few_ended_sessions_are_remembered(play: Play) -> None:
    play >> Received(CLIENT, Fin(ID, FIRST)) << Send(CLIENT, FinAck(ID, FIRST))
    for session in range(1, 4097):
        play >> Received(CLIENT, Fin(session, FIRST))
        play << Send(CLIENT, FinAck(session, FIRST))
    opening_firewall(play)


# --- old and new --------------------------------------------------------------------------------


def test_a_reborn_left_host_brings_a_new_leg(play: Play) -> None:
    """The right leg, whose host has not changed, keeps its ports."""
    established_firewall(play)
    moved = AT_FW._replace(left=ELSE)
    play >> Received(CLIENT, Syn(ID, ELSE, SUPER, CHAIN, 1500, 3, 7, 1000), TO_IDS)
    play << Remove(AT_FW) << Send(IDS, ONWARD) << Install(moved) << SetTimer(ID, 0.02)
    play >> Received(IDS, SynAck(ID, SECOND, 1300))
    play << Send(CLIENT, SynAck(ID, ELSE, 1300)) << SetTimer(ID, 0.02)
    rst = Rst(ID, FIRST, Cause.UNKNOWN_SESSION, "10.0.1.2 has no such session", FW)
    play >> Received(CLIENT, Ack(ID, FIRST)) << Send(CLIENT, rst)
    play >> Received(CLIENT, Ack(ID, ELSE)) << Send(IDS, Ack(ID, SECOND)) << CancelTimer(ID)
    play << Established(moved)


def test_a_server_takes_a_reborn_neighbours_leg(play: Play) -> None:
    new = THIRD._replace(sport=61900)
    moved = AT_SERVER._replace(left=new)
    established_server(play) >> Received(IDS, Syn(ID, new, SUPER, CHAIN[2:], 1400, 3, 7, 810))
    play << Remove(AT_SERVER) << Install(moved) << Send(IDS, SynAck(ID, new, 1400))
    play << SetTimer(ID, 0.02)


def test_a_session_set_up_again_elsewhere_is_closed(play: Play) -> None:
    established_firewall(play)
    play >> Received(CLIENT, Syn(ID, ELSE, SUPER, (CHAIN[0], CHAIN[2]), 1500, 3, 7, 1000), TO_IDS)
    assert play.todo[0] == Remove(AT_FW)
    assert play.state() is State.CLOSING
    play.todo.clear()


@pytest.mark.parametrize(
    "syn",
    [
        Syn(OTHER, FIRST, SUPER._replace(sport=40001), CHAIN, 1500, 3, 7, 1000),
        Syn(OTHER, ELSE, SUPER, CHAIN, 1500, 3, 7, 1000),
    ],
    ids=["same left leg", "same supersession"],
)
def test_a_new_session_closes_the_one_it_replaces(syn: Syn) -> None:
    play = Play(last_port=61009)
    play >> Received(CLIENT, SYN, TO_IDS)
    old = play.node.view(ID)
    assert old is not None
    assert old.right is not None
    play.todo.clear()
    play >> Received(CLIENT, syn, TO_IDS)
    text = f"{syn.supersession} was opened anew"
    new = play.node.view(OTHER)
    assert new is not None
    assert new.right is not None
    assert new.right != old.right
    play << Remove(old) << Send(CLIENT, Rst(ID, FIRST, Cause.REPLACED, text))
    play << Send(IDS, Rst(ID, old.right, Cause.REPLACED, text)) << SetTimer(ID, 0.2)
    play << Send(IDS, Syn(OTHER, new.right, syn.supersession, CHAIN[1:], 1400, 3, 7, 900))
    play << Install(new) << SetTimer(OTHER, 0.02)
    play.ends()


def test_a_flow_that_is_held_again_waits_with_the_first(play: Play) -> None:
    opening_client(play) >> OPENED


def test_a_flow_that_is_held_again_later_was_lost_by_the_kernel() -> None:
    play = Play(last_port=61009)
    play >> OPENED
    play.todo.clear()
    old = play.node.view(ID)
    assert old is not None
    assert old.right is not None
    play >> Received(FW, SynAck(ID, old.right, 1500))
    play.todo.clear()
    play >> OPENED << Remove(old)
    play << Send(FW, Rst(ID, old.right, Cause.REPLACED, f"{SUPER} was opened anew"))
    play << SetTimer(ID, 0.2)
    new = play.node.view(OTHER)
    assert new is not None
    assert new.right is not None
    play << Send(FW, Syn(OTHER, new.right, SUPER, CHAIN, 1500, 3, 7, 1000))
    play << SetTimer(OTHER, 0.02)
    play.ends()


# --- after a restart ----------------------------------------------------------------------------


def test_an_adopted_client_asks_whether_its_path_stands(play: Play) -> None:
    play >> Adopted(AT_CLIENT) << SetTimer(ID, SOME_TIME)
    assert play.state() is State.ESTABLISHED
    assert play.ports.in_use == 1
    play >> TimerFired(ID) << Send(FW, Ack(ID, FIRST)) << SetTimer(ID, 60.0)
    lost = Rst(ID, FIRST, Cause.UNKNOWN_SESSION, "10.0.1.2 has no such session", FW)
    play >> Received(FW, lost) << Send(FW, FinAck(ID, FIRST)) << Remove(AT_CLIENT)
    play << CancelTimer(ID) << Closed(AT_CLIENT, lost.text)
    assert play.ports.in_use == 0


def test_of_many_adopted_sessions_each_asks_at_a_time_of_its_own(play: Play) -> None:
    delays = []
    for number in range(1, 2001):
        flow = AT_FW.supersession._replace(sport=number)
        left, right = FIRST._replace(sport=number), SECOND._replace(sport=number)
        view = AT_FW._replace(session=number, supersession=flow, left=left, right=right)
        (timer,) = play.node.handle(Adopted(view))
        assert isinstance(timer, SetTimer)
        delays.append(timer.delay)
    assert max(delays[:10]) < 1.0 < delays[-1] <= 60.0


def test_probes_become_rare(play: Play) -> None:
    established_client(play)
    for delay in (60, 120, 240, 480, 960, 1920, 3600, 3600):
        play >> TimerFired(ID) << Send(FW, Ack(ID, FIRST)) << SetTimer(ID, delay)


def test_an_adopted_firewall_sets_up_again_with_the_same_ports(play: Play) -> None:
    adopted_firewall(play) >> Received(CLIENT, SYN, TO_IDS)
    play << Send(IDS, ONWARD) << Install(AT_FW) << SetTimer(ID, 0.02)
    assert play.state() is State.OPENING
    assert play.ports.in_use == 1


def test_an_adopted_firewall_lets_the_client_decide(play: Play) -> None:
    adopted_firewall(play) >> Received(IDS, SynAck(ID, SECOND, 1300))
    play << Send(CLIENT, SynAck(ID, FIRST, 1300)) << SetTimer(ID, 0.02)
    assert play.state() is State.CONFIRMING


def test_an_adopted_firewall_is_confirmed_by_an_ack(play: Play) -> None:
    adopted_firewall(play) >> Received(CLIENT, Ack(ID, FIRST))
    play << Send(IDS, Ack(ID, SECOND)) << CancelTimer(ID) << Established(AT_FW)
    play >> Received(CLIENT, SYN, TO_IDS) << Send(CLIENT, SynAck(ID, FIRST, 1500))


def test_an_adopted_firewall_asks_whether_it_is_on_the_path(play: Play) -> None:
    adopted_firewall(play) >> TimerFired(ID) << Send(CLIENT, UpdateAsk(ID, FIRST, 0))
    play << SetTimer(ID, 60.0)
    play >> Received(CLIENT, UpdateAck(ID, FIRST, 0, 0)) << CancelTimer(ID) << Established(AT_FW)
    assert play.state() is State.ESTABLISHED


def test_an_adopted_server_sets_up_again(play: Play) -> None:
    (
        play
        >> Adopted(AT_SERVER)
        << SetTimer(ID, SOME_TIME)
        >> Received(IDS, LAST)
        << Install(AT_SERVER)
    )
    play << Send(IDS, SynAck(ID, THIRD, 1400)) << SetTimer(ID, 0.02)
    assert play.state() is State.CONFIRMING


def test_adopting_twice_is_adopting_once(play: Play) -> None:
    adopted_firewall(play) >> Adopted(AT_FW)
    assert play.ports.in_use == 1


def test_an_adopted_session_can_end(play: Play) -> None:
    adopted_firewall(play) >> Ended(ID, "rst") << Remove(AT_FW)
    play << Send(CLIENT, Fin(ID, FIRST)) << Send(IDS, Fin(ID, SECOND)) << SetTimer(ID, 0.2)


# --- the table, and what a session costs ----------------------------------------------------------


def test_every_session_can_end_from_every_state() -> None:
    for role, states in TABLE.items():
        for state, row in states.items():
            reached = {next_state for _, next_state in row.values()}
            assert reached - {State.GONE} <= states.keys(), (role, state)
            if state is State.CLOSING:
                assert row[Input.EXPIRED] == (Action.FORGET, State.GONE)
            else:
                assert State.CLOSING in reached
    actions = {action for states in TABLE.values() for row in states.values()
               for action, _ in row.values()}  # fmt: skip
    assert actions == set(Action)
    assert TABLE.keys() == set(Role)


def test_many_sessions_cost_little_and_leave_nothing() -> None:
    count = 5000
    ports, identity = PortAllocator(61000, 65535, random.Random(1)), Identity(bytes(32))
    node = Node(Settings(), ports, random.Random(2), identity, {})

    def fresh(address: bytes) -> bytes:
        return bytes(bytearray(address))  # as from the network, shared with nobody

    def open_all() -> None:
        for n in range(1, count + 1):
            left = Flow(Proto.TCP, fresh(CLIENT), 61000 + n % 2000, fresh(FW), 63500 + n // 2000)
            over = Flow(Proto.TCP, fresh(CLIENT), 1024 + n, fresh(SERVER), 80)
            syn = Syn(n, left, over, CHAIN, 1500, 3, 7, 1000)
            node.handle(Received(fresh(CLIENT), syn, TO_IDS))
            right = node.sessions[n].right
            assert right is not None
            node.handle(Received(IDS, SynAck(n, right, 1500)))
            node.handle(Received(CLIENT, Ack(n, left)))
            assert node.sessions[n].state is State.ESTABLISHED

    tracemalloc.start()
    try:
        open_all()
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used / count < 1500
    for session in list(node.sessions.values()):
        node.handle(Ended(session.id, "fin"))
        node.handle(Received(CLIENT, FinAck(session.id, session.left or FIRST)))
        node.handle(Received(IDS, FinAck(session.id, session.right or SECOND)))
    assert node.ports.in_use == 0
    register = node._register
    tables: tuple[Any, ...] = (register._by_id, register._by_left, register._by_flow)
    assert all(sys.getsizeof(table) == sys.getsizeof({}) for table in tables)
