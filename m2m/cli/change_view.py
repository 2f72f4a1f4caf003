"""How changes of live chains look to a person: while they go on, and when they are over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.spinner import Spinner
from rich.text import Text

from m2m.agent.api import ChangeReport

__all__ = ["Progress", "report_view"]

_IN_FULL = 10  # sessions; of more than these only a sum is told
_REASONS = 5

_STAGES = {"asked": "under way", "switched": "on the new path, the old one is emptied"}


class Progress:
    """How far it is, as one line."""

    def __init__(self) -> None:
        self._stages: dict[str, str] = {}
        self._done = 0
        self._refused = 0
        self._spinner = Spinner("dots")

    def is_at(self, session: str, stage: str) -> None:
        """A change has come so far."""
        self._stages[session] = stage

    def ended(self, report: ChangeReport) -> None:
        """It is over."""
        self._stages.pop(report.session, None)
        self._done += report.error is None
        self._refused += report.error is not None

    @property
    def text(self) -> str:
        """What is shown beside the spinner."""
        stages = Counter(self._stages.values())
        parts = [f"{count} {_STAGES.get(stage, stage)}" for stage, count in stages.items()]
        parts.append(f"{self._done} changed")
        if self._refused:
            parts.append(f"{self._refused} not changed")
        return ", ".join(parts)

    def __rich_console__(self, _console: Console, _options: ConsoleOptions) -> RenderResult:
        self._spinner.update(text=Text(self.text))
        yield self._spinner


def report_view(reports: Sequence[ChangeReport]) -> RenderableType:
    """What came of it: each session in full, or of many the sum."""
    if len(reports) <= _IN_FULL:
        return Group(*(part for report in reports for part in _one(report)))
    return Group(*_sum(reports))


def _one(report: ChangeReport) -> Sequence[Text]:
    head = Text(f"session {report.session}: ", "bold")
    before, after = (Text(f"  {name:<7}{' -> '.join(path) or 'not known'}") for name, path in
                     (("before", report.before), ("after", report.after)))  # fmt: skip
    if report.error is not None:
        head.append("not changed", "red")
        who = Text(f"  refused by {report.by}: {report.error}")
        return head, who, Text(f"  path   {' -> '.join(report.after) or 'not known'}")
    old = "not gone yet" if report.total is None else f"gone after {_ms(report.total)}"
    head.append("changed", "green").append(
        f" ({report.mode}) in {_ms(report.duration)}, old path {old}", "not bold"
    )
    return head, before, after, Text(f"  {_costs(report.held, report.retransmissions)}")


def _sum(reports: Sequence[ChangeReport]) -> list[Text]:
    done = [report for report in reports if report.error is None]
    head = Text(f"{len(done)} of {len(reports)} sessions changed", "bold")
    parts = [head]
    times = sorted(report.duration for report in done if report.duration is not None)
    if times:
        late = times[min(len(times) - 1, int(0.95 * len(times)))]
        modes = ", ".join(sorted({report.mode for report in done}))
        parts.append(
            Text(f"  {modes}: median {_ms(median(times))}, 95 % within {_ms(late)}, "
                 f"all within {_ms(times[-1])}")
        )  # fmt: skip
        counted = [one.retransmissions for one in done if one.retransmissions is not None]
        held = sum(one.held for one in done)
        parts.append(Text(f"  {_costs(held, sum(counted) if counted else None)}"))
    reasons = Counter((one.by, one.error) for one in reports if one.error is not None)
    for (by, error), count in reasons.most_common(_REASONS):
        parts.append(Text(f"  {count} refused by {by}: {error}", "red"))
    if len(reasons) > _REASONS:
        rest = sum(reasons.values()) - sum(count for _, count in reasons.most_common(_REASONS))
        parts.append(Text(f"  {rest} for other reasons: --json tells each", "red"))
    return parts


def _costs(held: int, retransmissions: int | None) -> str:
    packets = f"{held} packet{'' if held == 1 else 's'} held"
    if retransmissions is None:
        return f"{packets}, retransmissions not known"
    return f"{packets}, {retransmissions} retransmission{'' if retransmissions == 1 else 's'}"


def _ms(seconds: float | None) -> str:
    return "?" if seconds is None else f"{seconds * 1000:.3g} ms"
