"""Probes in a lab: started, moved under, and read (:mod:`m2m.lab.traffic.probes`)."""

from __future__ import annotations

import itertools
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import trio

from m2m.lab.gaps import interruptions
from m2m.lab.handover import PROBES_TCP, PROBES_UDP, SERVER, UE
from m2m.lab.lab import Lab
from m2m.lab.moves import Moved
from m2m.lab.netns import LabError
from m2m.lab.pace import SLOWNESS
from m2m.lab.topology import Ready
from m2m.lab.traffic import probes
from m2m.lab.traffic.numbered import Account
from m2m.lab.traffic.probes import Report

INTERVAL = 0.5 * SLOWNESS
"""Milliseconds between two records of a probe."""

_SETTLE = 0.3  # s from the last move to the end: what was held or lost has been made up for
_numbers = itertools.count(1)


class Probed(msgspec.Struct):
    """What both ends of all sessions saw, and the moves meanwhile."""

    proto: str
    sessions: int
    interval: float  # s between two records of a probe
    moves: list[Moved]
    up: Report  # at the server
    down: Report  # at the UE

    def added(self) -> list[list[float]]:
        """For each move, the interruption (s) of every probe: the longer of its two ways."""
        end = min(self.up.end, self.down.end)
        per_way = [
            {one.flow: one.arrivals for one in report.probes} for report in (self.up, self.down)
        ]
        flows = [flow for flow in per_way[1] if flow in per_way[0]]
        ways = [
            list(interruptions([way[flow] for flow in flows], self.moves, end)) for way in per_way
        ]
        return [
            [
                max(up, down)
                for up, down in zip(*both, strict=True)
                if up is not None and down is not None
            ]
            for both in zip(*ways, strict=True)
        ]

    def accounts(self) -> tuple[Account, Account]:
        """What became of all records: to the server, and to the UE."""
        found = (Account(), Account())
        for account, report in zip(found, (self.up, self.down), strict=True):
            for stream in report.streams:
                account.add(stream.account)
        return found

    @property
    def ended(self) -> list[str]:
        """What the kernels said of sessions that they ended, while the probes ran."""
        return [one.error for one in self.down.streams if one.error is not None]


class Probing:
    """Probes that run; :attr:`found` is there when their block has ended."""

    found: Probed

    def __init__(self) -> None:
        self.moves: list[Moved] = []


@asynccontextmanager
async def probing(
    lab: Lab,
    proto: str,
    *,
    sessions: int = 1,
    watched: int = 1,
    interval: float = INTERVAL,
    port: int | None = None,
    address: str | None = None,
    seed: int = 0,
) -> AsyncIterator[Probing]:
    """Open *sessions* (``udp``, ``tcp``, ``mptcp``) from the UE to the server, and keep them going.

    *watched* of them are probes, a record each way every *interval* ms. The block is entered when
    all are open; each move made in it is to be put into ``moves``. Raises :exc:`LabError`.
    """
    name = f"probes{next(_numbers)}"
    port = port or (PROBES_UDP if proto == "udp" else PROBES_TCP)
    address = address or lab.address(SERVER)
    common = ["--proto", proto, "--interval", f"{interval:g}"]
    module = [sys.executable, "-m", "m2m.lab.traffic.probes"]
    outs = {host: lab.directory / f"{name}-{host}.msgpack" for host in (SERVER, UE)}
    await lab.start(
        SERVER, name, [*module, "serve", address, str(port), *common, "--out", str(outs[SERVER])],
        ready=Ready(log="listening"),
    )  # fmt: skip
    many = ["--sessions", str(sessions), "--probes", str(watched), "--seed", str(seed)]
    probing = Probing()
    try:
        await lab.start(
            UE, name, [*module, "send", address, str(port), *common, *many, "--out", str(outs[UE])],
            ready=Ready(log="sending"),
        )  # fmt: skip
        try:
            yield probing
            await trio.sleep(_SETTLE)
        finally:
            with trio.CancelScope(shield=True):
                await lab.stop(UE, name)
    finally:
        with trio.CancelScope(shield=True):
            await lab.stop(SERVER, name)
    try:
        up, down = (probes.read(outs[host]) for host in (SERVER, UE))
    except (OSError, msgspec.DecodeError) as error:
        raise LabError(f"{name} ended without a report: {error}") from error
    finally:
        for out in outs.values():
            out.unlink(missing_ok=True)
    probing.found = Probed(proto, sessions, interval / 1000, probing.moves, up, down)
