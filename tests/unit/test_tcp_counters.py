"""The kernel's counters of what TCP has taken for lost."""

from __future__ import annotations

from pathlib import Path

from m2m.lab.tcp_counters import TAKEN_FOR_LOST, parse


def test_names_and_values_of_one_block_are_read() -> None:
    text = "TcpExt: A TCPTimeouts\nTcpExt: 1 22\nIpExt: TCPTimeouts B\nIpExt: 3 4\n"
    assert parse(text) == {"A": 1, "TCPTimeouts": 22}


def test_this_kernel_has_all_that_are_counted() -> None:
    assert set(TAKEN_FOR_LOST) <= set(parse(Path("/proc/self/net/netstat").read_text()))
