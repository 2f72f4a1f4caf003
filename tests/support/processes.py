"""Real daemons in a test's namespaces: started, waited for by sd_notify, ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from m2m.lab import forkserver
from m2m.lab.pace import SLOWNESS
from m2m.lab.process import Running
from tests.support.namespaces import Namespace

_PATIENCE = 30.0 * SLOWNESS  # s for a daemon to be ready, or to end


class Daemon:
    """A process inside a namespace. Its output is in ``log``."""

    def __init__(
        self,
        namespace: Namespace,
        process: Running,
        log: Path,
        notifications: trio.socket.SocketType,
    ) -> None:
        self.namespace = namespace
        self.process = process
        self.log = log
        self._notifications = notifications

    @property
    def output(self) -> str:
        return self.log.read_text()

    async def says(self, line: str) -> None:
        """Return when it has said *line* by sd_notify; fails the test when it ends before."""
        with trio.fail_after(_PATIENCE):
            async with trio.open_nursery() as nursery:

                async def gone() -> None:
                    await self.process.wait()
                    raise AssertionError(f"ended with {self.process.returncode}:\n{self.output}")

                nursery.start_soon(gone)
                while line.encode() not in (await self._notifications.recv(4096)).splitlines():
                    pass
                nursery.cancel_scope.cancel()

    async def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End it; its status. Fails the test when it does not end."""
        if self.process.returncode is None:
            self.process.send_signal(how)
        self._notifications.close()
        with trio.fail_after(_PATIENCE):
            return await self.process.wait()


@asynccontextmanager
async def daemon(
    namespace: Namespace, directory: Path, name: str, *command: str
) -> AsyncIterator[Daemon]:
    """*command* while the block runs, ready when the block is entered."""
    started = await start(namespace, directory, name, *command)
    try:
        yield started
    finally:
        with trio.CancelScope(shield=True):
            await started.stop()


async def start(namespace: Namespace, directory: Path, name: str, *command: str) -> Daemon:
    """Start *command* (a module's name begins with ``m2m.``) and return when it says READY."""
    log = directory / f"{name}.log"
    path = directory / f"{name}.notify"
    path.unlink(missing_ok=True)
    notifications = trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    await notifications.bind(os.fspath(path))
    with log.open("ab") as output:
        process = await _open(namespace, command, output.fileno(), NOTIFY_SOCKET=os.fspath(path))
    made = Daemon(namespace, process, log, notifications)
    try:
        await made.says("READY=1")
    except BaseException:
        process.kill()
        notifications.close()
        raise
    return made


async def run_program(namespace: Namespace, log: Path, *command: str) -> None:
    """Run one of M2M's programs (``m2m.cli.policy``) to its end; fails the test when it fails."""
    with log.open("ab") as output:
        process = await _open(namespace, command, output.fileno())
    with trio.fail_after(_PATIENCE):
        status = await process.wait()
    assert status == 0, f"{' '.join(command)}: status {status}; see {log}"


async def _open(
    namespace: Namespace, command: tuple[str, ...], output: int, **more: str
) -> Running:
    environment = {**os.environ, **more}
    if command[0].startswith("m2m."):
        return forkserver.shared().start(
            command, namespace.path, home=Path.cwd(), output=output, environment=environment
        )
    return await trio.lowlevel.open_process(
        namespace.command(*command), stdin=subprocess.DEVNULL, stdout=output,
        stderr=subprocess.STDOUT, env=environment,
    )  # fmt: skip


def end_fork_server() -> None:
    """When all tests are done."""
    if forkserver.shared.cache_info().currsize:
        forkserver.shared().close()
        forkserver.shared.cache_clear()
