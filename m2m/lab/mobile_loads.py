"""What runs in the lab of mobility while its endpoints move."""

from __future__ import annotations

import itertools
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import trio

from m2m.lab.handover import BULK, SERVER, UE
from m2m.lab.lab import Lab
from m2m.lab.netns import LabError
from m2m.lab.topology import Ready
from m2m.lab.traffic import bulk

_numbers = itertools.count(1)


class Transfer:
    """A checked transfer; :attr:`report` is there when its block has ended."""

    report: bulk.Report


@asynccontextmanager
async def transfer(lab: Lab, *, ways: str = "both") -> AsyncIterator[Transfer]:
    """Bytes over TCP between the UE and the server, every one compared where it arrives.

    Raises :exc:`LabError` when a transfer ends too early.
    """
    module = [sys.executable, "-m", "m2m.lab.traffic.bulk"]
    name = f"bulk{next(_numbers)}"
    await lab.start(SERVER, name, [*module, "serve", str(BULK)], ready=Ready(log="listening"))
    running = Transfer()
    try:
        await lab.start(
            UE, name, [*module, "send", lab.address(SERVER), str(BULK), "--ways", ways],
            ready=Ready(log="sending"),
        )  # fmt: skip
        try:
            yield running
        finally:
            with trio.CancelScope(shield=True):
                await lab.stop(UE, name)
    finally:
        with trio.CancelScope(shield=True):
            await lab.stop(SERVER, name)
    said = lab.log(UE, name).read_text().splitlines()
    try:
        running.report = msgspec.json.decode(said[-1], type=bulk.Report)
    except msgspec.DecodeError as error:
        raise LabError(f"the transfer ended without a report: {said[-1]}") from error
