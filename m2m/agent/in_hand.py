"""What inline network functions have in hand: packets in this host's netfilter queues.

A program that reads a queue may keep a packet for longer than a host waits that looks at nothing
but what leaves. Whose packets they are cannot be seen from outside; that all left which were there
at a moment can, by numbers: the kernel numbers what it queues.
"""

from __future__ import annotations

from pathlib import Path

from m2m.protocol.events import Queued

__all__ = ["in_hand"]

_QUEUES = Path("/proc/thread-self/net/netfilter/nfnetlink_queue")


def in_hand(path: Path = _QUEUES) -> tuple[Queued, ...]:
    """All queues of the calling thread's network namespace; none where the kernel has none yet."""
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return ()
    found = []
    for line in lines:
        number, _, waiting, _, _, _, _, last, *_ = map(int, line.split())
        found.append(Queued(number, last, (last - waiting) & 0xFFFFFFFF))
    return tuple(found)
