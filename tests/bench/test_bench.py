"""The benches run to their end and say what they measured. No figure is judged here."""

import sys
from pathlib import Path

import msgspec
import pytest
import trio

from m2m.lab.bench.report import Result

BENCH = Path(sys.executable).with_name("m2m-lab")


async def run(tmp_path: Path, name: str, *options: str | Path) -> list[Result]:
    file = tmp_path / f"{name}.json"
    done = await trio.run_process(
        [BENCH, "bench", name, "--quick", "--json", file, *options],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return msgspec.json.decode(file.read_bytes(), type=list[Result])


@pytest.mark.needs("root", "netns", "bpf", "bpffs", "nfqueue")
async def test_cost_is_measured_at_every_size(tmp_path):
    rows = await run(tmp_path, "cost")
    assert {row.name for row in rows} == {
        f"{step}, {size} entries"
        for step in ("lookup, in order", "lookup, at random", "rewrite", "insert")
        for size in ("100,000", "1,000,000")
    }
    assert all(row.samples.ours and row.samples.peer for row in rows)
    assert {row.name: row.paper for row in rows if row.paper} == {
        "lookup, in order, 100,000 entries": 131,
        "rewrite, 100,000 entries": 214,
        "insert, 100,000 entries": 251,
    }


@pytest.mark.needs("root", "netns", "bpf", "bpffs", "nfqueue", "iptables", "nginx")
async def test_setup_compares_steered_with_plain_connects(tmp_path):
    rows = await run(tmp_path, "setup")
    assert [row.name for row in rows] == [
        f"set-up added, {chain}, {rank}"
        for chain in ("1 middlebox", "4 middleboxes")
        for rank in ("p50", "p99")
    ]
    assert all(row.unit == "µs" and len(row.samples.ours) == 150 for row in rows)
    median = rows[0]
    assert median.ours > 0, "setting a chain up takes time"
    assert median.ratio == pytest.approx(median.ours / median.peer)


@pytest.mark.needs("root", "netns", "bpf", "bpffs", "nfqueue", "iptables", "nginx", "haproxy")
async def test_proxy_tells_the_librarys_share_and_the_chains(tmp_path):
    rows = await run(tmp_path, "proxy")
    assert [row.name for row in rows] == [
        f"a request through a proxy, {what}, {rank}"
        for what in ("library, no agent", "library, in a chain")
        for rank in ("p50", "p99")
    ]
    assert all(row.unit == "µs" and len(row.samples.ours) == 200 for row in rows)


@pytest.mark.timeout(200)
@pytest.mark.needs("root", "netns", "bpf", "bpffs", "nfqueue", "iptables", "iperf3", "ethtool")
async def test_throughput_is_compared_turn_by_turn(tmp_path):
    rows = await run(tmp_path, "throughput")
    assert {row.name for row in rows} == {
        f"{name}, offloads {offloads}"
        for name in ("tap, 1 flow", "tap, 16 flows", "unsteered, 1 flow")
        for offloads in ("on", "off")
    }
    assert all(len(row.samples.ours) == len(row.samples.peer) == 15 for row in rows)
    assert all(min(row.samples.ours + row.samples.peer) > 0 for row in rows)


@pytest.mark.timeout(400)
@pytest.mark.needs("root", "netns", "bpf", "bpffs", "nfqueue", "iptables", "iperf3", "tcpdump")
async def test_changes_are_timed_and_counted(tmp_path):
    rows = await run(tmp_path, "migrate", "--figures", tmp_path / "figures")
    timed = {row.name: row for row in rows if row.name.startswith("replace")}
    situations = ("full load", "100 flows", "7 hosts")
    names = {f"replace, {mode}, {where}" for mode in ("lf", "op", "ss+op") for where in situations}
    names.add("replace, ss+op, with reordering")
    assert set(timed) == {f"{name}, {rank}" for name in names for rank in ("p50", "p99")}
    assert all(row.ours > 0 and row.unit == "ms" for row in timed.values())
    assert {row.name: row.paper for row in rows if row.paper} == {
        "replace, lf, full load, p50": 0.5,
        "replace, op, full load, p50": 2.7,
        "replace, ss+op, full load, p50": 3.6,
    }
    counted = {row.name: row for row in rows if "every 100 ms" in row.name}
    for load in ("tcp, lf", "tcp, op", "tcp, ss+op", "udp, lf", "udp, op"):
        changes = counted[f"{load}, every 100 ms: changes"]
        refused = counted[f"{load}, every 100 ms: refused"]
        assert (changes.ours + refused.ours, changes.peer) == (5, 0)
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        "figure12.csv",
        "figure12.png",
        "table2.csv",
    }


async def test_an_unknown_name_is_told():
    done = await trio.run_process([BENCH, "bench", "sped"], capture_stderr=True, check=False)
    assert done.returncode == 2
    assert b"sped" in done.stderr


@pytest.mark.needs("root", "netns", "libpcap")
async def test_capture_compares_both_libraries_at_every_size(tmp_path):
    rows = await run(tmp_path, "capture")
    kinds = ("captured per second of CPU", "reading a packet")
    cases = [
        f"{size} names, {text}"
        for size in ("0", "1,000", "100,000")
        for text in ("no filter", "a filter")
    ]
    cases += [f"{case}, immediate mode" for case in cases[-2:]]
    assert [row.name for row in rows] == ["restoring a frame, 100,000 names"] + [
        f"{kind}, {case}" for case in cases for kind in kinds
    ]
    assert all(row.ours > 0 and row.peer > 0 for row in rows)
