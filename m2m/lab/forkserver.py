"""Starts M2M's own programs without the time that Python takes to import them.

A :class:`ForkServer` is a process that imports each program once, and forks for every one that is
asked for: what runs there is the program's ``main()``, as with ``python -m``. All else about it is
that of a process that was started by itself.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TypedDict

import trio

from m2m.lab import netns

_LENGTH = 1 << 16


class _Request(TypedDict):
    argv: list[str]  # the program's module, and its arguments
    home: str
    environment: dict[str, str]


class Forked:
    """A process that was started here; as much of :class:`trio.Process` as a lab needs."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._server = server

    async def wait(self) -> int:
        """Its status; as a negative number, the signal that has ended it."""
        await trio.lowlevel.checkpoint()
        if self.returncode is None:
            ended = os.pidfd_open(self.pid)  # until it is reaped, the number is its own
            try:
                await trio.lowlevel.wait_readable(ended)
            finally:
                os.close(ended)
        if self.returncode is None:
            self.returncode = self._server.reap(self.pid)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Only a process that has not been waited for still has its number."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once; whoever waits for it hears."""
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """The process that forks; it ends with this one, or by :meth:`close`."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()],
                start_new_session=True,  # a Ctrl-C is for this process, which still needs it
            )  # fmt: skip

    def start(
        self, argv: Sequence[str], namespace: Path, *, home: Path, output: int,
        environment: Mapping[str, str],
    ) -> Forked:  # fmt: skip
        """Run ``python -m`` *argv* inside a network namespace, in *home*, its output to a file.

        Like a daemon it has a session of its own, and nothing to read. Raises :exc:`OSError`.
        """
        request = _Request(argv=list(argv), home=str(home), environment=dict(environment))
        with namespace.open() as inside:
            fds = [inside.fileno(), output]
            socket.send_fds(self._socket, [json.dumps(request).encode()], fds)
            return Forked(self, self._answer())

    def reap(self, pid: int) -> int:
        """The status of a process that has ended. Raises :exc:`OSError`."""
        self._socket.send(json.dumps(pid).encode())
        return self._answer()

    def _answer(self) -> int:
        said = self._socket.recv(_LENGTH)
        if not said:
            raise ChildProcessError("the process that forks M2M's programs has ended")
        return int(said)

    def close(self) -> None:
        """End it; what it has started goes on."""
        self._socket.close()
        self._process.wait()


@cache
def shared() -> ForkServer:
    """The one for all labs of this process, from the first time that it is wanted."""
    server = ForkServer()
    atexit.register(server.close)
    return server


def _serve(requests: socket.socket) -> _Request | None:
    """What this process, a forked one, is to run; None at the end of requests."""
    while True:
        data, fds, _, _ = socket.recv_fds(requests, _LENGTH, 2)
        if not data:
            return None
        asked = json.loads(data)
        if not fds:
            _, status = os.waitpid(asked, 0)
            requests.send(b"%d" % os.waitstatus_to_exitcode(status))
            continue
        request: _Request = asked
        with suppress(Exception):  # it is told where the program's output goes
            importlib.import_module(request["argv"][0])
        pid = os.fork()
        if pid == 0:
            requests.close()
            _settle(request, *fds)
            return request
        for fd in fds:
            os.close(fd)
        requests.send(b"%d" % pid)


def _settle(request: _Request, namespace: int, output: int) -> None:
    os.setsid()
    os.dup2(output, 1)
    os.dup2(output, 2)
    netns.join(namespace)
    for fd in (namespace, output):
        os.close(fd)
    os.chdir(request["home"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = request["argv"]


def main() -> int | None:
    """Serve; or, in a process that was forked, what its program returns."""
    request = _serve(socket.socket(fileno=int(sys.argv[1])))
    if request is None:
        return 0
    program, *arguments = request["argv"]
    status: int | None = importlib.import_module(program).main(arguments)
    return status


if __name__ == "__main__":
    sys.exit(main())
