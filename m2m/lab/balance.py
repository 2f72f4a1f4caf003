"""``m2m-lab run balance``: load spread over instances per flow, beside rules that split prefixes.

The paper's Figure 1 (§2.1) with real connections; loads are what the instances count.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import trio
from rich.console import Console

from m2m.lab import balance_figure, balance_report, demo_report, state, two_instances
from m2m.lab.balance_results import Load, Report, Round, Way, evenness
from m2m.lab.demo_results import Check
from m2m.lab.lab import Lab, open_lab
from m2m.lab.pace import SLOWNESS
from m2m.lab.prefix_flows import Draw, Weights, best_bit, draw, most_significant
from m2m.lab.traffic.fetches import Fetched
from m2m.lab.two_instances import CLIENTS, EDGE, INSTANCES, PORT, SERVER
from m2m.policy.rules import Choose

_DRAWS = 3  # of each kind of weights
_FLOWS = round(200 / SLOWNESS)  # of a draw
_FIGURES = Path("bench-results")  # where picture and table go, as those of the benches
_PATIENCE = 10.0 * SLOWNESS  # s
_LOOK = 0.02  # s
_CHOICES = {Way.HASH: Choose.HASH, Way.LEAST: Choose.LEAST_LOADED}


class _Stage:
    def __init__(self, lab: Lab, console: Console, report: Report, draws: int) -> None:
        self._lab = lab
        self._console = console
        self._report = report
        self._drawn = {
            (weights, number): draw(weights, number, _FLOWS)
            for weights in Weights
            for number in range(draws)
        }
        self.rows = 0  # of the policy, where instances are chosen

    def check(self, *found: Check) -> None:
        self._report.checks += found
        demo_report.checks(self._console, found)

    async def send(self, way: Way) -> None:
        """Send the flows of all draws, with instances chosen in this way."""
        with self._console.status("") as status:
            for (weights, number), drawn in self._drawn.items():
                status.update(f"{way}: {weights}, draw {number + 1}")
                bit = _bit(way, drawn)
                if bit is not None:
                    await two_instances.split(self._lab, bit)
                found = await self._round(weights, number, drawn, way, bit)
                self._report.rounds.append(found)

    async def choose(self, way: Way) -> None:
        """From now on M2M chooses, in this way."""
        text = two_instances.policy(self._lab.topology, _CHOICES[way])
        await self._lab.load_policy(text)
        self.rows = (await self._lab.policy(EDGE)).rules

    async def _round(
        self, weights: Weights, number: int, drawn: Draw, way: Way, bit: int | None
    ) -> Round:
        lab = self._lab
        await two_instances.forget(lab)
        done = await lab.run(
            CLIENTS, sys.executable, "-m", "m2m.lab.traffic.fetches", "fetch",
            lab.address(SERVER), f"{PORT}", stdin=msgspec.json.encode(drawn.flows).decode(),
        )  # fmt: skip
        fetched = msgspec.json.decode(done.out, type=list[Fetched])
        await self._quiet()
        if not way.routed:
            await self._lab.sessions_left(_PATIENCE)  # the next round's loads begin at nothing
        seen = {nf: await two_instances.counted(lab, nf) for nf in INSTANCES}
        whole = 0
        for flow in drawn.flows:
            client = flow.address, flow.port
            at = [counts[client] for counts in seen.values() if client in counts]
            whole += len(at) == 1 and at[0].up > 0 and at[0].down > flow.size
        loads = {
            nf: Load(len(counts), sum(one.up + one.down for one in counts.values()))
            for nf, counts in seen.items()
        }
        rules = await two_instances.rules(lab)
        complete = sum(one.right for one in fetched)
        return Round(weights, number, way, bit, rules, loads, len(drawn.flows), complete, whole)

    async def _quiet(self) -> None:
        """Wait until clients' kernels have closed all connections: their last packets are here."""
        with trio.move_on_after(_PATIENCE):
            while True:
                done = await self._lab.run(CLIENTS, "ss", "-Htan")
                if not done.out.strip():
                    return
                await trio.sleep(_LOOK)

    async def judge(self) -> None:
        """Look for what must be true of all rounds."""
        rounds = self._report.rounds
        sent = sum(one.sent for one in rounds)
        complete = sum(one.complete for one in rounds)
        whole = sum(one.whole for one in rounds)
        routed = {one.rules for one in rounds if one.way.routed}
        chosen = {one.rules for one in rounds if not one.way.routed}
        left = await self._lab.sessions_left(_PATIENCE)
        demo_report.heading(self._console, "What must hold")
        self.check(
            Check("Every flow gets all its bytes", complete == sent, f"{complete:,} of {sent:,}"),
            Check(
                "Each is seen by one instance in whole, and by the other not at all",
                whole == sent,
                f"{whole:,} of {sent:,}",
            ),
            *evenness(self._report),
            Check(
                "Where M2M chooses, no router has a rule to choose by",
                chosen == {0} and 0 not in routed,
                f"{self.rows} row of the gateway's policy; by prefix"
                f" {', '.join(f'{number}' for number in sorted(routed))} rules in two routers",
            ),
            Check("No host keeps a session", left == 0, f"{left} sessions"),
        )


def _bit(way: Way, drawn: Draw) -> int | None:
    match way:
        case Way.HALVES:
            return most_significant()
        case Way.BEST:
            return best_bit(drawn.weights)
        case _:
            return None


async def run(*, keep: bool, as_json: bool, draws: int = _DRAWS, figures: Path = _FIGURES) -> int:
    """Play it; 0 when every check held, else 1. Raises :exc:`LabError`.

    There are so many *draws* for each kind of weights; *figures* is for picture and table.
    """
    console = Console(stderr=as_json, highlight=False)
    console.width = min(console.width, demo_report.WIDTH)
    topology = two_instances.two_instances()
    report = Report()
    state.check_possible(topology.name)
    balance_report.opening(console, draws, _FLOWS)
    async with open_lab(topology, agents=False) as lab:
        await two_instances.prepare(lab)
        stage = _Stage(lab, console, report, draws)
        for way in (Way.HALVES, Way.BEST):
            await stage.send(way)
        await two_instances.join(lab)
        await lab.start_agents()
        for way in _CHOICES:
            await stage.choose(way)
            await stage.send(way)
        balance_report.table(console, report)
        await stage.judge()
        if keep:
            lab.detach()
    balance_figure.write(figures, report)
    balance_report.summary(console, report, figures)
    if keep:
        console.print(f"\nThe lab is still up. End it: m2m-lab down {topology.name}")
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(report)).decode() + "\n")
    return 0 if report.held else 1
