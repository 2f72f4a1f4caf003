"""An agent's answers without an agent: sessions made up, in the shape of real ones."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import trio

from m2m.agent.api import (
    AgentInfo,
    ChangeReport,
    Direction,
    Event,
    FlowInfo,
    HopReport,
    InstanceInfo,
    NfInfo,
    PathInfo,
    PolicyInfo,
    PolicyRow,
    Role,
    SessionInfo,
    SessionState,
    Stats,
    TakenOver,
    UnknownSession,
    format_session,
)
from m2m.agent.order import Order
from m2m.errors import M2MError
from m2m.policy.location import AWAY_LOAD

RULE = "match(srcip=10.0.1.0/24 & dstport=80) >> {firewall -> ids} fail=closed"


def session(number: int, packets: int = 1200) -> SessionInfo:
    """Session *number*, as its client sees it."""
    return SessionInfo(
        id=format_session(0x4BE6_0000_0000_0000 + number),
        position="client",
        state=SessionState.ESTABLISHED,
        supersession=FlowInfo("tcp", "10.0.1.2", 40000 + number, "10.0.4.2", 80),
        left=None,
        right=FlowInfo("tcp", "10.0.1.2", 61000 + number, "10.0.2.2", 63000),
        policy=0,
        generation=3,
        chain=("firewall", "ids"),
        to_server=Direction(packets, packets * 52, 4012345678, 0.25),
        to_client=Direction(2 * packets, packets * 2900, 12345, 0.03),
    )


def path(number: int) -> PathInfo:
    """The whole path of session *number*."""
    seen = session(number)
    legs = [
        FlowInfo("tcp", "10.0.1.2", 61000 + number, "10.0.2.2", 63000),
        FlowInfo("tcp", "10.0.2.2", 61200, "10.0.3.2", 63100),
        FlowInfo("tcp", "10.0.3.2", 61300, "10.0.4.2", 63200),
    ]
    hosts = ["10.0.1.2", "10.0.2.2", "10.0.3.2", "10.0.4.2"]
    names = ["client", "fw1", "ids1", "server"]
    positions = ["client", "inline", "tap", "server"]
    nfs = [None, "firewall/fw1", "ids/ids1", None]
    roles = [Role.CLIENT, Role.MIDDLEBOX, Role.MIDDLEBOX, Role.SERVER]
    hops = tuple(
        HopReport(
            session=seen.id,
            host=names[at],
            address=hosts[at],
            role=roles[at],
            position=positions[at],
            nf=nfs[at],
            state=SessionState.ESTABLISHED,
            supersession=seen.supersession,
            left=legs[at - 1] if at else None,
            right=legs[at] if at < 3 else None,
            to_server=seen.to_server,
            to_client=seen.to_client,
            prev=hosts[at - 1] if at else None,
            next=hosts[at + 1] if at < 3 else None,
        )
        for at in range(4)
    )
    return PathInfo(seen.id, hops, complete=True)


POLICY = PolicyInfo(
    generation=3,
    server="10.0.9.1:5263",
    connected=True,
    policies=(PolicyRow(0, RULE, 4, ("firewall", "ids"), "closed"),),
    nfs=(
        NfInfo("firewall", "inline", "hash", (InstanceInfo("fw1", "10.0.2.2", 0.0),)),
        NfInfo(
            "ids",
            "tap",
            "least-loaded",
            (
                InstanceInfo("ids1", "10.0.3.2", 12.0),
                InstanceInfo("ids2", "10.0.5.2", AWAY_LOAD),
            ),
        ),
    ),
    rules=2,
)

AGENTS = (
    AgentInfo("client", Role.CLIENT, ("10.0.1.2",), True, 1_800_000_000.0, 3, 3, 0.02),
    AgentInfo(
        "fw1", Role.MIDDLEBOX, ("10.0.2.2", "10.0.2.3"), True, 1_800_000_000.0, 3, 3, 0.41,
        ("firewall/fw1",),
    ),
    AgentInfo("server", Role.SERVER, ("10.0.4.2",), False, 1_799_990_000.0, 2, 0, 0.0),
)  # fmt: skip


class FakeSource:
    """A ControlSource with *count* sessions. ``ended`` has the ids that were to be ended."""

    def __init__(self, count: int = 3, name: str = "client") -> None:
        self.name = name
        self.numbers = {session(number).id: number for number in range(count)}
        self.ended: list[str] = []
        self.handed: list[tuple[tuple[str, ...], Path]] = []
        self.orders: list[Order] = []
        self.reports: list[ChangeReport] = []  # what becomes of changes
        self.packets = 1200
        self.server_away = False
        self.broken = ""
        self.watchers = 0
        self.changed = trio.Event()
        self._events: list[trio.MemorySendChannel[Event]] = []

    async def sessions(self) -> AsyncIterator[SessionInfo]:
        for number in self.numbers.values():
            await trio.lowlevel.checkpoint()
            yield session(number, self.packets)

    async def path(self, session: int) -> PathInfo:
        return path(self._number(session))

    async def policy(self) -> PolicyInfo:
        return POLICY

    async def agents(self) -> Sequence[AgentInfo]:
        if self.server_away:
            raise M2MError("cannot reach the policy server at 10.0.9.1:5263: no answer")
        return AGENTS

    async def stats(self) -> Stats:
        if self.broken:
            raise M2MError(self.broken)
        return Stats(
            agent=self.name,
            role=Role.CLIENT,
            uptime=4000.0,
            sessions=len(self.numbers),
            reasons={"held": 3, "no_entry": 0, "refused": 12345},
            control={"sent syn": 3, "received synack": 3},
            setups={"established": 3},
            datapath="ebpf",
        )

    async def end(self, session: int) -> None:
        self._number(session)
        self.ended.append(format_session(session))

    async def change(
        self,
        order: Order,
        tell: Callable[[ChangeReport], None],
        progress: Callable[[str, str], None],
    ) -> None:
        self.orders.append(order)
        await trio.lowlevel.checkpoint()
        if not self.reports:
            raise M2MError("no session at this host is selected")
        for report in self.reports:
            progress(report.session, "asked")
            tell(report)
            await trio.lowlevel.checkpoint()

    async def hand_over(self, sessions: Sequence[int], path: Path) -> None:
        for one in sessions:
            self._number(one)
        self.handed.append((tuple(map(format_session, sessions)), path))

    async def take_over(self, path: Path) -> TakenOver:
        if not self.handed:
            raise M2MError(f"{path}: this is no file of deeds")
        sessions, _ = self.handed[-1]
        return TakenOver(sessions[:1], dict.fromkeys(sessions[1:], "it is at this host already"))

    async def lead_here(self, sessions: Sequence[int]) -> Sequence[str]:
        return [format_session(one) for one in sessions]

    async def events(self) -> AsyncIterator[Event]:
        send, receive = trio.open_memory_channel[Event](100)
        self._events.append(send)
        self._count(1)
        try:
            async for event in receive:
                yield event
        finally:
            self._events.remove(send)
            self._count(-1)

    def tell(self, event: Event) -> None:
        """Give *event* to all watchers."""
        for channel in self._events:
            channel.send_nowait(event)

    def _count(self, change: int) -> None:
        self.watchers += change
        self.changed.set()
        self.changed = trio.Event()

    def _number(self, session: int) -> int:
        try:
            return self.numbers[format_session(session)]
        except KeyError:
            raise UnknownSession(f"no session {format_session(session)} is at this host") from None
