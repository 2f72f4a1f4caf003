"""What the traffic tools and the captures count, on a network that does wrong what it is told to.

The lab of reconfiguration without agents: a ──── b ──── d, by plain forwarding.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from m2m.lab.lab import Lab, open_lab
from m2m.lab.netns import LabError
from m2m.lab.passage import Crossing, Passage, crossings
from m2m.lab.sightings import watch
from m2m.lab.tcp_counters import taken_for_lost
from m2m.lab.topology import Ready
from m2m.lab.traffic import bulk, datagrams
from m2m.lab.two_paths import two_paths

pytestmark = pytest.mark.needs("netns", "tcpdump", "nft", "tc")

BULK, DATAGRAMS = "5202", "5203"


@asynccontextmanager
async def lab(rate: str | None = None) -> AsyncIterator[Lab]:
    async with open_lab(two_paths(rate=rate, name="testcount"), agents=False) as made:
        for name, arguments in (("bulk", [BULK]), ("datagrams", [made.address("d"), DATAGRAMS])):
            command = [sys.executable, "-m", f"m2m.lab.traffic.{name}", "serve", *arguments]
            await made.start("d", name, command, ready=Ready(log="listening"))
        yield made


async def load(lab: Lab, module: str, port: str, *options: str) -> tuple[bytes, list[Crossing]]:
    """Run a tool from *a* to *d*: what it printed, and what was counted at both ends."""
    async with watch(lab, ["a", "d"]) as watches:
        done = await lab.run(
            "a", sys.executable, "-m", f"m2m.lab.traffic.{module}", "send", lab.address("d"), port,
            *options,
        )  # fmt: skip
    return done.out.encode(), crossings(watches["a"].seen(), watches["d"].seen())


async def bytes_through(lab: Lab, *options: str) -> tuple[bulk.Report, list[Crossing]]:
    said, found = await load(lab, "bulk", BULK, "--seconds", "0.5", *options)
    return msgspec.json.decode(said, type=bulk.Report), found


async def datagrams_through(lab: Lab, *options: str) -> tuple[datagrams.Report, list[Crossing]]:
    said, found = await load(lab, "datagrams", DATAGRAMS, "--seconds", "0.5", *options)
    return msgspec.json.decode(said, type=datagrams.Report), found


async def mistreat(lab: Lab, statement: str, *, which: str = "mod 300 == 299") -> None:
    """Let *b* apply *statement* to some packets with data to the server: *which* of them."""
    rules = f"""
        table ip mistreat {{
            chain forward {{
                type filter hook forward priority 0;
                oifname "d" ip length > 200 numgen inc {which} {statement}
            }}
        }}
    """
    await lab.run("b", "nft", "-f", "-", stdin=rules)


async def delay_some(lab: Lab, rate: str) -> None:
    """Let some packets with data wait at *b* while others pass them.

    They come four at a time, so all but the first have to wait for their turn at this *rate*.
    """
    for line in (
        "qdisc add dev d root handle 1: htb default 2",
        "class add dev d parent 1: classid 1:2 htb rate 10gbit",
        f"class add dev d parent 1: classid 1:3 htb rate {rate} burst 1",
    ):
        await lab.run("b", "tc", *line.split())
    await mistreat(lab, "meta priority set 1:3", which="mod 1000 >= 996")


def harmless(passage: Passage) -> bool:
    return passage.unharmed and not passage.reordered


@pytest.mark.parametrize("ways", ["up", "both"])
async def test_bytes_on_a_good_network(ways: str) -> None:
    async with lab(rate="1gbit") as made:
        report, found = await bytes_through(made, "--flows", "5", "--ways", ways)
    assert report.up and report.up.bytes and not report.up.wrong
    assert len(found) == 5
    for crossing in found:
        assert harmless(crossing.up) and harmless(crossing.down)
        assert crossing.up.ways == [("b", "b")]
    # Blocks that greet and end, SYN and FIN come on top of the data.
    assert sum(one.up.units for one in found) >= report.up.bytes
    assert sum(one.up.repeated for one in found) <= report.up.retransmitted


async def test_datagrams_on_a_good_network() -> None:
    async with lab(rate="1gbit") as made:
        report, found = await datagrams_through(made, "--rate", "500", "--flows", "3", "--both")
    assert len(found) == 3
    assert all(harmless(one.up) and harmless(one.down) for one in found)
    assert report.down
    assert sum(one.up.units for one in found) == report.up.sent == report.up.arrived
    assert sum(one.down.units for one in found) == report.down.sent == report.down.arrived


async def test_dropped_packets_of_tcp() -> None:
    async with lab() as made:
        await mistreat(made, "drop")
        report, (found,) = await bytes_through(made)
        assert taken_for_lost(made.namespace("a")) > 0
        assert taken_for_lost(made.namespace("d")) == 0
    assert report.up and not report.up.wrong, "TCP repairs it"
    assert found.up.lost > 0 and found.up.lost_units > 0
    assert report.up.retransmitted > 0 and found.up.repeated > 0
    assert not found.up.duplicated


async def test_dropped_datagrams() -> None:
    async with lab() as made:
        await mistreat(made, "drop")
        report, (found,) = await datagrams_through(made, "--rate", "100", "--burst", "8")
    assert report.up.lost == found.up.lost_units == found.up.lost * 8 > 0
    assert report.up.reordered == found.up.reordered == 0


async def test_overtaken_datagrams() -> None:
    async with lab() as made:
        await delay_some(made, "500kbit")
        report, (found,) = await datagrams_through(made, "--rate", "100", "--burst", "1")
    assert report.up.reordered == found.up.reordered > 0
    assert report.up.lost == found.up.lost == found.up.duplicated == 0


async def test_overtaken_packets_of_tcp() -> None:
    async with lab() as made:
        await delay_some(made, "50mbit")
        report, (found,) = await bytes_through(made)
    assert report.up and report.up.out_of_order > 0 and not report.up.wrong
    assert found.up.reordered > 0
    assert found.up.unharmed


async def test_doubled_datagrams() -> None:
    async with lab() as made:
        await mistreat(made, f'dup to {made.address("d")} device "d"')
        report, (found,) = await datagrams_through(made, "--rate", "100", "--burst", "8")
    assert report.up.duplicated == found.up.duplicated_units == found.up.duplicated * 8 > 0
    assert report.up.lost == found.up.lost == 0


async def test_a_capture_that_missed_packets_is_no_evidence() -> None:
    async with lab() as made:
        watching = watch(made, ["a"])
        await watching.__aenter__()
        (log,) = (made.directory / "log").glob("a-watch*.log")
        with log.open("a") as written:
            written.write("3 packets dropped by kernel\n")
        with pytest.raises(LabError, match="tcpdump on a missed 3 packets"):
            await watching.__aexit__(None, None, None)
