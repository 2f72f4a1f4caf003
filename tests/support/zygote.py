"""Starts M2M's own programs without the time that Python takes to import them.

``python -m tests.support.zygote FD`` has imported them, and forks a process for each that is asked
for by the socket FD: what runs in it is the program's ``main()``, as with ``python -m``. Everything
else about it is that of a process of its own.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from typing import TypedDict

import trio

_PROGRAMS = ("m2m.cli.agent", "m2m.cli.policy")
_CLONE_NEWNET = 0x40000000
_LENGTH = 1 << 16


class _Request(TypedDict):
    argv: list[str]  # the program's module, and its arguments
    environment: dict[str, str]


class Forked:
    """A process that was started here; as much of :class:`trio.Process` as daemons need."""

    def __init__(self, zygote: Zygote, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._zygote = zygote

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
            self.returncode = self._zygote.reap(self.pid)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Only a process that has not been waited for still has its number."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once; whoever waits for it hears."""
        self.send_signal(signal.SIGKILL)


class Zygote:
    """The process that forks; it ends with this one, or by :meth:`close`."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())], pass_fds=[theirs.fileno()]
            )

    def start(
        self, argv: list[str], namespace: int, output: int, environment: dict[str, str]
    ) -> Forked:
        """Run ``python -m`` *argv* inside a network namespace, its output to a file."""
        request: _Request = {"argv": argv, "environment": environment}
        socket.send_fds(self._socket, [json.dumps(request).encode()], [namespace, output])
        return Forked(self, int(self._socket.recv(_LENGTH)))

    def reap(self, pid: int) -> int:
        """The status of a process that has ended."""
        self._socket.send(json.dumps(pid).encode())
        return int(self._socket.recv(_LENGTH))

    def close(self) -> None:
        """End it; what it has started goes on."""
        self._socket.close()
        self._process.wait()


def _serve(requests: socket.socket) -> _Request | None:
    """What this process, a forked one, is to run; None at the end of requests."""
    for program in _PROGRAMS:
        importlib.import_module(program)
    while True:
        data, fds, _, _ = socket.recv_fds(requests, _LENGTH, 2)
        if not data:
            return None
        asked = json.loads(data)
        if not fds:
            _, status = os.waitpid(asked, 0)
            requests.send(b"%d" % os.waitstatus_to_exitcode(status))
            continue
        pid = os.fork()
        if pid == 0:
            requests.close()
            _settle(*fds)
            request: _Request = asked
            return request
        for fd in fds:
            os.close(fd)
        requests.send(b"%d" % pid)


def _settle(namespace: int, output: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), errno.errorcode[ctypes.get_errno()])
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    for fd in (namespace, output):
        os.close(fd)


def main() -> int:
    """Serve; or, in a process that was forked, what its program returns."""
    request = _serve(socket.socket(fileno=int(sys.argv[1])))
    if request is None:
        return 0
    program, *arguments = request["argv"]
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = [program, *arguments]
    status: int = sys.modules[program].main(arguments)
    return status


if __name__ == "__main__":
    sys.exit(main())
