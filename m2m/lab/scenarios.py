"""What ``m2m-lab run`` shows: chains of live sessions that are changed under load, and counted."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import NamedTuple

import msgspec
import trio
from rich.console import Console

from m2m.agent.api import ChangeReport, SessionInfo
from m2m.agent.dialogue import Change
from m2m.agent.order import Do
from m2m.lab import demo_report, scenario_report, state, trial
from m2m.lab.changing import Swinging, chain_of, change, gather, instance, other
from m2m.lab.demo_results import Check, Judged
from m2m.lab.lab import Lab, open_lab
from m2m.lab.load import with_services
from m2m.lab.pace import SLOWNESS
from m2m.lab.topology import Topology
from m2m.lab.trial import Changes, Trial
from m2m.lab.two_paths import CLIENT, NEW, OLD, SERVER, two_paths
from m2m.policy.rules import ChangeMode

TCP, UDP = "tcp", "udp"
_KINDS = [(TCP, mode) for mode in ChangeMode] + [(UDP, ChangeMode.LF), (UDP, ChangeMode.OP)]
_ROUNDS = 4
_PAUSE = 0.2  # s between two changes: the load goes on as if nothing had been
_FLOWS = 20 if SLOWNESS == 1 else 8
_PATIENCE = 10.0 * SLOWNESS  # s until an emptied host has forgotten its sessions


class Report(Judged, msgspec.Struct):
    """What ``m2m-lab run --json`` prints."""

    scenario: str
    trials: list[Trial] = []
    checks: list[Check] = []


class Stage:
    """Where a scenario plays: a lab, a terminal, a report."""

    def __init__(self, lab: Lab, report: Report, console: Console) -> None:
        self.lab = lab
        self._report = report
        self._console = console

    async def trial(
        self, title: str, changes: Changes, *, proto: str, mode: ChangeMode, promised: int,
        flows: int = 1,
    ) -> None:  # fmt: skip
        """Make *changes* under load, and check what must hold after *promised* changes."""
        demo_report.heading(self._console, title)
        with self._console.status("…"):
            found = await trial.run(self.lab, changes, proto=proto, mode=mode, flows=flows)
        self._report.trials.append(found)
        self.check(*trial.checks(found, promised))

    def check(self, *found: Check) -> None:
        """Write down and show whether something held."""
        self._report.checks += found
        demo_report.checks(self._console, found)


async def replace(stage: Stage) -> None:
    """One session swings between the two paths."""

    async def swing(sessions: Sequence[SessionInfo], mode: ChangeMode) -> list[ChangeReport]:
        swinging = await Swinging.of(stage.lab, sessions[0])
        reports = []
        for _ in range(_ROUNDS):
            reports.append(await swinging.replace(mode))
            await trio.sleep(_PAUSE)
        return reports

    for proto, mode in _KINDS:
        await stage.trial(
            f"{proto.upper()}, {mode}: {OLD} replaced by {NEW} and back, {_ROUNDS} changes",
            partial(swing, mode=mode), proto=proto, mode=mode, promised=_ROUNDS,
        )  # fmt: skip


async def _insert(lab: Lab, session: str, mode: ChangeMode) -> tuple[str, ChangeReport]:
    """Put the instance in that is not on the path; the one that is, and what became of it."""
    (there,) = await chain_of(lab, session)
    request = Change(do=Do.INSERT, new=(other(there),), after=there, sessions=(session,), mode=mode)
    return there, (await change(lab, request))[0]


async def insert(stage: Stage) -> None:
    """A second NF comes behind the first."""

    async def once(sessions: Sequence[SessionInfo], mode: ChangeMode) -> list[ChangeReport]:
        session = sessions[0].id
        there, report = await _insert(stage.lab, session, mode)
        await trio.sleep(_PAUSE)
        chain = await chain_of(stage.lab, session)
        stage.check(
            Check("both are on the path", chain == (there, other(there)), " -> ".join(chain))
        )
        return [report]

    for proto, mode in _KINDS:
        await stage.trial(
            f"{proto.upper()}, {mode}: the second inserted behind the first",
            partial(once, mode=mode), proto=proto, mode=mode, promised=1,
        )  # fmt: skip


async def remove(stage: Stage) -> None:
    """Of two NFs the first goes."""

    async def once(sessions: Sequence[SessionInfo], mode: ChangeMode) -> list[ChangeReport]:
        session = sessions[0].id
        first, inserted = await _insert(stage.lab, session, mode)
        await trio.sleep(_PAUSE)
        request = Change(do=Do.REMOVE, old=(first,), sessions=(session,), mode=mode)
        removed = await change(stage.lab, request)
        await trio.sleep(_PAUSE)
        chain = await chain_of(stage.lab, session)
        stage.check(Check("one is left", chain == (other(first),), " -> ".join(chain)))
        return [inserted, *removed]

    for proto, mode in _KINDS:
        await stage.trial(
            f"{proto.upper()}, {mode}: a second inserted, the first removed",
            partial(once, mode=mode), proto=proto, mode=mode, promised=2,
        )  # fmt: skip


async def drain(stage: Stage) -> None:
    """All sessions of one instance go to the other."""

    async def once(sessions: Sequence[SessionInfo], mode: ChangeMode) -> list[ChangeReport]:
        gathered = await gather(stage.lab, sessions, OLD, mode)
        await trio.sleep(_PAUSE)
        request = Change(do=Do.DRAIN, old=(instance(OLD),), new=(instance(NEW),), mode=mode,
                         match="any")  # fmt: skip
        reports = await change(stage.lab, request)
        mine = {session.id for session in sessions}

        async def left() -> int:
            return sum(one.id in mine for one in await stage.lab.sessions(OLD))

        with trio.move_on_after(_PATIENCE):
            while await left():  # noqa: ASYNC110  (other processes tell of no event)
                await trio.sleep(_PAUSE)
        stage.check(Check(f"no session is left at {OLD}", not await left(), f"{await left()}"))
        return gathered + [report for report in reports if report.session in mine]

    for proto, mode in _KINDS:
        await stage.trial(
            f"{proto.upper()}, {mode}: {OLD} drained of {_FLOWS} sessions",
            partial(once, mode=mode), proto=proto, mode=mode, promised=_FLOWS, flows=_FLOWS,
        )  # fmt: skip


async def contend(stage: Stage) -> None:
    """Neighbours change at the same time, and two ask for the same."""

    async def neighbours(sessions: Sequence[SessionInfo], mode: ChangeMode) -> list[ChangeReport]:
        swinging = await Swinging.of(stage.lab, sessions[0])
        session = (sessions[0].id,)
        behind = "nf-r1"
        reports: list[ChangeReport] = []

        async def swing() -> None:
            reports.append(await swinging.replace(mode))

        async def in_and_out(turn: int) -> None:
            request = Change(do=Do.REMOVE, old=(behind,), sessions=session, mode=mode)
            if turn % 2:
                request = Change(do=Do.INSERT, new=(behind,), before="server", sessions=session,
                                 mode=mode)  # fmt: skip
            reports.extend(await change(stage.lab, request, host=SERVER))

        for turn in range(_ROUNDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(swing)
                nursery.start_soon(in_and_out, turn)
            await trio.sleep(_PAUSE)
        return reports

    async def rivals(sessions: Sequence[SessionInfo], mode: ChangeMode) -> list[ChangeReport]:
        swinging = await Swinging.of(stage.lab, sessions[0])
        done: list[ChangeReport] = []
        for _ in range(_ROUNDS):
            answers: list[ChangeReport] = []
            request = Change(do=Do.REPLACE, old=(swinging.now,), new=(other(swinging.now),),
                             sessions=(sessions[0].id,), mode=mode)  # fmt: skip

            async def ask(host: str, request: Change = request,
                          answers: list[ChangeReport] = answers) -> None:  # fmt: skip
                answers.extend(await change(stage.lab, request, host=host))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, CLIENT)
                nursery.start_soon(ask, SERVER)
            won = [answer for answer in answers if answer.error is None]
            lost = [answer for answer in answers if answer.error is not None]
            stage.check(
                Check(
                    "of two who ask for the same, one gets it and the other is told why",
                    (len(won), len(lost)) == (1, 1),
                    f"{lost[0].error} ({lost[0].by})" if lost else f"{len(won)} got it",
                )
            )
            done += won
            swinging.now = other(swinging.now)
            await trio.sleep(_PAUSE)
        return done

    for proto, mode in _KINDS:
        await stage.trial(
            f"{proto.upper()}, {mode}: replaced, while its neighbour comes and goes",
            partial(neighbours, mode=mode), proto=proto, mode=mode, promised=2 * _ROUNDS,
        )  # fmt: skip
    await stage.trial(
        "TCP, op: client and server ask for the same",
        partial(rivals, mode=ChangeMode.OP), proto=TCP, mode=ChangeMode.OP, promised=_ROUNDS,
    )  # fmt: skip


class Scenario(NamedTuple):
    """What ``m2m-lab run NAME`` plays, and where."""

    about: str
    play: Callable[[Stage], Awaitable[None]]
    topology: Callable[[], Topology]


SCENARIOS = {
    "replace": Scenario("one NF instance by another, under load", replace, two_paths),
    "insert": Scenario("an NF into live sessions", insert, two_paths),
    "remove": Scenario("an NF out of live sessions", remove, two_paths),
    "drain": Scenario("all sessions of an NF instance to another", drain, two_paths),
    "contend": Scenario("changes that meet", contend, partial(two_paths, after=1)),
}


async def run(name: str, *, keep: bool, as_json: bool) -> int:
    """Play a scenario; 0 when every check held, else 1. With *keep* the lab stays up."""
    scenario = SCENARIOS[name]
    console = Console(stderr=as_json, highlight=False)
    console.width = min(console.width, demo_report.WIDTH)
    topology = with_services(scenario.topology())
    report = Report(name)
    state.check_possible(topology.name)  # before anything is drawn
    scenario_report.opening(console, name, scenario.about, topology)
    async with open_lab(topology) as lab:
        await scenario.play(Stage(lab, report, console))
        if keep:
            lab.detach()
    scenario_report.summary(console, report.trials, report.checks)
    if keep:
        console.print(f"\nThe lab is still up. End it: m2m-lab down {topology.name}")
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(report)).decode() + "\n")
    return 0 if report.held else 1
