"""One kind of move under load: what was found, what it comes to, and what must hold."""

from __future__ import annotations

import msgspec

from m2m.lab import mobile_witness
from m2m.lab.bench.report import percentile
from m2m.lab.demo_results import Check
from m2m.lab.moves import Moved
from m2m.lab.probing import Probed
from m2m.lab.ssh import Echoed
from m2m.lab.traffic import bulk


class Trial(msgspec.Struct):
    """One kind of move, under probes, a checked transfer and an SSH session at once."""

    what: str
    udp: Probed
    tcp: Probed
    sent: bulk.Report
    echoed: Echoed
    seen: mobile_witness.Seen

    @property
    def moves(self) -> list[Moved]:
        """The moves that were made."""
        return self.udp.moves


class Row(msgspec.Struct, frozen=True):
    """A trial in numbers; times are milliseconds, beyond the link's own outage."""

    what: str
    moves: int
    outage: float  # median of what the links were away
    udp_p50: float
    udp_worst: float
    udp_lost: int
    tcp_p50: float
    tcp_worst: float
    bytes: int
    lines: int

    @classmethod
    def of(cls, trial: Trial) -> Row:
        """Of a trial with a move at least."""
        udp, tcp = ([one * 1e3 for row in found.added() for one in row] or [0.0]
                    for found in (trial.udp, trial.tcp))  # fmt: skip
        ways = [way for way in (trial.sent.up, trial.sent.down) if way is not None]
        return cls(
            trial.what, len(trial.moves),
            percentile([moved.outage * 1e3 for moved in trial.moves], 0.5),
            percentile(udp, 0.5), max(udp), sum(one.lost for one in trial.udp.accounts()),
            percentile(tcp, 0.5), max(tcp), sum(way.bytes for way in ways), trial.echoed.lines,
        )  # fmt: skip


def checks(trial: Trial, ue: str, server: str, *, lossless: bool) -> list[Check]:
    """What must hold after moves of endpoints whose first addresses are *ue* and *server*."""
    ways = [way for way in (trial.sent.up, trial.sent.down) if way is not None]
    size, wrong = sum(way.bytes for way in ways), sum(way.wrong for way in ways)
    up, down = trial.tcp.accounts()
    harm = sum(one.lost + one.duplicated + one.corrupted for one in (up, down))
    dead = [*trial.udp.ended, *trial.tcp.ended]
    found = [
        Check("every byte of the transfer is right at the other end",
              size > 0 and not wrong and all(way.bytes for way in ways),
              f"{size:,} bytes, {wrong} wrong"),
        Check("the SSH session lives, and echoes every line",
              trial.echoed.ended is None and trial.echoed.lines > 0 and not trial.echoed.wrong,
              trial.echoed.ended
              or f"{trial.echoed.lines} lines, the slowest {trial.echoed.slowest:.2f} s"),
        Check("no record of TCP is lost, twice or wrong",
              not harm and not dead and up.arrived > 0 < down.arrived,
              dead[0] if dead else f"{up.arrived + down.arrived:,} records"),
        _alive(trial),
        mobile_witness.one_tuple(trial.seen, ue, server),
    ]  # fmt: skip
    if lossless:
        accounts = trial.udp.accounts()
        lost = sum(one.lost for one in accounts)
        other = sum(one.duplicated + one.reordered for one in accounts)
        found.append(
            Check(
                "no datagram is lost, twice or late",
                not lost and not other,
                f"{sum(one.arrived for one in accounts):,} arrived, {lost} lost, {other} others",
            )
        )
    return found


def _alive(trial: Trial) -> Check:
    """Both ways of the probes go on after the last move."""
    last = trial.moves[-1].usable
    dumb = [
        f"{found.proto} {way}"
        for found in (trial.udp, trial.tcp)
        for way, report in (("to the server", found.up), ("to the UE", found.down))
        if not any(stream.arrivals and stream.arrivals[-1] > last for stream in report.probes)
    ]
    return Check(
        "datagrams and records come both ways after the last move",
        not dumb,
        f"nothing any more: {', '.join(dumb)}" if dumb else f"{len(trial.moves)} moves",
    )
