"""One load, the changes made under it, and what the ends and the wire say became of its packets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

import msgspec
import trio

from m2m.agent.api import ChangeReport, SessionInfo
from m2m.lab import load
from m2m.lab.demo_results import Check
from m2m.lab.lab import Lab
from m2m.lab.pace import SLOWNESS
from m2m.lab.passage import Crossing, Passage, crossings, total
from m2m.lab.sightings import watch
from m2m.lab.tcp_counters import taken_for_lost
from m2m.lab.traffic import bulk, datagrams
from m2m.lab.two_paths import CLIENT, SERVER
from m2m.policy.endpoint import POLICY_PORT
from m2m.policy.rules import ChangeMode

UDP_RATE = 300e6 / SLOWNESS  # bit/s, and as much back
_STEADY = 1_000_000  # bytes of a session, after which its TCP knows the path

Changes = Callable[[Sequence[SessionInfo]], Awaitable[list[ChangeReport]]]
"""Changes the chains of these sessions; the reports of all changes."""


class Trial(msgspec.Struct):
    """What was found. *sent*: what the load's two ends say; *wire*: what passed both of them."""

    proto: str
    mode: str
    flows: int
    reports: list[ChangeReport]
    sent: bulk.Report | datagrams.Report
    wire: Passage  # both directions of all flows
    stretches: list[int]  # per flow and direction: runs of the stream that went by one way
    taken_for_lost: int  # segments, by the kernels at both ends

    @property
    def done(self) -> list[ChangeReport]:
        """The changes that were made."""
        return [report for report in self.reports if report.error is None]

    @property
    def held(self) -> int:
        return sum(report.held for report in self.reports)


async def run(lab: Lab, changes: Changes, *, proto: str, mode: ChangeMode, flows: int = 1) -> Trial:
    """Load the chain in both directions, make *changes*, and count."""
    before = await load.sessions(lab)
    lost = await _taken_for_lost(lab)
    async with watch(lab, [CLIENT, SERVER], f"(tcp and not port {POLICY_PORT}) or udp") as watches:
        if proto == "tcp":
            async with load.bulk_load(lab, flows=flows, ways="both") as sending:
                live = await load.loaded(lab, load.BULK, flows, before, _STEADY)
                reports = await changes(live)
            sent: bulk.Report | datagrams.Report = sending.report
        else:
            async with load.datagram_load(lab, rate=UDP_RATE, flows=flows) as numbered:
                live = await load.loaded(lab, load.DATAGRAMS, flows, before, _STEADY)
                reports = await changes(live)
            sent = numbered.report
    # What else there is: the last packets of earlier loads.
    found = sorted(
        crossings(watches[CLIENT].seen(), watches[SERVER].seen()),
        key=lambda crossing: crossing.up.units + crossing.down.units,
    )[-flows:]
    return Trial(
        proto, mode, flows, reports, sent, total(found), list(_stretches(found)),
        await _taken_for_lost(lab) - lost,
    )  # fmt: skip


async def _taken_for_lost(lab: Lab) -> int:
    def both() -> int:
        return sum(taken_for_lost(lab.namespace(host)) for host in (CLIENT, SERVER))

    return await trio.to_thread.run_sync(both)


def _stretches(found: Iterable[Crossing]) -> Iterator[int]:
    for crossing in found:
        yield len(crossing.up.ways)
        yield len(crossing.down.ways)


def checks(trial: Trial, promised: int) -> list[Check]:
    """What must hold after *promised* changes under load at least, by the mode chosen."""
    refused = [report for report in trial.reports if report.error is not None]
    found = [
        Check(
            "every change was made",
            not refused and len(trial.done) >= promised,
            f"{refused[0].error} ({refused[0].by})" if refused
            else f"{len(trial.done)} of {promised}",
        ),
        Check(
            "no packet was lost or doubled between client and server, by the wire",
            trial.wire.unharmed,
            f"{trial.wire.packets:,} packets, {trial.wire.lost + trial.wire.lost_acks} lost,"
            f" {trial.wire.duplicated} doubled",
        ),
        _intact(trial.sent),
    ]  # fmt: skip
    if trial.mode != ChangeMode.LF:
        # In ss+op, acknowledgements are parted from data that waits, and go ahead.
        acks = trial.wire.reordered_acks + trial.wire.acks_ahead
        if trial.mode == ChangeMode.SS_OP:
            acks = 0
        found.append(
            Check(
                "no packet overtook another, by the wire",
                not trial.wire.reordered and not acks,
                f"{trial.wire.reordered + acks} overtaken, {trial.held} held",
            )
        )
    if isinstance(trial.sent, bulk.Report) and trial.flows == 1:
        ways = [way for way in (trial.sent.up, trial.sent.down) if way is not None]
        found.append(
            Check(
                "TCP took nothing for lost that was not",
                not trial.taken_for_lost,
                f"{trial.taken_for_lost} segments taken for lost, "
                f"{sum(way.retransmitted for way in ways)} sent again with what only asked",
            )
        )
    if trial.mode == ChangeMode.SS_OP:
        each = max(Counter(report.session for report in trial.reports).values(), default=0)
        found.append(
            Check(
                "the stream was parted at one byte per change and direction",
                all(number <= each + 1 for number in trial.stretches),
                f"at most {max(trial.stretches, default=0)} stretches after {each} changes",
            )
        )
    return found


def _intact(sent: bulk.Report | datagrams.Report) -> Check:
    """That the applications got what was sent."""
    if isinstance(sent, bulk.Report):
        ways = [way for way in (sent.up, sent.down) if way is not None]
        wrong = sum(way.wrong for way in ways)
        size = sum(way.bytes for way in ways)
        return Check("every byte is right at the other end", not wrong and size > 0,
                     f"{size:,} bytes, {wrong} wrong")  # fmt: skip
    accounts = [one for one in (sent.up, sent.down) if one is not None]
    harm = sum(one.lost + one.duplicated + one.corrupted for one in accounts)
    arrived = sum(one.arrived for one in accounts)
    return Check("every datagram arrived once and unchanged", not harm and arrived > 0,
                 f"{arrived:,} arrived, {sum(one.lost for one in accounts)} lost")  # fmt: skip
