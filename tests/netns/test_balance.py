"""``m2m-lab run balance`` with real agents, routers and connections."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from m2m.lab import balance
from m2m.lab.balance_results import Report, Way
from m2m.lab.prefix_flows import Weights

pytestmark = pytest.mark.needs("root", "netns", "bpf", "bpffs", "nfqueue", "iptables", "nft")


@pytest.mark.timeout(120)
async def test_every_check_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = await balance.run(keep=False, as_json=True, draws=1, figures=tmp_path)
    report = msgspec.json.decode(capsys.readouterr().out, type=Report)
    assert [check for check in report.checks if not check.held] == []
    assert status == 0
    kinds = {(one.weights, one.way) for one in report.rounds}
    assert kinds == {(weights, way) for weights in Weights for way in Way}
    assert all(load.flows > 0 for one in report.rounds for load in one.loads.values())
    assert sorted(os.listdir(tmp_path)) == ["balance.csv", "balance.png"]
