"""What the kernel's TCP has taken for lost in a network namespace, by its own counters."""

from __future__ import annotations

from pathlib import Path

from m2m.lab.netns import inside

__all__ = ["TAKEN_FOR_LOST", "parse", "taken_for_lost"]

TAKEN_FOR_LOST = ("TCPFastRetrans", "TCPSlowStartRetrans", "TCPTimeouts", "TCPLostRetransmit")
"""Of ``TcpExt``. Not ``TCPLossProbes``: a probe asks, after two round trips without an
acknowledgement, and takes nothing for lost yet (RFC 8985, section 7). A machine that keeps a host
waiting for a processor brings some about."""


def taken_for_lost(namespace: Path) -> int:
    """Segments sent again because they were thought lost, and timers that ran out, so far."""
    text = inside(namespace, lambda: Path("/proc/thread-self/net/netstat").read_text())
    counters = parse(text)
    return sum(counters[name] for name in TAKEN_FOR_LOST)


def parse(text: str) -> dict[str, int]:
    """``TcpExt`` of /proc/net/netstat, which is a line of names and one of values."""
    names, values = (line.split()[1:] for line in text.splitlines() if line.startswith("TcpExt:"))
    return dict(zip(names, map(int, values), strict=True))
