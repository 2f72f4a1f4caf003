"""The empty exchange, on loopback."""

from __future__ import annotations

from contextlib import closing

import pytest
import trio
from trio.testing import MockClock

from m2m.lab.traffic import exchange
from m2m.lab.traffic.exchange import Exchange, lead, relay

A, B, C = "127.5.0.1", "127.5.0.2", "127.5.0.3"


async def test_each_round_comes_back_by_way_of_all() -> None:
    with (
        closing(Exchange(B, A)) as first, closing(Exchange(C, B)) as second,
        closing(Exchange(A, C)) as third,
    ):  # fmt: skip
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, second)
            nursery.start_soon(relay, third)
            with trio.fail_after(10):
                took = await lead(first, 5, 0.001)
            nursery.cancel_scope.cancel()
    assert len(took) == 5
    assert min(took) > 0


async def test_what_is_not_authentic_goes_nowhere() -> None:
    with closing(Exchange(B, A)) as first, closing(Exchange(A, B)) as second:
        first._socket.sendto(b"changed on the way" + bytes(16), (B, exchange.PORT))
        first.send(b"whole")
        with trio.fail_after(10):
            assert await second.receive() == b"whole"


async def test_a_lost_one_is_made_again(autojump_clock: MockClock) -> None:
    async def lose_the_first(second: Exchange) -> None:
        await second.receive()
        await relay(second)

    began = trio.current_time()
    with closing(Exchange(B, A)) as first, closing(Exchange(A, B)) as second:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lose_the_first, second)
            took = await lead(first, 2, 0.1)
            nursery.cancel_scope.cancel()
    assert len(took) == 2
    assert trio.current_time() - began > exchange._PATIENCE


async def test_a_way_that_carries_none_ends_it(autojump_clock: MockClock) -> None:
    with closing(Exchange(B, A)) as first, pytest.raises(trio.TooSlowError):
        await lead(first, 1, 0.1)
