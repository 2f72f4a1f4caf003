"""What the agent asks of the host's own settings, and the one it changes itself.

It reserves its ports (and says so in a file, to take back only what it added); everything else
it only reads: routing and filtering are the operator's, so the messages tell what to run.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from m2m.errors import UnsupportedHost

__all__ = [
    "Cpu", "forwards", "release_ports", "require_root", "reserve_ports", "strict_interfaces",
]  # fmt: skip

_NET = Path("/proc/sys/net/ipv4")


def require_root() -> None:
    """Raise :exc:`~m2m.errors.UnsupportedHost` unless this process may load BPF programs."""
    if os.geteuid() != 0:
        raise UnsupportedHost(
            f"m2m-agent runs as user {os.geteuid()} but loads programs into the kernel: start it "
            "as root (sudo m2m-agent ...)"
        )


def forwards(net: Path = _NET) -> bool:
    """Whether this host forwards IPv4, which an inline network function needs."""
    return _read(net / "ip_forward") == "1"


def strict_interfaces(names: Iterable[str], net: Path = _NET) -> list[str]:
    """Those of the interfaces whose reverse path filter is strict.

    A restored packet has the client's source address but comes from the previous host, so a
    strict filter drops it unless the route to the client happens to use the same interface.
    """
    everywhere = _read(net / "conf/all/rp_filter")
    return [
        name for name in names if max(everywhere, _read(net / f"conf/{name}/rp_filter", "0")) == "1"
    ]


def reserve_ports(low: int, high: int, record: Path, net: Path = _NET) -> None:
    """Keep the kernel from giving ports *low* to *high* to local sockets by itself.

    What was not reserved before is written to *record*, for :func:`release_ports`.
    Raises :exc:`~m2m.errors.UnsupportedHost` when the setting cannot be changed.
    """
    setting = net / "ip_local_reserved_ports"
    before = _parse(_read(setting))
    added = set(range(low, high + 1)) - before
    if record.exists():  # from a predecessor that did not take its ports back
        added |= _parse(record.read_text())
    if not added:
        return
    record.write_text(_format(added) + "\n")
    try:
        setting.write_text(_format(before | added) + "\n")
    except OSError as error:
        raise UnsupportedHost(
            f"cannot reserve ports {low}-{high} in {setting}: {error.strerror}"
        ) from None


def release_ports(record: Path, net: Path = _NET) -> None:
    """Take back what :func:`reserve_ports` added, as told by *record*; nothing without it."""
    if not record.exists():
        return
    setting = net / "ip_local_reserved_ports"
    left = _parse(_read(setting)) - _parse(record.read_text())
    setting.write_text(_format(left) + "\n")
    record.unlink()


def _read(path: Path, default: str | None = None) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        if default is not None:
            return default
        raise UnsupportedHost(
            f"cannot read {path}: {error.strerror}; is /proc mounted and IPv4 in this kernel?"
        ) from None


def _parse(text: str) -> set[int]:
    ports: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        low, _, high = part.partition("-")
        ports.update(range(int(low), int(high or low) + 1))
    return ports


def _format(ports: set[int]) -> str:
    parts: list[str] = []
    ordered = sorted(ports)
    start = 0
    for end in range(len(ordered)):
        if end + 1 == len(ordered) or ordered[end + 1] != ordered[end] + 1:
            low, high = ordered[start], ordered[end]
            parts.append(str(low) if low == high else f"{low}-{high}")
            start = end + 1
    return ",".join(parts)


class Cpu:
    """How busy the host's processors have been since one was asked last."""

    def __init__(self, stat: Path = Path("/proc/stat")) -> None:
        self._stat = stat
        self._before = self._now()

    def busy(self) -> float:
        """The share of their time, 0 to 1."""
        idle, total = self._now()
        idle_before, total_before = self._before
        self._before = idle, total
        if total <= total_before:
            return 0.0
        return min(1.0, max(0.0, 1.0 - (idle - idle_before) / (total - total_before)))

    def _now(self) -> tuple[int, int]:
        # user, nice, system, idle, iowait, irq, softirq, steal (proc(5))
        ticks = [int(field) for field in self._stat.read_text().split("\n", 1)[0].split()[1:9]]
        return ticks[3] + ticks[4], sum(ticks)
