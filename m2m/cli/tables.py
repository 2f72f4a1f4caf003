"""What m2mctl shows a person: rich tables that fit into 80 columns."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from m2m.agent.api import (
    AgentInfo,
    Direction,
    Event,
    EventKind,
    FlowInfo,
    HopReport,
    PathInfo,
    PolicyInfo,
    SessionInfo,
    SessionState,
    Stats,
)
from m2m.policy.location import AWAY_LOAD

__all__ = [
    "WIDE", "agents_table", "count", "event_line", "path_view", "policy_view", "sessions_table",
    "stats_view",
]  # fmt: skip

WIDE = 120
"""Columns from which on a session takes one line instead of two."""

_STATES = {
    SessionState.OPENING: "yellow",
    SessionState.ESTABLISHED: "green",
    SessionState.CLOSING: "cyan",
    SessionState.UNREACHABLE: "red",
}
_EVENTS = {
    EventKind.ESTABLISHED: "green",
    EventKind.CLOSED: "cyan",
    EventKind.CHANGED: "green",
    EventKind.UNCHANGED: "red",
    EventKind.MOVED: "magenta",
    EventKind.LEFT: "green",
    EventKind.REFUSED: "red",
    EventKind.POLICY: "blue",
    EventKind.SERVER: "yellow",
}


def sessions_table(
    sessions: Iterable[SessionInfo],
    width: int,
    *,
    before: Mapping[str, SessionInfo] | None = None,
    seconds: float = 1.0,
) -> Table:
    """The sessions at one host.

    With *before*, the same sessions *seconds* ago, it shows rates instead of totals.
    """
    joint = "  " if width >= WIDE else "\n"
    table = _table("SESSION", "SUPERSESSION", "STATE", "TO SERVER", "TO CLIENT")
    for session in sessions:
        chain = "->".join(session.chain)
        earlier = before.get(session.id) if before is not None else None
        flows = []
        for now, then in (
            (session.to_server, earlier.to_server if earlier else None),
            (session.to_client, earlier.to_client if earlier else None),
        ):
            flows.append(
                _totals(now, joint) if before is None else _rates(now, then, seconds, joint)
            )
        idle = _least_idle(session)
        table.add_row(
            Text(joint.join(filter(None, (session.id, f"{session.position} {chain}".strip())))),
            _flow(session.supersession, joint) + Text(_goes_on(session.local, joint), "dim"),
            Text(session.state.value, _STATES[session.state])
            + Text("" if idle is None else f"{joint}idle {_time(idle)}", "dim"),
            *flows,
        )
    return table


def path_view(path: PathInfo) -> RenderableType:
    """A session hop by hop: hosts, and between them the subsession that is on the wire; with the
    halves that proxies join to it."""
    parts: list[RenderableType] = []
    for one in (*path.before, path, *path.behind):
        if parts:
            parts.append(Text())
        parts += _half(one)
    return Group(*parts)


def _half(path: PathInfo) -> list[RenderableType]:
    known = next((hop.supersession for hop in path.hops if hop.supersession is not None), None)
    head = Text(f"session {path.session}", "bold")
    if known is not None:
        head.append(f"  {known}", "not bold")
    parts: list[RenderableType] = [head, Text()]
    for number, hop in enumerate(path.hops):
        parts.append(_host(hop))
        for name, seen in (("to server", hop.to_server), ("to client", hop.to_client)):
            if seen is not None:
                parts.append(Text(f"│   {name}  {_seen(seen)}"))
        if number + 1 < len(path.hops):
            parts += _leg(hop, path.hops[number + 1])
    parts.append(Text())
    if path.complete:
        first, last = path.hops[0].position, path.hops[-1].position
        parts.append(Text(f"complete, from {first} to {last}", "green"))
    else:
        parts.append(Text(f"incomplete: {path.problem}", "red"))
    return parts


def policy_view(policy: PolicyInfo) -> RenderableType:
    """What is in force at one agent."""
    link = "connected" if policy.connected else "away; the last set stays in force"
    head = Text(f"generation {policy.generation}, {policy.rules} rows; ")
    if policy.server:
        head.append(f"policy server {policy.server} ")
        head.append(link, "green" if policy.connected else "yellow")
    else:
        head.append("no policy server", "yellow")
    parts: list[RenderableType] = [head]
    if policy.policies:
        rules = _table("ID", "LINE", "RULE", "CHAIN", "FAIL")
        for row in policy.policies:
            chain = " -> ".join(row.chain)
            rules.add_row(
                str(row.id), str(row.line), Text(row.text), Text(chain or "none: left alone"),
                Text(row.fail if row.chain else "-"),
            )  # fmt: skip
        parts += [Text(), rules]
    else:
        parts.append(Text("no rules concern this host"))
    if policy.nfs:
        nfs = _table("NF TYPE", "KIND", "CHOSEN BY", "INSTANCE", "ADDRESS", "LOAD")
        for nf in policy.nfs:
            for place, one in enumerate(nf.instances):
                load = "away" if one.load >= AWAY_LOAD else f"{one.load:g}"
                nfs.add_row(
                    *(Text(text if place == 0 else "") for text in (nf.name, nf.kind, nf.choose)),
                    Text(one.name), Text(one.address),
                    Text(load if nf.choose == "least-loaded" else "-"),
                )  # fmt: skip
        parts += [Text(), nfs]
    return Group(*parts)


def agents_table(agents: Iterable[AgentInfo], now: float | None = None) -> Table:
    """All agents that the policy server has seen; *now* in s since 1970."""
    moment = time.time() if now is None else now
    table = _table("AGENT", "ROLE", "ADDRESSES", "GEN", "SESSIONS", "CPU", "SEEN")
    for agent in agents:
        seen = (
            Text("connected", "green")
            if agent.connected
            else Text(f"{_time(max(0.0, moment - agent.last_seen))} ago", "yellow")
        )
        role = Text(agent.role.value)
        for instance in agent.instances:
            role.append(f"\n{instance}", "dim")
        table.add_row(
            Text(agent.name), role, Text("\n".join(agent.addresses)), str(agent.generation),
            count(agent.sessions), f"{agent.cpu:.0%}", seen,
        )  # fmt: skip
    return table


def stats_view(stats: Stats) -> RenderableType:
    """All counters of one agent that are not zero."""
    head = Text(f"{stats.agent}", "bold").append(
        f"  {stats.role.value}, datapath {stats.datapath or '?'}, up {_time(stats.uptime)}, "
        f"{count(stats.sessions)} sessions, {count(stats.ports)} port pairs",
        "not bold",
    )
    parts: list[RenderableType] = [head]
    for title, counters in (
        ("PACKETS DROPPED, HELD OR LET GO", stats.reasons),
        ("CONTROL MESSAGES", stats.control),
        ("SESSIONS", stats.setups),
        ("MOVES OF ENDPOINTS", stats.moves),
        ("PACKETS DELIVERED TO NETWORK FUNCTIONS", stats.functions),
    ):
        table = _table(title, "")
        table.columns[1].justify = "right"
        for name, value in sorted(counters.items()):
            if value:
                table.add_row(Text(name.replace("_", " ")), f"{value:,}".replace(",", " "))
        if table.row_count:
            parts += [Text(), table]
    return Group(*parts)


def event_line(event: Event) -> Text:
    """One event on one line."""
    line = Text(time.strftime("%H:%M:%S ", time.localtime(event.time)), "dim")
    line.append(f"{event.kind.value:<12}", _EVENTS[event.kind])
    if event.session is not None:
        line.append(f"{event.session} ")
    if event.supersession is not None:
        line.append(f"{event.supersession} ", "bold")
    return line.append(event.text)


def count(value: float, unit: str = "") -> str:
    """A number in at most three digits and its unit: ``12``, ``3.4k``, ``560 MB``."""
    letters = iter(("", "k", "M", "G", "T", "P"))
    letter = next(letters)
    while value >= 999.5 and letter != "P":
        value, letter = value / 1000, next(letters)
    digits = f"{value:.1f}" if letter and value < 99.95 else f"{value:.0f}"
    return f"{digits}{' ' if unit else ''}{letter}{unit}"


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _flow(flow: FlowInfo, joint: str) -> Text:
    return Text(f"{flow.source}{joint[0]}> {flow.destination} {flow.proto}")


def _goes_on(local: FlowInfo | None, joint: str) -> str:
    return "" if local is None else f"{joint}as {local.source}"


def _totals(seen: Direction | None, joint: str) -> Text:
    if seen is None:
        return Text("-")
    return Text(f"{count(seen.packets)} pkt{joint}{count(seen.bytes, 'B')}")


def _rates(now: Direction | None, before: Direction | None, seconds: float, joint: str) -> Text:
    if now is None or before is None:
        return Text("-")
    packets = max(0, now.packets - before.packets) / seconds
    bits = 8 * max(0, now.bytes - before.bytes) / seconds
    return Text(f"{count(packets)} pkt/s{joint}{count(bits, 'bit/s')}")


def _seen(seen: Direction) -> str:
    parts = [f"{count(seen.packets)} pkt", count(seen.bytes, "B")]
    if seen.max_seq is not None:
        parts.append(f"seq {seen.max_seq}")
    parts.append(f"idle {_time(seen.idle)}")
    parts += [name for name, is_set in (("FIN", seen.fin), ("RST", seen.rst)) if is_set]
    return ", ".join(parts)


def _host(hop: HopReport) -> Text:
    line = Text("● ", _STATES[hop.state])
    line.append(hop.host or hop.address, "bold")
    socket = None if hop.local is None else f"as {hop.local.source}"
    for text in (hop.position, hop.nf, hop.address if hop.host else None, socket):
        if text:
            line.append(f"  {text}")
    return line.append(f"  {hop.state.value}", _STATES[hop.state])


def _leg(hop: HopReport, following: HopReport) -> Sequence[Text]:
    """The subsession between two hosts, as each of them has it; they had better agree."""
    if hop.right is not None and following.left is not None and hop.right != following.left:
        return (
            Text(f"┆ {hop.right}  as {hop.host} sends it", "red"),
            Text(f"┆ {following.left}  as {following.host} expects it", "red"),
        )
    flow = hop.right or following.left
    return (Text(f"│ {flow}" if flow is not None else "┆ unknown", "cyan"),)


def _least_idle(session: SessionInfo) -> float | None:
    seen = [one.idle for one in (session.to_server, session.to_client) if one is not None]
    return min(seen, default=None)


def _time(seconds: float) -> str:
    """A span of time in its largest unit."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    for unit, length, following in (("s", 1, 60), ("min", 60, 3600), ("h", 3600, 86400)):
        if seconds < following:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"
