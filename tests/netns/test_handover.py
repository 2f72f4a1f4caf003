"""Every scenario of mobility with real agents: small here, 100 handovers with ``M2M_HEAVY``."""

from __future__ import annotations

import os

import msgspec
import pytest
import trio

from m2m.lab.mobility import SCENARIOS, Report
from m2m.lab.programs import tool

pytestmark = pytest.mark.needs(
    "root", "netns", "bpf", "bpffs", "nfqueue", "iptables", "nft", "ssh", "/usr/sbin/sshd"
)

_HEAVY = bool(os.environ.get("M2M_HEAVY"))
_LARGE = 2_000_000_000  # bytes that are to survive 100 handovers


async def play(name: str, moves: int) -> Report:
    done = await trio.run_process(
        [tool("m2m-lab"), "run", name, "--json", "--moves", str(moves)],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    assert done.stdout, done.stderr.decode()
    report = msgspec.json.decode(done.stdout, type=Report)
    assert [check for check in report.checks if not check.held] == []
    assert done.returncode == 0
    return report


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", SCENARIOS)
async def test_every_check_holds(name: str) -> None:
    report = await play(name, 4)
    assert report.trials and all(row.moves for row in report.trials)


@pytest.mark.skipif(not _HEAVY, reason="100 handovers of 2 GB; run: make handovers")
@pytest.mark.timeout(600)
async def test_two_gigabytes_and_ssh_survive_a_hundred_handovers() -> None:
    first = (await play("handover", 100)).trials[0]
    assert first.moves == 100 and first.bytes >= _LARGE and first.lines


async def test_a_scenario_has_a_move_at_least() -> None:
    command = [tool("m2m-lab"), "run", "handover", "--moves", "0"]
    done = await trio.run_process(command, capture_stderr=True, check=False)
    assert done.returncode == 1 and b"--moves 0" in done.stderr
