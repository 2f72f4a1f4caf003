"""What is read of the kernel's list of netfilter queues."""

from __future__ import annotations

from pathlib import Path

from m2m.agent.in_hand import in_hand
from m2m.protocol.events import Queued

# number, port, waiting, mode, range, dropped, dropped for want of memory, last number, 1
LIST = """\
    0   4711     3 2 65531     0     0       12  1
40000   4712     0 2   128     2     1        0  1
    7   4713     2 2 65531     0     0        1  1
"""


def test_how_many_have_come_and_gone(tmp_path: Path) -> None:
    path = tmp_path / "nfnetlink_queue"
    assert in_hand(path) == ()
    path.write_text(LIST)
    assert in_hand(path) == (Queued(0, 12, 9), Queued(40000, 0, 0), Queued(7, 1, 2**32 - 1))
