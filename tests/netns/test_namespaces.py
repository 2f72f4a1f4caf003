"""The scaffolding itself: namespaces are joined, entered, and leave nothing behind."""

import socket
import subprocess
from pathlib import Path

import pytest

from tests.support import namespaces, processes
from tests.support.namespaces import NamespaceFactory


def test_two_namespaces_reach_each_other(netns: NamespaceFactory) -> None:
    a, b = netns("a"), netns("b")
    netns.link(a, ("eth0", "10.9.0.1/24"), b, ("eth0", "10.9.0.2/24"))

    receiver = b.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender = a.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with receiver, sender:
        receiver.settimeout(5)
        receiver.bind(("10.9.0.2", 4000))
        sender.sendto(b"hello", ("10.9.0.2", 4000))
        data, (source, _) = receiver.recvfrom(100)

    assert (data, source) == (b"hello", "10.9.0.1")


def test_entering_is_undone(netns: NamespaceFactory) -> None:
    home = Path("/proc/thread-self/ns/net").readlink()
    with netns("a").entered():
        assert Path("/proc/thread-self/ns/net").readlink() != home
    assert Path("/proc/thread-self/ns/net").readlink() == home


def test_sysctl_stays_inside(netns: NamespaceFactory) -> None:
    outside = Path("/proc/sys/net/ipv4/ip_forward").read_text()
    a = netns("a")
    inside = 0 if outside.strip() == "1" else 1
    a.sysctl("net.ipv4.ip_forward", inside)
    assert a.run("sysctl", "-n", "net.ipv4.ip_forward").stdout.strip() == str(inside)
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == outside


@pytest.mark.needs("netns")
def test_leaks_are_seen_and_processes_left_running_are_ended() -> None:
    """I9: the leak check would notice."""
    processes.end_fork_server()  # a process of this run as well; whoever needs it next starts it
    factory = NamespaceFactory()
    a = factory("leak")
    process = subprocess.Popen(a.command("sleep", "60"))
    try:
        # nsenter becomes sleep in the same process once it is inside.
        while process.pid not in a.pids():
            assert process.poll() is None
        found = namespaces.leaks()
        assert any("m2mt-" in leak and "leak" in leak for leak in found)
        assert any(leak.startswith(f"process {process.pid} ") for leak in found)
        with pytest.raises(AssertionError, match="still running"):
            factory.remove_all()
        assert process.wait(5) == -9
    finally:
        process.kill()
        process.wait()
    assert namespaces.leaks() == []
