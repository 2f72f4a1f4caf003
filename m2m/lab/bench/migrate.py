"""Changes of live chains: how long they take, and what they do to the packets (§7.2.2).

The lab is the paper's: two paths A-B-D and A-C-D, links of 1 Gbit/s, B replaced by C and C by B.
Times are taken under iperf3; what becomes of packets is counted under loads whose every byte or
datagram is checked, by both ends and on the wire.

The peer of times under full load is an *empty exchange* under the same load: a sealed datagram that
Trio processes pass on from A to C, D and back to A, which is the way of a loss-free change's
messages. No change can be quicker, whatever its agents do; op and ss+op go that way more than once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import NamedTuple

import trio

from m2m.agent.api import ChangeReport, SessionInfo
from m2m.agent.dialogue import Change
from m2m.agent.order import Do
from m2m.lab import load, trial
from m2m.lab.bench import migrate_figure
from m2m.lab.bench.report import Plan, Result, Samples, Say, percentile
from m2m.lab.changing import Swinging, change, gather, instance
from m2m.lab.lab import Lab, open_lab
from m2m.lab.netns import LabError
from m2m.lab.traffic import bulk
from m2m.lab.trial import Trial
from m2m.lab.two_paths import CLIENT, NEW, OLD, SERVER, two_paths
from m2m.policy.rules import ChangeMode

PAPER = {ChangeMode.LF: 0.5, ChangeMode.OP: 2.7, ChangeMode.SS_OP: 3.6}  # ms (Table 2)

_PERIOD = 0.1  # s from one change to the next
_IDLE = "1M"  # bit/s
_MANY = 100  # flows
# One packet with data in a thousand is dropped behind the chain, so that its retransmission comes
# after packets with higher numbers: the paper's artificial reordering.
_LOSSY = """
table ip lossy {
    chain input {
        type filter hook input priority 0;
        tcp dport 5201 ip length > 200 numgen inc mod 1000 == 999 drop
    }
}
"""


class Timed(NamedTuple):
    """The changes that were made in one situation."""

    mode: ChangeMode
    situation: str
    reports: list[ChangeReport]

    @property
    def durations(self) -> tuple[float, ...]:
        """Milliseconds until packets took the new path."""
        return tuple(one.duration * 1e3 for one in self.reports if one.duration is not None)


async def run(plan: Plan, say: Say) -> list[Result]:
    """Milliseconds per change by mode, number of flows and length of the chain; packets harmed."""
    changes = plan.pick(200, 5)
    timed: list[Timed] = []
    results: list[Result] = []
    async with _lab() as lab:
        for mode in ChangeMode:
            say(f"{mode}, full load")
            full = Timed(mode, "full load", await _swing(lab, mode, changes))
            say(f"{mode}, idle")
            idle = Timed(mode, "idle", await _swing(lab, mode, plan.pick(50, 3), rate=_IDLE))
            say(f"{mode}, {_MANY} flows")
            many = Timed(mode, f"{_MANY} flows", await _all_at_once(lab, mode, plan.pick(4, 1)))
            timed += [full, idle, many]
            empty = await _empty(lab, plan.pick(50, 5))
            results += _times(full, empty, "an empty exchange of the same load", PAPER[mode])
            results += _times(full, idle.durations, "the same with hardly any load")
            results += _times(many, full.durations, "one flow under full load")
        results += await _harm(lab, plan, say)
        say("ss+op, with reordering")
        await lab.run(SERVER, "nft", "-f", "-", stdin=_LOSSY)
        reports = await _swing(lab, ChangeMode.SS_OP, changes)
        timed.append(Timed(ChangeMode.SS_OP, "with reordering", reports))
        in_order = _of(timed, ChangeMode.SS_OP).durations
        results += _times(timed[-1], in_order, "the same in order")
    for around in plan.pick((1, 2), (2,)):
        hosts = 3 + 2 * around
        async with _lab(around) as lab:
            for mode in ChangeMode:
                say(f"{mode}, chain of {hosts} hosts")
                reports = await _swing(lab, mode, plan.pick(50, 5))
                timed.append(Timed(mode, f"{hosts} hosts", reports))
                results += _times(timed[-1], _of(timed, mode).durations, "a chain of 3 hosts")
    migrate_figure.write(plan.figures, timed, PAPER)
    return results


def _of(timed: Sequence[Timed], mode: ChangeMode) -> Timed:
    return next(one for one in timed if (one.mode, one.situation) == (mode, "full load"))


@asynccontextmanager
async def _lab(around: int = 0) -> AsyncIterator[Lab]:
    topology = two_paths(before=around, after=around, name="benchmove")
    async with open_lab(load.with_services(topology)) as lab:
        yield lab


def _times(
    timed: Timed, peer: tuple[float, ...], peer_name: str, paper: float | None = None
) -> list[Result]:
    """Beside the peer's milliseconds."""
    name = f"replace, {timed.mode}, {timed.situation}"
    samples = Samples(timed.durations, peer)
    if not timed.durations or not peer:
        refused = next((r for r in timed.reports if r.error is not None), None)
        why = f"{refused.error} ({refused.by})" if refused else "no change was asked for"
        raise LabError(f"{name}: nothing was changed: {why}")
    rows = []
    for label, rank in (("p50", 0.50), ("p99", 0.99)):
        ours, theirs = percentile(samples.ours, rank), percentile(samples.peer, rank)
        rows.append(
            Result(
                name=f"{name}, {label}",
                unit="ms",
                ours=ours,
                peer=theirs,
                peer_name=peer_name,
                ratio=ours / theirs,
                samples=samples,
                paper=paper if label == "p50" else None,
            )
        )
    return rows


