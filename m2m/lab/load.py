"""Loads that run in a lab while something else happens to it, and say how they fared."""

from __future__ import annotations

import itertools
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Generic, TypeVar

import msgspec
import trio

from m2m.agent.api import Direction, SessionInfo
from m2m.lab.lab import Lab
from m2m.lab.netns import LabError
from m2m.lab.pace import SLOWNESS
from m2m.lab.topology import Command, Iperf3, Ready, Topology
from m2m.lab.traffic import bulk, datagrams
from m2m.lab.two_paths import CLIENT, SERVER

IPERF3, BULK, DATAGRAMS = 5201, 5202, 5203
"""Ports of the services; all are led through the chain by the policy of the lab."""

_TIME_WAIT, _LISTEN = "06", "0A"  # states in /proc/net/tcp
_PATIENCE = 30.0 * SLOWNESS  # s until a load's sessions carry data
_CARRIES = 30_000  # bytes in a session that carries data

R = TypeVar("R", bulk.Report, datagrams.Report)


def with_services(topology: Topology) -> Topology:
    """*topology* with what the loads need on the server."""
    served = [
        Iperf3(ports=[IPERF3]),
        _serve("bulk", str(BULK)),
        _serve("datagrams", topology.address(SERVER), str(DATAGRAMS)),
    ]
    server = msgspec.structs.replace(topology.hosts[SERVER], run=served)
    return msgspec.structs.replace(topology, hosts={**topology.hosts, SERVER: server})


def _serve(module: str, *arguments: str) -> Command:
    command = [sys.executable, "-m", f"m2m.lab.traffic.{module}", "serve", *arguments]
    return Command(module, command, Ready(log="listening"))


class Load(Generic[R]):
    """A load that is running; :attr:`report` is there when its block has ended."""

    report: R


_numbers = itertools.count(1)


@asynccontextmanager
async def bulk_load(
    lab: Lab, *, flows: int = 1, ways: str = "up"
) -> AsyncIterator[Load[bulk.Report]]:
    """Checked bytes over TCP as fast as they go (:mod:`m2m.lab.traffic.bulk`) in the block."""
    options = ["--flows", str(flows), "--ways", ways]
    async with _run(lab, "bulk", BULK, options, bulk.Report) as load:
        yield load


@asynccontextmanager
async def datagram_load(
    lab: Lab, *, rate: float, flows: int = 1, burst: int = 16, both: bool = True
) -> AsyncIterator[Load[datagrams.Report]]:
    """Numbered datagrams at *rate* bit/s in all (:mod:`m2m.lab.traffic.datagrams`) in the block."""
    options = ["--rate", f"{rate / 1e6:g}", "--flows", str(flows), "--burst", str(burst)]
    options += ["--both"] * both
    async with _run(lab, "datagrams", DATAGRAMS, options, datagrams.Report) as load:
        yield load


@asynccontextmanager
async def _run(
    lab: Lab, module: str, port: int, options: list[str], kind: type[R]
) -> AsyncIterator[Load[R]]:
    name = f"{module}{next(_numbers)}"
    command = [
        sys.executable, "-m", f"m2m.lab.traffic.{module}", "send", lab.address(SERVER), str(port),
        *options,
    ]  # fmt: skip
    await lab.start(CLIENT, name, command, ready=Ready(log="sending"))
    load: Load[R] = Load()
    try:
        yield load
    finally:
        with trio.CancelScope(shield=True):
            await lab.stop(CLIENT, name)
    said = lab.log(CLIENT, name).read_text().splitlines()
    try:
        load.report = msgspec.json.decode(said[-1], type=kind)
    except msgspec.DecodeError as error:
        raise LabError(f"{name} on {CLIENT} ended without a report: {said[-1]}") from error


@asynccontextmanager
async def iperf3_load(
    lab: Lab, *, flows: int = 1, rate: str | None = None
) -> AsyncIterator[list[SessionInfo]]:
    """iperf3 at full speed, or at *rate* (``1M``: bit/s of each flow), in the block.

    Gives the sessions there were before it, when all that came to the server had been taken.
    """
    await _free(lab)
    before = await sessions(lab)
    name = f"iperf3-{next(_numbers)}"
    command = [
        "iperf3", "-c", lab.address(SERVER), "-p", str(IPERF3), "-t", "0", "-P", str(flows),
        *(["-b", rate] if rate else []),
    ]  # fmt: skip
    await lab.start(CLIENT, name, command)
    try:
        yield before
    finally:
        with trio.CancelScope(shield=True):
            await lab.stop(CLIENT, name)


async def exchanges(lab: Lab, way: Sequence[str], *, number: int, period: float) -> list[float]:
    """Milliseconds that a datagram takes along the hosts *way* and back to the first, passed on as
    agents would an empty message (:mod:`m2m.lab.traffic.exchange`); one every *period* seconds."""
    program = [sys.executable, "-m", "m2m.lab.traffic.exchange"]
    first, *others = way
    for host, following in itertools.pairwise([*others, first]):
        command = [*program, "relay", lab.address(following)]
        await lab.start(host, "exchange", command, ready=Ready(log="listening"))
    try:
        options = ["--number", str(number), "--period", f"{period * 1e3:g}"]
        done = await lab.run(first, *program, "lead", lab.address(others[0]), *options)
    finally:
        with trio.CancelScope(shield=True):
            for host in others:
                await lab.stop(host, "exchange")
    return msgspec.json.decode(done.out, type=list[float])


async def _free(lab: Lab) -> None:
    """Return when iperf3's server has done with its last client: it refuses others meanwhile."""
    server = lab.pid(SERVER, f"iperf3-{IPERF3}")
    views = [Path(f"/proc/{server}/net/{name}") for name in ("tcp", "tcp6")]
    with trio.move_on_after(_PATIENCE):
        while any(map(_is_served, _lines(views))):  # noqa: ASYNC110  (no event)
            await trio.sleep(0.05)


def _lines(views: Iterable[Path]) -> Iterator[str]:
    for view in views:
        yield from view.read_text().splitlines()[1:]


def _is_served(line: str) -> bool:
    """Whether a line of ``/proc/net/tcp`` is about a connection to iperf3's server."""
    _, local, _, state, *_ = line.split()
    return local.endswith(f":{IPERF3:04X}") and state not in (_TIME_WAIT, _LISTEN)


async def sessions(lab: Lab) -> list[SessionInfo]:
    """All sessions of the client."""
    return await lab.sessions(CLIENT)


async def loaded(
    lab: Lab, port: int, number: int, before: Iterable[SessionInfo], size: int = _CARRIES
) -> list[SessionInfo]:
    """The sessions to *port* that have carried *size* bytes since *before*: *number* of them.

    A connection can have the ports of one that ended a moment ago, and goes on with its session.
    Raises :exc:`LabError` when they do not come.
    """
    carried = {session.id: _bytes(session) for session in before}
    found: list[SessionInfo] = []
    with trio.move_on_after(_PATIENCE):
        while True:
            found = [
                one
                for one in await sessions(lab)
                if one.supersession.dport == port
                and not _has_ended(one)
                and _bytes(one) - carried.get(one.id, 0) > size
            ]
            if len(found) >= number:
                return found
            await trio.sleep(0.05)
    raise LabError(f"{len(found)} of {number} sessions to port {port} carry data")


def _bytes(session: SessionInfo) -> int:
    return sum(way.bytes for way in _ways(session))


def _has_ended(session: SessionInfo) -> bool:
    return any(way.fin or way.rst for way in _ways(session))


def _ways(session: SessionInfo) -> list[Direction]:
    return [way for way in (session.to_server, session.to_client) if way is not None]
