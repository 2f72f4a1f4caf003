"""``m2m-lab run proxy-removal``, with fewer downloads."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from m2m.lab import removal
from m2m.lab.removal_results import Report

pytestmark = [
    pytest.mark.needs("root", "netns", "bpf", "bpffs", "nfqueue", "iptables", "squid"),
    pytest.mark.timeout(180),
]

_MEASURED = ("goodput", "stalls")  # of a machine that does nothing else


async def test_squid_leaves_downloads(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    await removal.run(
        keep=False,
        as_json=True,
        figures=tmp_path,
        whole=200_000_000,
        bundles=(2,),
        trials=1,
        compared=8.0,
    )
    report = msgspec.json.decode(capsysbinary.readouterr().out, type=Report)
    kept = [one for one in report.checks if not any(word in one.what for word in _MEASURED)]
    assert len(kept) == 6
    assert [check for check in kept if not check.held] == []
    assert (tmp_path / "proxy-removal.png").exists()