async def _swing(
    lab: Lab, mode: ChangeMode, changes: int, *, rate: str | None = None
) -> list[ChangeReport]:
    """Replace under iperf3, one flow, at *rate* or full speed."""
    async with load.iperf3_load(lab, rate=rate) as before:
        session = await _busiest(lab, 1, before)
        return await _every_period(await Swinging.of(lab, session[0]), mode, changes)


async def _empty(lab: Lab, number: int) -> tuple[float, ...]:
    """Milliseconds of empty exchanges under the load of :func:`_swing`, at the same pace."""
    async with load.iperf3_load(lab):
        way = (CLIENT, NEW, SERVER)
        return tuple(await load.exchanges(lab, way, number=number, period=_PERIOD))


async def _every_period(swinging: Swinging, mode: ChangeMode, changes: int) -> list[ChangeReport]:
    """That many changes, one begun in each period unless the last one is not done yet."""
    reports = []
    due = trio.current_time()
    for _ in range(changes):
        await trio.sleep_until(due)
        reports.append(await swinging.replace(mode))
        due = max(due + _PERIOD, trio.current_time())
    return reports


async def _all_at_once(lab: Lab, mode: ChangeMode, rounds: int) -> list[ChangeReport]:
    """Replace in a hundred sessions with one request."""
    reports: list[ChangeReport] = []
    async with load.iperf3_load(lab, flows=_MANY) as before:
        sessions = await _busiest(lab, _MANY, before)
        await gather(lab, sessions, OLD, ChangeMode.LF)
        ids = tuple(session.id for session in sessions)
        there, wanted = instance(OLD), instance(NEW)
        for _ in range(rounds):
            await trio.sleep(_PERIOD)
            request = Change(do=Do.REPLACE, old=(there,), new=(wanted,), sessions=ids, mode=mode)
            reports += await change(lab, request, host=CLIENT)
            there, wanted = wanted, there
    return reports


async def _busiest(lab: Lab, number: int, before: Sequence[SessionInfo]) -> list[SessionInfo]:
    """iperf3's sessions with data; the one it controls them by carries little."""
    return await load.loaded(lab, load.IPERF3, number, before)


async def _harm(lab: Lab, plan: Plan, say: Say) -> list[Result]:
    """What changes every 100 ms do to packets, beside the same load without changes."""
    changes = plan.pick(600, 5)
    results: list[Result] = []
    for proto, modes in (("tcp", list(ChangeMode)), ("udp", [ChangeMode.LF, ChangeMode.OP])):
        say(f"{proto}, no changes")
        calm = await trial.run(lab, partial(_wait, changes), proto=proto, mode=modes[0])
        for mode in modes:
            say(f"{proto}, {mode}, {changes} changes, counted")
            changed = await trial.run(
                lab, partial(_replace, lab, mode, changes), proto=proto, mode=mode
            )
            results += _counts(changed, calm)
    return results


async def _wait(changes: int, _: Sequence[SessionInfo]) -> list[ChangeReport]:
    await trio.sleep(changes * _PERIOD)
    return []


async def _replace(
    lab: Lab, mode: ChangeMode, changes: int, sessions: Sequence[SessionInfo]
) -> list[ChangeReport]:
    return await _every_period(await Swinging.of(lab, sessions[0]), mode, changes)


def _counts(changed: Trial, calm: Trial) -> list[Result]:
    """The rows of one trial beside the one without changes."""
    name = f"{changed.proto}, {changed.mode}, every {_PERIOD * 1e3:g} ms"
    return [
        Result.of(f"{name}: {what}", unit, Samples((ours,), (peer,)), "no changes")
        for (what, unit, ours), (_, _, peer) in zip(_found(changed), _found(calm), strict=True)
    ]


def _found(one: Trial) -> list[tuple[str, str, float]]:
    """What, in which unit, how much: by the agents, by the wire, by the ends of the load."""
    wire = one.wire
    rows: list[tuple[str, str, float]] = [
        ("changes", "", len(one.done)),
        ("refused", "", len(one.reports) - len(one.done)),
        ("held", "packets", one.held),
        ("lost", "packets", wire.lost + wire.lost_acks),
        ("doubled", "packets", wire.duplicated),
        ("overtaken", "packets", wire.reordered + wire.reordered_acks),
        ("of these ACKs", "packets", wire.reordered_acks),
    ]
    if isinstance(one.sent, bulk.Report):
        ways = [way for way in (one.sent.up, one.sent.down) if way is not None]
        stall = max(way.stall for way in ways)
        rows += [
            ("wrong", "bytes", sum(way.wrong for way in ways)),
            ("sent again", "segments", sum(way.retransmitted for way in ways)),
            ("of these in vain", "segments", sum(way.unneeded for way in ways)),
            ("rate", "Gbit/s", sum(way.bytes for way in ways) * 8e-9 / one.sent.seconds),
        ]
    else:
        accounts = [way for way in (one.sent.up, one.sent.down) if way is not None]
        stall = max(account.stall for account in accounts)
        rows += [
            ("lost", "datagrams", sum(account.lost for account in accounts)),
            ("overtaken", "datagrams", sum(account.reordered for account in accounts)),
            ("wrong", "datagrams", sum(account.corrupted for account in accounts)),
        ]
    return [*rows, ("longest stall", "ms", stall * 1e3)]
