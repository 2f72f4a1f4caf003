"""Processes of a lab: started in a host's namespace, known by pid and birth, ended in order."""

from __future__ import annotations

import math
import os
import signal
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self

import msgspec
import trio
from trio import socket

from m2m.lab.forkserver import Forked, ForkServer
from m2m.lab.netns import LabError
from m2m.lab.pace import SLOWNESS
from m2m.lab.topology import Ready

_POLL = 0.005  # s between two looks at what the kernel has no event for
_GRACE = 5.0  # s between SIGTERM and SIGKILL
_LISTEN = "0A"  # TCP_LISTEN in /proc/net/tcp


Running = trio.Process | Forked


class Started(msgspec.Struct, frozen=True):
    """A process as the lab's state file remembers it."""

    host: str
    name: str
    pid: int
    birth: int  # start time in clock ticks since boot: tells a recycled pid
    log: str

    @property
    def alive(self) -> bool:
        """Whether this very process still runs (a zombie does not)."""
        return birth(self.pid) == self.birth


def birth(pid: int) -> int | None:
    """The start time of a process, in clock ticks since boot; None when it does not run."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *rest = stat[stat.rindex(")") + 2 :].split()
    return None if state in "ZX" else int(rest[18])


def enter(namespace: Path, argv: Iterable[str]) -> list[str]:
    """The command that runs *argv* in a namespace. Not ``ip netns exec``, which hides bpffs."""
    return ["nsenter", f"--net={namespace}", "--", *argv]


async def spawn(
    host: str,
    name: str,
    namespace: Path,
    argv: list[str],
    *,
    home: Path,
    log: Path,
    env: Mapping[str, str],
) -> trio.Process:
    """Start a process that outlives this one if it has to, in *home*; its output goes to *log*."""
    with log.open("ab") as output:
        try:
            return await trio.lowlevel.open_process(
                enter(namespace, argv),
                cwd=home,
                stdin=subprocess.DEVNULL,
                stdout=output.fileno(),
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C is for the lab, which ends them in order
                env={**os.environ, **env},
            )
        except OSError as error:
            raise LabError(f"{name} on {host}: {argv[0]} cannot be started: {error}") from error


def fork(
    forks: ForkServer,
    host: str,
    name: str,
    namespace: Path,
    module: list[str],
    *,
    home: Path,
    log: Path,
    env: Mapping[str, str],
) -> Forked:
    """The same for ``python -m`` *module*, without the time that Python takes to import it."""
    with log.open("ab") as output:
        try:
            return forks.start(
                module, namespace, home=home, output=output.fileno(),
                environment={**os.environ, **env},
            )  # fmt: skip
        except OSError as error:
            raise LabError(f"{name} on {host}: {module[0]} cannot be started: {error}") from error


class Notifications:
    """The socket on which one process says READY=1 (sd_notify)."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    async def ready(self) -> None:
        """Return when the process has said so."""
        while b"READY=1" not in (await self._socket.recv(4096)).splitlines():
            pass

    async def __aenter__(self) -> Self:
        await self._socket.bind(str(self.path))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._socket.close()
        self.path.unlink(missing_ok=True)


async def wait_ready(
    process: Running,
    what: str,
    ready: Ready,
    *,
    namespace: Path,
    log: Path,
    notifications: Notifications | None = None,
    timeout: float = 60.0 * SLOWNESS,  # noqa: ASYNC109  (a bound for the process, not for the caller)
) -> None:
    """Return when *process* meets the conditions of *ready*.

    Raises :exc:`LabError` with the tail of its log when it ends before, or *timeout* seconds pass.
    """
    with trio.move_on_after(timeout) as scope:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                await process.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            if notifications is not None:
                await notifications.ready()
            while not _met(process.pid, ready, namespace, log):  # noqa: ASYNC110  (no event)
                await trio.sleep(_POLL)
            nursery.cancel_scope.cancel()
    if process.returncode is not None:
        raise LabError(f"{what} ended with status {process.returncode}:\n{tail(log)}")
    if scope.cancelled_caught:
        raise LabError(f"{what} was not ready within {timeout:g} s:\n{tail(log)}")


def _met(pid: int, ready: Ready, namespace: Path, log: Path) -> bool:
    if ready.port is not None and not listens(pid, ready.port, namespace):
        return False
    return ready.log is None or ready.log in log.read_text(errors="replace")


def listens(pid: int, port: int, namespace: Path) -> bool:
    """Whether *pid* is in *namespace* by now, and a TCP socket there listens on *port*."""
    wanted = f":{port:04X}"
    try:
        if not namespace.samefile(f"/proc/{pid}/ns/net"):
            return False
    except OSError:
        return False
    for table in ("tcp", "tcp6"):
        try:
            rows = Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
        except OSError:
            continue  # ended, or no IPv6 here
        for row in rows:
            fields = row.split()
            if fields[1].endswith(wanted) and fields[3] == _LISTEN:
                return True
    return False


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log, indented, for an error message."""
    try:
        text = log.read_text(errors="replace").splitlines()[-lines:]
    except OSError:
        text = []
    return "\n".join(f"    {line}" for line in text or ["(its log is empty)"])


async def end(pids: Mapping[int, int | None], *, grace: float = _GRACE) -> None:
    """End processes by pid and birth: SIGTERM, and SIGKILL after *grace* seconds.

    A pid whose process was born at another time is left alone.
    """
    async with trio.open_nursery() as nursery:
        for pid, born in pids.items():
            nursery.start_soon(_end_one, pid, born, grace)


async def _end_one(pid: int, born: int | None, grace: float) -> None:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        # Looked at after the handle was taken: from here on it cannot be another process.
        if born is None or birth(pid) != born:
            return
        for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, math.inf)):
            signal.pidfd_send_signal(handle, number)
            with trio.move_on_after(patience):
                await trio.lowlevel.wait_readable(handle)
                return
    except ProcessLookupError:
        return
    finally:
        os.close(handle)
