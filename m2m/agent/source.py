"""What the agent answers on its control socket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Protocol

import trio

from m2m.agent import deeds
from m2m.agent.api import (
    AgentInfo,
    ChangeReport,
    Event,
    FlowInfo,
    PathInfo,
    PolicyInfo,
    Role,
    SessionInfo,
    Stats,
    TakenOver,
    UnknownSession,
    describe_policy,
    format_session,
)
from m2m.agent.asking import Asking
from m2m.agent.functions import Functions
from m2m.agent.order import Order
from m2m.agent.path import Paths, directions, halves, position_name
from m2m.agent.sessions import Sessions
from m2m.agent.wishes import carry_out
from m2m.auth import DomainKey
from m2m.errors import M2MError
from m2m.protocol.events import Ended

__all__ = ["Answers", "PolicyServer"]


class PolicyServer(Protocol):
    """What is asked of the policy client."""

    @property
    def connected(self) -> bool:
        """Whether the server is reachable now."""

    async def agents(self) -> Sequence[AgentInfo]:
        """Every agent of the domain. Raises :exc:`M2MError` when the server is away."""


class Answers:
    """The :class:`~m2m.agent.api.ControlSource` of an agent."""

    def __init__(
        self,
        name: str,
        role: Role,
        sessions: Sessions,
        paths: Paths,
        asking: Asking,
        counters: Callable[[], dict[str, int]],
        server: PolicyServer | None,
        server_name: str,
        key: DomainKey,
        functions: Functions,
    ) -> None:
        self._name = name
        self._role = role
        self._sessions = sessions
        self._paths = paths
        self._counters = counters
        self._server = server
        self._server_name = server_name
        self._key = key
        self._started = trio.current_time()
        self._asking = asking
        self._functions = functions

    async def sessions(self) -> AsyncIterator[SessionInfo]:
        """Every session at this host, with its counters."""
        policies = {policy.id: policy.chain for policy in self._sessions.chains.policy.policies}
        generation = self._sessions.chains.policy.generation
        async for view, state, rows in self._sessions.all_rows():
            to_server, to_client = directions(rows)
            yield SessionInfo(
                id=format_session(view.session),
                position=position_name(view),
                state=state,
                supersession=FlowInfo.of(view.supersession),
                left=None if view.left is None else FlowInfo.of(view.left),
                right=None if view.right is None else FlowInfo.of(view.right),
                policy=view.chain,
                generation=view.generation,
                chain=policies.get(view.chain, ()) if view.generation == generation else (),
                to_server=to_server,
                to_client=to_client,
                local=None if view.local is None else FlowInfo.of(view.local),
                halves=halves(view, self._sessions),
            )

    async def path(self, session: int) -> PathInfo:
        """The session hop by hop."""
        return await self._paths.joined(session)

    async def policy(self) -> PolicyInfo:
        """What is in force."""
        connected = self._server is not None and self._server.connected
        return describe_policy(
            self._sessions.chains.policy, server=self._server_name, connected=connected
        )

    async def agents(self) -> Sequence[AgentInfo]:
        """Every agent of the domain, as the policy server knows them."""
        if self._server is None:
            raise M2MError("this agent knows of no others: it was started without --policy-server")
        return await self._server.agents()

    async def stats(self) -> Stats:
        """The counters."""
        sessions = self._sessions
        async with sessions.turn:
            reasons = await sessions.datapath.reasons()
        set_ups = dict(sessions.journal.counts)
        for share in (50, 99):
            seconds = sessions.journal.percentile(share / 100)
            if seconds is not None:
                set_ups[f"set-up p{share} us"] = round(seconds * 1e6)
        return Stats(
            agent=self._name,
            role=self._role,
            uptime=trio.current_time() - self._started,
            sessions=len(sessions),
            reasons={reason.name.lower(): count for reason, count in reasons.items()},
            control=self._counters(),
            setups=set_ups,
            moves=dict(sessions.node.mobility.counts),
            datapath=sessions.datapath.name,
            ports=sessions.node.ports.in_use,
            functions={
                f"{one.about.program} ({one.about.pid})": one.delivered
                for one in self._functions.running
            },
        )

    async def end(self, session: int) -> None:
        """Tear the session down along its whole path."""
        if session not in self._sessions.node.sessions:
            raise UnknownSession(f"no session {format_session(session)} is at this host")
        with trio.CancelScope(shield=True):  # the asker may go, what is begun is finished
            await self._sessions.feed(Ended(session, "ended by an operator"))

    async def change(
        self,
        order: Order,
        tell: Callable[[ChangeReport], None],
        progress: Callable[[str, str], None],
    ) -> None:
        """Change chains of live sessions."""
        await carry_out(order, self._sessions, self._asking, tell, progress)

    async def hand_over(self, sessions: Sequence[int], path: Path) -> None:
        """Make the ends of these sessions another host's."""
        with trio.CancelScope(shield=True):
            await self._sessions.handing.hand_over(
                sessions, lambda found: deeds.write(path, self._key, found)
            )

    async def take_over(self, path: Path) -> TakenOver:
        """Make them this host's."""
        try:
            found = await trio.to_thread.run_sync(deeds.read, path, self._key)
        except M2MError:
            self._sessions.node.mobility.counts["take-over refused"] += 1
            raise
        with trio.CancelScope(shield=True):
            taken, refused = await self._sessions.handing.take_over(found)
        return TakenOver(
            tuple(map(format_session, taken)),
            {format_session(session): why for session, why in refused.items()},
        )

    async def lead_here(self, sessions: Sequence[int]) -> Sequence[str]:
        """Have packets of these sessions come here."""
        with trio.CancelScope(shield=True):
            led = await self._sessions.handing.lead_here(sessions)
            await self._sessions.follow_network()  # it may have changed meanwhile
        return [format_session(session) for session in led]

    def events(self) -> AsyncIterator[Event]:
        """What happens from now on."""
        return self._sessions.journal.events()
