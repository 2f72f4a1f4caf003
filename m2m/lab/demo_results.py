"""What the demo finds: what ``m2m-lab demo --json`` prints, and what the terminal shows."""

from __future__ import annotations

import statistics

import msgspec

from m2m.agent.api import PathInfo, PolicyInfo


class Check(msgspec.Struct, frozen=True):
    """One thing that must hold. *promise* is its number in the design, or empty."""

    what: str
    held: bool
    seen: str
    promise: str = ""


class Judged:
    """What has been found out, with checks of it."""

    __slots__ = ()
    checks: list[Check]

    @property
    def held(self) -> bool:
        """Whether there are checks, and all of them held."""
        return bool(self.checks) and all(check.held for check in self.checks)


class LegSeen(msgspec.Struct, frozen=True):
    """One leg of the chain on one link: TCP packets towards the server and back."""

    leg: str
    to_server: int
    to_client: int
    bytes: int  # sum of IP total lengths
    largest: int  # IP total length


class LinkSeen(msgspec.Struct, frozen=True):
    """What tcpdump saw on one link while the chain was used, control messages included."""

    host: str  # the host of the chain at one end; the other is the router
    pairs: list[str]  # who spoke with whom
    packets: int
    legs: list[LegSeen]


class NfSeen(msgspec.Struct, frozen=True):
    """What a network function has seen of the web connection."""

    nf: str
    kind: str
    packets: int
    flows: list[str]
    sees: str  # "supersession" or "subsessions"


class Compared(msgspec.Struct, frozen=True):
    """Interleaved samples of the chain and of plain forwarding along the same path."""

    unit: str
    ours: list[float]
    plain: list[float]

    @property
    def medians(self) -> tuple[float, float]:
        """Of the chain, and of plain forwarding."""
        return statistics.median(self.ours), statistics.median(self.plain)


class Report(Judged, msgspec.Struct):
    """All that the demo found."""

    checks: list[Check] = []
    policy: PolicyInfo | None = None
    path: PathInfo | None = None
    sockets: dict[str, str] = {}  # host -> its socket of the live session, as ss shows it
    links: list[LinkSeen] = []
    nfs: list[NfSeen] = []
    throughput: Compared | None = None
    setup: Compared | None = None
