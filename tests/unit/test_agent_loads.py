"""How loaded hosts are: reports that are seconds old, beside what an agent knows itself."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from m2m.agent.loads import Loads
from m2m.policy.location import AWAY_LOAD
from m2m.policy.rules import Choose, Instance, Kind, NfType
from m2m.protocol.flow import Flow, Proto, parse_address
from m2m.protocol.translation import Position
from m2m.protocol.wire import Hop

ONE, TWO = parse_address("10.0.1.2"), parse_address("10.0.2.2")
_CLIENT, _SERVER = parse_address("10.1.0.1"), parse_address("10.0.5.2")


def flow(number: int) -> Flow:
    return Flow(Proto.TCP, _CLIENT, _SERVER, number, 80)


def hop(address: bytes) -> Hop:
    return Hop(address, Position.INLINE, "ids")


class Told:
    """An agent's view of two hosts, and the loads in force there."""

    def __init__(self) -> None:
        self.loads = Loads()
        self._in_force = [0.0, 0.0]

    def report(self, one: float, two: float) -> None:
        self._in_force = [one, two]
        pairs = zip(("one", "two"), (ONE, TWO), (one, two), strict=True)
        instances = tuple(Instance(name, address, load) for name, address, load in pairs)
        others = NfType(
            "tap", Kind.TAP, Choose.HASH, (Instance("t", ONE),)
        )  # nobody tells its load
        told = NfType("ids", Kind.INLINE, Choose.LEAST_LOADED, instances)
        self.loads.reported([told, others])

    def begin(self, address: bytes, *numbers: int) -> None:
        for number in numbers:
            self.loads.begins(flow(number), [hop(address)])

    def end(self, *numbers: int) -> None:
        for number in numbers:
            self.loads.ends(flow(number))

    @property
    def seen(self) -> list[float]:
        """The sessions that each of the hosts should have."""
        pairs = zip(self._in_force, (ONE, TWO), strict=True)
        return [load + self.loads.placed[address] for load, address in pairs]


async def test_own_sessions_are_counted_while_nothing_is_reported() -> None:
    told = Told()
    told.begin(ONE, 1, 2, 3)
    told.begin(TWO, 4)
    told.end(1)
    assert told.seen == [2, 1]


async def test_a_report_from_before_a_burst_is_no_difference() -> None:
    """One host has told of its ten, the other one of a moment when it had none."""
    told = Told()
    told.begin(ONE, *range(10))
    told.begin(TWO, *range(10, 20))
    told.report(10, 0)
    assert told.seen == [10, 10]


async def test_nor_is_one_from_before_sessions_ended() -> None:
    told = Told()
    told.begin(ONE, *range(10))
    told.begin(TWO, *range(10, 20))
    told.end(*range(20))
    told.report(0, 10)
    assert told.seen == [0, 0]


async def test_what_others_have_there_counts() -> None:
    told = Told()
    told.begin(ONE, 1, 2)
    told.report(12, 30)
    assert told.seen == [12, 30]
    told.begin(TWO, 3)
    told.end(1)
    assert told.seen == [11, 31]


async def test_after_a_while_a_report_is_not_explained_by_the_past(
    autojump_clock: MockClock,
) -> None:
    told = Told()
    told.begin(ONE, *range(10))
    told.end(*range(10))
    await trio.sleep(10)
    told.report(10, 0)
    assert told.seen == [10, 0], "others have them"


async def test_sessions_that_were_led_away_by_others_are_not_there(
    autojump_clock: MockClock,
) -> None:
    told = Told()
    told.begin(ONE, *range(10))
    await trio.sleep(10)
    told.report(0, 10)
    assert told.seen == [0, 10]


async def test_a_flow_that_begins_again_is_one_session() -> None:
    told = Told()
    told.begin(ONE, 1)
    told.begin(TWO, 1)
    assert told.seen == [0, 1]
    told.end(1)
    told.end(1)
    assert told.seen == [0, 0]


async def test_a_host_that_is_away_stays_last() -> None:
    told = Told()
    told.begin(ONE, *range(10))
    told.report(AWAY_LOAD, 3)
    assert told.seen[0] == AWAY_LOAD
