"""Sessions by the thousand through a real chain: opened, ended, and nothing of them stays.

``make soak`` opens and closes 100 000; else it is a fifth of that, so that ``make test`` stays
short: what leaks per session shows in either.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
import trio

from m2m.agent.dialogue import Snapshot
from m2m.lab import state
from m2m.lab.bench.labs import memory_of
from m2m.lab.lab import Lab, open_lab
from m2m.lab.topology import Command, Ready, chain
from tests.support.live import LiveAgent

HEAVY = os.environ.get("M2M_HEAVY") == "1"

pytestmark = [pytest.mark.needs("netns", "bpffs", "nfqueue"), pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
HOSTS = ("client", "mb1", "server")
FIRST, PORTS, TCP = 20000, 50, 20050
WAVE = 2_000  # sessions that are alive together
WAVES = 50 if HEAVY else 11
CONNECTS = 2_000
PATIENCE = 60.0  # s for a wave to end
# Waves after which an agent has taken the memory that such a wave needs, and keeps for the next.
SETTLED = 25 if HEAVY else 3
# How much more it may have in the end: no two waves are alike, and the allocator takes pieces of
# 256 KiB to 1 MiB. The smallest thing that could be forgotten, 60 bytes for each of the 18 000
# sessions that follow (52 000 in the long form), is more than this.
BOUND = 1 << 20


class Footprint(NamedTuple):
    """What there is of sessions at one host."""

    sessions: int
    ports: int
    rows: dict[str, int]  # in the tables that have rows by session or flow
    descriptors: int


class Agent(LiveAgent):
    def __init__(self, lab: Lab, host: str) -> None:
        super().__init__(state.agent_name(lab.name, host), lab.control_socket(host))
        self.pid = lab.pid(host, "agent")
        self.now = self.idle = Footprint(0, 0, {}, 0)

    def footprint(self, seen: Snapshot) -> Footprint:
        """Taken while the agent is watched, by one connection always."""
        self.now = Footprint(
            seen.stats.sessions,
            seen.stats.ports,
            {table: len(self.rows(table)) for table in ("flows", "holds", "fragments")},
            len(os.listdir(f"/proc/{self.pid}/fd")),
        )
        return self.now

    def take_as_idle(self, seen: Snapshot) -> bool:
        """Remember what there is while there are no sessions."""
        self.idle = self.footprint(seen)
        assert (self.idle.sessions, self.idle.ports, any(self.idle.rows.values())) == (0, 0, False)
        return True

    async def until_as_before(self) -> None:
        try:
            await self.until(lambda seen: self.footprint(seen) == self.idle, patience=PATIENCE)
        except trio.TooSlowError:
            assert self.now == self.idle, f"left over at {self.name}"
            raise


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    ports = (*range(FIRST, FIRST + PORTS), TCP)
    topology = chain(1, kind="inline", ports=ports, name="testsoak")
    options = ["--sessions", str(4 * WAVE), "--udp-idle", "1", "--linger", "0.2"]
    hosts = {
        name: msgspec.structs.replace(host, agent=options) for name, host in topology.hosts.items()
    }
    python, listening = sys.executable, Ready(log="listening")
    udp = [python, "-m", "m2m.lab.bench.echo", "serve", str(FIRST), str(PORTS)]
    tcp = [python, str(ROOT / "tests" / "support" / "connects.py"), "serve", str(TCP)]
    hosts["server"] = msgspec.structs.replace(
        hosts["server"],
        run=[
            Command(name="udp", command=udp, ready=listening),
            Command(name="tcp", command=tcp, ready=listening),
        ],
    )
    async with open_lab(msgspec.structs.replace(topology, hosts=hosts)) as made:
        yield made


async def test_sessions_leave_nothing_behind(lab: Lab) -> None:
    """I9"""
    agents = [Agent(lab, host) for host in HOSTS]
    for agent in agents:
        await agent.until(agent.take_as_idle)
    memory: list[list[int]] = []
    for _ in range(WAVES):
        await lab.run(
            "client", sys.executable, "-m", "m2m.lab.bench.echo", "open",
            lab.address("server"), str(FIRST), str(PORTS), str(WAVE), timeout=PATIENCE,
        )  # fmt: skip
        for agent in agents:
            await agent.until_as_before()
        memory.append([memory_of(agent.pid) for agent in agents])
    await lab.run(
        "client", sys.executable, str(ROOT / "tests" / "support" / "connects.py"), "open",
        lab.address("server"), str(TCP), str(CONNECTS), timeout=PATIENCE,
    )  # fmt: skip
    for agent in agents:
        await agent.until_as_before()
    memory.append([memory_of(agent.pid) for agent in agents])

    stats = agents[0].stats()
    # On a busy machine a flow can be idle for longer than --udp-idle before it goes on: again one.
    assert stats.setups["established"] >= WAVES * WAVE + CONNECTS
    assert stats.reasons["refused"] == stats.reasons["hold_overflow"] == 0
    grown = [last - settled for settled, last in zip(memory[SETTLED - 1], memory[-1], strict=True)]
    assert max(grown) < BOUND, f"private bytes of {HOSTS} after each wave: {memory}"
