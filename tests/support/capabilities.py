"""What this machine can do, found by trying; a test names what it needs.

``@pytest.mark.needs("root", "bpf", "nginx")``: a name without a probe of its own is a program
that must be on the PATH.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

from tests.vm import boot

BPFFS = Path("/sys/fs/bpf")

_BPF_SYSCALL = {"x86_64": 321, "aarch64": 280, "riscv64": 280}
_BPF_MAP_CREATE = 0
_BPF_MAP_TYPE_ARRAY = 2


def _root() -> str | None:
    if os.geteuid() != 0:
        return "this test needs root; run: sudo make test"
    return None


def _tried(*command: str) -> str | None:
    """None when *command* succeeds in a network namespace of its own, else what it said."""
    done = subprocess.run(
        ["unshare", "--net", *command], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return None
    said = (done.stderr or done.stdout).strip().splitlines() or [f"status {done.returncode}"]
    return f"{' '.join(command)}: {said[-1]}"


def _netns() -> str | None:
    if refused := _root():
        return refused
    refused = _tried("ip", "link", "add", "veth-a", "type", "veth", "peer", "name", "veth-b")
    return refused and f"no network namespace with veth links can be made here ({refused})"


def _bpf() -> str | None:
    if refused := _root():
        return refused
    number = _BPF_SYSCALL.get(platform.machine())
    if number is None:
        return f"the number of the bpf system call on {platform.machine()} is not known here"
    libc = ctypes.CDLL(None, use_errno=True)
    attributes = (ctypes.c_uint32 * 32)(_BPF_MAP_TYPE_ARRAY, 4, 4, 1)
    fd = libc.syscall(number, _BPF_MAP_CREATE, attributes, ctypes.sizeof(attributes))
    if fd < 0:
        return f"the kernel refuses BPF maps: {os.strerror(ctypes.get_errno())}"
    os.close(fd)
    return None


def _bpffs() -> str | None:
    if refused := _bpf():
        return refused
    mounted = {line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()}
    if str(BPFFS) in mounted:
        return None
    done = subprocess.run(
        ["mount", "-t", "bpf", "bpf", str(BPFFS)], capture_output=True, text=True, check=False
    )
    return None if done.returncode == 0 else f"no BPF file system: {done.stderr.strip()}"


def _nfqueue() -> str | None:
    if refused := _root():
        return refused
    refused = _tried(
        "iptables", "-t", "mangle", "-A", "OUTPUT", "-m", "bpf", "--bytecode", "1,6 0 0 1",
        "-j", "NFQUEUE", "--queue-num", "0",
    )  # fmt: skip
    return refused and f"no netfilter queue with a BPF match ({refused})"


def _fuzzer() -> str | None:
    target = "int LLVMFuzzerTestOneInput(const char *d, unsigned long n) { return !d && n; }"
    command = ["clang", "-xc", "-", "-fsanitize=fuzzer,address,undefined", "-o", "/dev/null"]
    if reason := _program("clang"):
        return reason
    done = subprocess.run(command, input=target, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else "clang has no libFuzzer here; run: sudo make setup"


def _libpcap() -> str | None:
    """Builds it where it is not built yet."""
    build = Path(__file__).parents[2] / "patches/libpcap/build"
    done = subprocess.run([build], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"the patched libpcap: {done.stderr.strip()}"


def _vm() -> str | None:
    """Fetches the kernel where it has not been fetched yet."""
    try:
        boot.ready()
    except boot.Impossible as reason:
        return f"no virtual machine: {reason}"
    return None


def _program(name: str) -> str | None:
    return None if shutil.which(name) else f"the program {name} is missing; run: sudo make setup"


_PROBES: dict[str, Callable[[], str | None]] = {
    "root": _root,
    "netns": _netns,
    "bpf": _bpf,
    "bpffs": _bpffs,
    "nfqueue": _nfqueue,
    "fuzzer": _fuzzer,
    "libpcap": _libpcap,
    "vm": _vm,
}


@cache
def missing(need: str) -> str | None:
    """Why *need* is not to be had on this machine, or None when it is."""
    probe = _PROBES.get(need)
    return probe() if probe is not None else _program(need)
