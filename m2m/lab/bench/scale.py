"""How many: sessions set up per second, and what live sessions cost in memory."""

from __future__ import annotations

import sys

import msgspec
import trio

from m2m.lab.bench.labs import memory_of, pair
from m2m.lab.bench.report import Plan, Result, Samples, Say, interleave
from m2m.lab.lab import Lab
from m2m.lab.topology import Command, Ready

_FIRST, _PORTS = 20000, 50
_HOSTS = ("client", "mb1", "server")


async def run(plan: Plan, say: Say) -> list[Result]:
    """Sessions per second beside plain flows; private memory of each agent."""
    batch = plan.pick(2000, 1000)
    sizes = plan.pick((10_000, 100_000), (10_000,))
    results: list[Result] = []
    options = ("--sessions", str(sizes[-1] * 2), "--udp-idle", "3600")
    ports = tuple(range(_FIRST, _FIRST + _PORTS))
    echo = Command(
        name="echo",
        command=[sys.executable, "-m", "m2m.lab.bench.echo", "serve", str(_FIRST), str(_PORTS)],
        ready=Ready(log="listening"),
    )
    async with pair(1, [echo], ports=ports, agent=options) as (steered, plain):
        empty = {host: memory_of(steered.pid(host, "agent")) for host in _HOSTS}
        say(f"{batch} sessions at a time")
        samples = await interleave(
            lambda: _per_second(steered, batch),
            lambda: _per_second(plain, batch),
            plan.pick(3, 1),
        )
        results.append(Result.of("sessions set up", "1/s", samples, "plain UDP flows"))
        for size in sizes:
            live = len(await steered.sessions("client"))
            say(f"{size} live sessions")
            await _open(steered, size - live)
            for host in _HOSTS:
                now = memory_of(steered.pid(host, "agent"))
                mebi = Samples((now / 2**20,), (empty[host] / 2**20,))
                name = f"agent memory, {size:,} sessions, {host}"
                results.append(Result.of(name, "MiB", mebi, "the same agent without sessions"))
    return results


async def _per_second(lab: Lab, sessions: int) -> float:
    return sessions / await _open(lab, sessions)


async def _open(lab: Lab, sessions: int) -> float:
    """Open sessions from the client; the seconds it took."""
    done = await lab.run(
        "client", sys.executable, "-m", "m2m.lab.bench.echo", "open",
        lab.address("server"), str(_FIRST), str(_PORTS), str(sessions), timeout=600,
    )  # fmt: skip
    await trio.lowlevel.checkpoint()
    return float(msgspec.json.decode(done.out)["seconds"])
