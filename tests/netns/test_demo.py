"""The demo, played as a person would: its exit status, and the results it prints as JSON.

What the checks rest on is looked at again here, by the captures' own numbers.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from m2m.lab.demo import CHAIN
from m2m.lab.demo_results import Report
from m2m.lab.topology import load

pytestmark = [
    pytest.mark.needs("netns", "bpffs", "nfqueue", "nft", "nginx", "iperf3", "tcpdump", "curl"),
    pytest.mark.timeout(180),
]

TOPOLOGY = load(Path(__file__).parents[2] / "examples" / "labs" / "demo.toml")
CLIENT, FIREWALL, IDS, SERVER = (TOPOLOGY.address(host) for host in CHAIN)


@pytest.fixture(scope="module")
def report() -> Report:
    """One run of the demo for all tests."""
    demo = subprocess.run(
        [sys.executable, "-m", "m2m.cli.lab", "demo", "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )
    assert demo.returncode == 0, demo.stderr
    return msgspec.json.decode(demo.stdout, type=Report)


def test_every_check_held(report: Report) -> None:
    assert [check for check in report.checks if not check.held] == []
    assert {check.promise for check in report.checks} == {"", "I1", "I2", "I3", "I7", "I9"}


def test_i2_only_neighbours_speak_on_each_link(report: Report) -> None:
    spoke = {link.host: link.pairs for link in report.links}
    assert spoke == {
        "client": ["client - firewall"],
        "firewall": ["client - firewall", "firewall - ids"],
        "ids": ["firewall - ids", "ids - server"],
        "server": ["ids - server"],
    }


def test_i1_each_leg_carries_the_same_packets_and_bytes(report: Report) -> None:
    legs = [leg for link in report.links for leg in link.legs]
    assert len(legs) == 6
    carried = {(leg.to_server, leg.to_client, leg.bytes, leg.largest) for leg in legs}
    assert len(carried) == 1
    assert legs[0].bytes > 1_048_576, "at least the page of one megabyte"
    assert legs[0].largest > 1500, "segmentation is left to the last hop"


def test_i3_firewall_and_sockets_have_the_supersession(report: Report) -> None:
    firewall, ids = report.nfs
    assert firewall.sees == "supersession" and firewall.packets > 0
    assert firewall.flows == [f"{CLIENT} > {SERVER}:80 tcp", f"{SERVER}:80 > {CLIENT} tcp"]
    assert ids.packets == 2 * firewall.packets, "as it comes and as it goes"
    assert report.path is not None
    supersession = report.path.hops[0].supersession
    assert supersession is not None
    assert (supersession.src, supersession.dst, supersession.dport) == (CLIENT, SERVER, 5201)
    ends = [supersession.source, supersession.destination]
    assert report.sockets == {"client": " ".join(ends), "server": " ".join(ends[::-1])}


def test_the_path_of_the_live_session_is_told_hop_by_hop(report: Report) -> None:
    path = report.path
    assert path is not None and path.complete
    assert [hop.position for hop in path.hops] == ["client", "inline", "tap", "server"]
    for left, right in zip(path.hops, path.hops[1:], strict=False):
        assert left.right == right.left, "both ends of a leg know the same subsession"
    legs = [hop.right for hop in path.hops[:-1] if hop.right is not None]
    assert [(leg.src, leg.dst) for leg in legs] == [
        (CLIENT, FIREWALL),
        (FIREWALL, IDS),
        (IDS, SERVER),
    ]
    assert all(hop.supersession == path.hops[0].supersession for hop in path.hops)


def test_both_comparisons_have_their_samples(report: Report) -> None:
    for compared, count in ((report.throughput, 5), (report.setup, 100)):
        assert compared is not None
        assert len(compared.ours) == len(compared.plain) == count
        assert min(*compared.ours, *compared.plain) > 0


def test_nothing_of_the_lab_is_left(report: Report) -> None:
    assert report.held
    assert not list(Path("/run/netns").glob("m2m-demo-*"))
    assert not list(Path("/run/m2m-lab").glob("demo.json"))
    assert not list(Path("/sys/fs/bpf/m2m").glob("demo-*"))
