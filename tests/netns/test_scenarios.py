"""What ``m2m-lab run`` shows: every promise of a mode, kept by real agents under load."""

from __future__ import annotations

import msgspec
import pytest
import trio

from m2m.lab.programs import tool
from m2m.lab.scenarios import SCENARIOS, Report
from m2m.policy.rules import ChangeMode

pytestmark = pytest.mark.needs(
    "root", "netns", "bpf", "bpffs", "nfqueue", "iptables", "iperf3", "tcpdump"
)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", SCENARIOS)
async def test_every_check_holds(name: str) -> None:
    done = await trio.run_process(
        [tool("m2m-lab"), "run", name, "--json"],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    assert done.stdout, done.stderr.decode()
    report = msgspec.json.decode(done.stdout, type=Report)
    assert [check for check in report.checks if not check.held] == []
    assert done.returncode == 0
    kinds = {(trial.proto, trial.mode) for trial in report.trials}
    assert kinds == {("tcp", mode) for mode in ChangeMode} | {("udp", "lf"), ("udp", "op")}
    assert all(trial.wire.packets > 100 and trial.done for trial in report.trials)


async def test_an_unknown_scenario_is_told() -> None:
    command = [tool("m2m-lab"), "run", "replaec"]
    done = await trio.run_process(command, capture_stderr=True, check=False)
    assert done.returncode == 2
    assert b"replaec" in done.stderr and b"contend" in done.stderr
