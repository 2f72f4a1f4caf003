"""Network namespaces of a lab: made, set up and taken away with iproute2.

The namespaces of a lab are called ``m2m-LAB-HOST``. Lab names hold no hyphen, so the prefix
``m2m-LAB-`` belongs to one lab only, and all that a killed run left behind is found by it.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import trio

from m2m.errors import M2MError
from m2m.lab import routing
from m2m.lab.pace import SLOWNESS
from m2m.lab.topology import Topology

_NAMED = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)

# In place before the links come, so that no packet is sent that nobody asked for. rp_filter: a
# steered flow arrives where plain routing would not expect its restored source address.
_SYSCTLS = {
    "net/ipv6/conf/all/disable_ipv6": "1",
    "net/ipv6/conf/default/disable_ipv6": "1",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
    "net/ipv4/conf/all/send_redirects": "0",
    "net/ipv4/conf/default/send_redirects": "0",
    "net/ipv4/conf/all/accept_redirects": "0",
    "net/ipv4/tcp_no_metrics_save": "1",  # one run teaches the next nothing
}
if SLOWNESS > 1:
    # Packets keep it busy, not their octets: a load that was made lighter stays in bursts.
    _SYSCTLS["net/ipv4/tcp_min_tso_segs"] = "44"


class LabError(M2MError):
    """A lab could not be built, found or used."""


def namespace(lab: str, host: str) -> str:
    """The name of a host's namespace."""
    return f"m2m-{lab}-{host}"


def namespace_path(lab: str, host: str) -> Path:
    """The file by which a host's namespace is entered (``nsenter --net=``)."""
    return _NAMED / namespace(lab, host)


def hosts_of(lab: str) -> list[str]:
    """The hosts of a lab that have a namespace now."""
    prefix = namespace(lab, "")
    return sorted(p.name.removeprefix(prefix) for p in _NAMED.glob(f"{prefix}*"))


async def build(topology: Topology, lab: str) -> None:
    """Make the namespaces, links, addresses, routes and rates of *topology*.

    Raises :exc:`LabError` with what iproute2 said; what was made by then is left to
    :func:`delete`.
    """
    names = [namespace(lab, host) for host in topology.hosts]
    await _batch(["ip"], (f"netns add {name}" for name in names))
    for host in topology.hosts:
        await _set_sysctls(namespace_path(lab, host), topology.hosts[host].forwards)
    await _batch(["ip"], _links(topology, lab))
    async with trio.open_nursery() as nursery:
        for host in topology.hosts:
            command = ["ip", "-n", namespace(lab, host)]
            nursery.start_soon(_batch, command, list(_addressing(topology, host)))
    for place, host in enumerate(topology.hosts):
        await _batch(["tc", "-n", namespace(lab, host)], _shaping(topology, host))
        await _keep_in_order(topology, lab, host, place % (os.cpu_count() or 1))


async def delete(lab: str) -> None:
    """Take the lab's namespaces away, and with them their links, routes and rules."""
    await _batch(["ip"], (f"netns del {namespace(lab, host)}" for host in hosts_of(lab)))


def _links(topology: Topology, lab: str) -> Iterable[str]:
    for link in topology.links:
        left, right = link.between
        yield (
            f"link add name {right} netns {namespace(lab, left)} mtu {link.mtu} type veth"
            f" peer name {left} netns {namespace(lab, right)} mtu {link.mtu}"
        )


def _addressing(topology: Topology, host: str) -> Iterable[str]:
    yield "link set lo up"
    for link in topology.links_of(host):
        yield f"address add {link.address(host)} dev {link.other(host)}"
        yield f"link set dev {link.other(host)} up"
    yield from routing.routes(topology, host)
    yield from routing.detours(topology, host)


