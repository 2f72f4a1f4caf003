"""The ticker rings, says how often, and is quiet in between."""

import os

import trio

from m2m.datapath.ticker import Ticker


async def test_it_rings_and_is_quiet_again() -> None:
    ticker = Ticker(0.01)
    try:
        with trio.fail_after(5):
            await trio.lowlevel.wait_readable(ticker)
        assert ticker.rings() >= 1
    finally:
        ticker.close()


async def test_before_its_time_it_is_silent_and_closing_twice_is_harmless() -> None:
    ticker = Ticker(3600)
    assert ticker.rings() == 0
    descriptor = ticker.fileno()
    os.fstat(descriptor)
    ticker.close()
    ticker.close()
