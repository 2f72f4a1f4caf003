"""When a session is over: two entries judged together."""

import pytest

from m2m.datapath import _core
from m2m.protocol.flow import Flow, Proto
from m2m.protocol.translation import Hook, Position, SessionView, Toward, entries_for
from tests.support.core import entry, key, pack

SUPER = Flow.of(6, "10.0.1.1", 40000, "10.0.9.1", 80)
LEFT = Flow.of(6, "10.0.1.1", 61001, "10.0.2.1", 62001)
RIGHT = Flow.of(6, "10.0.2.1", 61002, "10.0.9.1", 62002)
CONFIG = pack("m2m_config", linger=10, tcp_idle=1000, udp_idle=100)
NOT_OVER, FIN, RST, IDLE = range(4)  # enum m2m_end
SAW_FIN, SAW_RST = 1, 2


def direction(flags: int = 0, last_seen: int = 0, toward: Toward = Toward.RIGHT) -> bytes:
    return entry(Hook.IN, LEFT, SUPER, toward=toward, flags=flags, last_seen=last_seen)


@pytest.mark.parametrize(
    ("there", "back", "now", "end"),
    [
        (0, 0, 1000, NOT_OVER),
        (0, 0, 1001, IDLE),
        (SAW_FIN, 0, 1000, NOT_OVER),  # half closed: the other half may go on
        (SAW_FIN, 0, 1001, IDLE),
        (SAW_FIN, SAW_FIN, 10, NOT_OVER),  # kept for the last retransmissions
        (SAW_FIN, SAW_FIN, 11, FIN),
        (SAW_RST, 0, 10, NOT_OVER),
        (SAW_RST, 0, 11, RST),
        (0, SAW_RST | SAW_FIN, 11, RST),
    ],
)
def test_end_of_a_tcp_session(there: int, back: int, now: int, end: int) -> None:
    pair = direction(there), direction(back, toward=Toward.LEFT)
    assert _core.pair_end(CONFIG, Proto.TCP, *pair, now) == end
    assert _core.pair_end(CONFIG, Proto.TCP, *pair[::-1], now) == end


@pytest.mark.parametrize(("now", "end"), [(100, NOT_OVER), (101, IDLE)])
def test_udp_has_its_own_idle_time(now: int, end: int) -> None:
    assert _core.pair_end(CONFIG, Proto.UDP, direction(), direction(), now) == end


def test_either_direction_keeps_the_session() -> None:
    quiet, busy = direction(last_seen=0), direction(last_seen=5000)
    assert _core.pair_end(CONFIG, Proto.TCP, quiet, busy, 5500) == NOT_OVER
    assert _core.pair_end(CONFIG, Proto.TCP, busy, quiet, 5500) == NOT_OVER
    assert _core.pair_end(CONFIG, Proto.TCP, quiet, None, 5500) == IDLE


def test_time_wraps_and_may_be_ahead() -> None:
    early = direction(last_seen=2**32 - 5)
    assert _core.pair_end(CONFIG, Proto.TCP, early, early, 100) == NOT_OVER
    assert _core.pair_end(CONFIG, Proto.TCP, early, early, 996) == IDLE
    ahead = direction(last_seen=60)  # a packet passed after the sweeper read the clock
    assert _core.pair_end(CONFIG, Proto.TCP, ahead, ahead, 50) == NOT_OVER


@pytest.mark.parametrize("position", Position)
def test_partners_name_each_other(position: Position) -> None:
    left = None if position is Position.CLIENT else LEFT
    right = None if position is Position.SERVER else RIGHT
    rows = entries_for(SessionView(1, position, SUPER, left, right))
    packed = {
        key(row.hook, row.match): entry(
            row.hook, row.match, row.rewrite, action=row.action, toward=row.toward,
            position=row.position,
        )
        for row in rows
    }  # fmt: skip
    toward = {key(row.hook, row.match): row.toward for row in rows}
    for this, value in packed.items():
        partner = _core.partner_key(this, value)
        assert toward[partner] is not toward[this]
        assert _core.partner_key(partner, packed[partner]) == this