def _shaping(topology: Topology, host: str) -> Iterable[str]:
    for link in topology.links_of(host):
        if link.rate is not None:
            device = link.other(host)
            # The burst holds a whole GSO packet of 64 KiB, and 1 ms and more at 1 Gbit/s.
            yield (
                f"qdisc add dev {device} root handle 1: tbf rate {link.rate}"
                " burst 256kb latency 20ms"
            )
            # Linux's own queue, in which what is urgent does not stand behind the rest.
            yield f"qdisc add dev {device} parent 1:1 pfifo_fast"


async def _keep_in_order(topology: Topology, lab: str, host: str, processor: int) -> None:
    """Have one processor take what comes to *host* over links that have a rate.

    A wire keeps packets in order. Between namespaces each processor hands on what it has sent, so
    a packet can pass the one before it; where a rate is wanted, so is a wire.
    """
    shaped = [link.other(host) for link in topology.links_of(host) if link.rate is not None]
    if shaped:
        await receive_on(lab, host, shaped, processor)


async def receive_on(lab: str, host: str, devices: Sequence[str], processor: int) -> None:
    """Have *processor* take what comes to *host* by *devices*, instead of the one that sent it.

    Changes nothing where there is only one processor. Raises :exc:`LabError`.
    """
    if (os.cpu_count() or 1) == 1:
        return
    queues = [f"/sys/class/net/{device}/queues/rx-0/rps_cpus" for device in devices]
    # Of all that is done to namespaces only this needs their own view of /sys.
    command = ["ip", "netns", "exec", namespace(lab, host), "tee", *queues]
    mask = f"{1 << processor:x}"
    # 32 processors in each group of digits.
    groups = [mask[max(0, end - 8) : end] for end in range(len(mask), 0, -8)][::-1]
    done = await trio.run_process(
        command, stdin=",".join(groups).encode(), capture_stdout=True, capture_stderr=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise LabError(f"{' '.join(command)}: {done.stderr.decode().strip()}")


async def _batch(command: list[str], lines: Iterable[str]) -> None:
    """Run *lines* through ``ip -batch`` or ``tc -batch``."""
    text = "\n".join(lines)
    if not text:
        return
    done = await trio.run_process(
        [*command, "-batch", "-"], stdin=text.encode(), capture_stderr=True, check=False
    )
    if done.returncode:
        raise LabError(
            f"{' '.join(command)} refused a line of\n{text}\n{done.stderr.decode().strip()}"
        )


async def _set_sysctls(path: Path, forwards: bool) -> None:
    def write() -> None:
        for key, value in {**_SYSCTLS, "net/ipv4/ip_forward": str(int(forwards))}.items():
            sysctl = Path("/proc/sys") / key
            if sysctl.exists():  # a kernel without IPv6 has none of its switches
                sysctl.write_text(value)

    await trio.to_thread.run_sync(inside, path, write)


_T = TypeVar("_T")


def inside(path: Path, do: Callable[[], _T]) -> _T:
    """Call *do* with this thread in the network namespace at *path*; sockets made there stay there.

    Only the network namespace changes: bpffs and all other mounts stay visible.
    """
    with open("/proc/thread-self/ns/net") as home, open(path) as there:
        join(there.fileno())
        try:
            return do()
        finally:
            join(home.fileno())


def join(fd: int) -> None:
    """Put this thread into the network namespace that the file *fd* stands for."""
    if _LIBC.setns(fd, _CLONE_NEWNET):
        error = ctypes.get_errno()
        raise OSError(error, f"setns: {os.strerror(error)}; entering a namespace needs root")


def processes_inside(lab: str) -> set[int]:
    """The processes in the lab's namespaces, whoever started them."""
    marks = {_mark(namespace_path(lab, host)) for host in hosts_of(lab)} - {None}
    found = set()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and marks and _mark(Path(entry.path, "ns/net")) in marks:
            found.add(int(entry.name))
    return found


def _mark(path: Path) -> tuple[int, int] | None:
    """What tells one namespace from another; None when it is gone."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
