"""Bulk data that can be halted, so that two labs can take turns of a tenth of a second."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter

import trio

from m2m.lab import process
from m2m.lab.lab import Lab
from m2m.lab.netns import LabError

__all__ = ["Stream", "stream"]

# Client and server on a processor of their own, in both labs: left to the scheduler, the same run
# gives half or all of the rate as it happens to place them. Where there is only one, neither end
# interrupts the other (SCHED_BATCH): how often one would is luck too, and worth six percent.
_APART = ("-A", "0,1") if (os.cpu_count() or 1) > 1 else ()
_LONGEST = 60  # s that a stream is kept up
_TURN = 0.1  # s: short beside the spells in which a shared machine is slower
_WITHIN = 0.02  # s from halted to full speed
_OUT = 0.01  # s until what was sent before a halt has arrived
_FLOWING = 10_000_000  # octets: slow start is over
_PATIENCE = 5.0  # s for a stream to flow
_TRIES = 20


class Stream:
    """A transfer from client to server, halted between its turns."""

    def __init__(self, client: trio.Process, server: int) -> None:
        self._client = client
        self._interfaces = Path(f"/proc/{server}/net/dev")  # as the server's namespace sees them

    async def turn(self) -> float:
        """Let it flow for a turn; the Gbit/s, with IP headers, that came to the server."""
        self._client.send_signal(signal.SIGCONT)
        try:
            await trio.sleep(_WITHIN)
            begin, before = perf_counter(), self._received()
            await trio.sleep(_TURN)
            octets = self._received() - before
            rate = octets * 8e-9 / (perf_counter() - begin)
        finally:
            self.halt()
        await trio.sleep(_OUT)
        if not octets:
            raise LabError(f"iperf3 ended, status {self._client.poll()}, or its path is broken")
        return rate

    def halt(self) -> None:
        """Until its next turn."""
        self._client.send_signal(signal.SIGSTOP)

    async def flows(self) -> bool:
        """Wait for full speed; False when it ended instead, or does not get there."""
        with trio.move_on_after(_PATIENCE):
            enough = self._received() + _FLOWING
            while self._client.poll() is None:
                if self._received() >= enough:
                    return True
                await trio.sleep(_OUT)
        return False

    def _received(self) -> int:
        """Octets that have come to the server on all its links."""
        lines = self._interfaces.read_text().splitlines()[2:]
        links = (line.split(":", 1) for line in lines)
        return sum(int(counts.split()[0]) for name, counts in links if name.strip() != "lo")


@asynccontextmanager
async def stream(lab: Lab, port: int, flows: int, window: str | None) -> AsyncIterator[Stream]:
    """*flows* transfers of one iperf3 to *port* of the lab's server, halted.

    *window* is that of every flow at both ends, as iperf3 takes it; None: the kernel lets it grow.
    Raises :exc:`LabError`.
    """
    argv = [
        "iperf3", "-c", lab.address("server"), "-p", str(port), "-P", str(flows),
        "-t", str(_LONGEST), *(("-w", window) if window else ()), *_APART,
    ]  # fmt: skip
    log = lab.log("client", f"stream-{port}")
    # The server of the transfer before can be slower to end than its client.
    for _ in range(_TRIES):
        client = await process.spawn(
            "client", "stream", lab.namespace("client"), argv, home=lab.directory, log=log, env={}
        )
        server = lab.pid("server", f"iperf3-{port}")
        try:
            if not _APART:
                for end in (client.pid, server):
                    os.sched_setscheduler(end, os.SCHED_BATCH, os.sched_param(0))
            found = Stream(client, server)
            if await found.flows():
                found.halt()
                yield found
                return
        finally:
            client.kill()
            with trio.CancelScope(shield=True):
                await client.wait()
        await trio.sleep(_OUT)
    raise LabError(
        f"iperf3 in lab {lab.topology.name} does not transfer {flows} flows:\n{process.tail(log)}"
    )
