"""A process that moves to another host with its live connections, by real agents and kernels."""

from __future__ import annotations

import msgspec
import pytest
import trio

from m2m.lab.process_move import Report
from m2m.lab.programs import tool

pytestmark = pytest.mark.needs("root", "netns", "bpf", "bpffs", "nfqueue", "iptables", "nft")


@pytest.mark.timeout(120)
async def test_every_check_holds_there_and_back() -> None:
    done = await trio.run_process(
        [tool("m2m-lab"), "run", "process-move", "--json", "--moves", "2"],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    assert done.stdout, done.stderr.decode()
    report = msgspec.json.decode(done.stdout, type=Report)
    assert [check for check in report.checks if not check.held] == []
    assert done.returncode == 0
    assert [(one.source, one.target) for one in report.moves] == [
        ("here", "there"),
        ("there", "here"),
    ]
