"""Every datapath in turn, on its test bench."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
import trio
import trio.testing

from m2m.datapath import Limits
from m2m.datapath.kmod import is_loaded
from tests.support.kernel_rig import Bench, EbpfRig, KmodRig
from tests.support.rig import FakeRig, Listener, NamingRig, Rig

LIMITS = Limits(sessions=64, linger=30.0, tcp_idle=60.0, udp_idle=60.0, hold_packets=64)

OpenRig = Callable[..., Awaitable[Rig]]
Listen = Callable[[Rig], Awaitable[Listener]]


@pytest.fixture(scope="module")
def bench() -> Iterator[Callable[[], Bench]]:
    """The namespaces of the datapaths in the kernel, made when the first of them is tested."""
    made: list[Bench] = []

    def get() -> Bench:
        if not made:
            made.append(Bench())
        return made[0]

    yield get
    for one in made:
        one.remove()


IN_KERNEL = [pytest.param("ebpf", marks=pytest.mark.needs("netns", "bpffs", "nfqueue"))]
if is_loaded():  # on other kernels `make test-vm` does these
    IN_KERNEL.append(pytest.param("kmod", marks=pytest.mark.needs("netns")))


@pytest.fixture(params=["fake", "naming", *IN_KERNEL])
async def open_rig(
    request: pytest.FixtureRequest, bench: Callable[[], Bench]
) -> AsyncIterator[OpenRig]:
    """``await open_rig(udp_idle=0.1)``: a bench whose limits differ from LIMITS in this."""
    rigs: list[Rig] = []

    async def open_one(**limits: float) -> Rig:
        rig = await _make(request.param, LIMITS._replace(**limits), bench)
        rigs.append(rig)
        await rig.open()
        return rig

    yield open_one
    for rig in rigs:
        await rig.remove()


async def _make(datapath: str, limits: Limits, bench: Callable[[], Bench]) -> Rig:
    if datapath == "fake":
        return FakeRig(limits)
    if datapath == "naming":
        return NamingRig(limits)
    rig = (EbpfRig if datapath == "ebpf" else KmodRig)(limits, bench())
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
