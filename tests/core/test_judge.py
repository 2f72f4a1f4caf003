"""The fate of a packet under an entry."""

import pytest

from m2m.datapath import Reason
from m2m.protocol.flow import Flow
from m2m.protocol.translation import Action, Hook
from tests.support.core import translation

FROM = Flow.of(6, "10.0.1.1", 61001, "10.0.2.1", 62001)
TO = Flow.of(6, "10.0.2.1", 61002, "10.0.3.1", 62002)
PASS, DELIVER, SEND, DROP = range(4)  # enum m2m_verdict
TICKS_PER_SECOND = 10**9 / 2**20


def send(hook: Hook, **fields: int) -> object:
    return translation(hook, FROM, TO, action=Action.SEND, **{"ifindex": 7, "mtu": 1500, **fields})


def test_deliver_asks_for_nothing() -> None:
    judge = translation(Hook.IN, FROM, TO, action=Action.DELIVER).judge
    assert judge(wire_len=65535, ttl=1) == (DELIVER, None)


@pytest.mark.parametrize(
    ("hook", "ttl", "fate"),
    [
        (Hook.IN, 2, (SEND, None)),
        (Hook.IN, 1, (DROP, Reason.TTL_EXPIRED)),
        (Hook.IN, 0, (DROP, Reason.TTL_EXPIRED)),
        (Hook.OUT, 1, (SEND, None)),  # its hop was counted by the stack it left
    ],
)
def test_only_passing_through_costs_a_hop(hook: Hook, ttl: int, fate: object) -> None:
    assert send(hook).judge(wire_len=100, ttl=ttl) == fate


@pytest.mark.parametrize(
    ("mtu", "wire_len", "fate"),
    [
        (1500, 1500, (SEND, None)),
        (1500, 1501, (DROP, Reason.TOO_BIG)),
        (0, 65535, (SEND, None)),
    ],
)
def test_the_next_link_has_an_mtu(mtu: int, wire_len: int, fate: object) -> None:
    assert send(Hook.OUT, mtu=mtu).judge(wire_len=wire_len) == fate


def test_no_next_hop() -> None:
    assert send(Hook.OUT, ifindex=0).judge(wire_len=100) == (DROP, Reason.NO_NEIGHBOUR)


def test_a_flow_that_failed_open_passes_and_is_counted() -> None:
    judge = translation(Hook.OUT, FROM, FROM, action=Action.PASS).judge
    assert judge(wire_len=100) == (PASS, Reason.PASSED)


@pytest.mark.parametrize(
    ("seconds", "fate"),
    [(0, (DROP, Reason.REFUSED)), (0.9, (DROP, Reason.REFUSED)), (1.1, (PASS, None))],
)
@pytest.mark.parametrize("start", [0, 1000, 2**32 - 100])
def test_a_refusal_lasts_a_second(start: int, seconds: float, fate: object) -> None:
    judge = translation(Hook.OUT, FROM, FROM, action=Action.DROP, last_seen=start).judge
    now = (start + int(seconds * TICKS_PER_SECOND)) % 2**32
    assert judge(wire_len=100, now=now) == fate
