"""What the eBPF datapath needs of its host, looked at before anything is done."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

from m2m.errors import UnsupportedHost

BPFFS = Path("/sys/fs/bpf")
KERNEL_TYPES = Path("/sys/kernel/btf/vmlinux")
_OLDEST_KERNEL = (5, 17)  # for bpf_loop, the youngest of the helpers
_CAP_NET_ADMIN, _CAP_SYS_ADMIN, _CAP_PERFMON, _CAP_BPF = 12, 21, 38, 39
_BPFFS = "bpf"


def check() -> None:
    """Raise :exc:`~m2m.errors.UnsupportedHost`, in one sentence, when something is missing.

    Mounts the BPF file system where it is not mounted.
    """
    _check_kernel(platform.release())
    _check_privileges(_effective_capabilities())
    _check_types(KERNEL_TYPES)
    if not _is_mounted(BPFFS):
        _mount(BPFFS)


def _check_kernel(release: str) -> None:
    numbers = re.match(r"(\d+)\.(\d+)", release)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < _OLDEST_KERNEL:
        oldest = ".".join(map(str, _OLDEST_KERNEL))
        raise UnsupportedHost(
            f"Linux {release} is too old for the eBPF datapath, which needs {oldest} or newer;"
            " boot a newer kernel"
        )


def _check_privileges(capabilities: int) -> None:
    needed = {"CAP_NET_ADMIN": _CAP_NET_ADMIN}
    if not capabilities >> _CAP_SYS_ADMIN & 1:  # which was all there was before 5.8
        needed |= {"CAP_BPF": _CAP_BPF, "CAP_PERFMON": _CAP_PERFMON}
    missing = [name for name, bit in needed.items() if not capabilities >> bit & 1]
    if missing:
        raise UnsupportedHost(
            f"the eBPF datapath may not be used by user {os.geteuid()}, who lacks"
            f" {' and '.join(missing)}; run the agent as root, with"
            " these capabilities"
        )


def _check_types(kernel: Path) -> None:
    """The programs look at a packet's kind of checksum in the kernel's own structure."""
    if not kernel.exists():
        raise UnsupportedHost(
            f"{kernel} is missing, by which BPF programs find their way in the kernel's structures;"
            " boot a kernel built with CONFIG_DEBUG_INFO_BTF"
        )


def _effective_capabilities() -> int:
    status = Path("/proc/thread-self/status").read_text()
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return int(found[1], 16) if found else 0


def _is_mounted(place: Path) -> bool:
    """Whether the BPF file system is the last one mounted there, and so the one to be seen."""
    seen = ""
    for line in Path("/proc/thread-self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if where == str(place):
            seen = kind
    return seen == _BPFFS


def _mount(place: Path) -> None:
    if not place.is_dir():
        raise UnsupportedHost(
            f"{place} is missing, where the BPF file system belongs; the kernel was built without"
            " CONFIG_BPF_SYSCALL, or sysfs is not mounted (mount -t sysfs sysfs /sys)"
        )
    command = ["mount", "-t", "bpf", "bpf", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        said = f"{command[0]}: {error.strerror}"
    else:
        if done.returncode == 0:
            return
        said = (done.stderr.strip().splitlines() or ["mount says nothing"])[0]
    raise UnsupportedHost(
        f"the BPF file system cannot be mounted on {place} ({said}); mount it by hand, as root:"
        f" {' '.join(command)}"
    )
