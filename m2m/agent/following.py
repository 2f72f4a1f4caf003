"""Live sessions follow the policy, where it says so (``live=follow``): when it is new, and when
their client has moved to where another one matches them.

Each client brings the chains of its own sessions to what the policy in force says, one change of a
session after the other. A session that cannot follow keeps its chain, and a reason is told.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog
import trio

from m2m.agent.api import HopReport, format_session
from m2m.agent.asking import STANDING, Asking, Wanted
from m2m.agent.plan import Plan, plan_to_follow
from m2m.agent.sessions import Sessions
from m2m.policy.rules import Asker, Kind, Live, Policy
from m2m.protocol.devices import has_moved
from m2m.protocol.flow import Flow
from m2m.protocol.session import Session
from m2m.protocol.translation import Position

__all__ = ["Following"]

_log = structlog.get_logger()

_AT_ONCE = 64  # sessions


class Following:
    """The sessions that begin at this host, and the policy that they are to follow."""

    def __init__(self, sessions: Sessions, asking: Asking) -> None:
        self._sessions = sessions
        self._asking = asking
        self._news = trio.Event()

    def policy_changed(self) -> None:
        """Another policy is in force, or sessions of this host have moved."""
        self._news.set()

    async def run(self) -> None:
        """Have sessions follow until cancelled; when the policy changes again, start again."""
        while True:
            await self._news.wait()
            self._news = news = trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._follow_all)
                await news.wait()
                nursery.cancel_scope.cancel()

    async def _follow_all(self) -> None:
        generation = self._sessions.chains.policy.generation
        limiter = trio.CapacityLimiter(_AT_ONCE)
        counts = {True: 0, False: 0}

        async def one(session: int, policy: Policy) -> None:
            async with limiter:
                followed = await self._follow(session, policy)
                if followed is not None:
                    counts[followed] += 1

        async with trio.open_nursery() as nursery:
            for session in list(self._sessions.node.sessions.values()):
                policy = self._sessions.chains.policy_now(session)
                if policy is not None and _is_to_follow(session, policy, generation):
                    nursery.start_soon(one, session.id, policy)
        if any(counts.values()):
            _log.info("sessions follow the policy", generation=generation,
                      changed=counts[True], not_changed=counts[False])  # fmt: skip

    async def _follow(self, session: int, policy: Policy) -> bool | None:
        """Bring one chain to what *policy* says, change by change; None: it was that already."""
        chains, changed = self._sessions.chains, None

        def planner(hops: Sequence[HopReport], here: str, flow: Flow) -> Plan:
            chain = chains.types_to_pass(policy, flow, _proxy(hops[0]), _proxy(hops[-1]))
            plan = plan_to_follow(
                chain, hops, here, flow, chains.policy, chains.unanswering(), chains.loads.placed
            )
            if plan is None:
                raise _Follows
            chains.loads.moves(plan.hops, plan.steps)
            return plan

        while changed is not False:
            try:
                report = await self._asking.change(session, Wanted(planner, Asker.POLICY))
            except _Follows:
                break
            changed = report.error is None
            if not changed:
                _log.warning(
                    "session does not follow", session=format_session(session), why=report.error,
                    by=report.by, policy=policy.text,
                )  # fmt: skip
        return changed


def _is_to_follow(session: Session, policy: Policy, generation: int) -> bool:
    """Whether *policy*, of this *generation*, may be new to a session that begins here."""
    return (
        session.position is Position.CLIENT
        and session.state in STANDING
        and (session.generation != generation or has_moved(session))
        and policy.live is Live.FOLLOW
        and Asker.POLICY in policy.allow
    )


def _proxy(hop: HopReport) -> str | None:
    """The NF type of the proxy that this end of a path is at, if it is."""
    if hop.position != Kind.PROXY:
        return None
    return (hop.nf or "").partition("/")[0]


class _Follows(Exception):
    """The chain is as it is to be."""
