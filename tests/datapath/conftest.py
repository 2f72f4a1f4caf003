"""Every datapath in turn, on its test bench."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import trio
import trio.testing

from m2m.datapath import Limits
from tests.support.rig import FakeRig, Listener, NamingRig, Rig

LIMITS = Limits(sessions=64, linger=30.0, tcp_idle=60.0, udp_idle=60.0, hold_packets=64)

OpenRig = Callable[..., Awaitable[Rig]]
Listen = Callable[[Rig], Awaitable[Listener]]


@pytest.fixture(
    params=[
        "fake",
        "naming",
        pytest.param("ebpf", marks=pytest.mark.needs("netns", "bpffs", "nfqueue")),
    ]
)
async def open_rig(request: pytest.FixtureRequest) -> AsyncIterator[OpenRig]:
    """``await open_rig(udp_idle=0.1)``: a bench whose limits differ from LIMITS in this."""
    rigs: list[Rig] = []

    async def open_one(**limits: float) -> Rig:
        rig = await _make(request.param, LIMITS._replace(**limits))
        rigs.append(rig)
        await rig.open()
        return rig

    yield open_one
    for rig in rigs:
        await rig.remove()


async def _make(datapath: str, limits: Limits) -> Rig:
    if datapath == "fake":
        return FakeRig(limits)
    if datapath == "naming":
        return NamingRig(limits)
    from tests.support.ebpf_rig import EbpfRig  # only where its needs are met

    rig = EbpfRig(limits)
    await rig.enter()
    return rig


@pytest.fixture
async def rig(open_rig: OpenRig) -> Rig:
    return await open_rig()


@pytest.fixture
async def listen(open_rig: OpenRig) -> AsyncIterator[Listen]:
    """``await listen(rig)``: an agent is there from now on, until before the bench goes."""

    async def start(rig: Rig) -> Listener:
        listener = Listener()
        nursery.start_soon(listener.run, rig.datapath)
        await trio.testing.wait_all_tasks_blocked()
        return listener

    async with trio.open_nursery() as nursery:
        yield start
        nursery.cancel_scope.cancel()
