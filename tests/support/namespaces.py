"""Network namespaces that a test makes, and that are gone after it.

Names are ``m2mt-<pid of the test run>-<what the test calls it>``, so that runs side by side do
not meet, and the next run finds what a killed one left behind.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.capabilities import BPFFS

PREFIX = "m2mt-"
RUN_VARIABLE = "M2M_TEST_RUN"  # every process that descends from a test run carries it
_NETNS_DIR = Path("/run/netns")
_PINS_DIR = BPFFS / "m2m"
_CLONE_NEWNET = 0x40000000


def run_prefix() -> str:
    """What the names of this run's namespaces and pins begin with."""
    return f"{PREFIX}{os.getpid()}-"


def run(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command; when it fails the error shows what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise AssertionError(
            f"{' '.join(command)}: status {done.returncode}\n{done.stdout}{done.stderr}"
        )
    return done


class Namespace:
    """One network namespace, its loopback up. Only the network is its own."""

    def __init__(self, label: str) -> None:
        self.name = run_prefix() + label
        run("ip", "netns", "add", self.name)
        self.run("ip", "link", "set", "lo", "up")

    @property
    def path(self) -> Path:
        return _NETNS_DIR / self.name

    def command(self, *command: str) -> list[str]:
        """*command* as it must be started to run inside. ``ip netns exec`` would hide bpffs."""
        return ["nsenter", f"--net={self.path}", "--", *command]

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return run(*self.command(*command), check=check)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Put the calling thread inside; sockets made here stay inside."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            with self.path.open() as inside:
                _setns(inside.fileno())
            try:
                yield
            finally:
                _setns(home)
        finally:
            os.close(home)

    def socket(self, family: int, kind: int, proto: int = 0) -> socket.socket:
        """A socket that lives inside, for use from outside."""
        with self.entered():
            return socket.socket(family, kind, proto)

    def address(self, interface: str, address: str) -> None:
        """Give *interface* an address such as ``10.0.1.1/24`` and bring it up."""
        self.run("ip", "address", "add", address, "dev", interface, "nodad")
        self.run("ip", "link", "set", interface, "up")

    def route(self, *route: str) -> None:
        """``route("default", "via", "10.0.1.254")``."""
        self.run("ip", "route", "replace", *route)

    def sysctl(self, name: str, value: object) -> None:
        self.run("sysctl", "-qw", f"{name}={value}")

    def ifindex(self, interface: str) -> int:
        with self.entered():
            return socket.if_nametoindex(interface)

    def pids(self) -> list[int]:
        return [int(pid) for pid in run("ip", "netns", "pids", self.name).stdout.split()]


def _setns(fd: int) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, _CLONE_NEWNET) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"setns: {os.strerror(error)}")


def remove_namespace(name: str) -> list[str]:
    """Remove a namespace and end what still runs in it; tells what that was."""
    ended = []
    for pid in run("ip", "netns", "pids", name, check=False).stdout.split():
        command = _command_of(int(pid))
        try:
            os.kill(int(pid), signal.SIGKILL)
        except ProcessLookupError:
            continue
        ended.append(f"{pid} ({command})")
    run("ip", "netns", "delete", name, check=False)
    return ended


class NamespaceFactory:
    """``netns("client")`` makes one; :meth:`link` joins two by a veth pair."""

    def __init__(self) -> None:
        self._made: list[Namespace] = []

    def __call__(self, label: str) -> Namespace:
        namespace = Namespace(label)
        self._made.append(namespace)
        return namespace

    def link(
        self, left: Namespace, left_end: tuple[str, str], right: Namespace,
        right_end: tuple[str, str],
    ) -> None:  # fmt: skip
        """``link(a, ("eth0", "10.0.1.1/24"), b, ("eth0", "10.0.1.2/24"))``."""
        run(
            "ip", "link", "add", left_end[0], "netns", left.name, "type", "veth",
            "peer", "name", right_end[0], "netns", right.name,
        )  # fmt: skip
        left.address(*left_end)
        right.address(*right_end)

    def remove_all(self) -> None:
        """Remove all; processes that a test left running in one make it fail."""
        left_running = []
        while self._made:
            left_running += remove_namespace(self._made.pop().name)
        assert not left_running, f"still running in the test's namespaces: {left_running}"


def _command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return "gone"


def _owner_is_gone(name: str) -> bool:
    owner = re.match(rf"{PREFIX}(\d+)-", name)
    return owner is None or "pytest" not in _command_of(int(owner[1]))


def remove_leftovers() -> None:
    """Remove what test runs that were killed have left behind."""
    for place in (_NETNS_DIR, _PINS_DIR):
        for path in sorted(place.glob(f"{PREFIX}*")):
            if not _owner_is_gone(path.name):
                continue
            if place is _NETNS_DIR:
                remove_namespace(path.name)
            else:
                shutil.rmtree(path, ignore_errors=True)


def leaks() -> list[str]:
    """What this run has left behind so far: namespaces, pins, processes."""
    found = [f"namespace {path.name}" for path in _NETNS_DIR.glob(f"{run_prefix()}*")]
    found += [f"pins {path}" for path in _PINS_DIR.glob(f"{run_prefix()}*")]
    mark = f"{RUN_VARIABLE}={os.getpid()}".encode()
    for place in Path("/proc").glob("[0-9]*"):
        try:
            environment = (place / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # ended meanwhile, or not ours to look at
        if mark in environment and int(place.name) != os.getpid():
            found.append(f"process {place.name} ({_command_of(int(place.name))})")
    return found
