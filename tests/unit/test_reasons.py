"""Why sessions end: each reason names who, what, and whom to blame."""

from __future__ import annotations

from m2m.protocol import reasons
from m2m.protocol.flow import Flow, Proto, parse_address
from m2m.protocol.session import Ending, Opening, Session, State
from m2m.protocol.translation import Position
from m2m.protocol.wire import Ack, Cause, Fin, Hop, Rst, Syn, SynAck

CLIENT, FW, SERVER = (parse_address(text) for text in ("10.0.0.1", "10.0.1.2", "10.0.9.9"))
LEFT = Flow(Proto.TCP, CLIENT, 61000, FW, 63263)
RIGHT = Flow(Proto.TCP, FW, 61000, SERVER, 63263)
SUPER = Flow(Proto.TCP, CLIENT, 40000, SERVER, 80)


def firewall(state: State = State.CONFIRMING) -> Session:
    return Session(1, Position.INLINE, state, SUPER, LEFT, RIGHT, 0, 0)


def client() -> Session:
    return Session(1, Position.CLIENT, State.OPENING, SUPER, None, LEFT, 0, 0)


def test_what_a_neighbour_says() -> None:
    rst = Rst(1, RIGHT, Cause.NO_PORTS, "none left", FW)
    assert reasons.told(rst, by_left=False) == reasons.Why(
        Cause.NO_PORTS, "none left", FW, right_knows=True
    )
    assert reasons.told(Fin(1, LEFT), by_left=True) == reasons.Why(
        None, "closed by the other side", None, left_knows=True
    )


def test_who_was_silent() -> None:
    opening = firewall(State.OPENING)
    onward = Syn(1, RIGHT, SUPER, (Hop(SERVER, Position.SERVER),), 1500, 0, 0, 900)
    opening.opening = Opening(onward, 0.9)
    why = reasons.hop_silent(opening)
    assert (why.text, why.blame) == ("server at 10.0.9.9 does not answer", SERVER)
    why = reasons.hop_silent(firewall())
    assert (why.text, why.blame) == ("10.0.0.1 does not confirm the session", CLIENT)


def test_who_cannot() -> None:
    why = reasons.install_failed(firewall(), "the table is full")
    assert why.text == "10.0.1.2 cannot take the session: the table is full"
    assert why.blame == FW
    assert reasons.install_failed(client(), "x").blame == CLIENT


def test_who_does_not_know() -> None:
    assert reasons.unknown(Ack(1, LEFT)).blame == FW
    assert reasons.unknown(SynAck(1, LEFT, 1500)).blame == CLIENT
    assert reasons.unknown(Ack(1, LEFT)).text == "10.0.1.2 has no such session"


def test_what_is_said() -> None:
    over = Ending(None, "over", None, left=True, right=True)
    assert reasons.notice(1, LEFT, over) == Fin(1, LEFT)
    failed = Ending(Cause.LOOP, "twice", FW, left=True, right=True)
    assert reasons.notice(1, LEFT, failed) == Rst(1, LEFT, Cause.LOOP, "twice", FW)


def test_hops_have_names() -> None:
    assert reasons.describe_hop(Hop(FW, Position.TAP, "ids")) == "ids at 10.0.1.2"
    assert reasons.describe_hop(Hop(SERVER, Position.SERVER)) == "server at 10.0.9.9"
