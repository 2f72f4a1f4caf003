"""Orders to change chains: of which sessions, and all of them side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from m2m.agent.api import ChangeReport, HopReport
from m2m.agent.asking import STANDING, Asking, Wanted
from m2m.agent.order import Order
from m2m.agent.plan import Plan, Unfit, check, plan
from m2m.agent.sessions import Sessions
from m2m.errors import M2MError
from m2m.policy.syntax import matches
from m2m.protocol.flow import Flow, Proto
from m2m.protocol.splice import Splice
from m2m.protocol.translation import Position

__all__ = ["carry_out"]

_AT_ONCE = 256  # sessions that are changed side by side


async def carry_out(
    order: Order,
    sessions: Sessions,
    asking: Asking,
    tell: Callable[[ChangeReport], None],
    progress: Callable[[str, str], None],
) -> None:
    """Change what is to be changed; *tell* gets a report for each session as it ends, *progress*
    a session and how far it is (``asked``, ``switched``).

    Sessions that were not named themselves and that the wish does not fit are left out. Raises
    :exc:`M2MError` when nothing is left.
    """
    chains = sessions.chains
    check(order.wish, chains.policy)
    selected = _selected(order, sessions)
    added = None if order.added is None else _added(order.added, selected, sessions)
    limiter = trio.CapacityLimiter(_AT_ONCE)
    unfit: list[Unfit] = []

    def planner(hops: Sequence[HopReport], here: str, flow: Flow) -> Plan:
        if order.nf is not None and not _is_of_type(order.nf, hops, here):
            raise Unfit(f"this host is not {order.nf} to the session")
        made = plan(
            order.wish, hops, here, flow, chains.policy, chains.unanswering(), chains.loads.placed
        )
        chains.loads.moves(made.hops, made.steps)
        return made

    wanted = Wanted(
        planner, order.asker, order.mode, progress, named=bool(order.sessions), added=added
    )

    async def one(session: int) -> None:
        async with limiter:
            try:
                tell(await asking.change(session, wanted))
            except Unfit as error:
                unfit.append(error)

    async with trio.open_nursery() as nursery:
        for session in selected:
            nursery.start_soon(one, session)
    if len(unfit) == len(selected):
        raise M2MError(f"none of the sessions selected here fits ({len(selected)}): {unfit[0]}")


def _selected(order: Order, sessions: Sessions) -> list[int]:
    if order.sessions:
        return list(dict.fromkeys(order.sessions))
    found = [
        session.id
        for session in sessions.node.sessions.values()
        if session.state in STANDING
        and (order.predicate is None or matches(order.predicate, session.supersession))
    ]
    if not found:
        raise M2MError("no session at this host is selected: there is nothing to change")
    return found


def _added(octets: tuple[int, int], selected: Sequence[int], sessions: Sessions) -> Splice | None:
    """What is to be added to numbers when the function that has added these *octets* is out; a
    removal of this host is asked for. Raises :exc:`M2MError` for what cannot be."""
    if not sessions.datapath.splices:
        raise M2MError("with the module of the kernel such functions stay: use --datapath=ebpf")
    if len(selected) != 1:
        raise M2MError(f"what was added is told of one session: {len(selected)} are selected here")
    session = sessions.node.sessions.get(selected[0])
    if session is not None:
        if session.position is not Position.INLINE:
            name = session.position.name.lower()
            raise M2MError(f"to this session the host is a {name}: it can have added nothing")
        if session.supersession.proto != Proto.TCP:
            raise M2MError("the session is not TCP's: it has no numbers that could be added to")
    return Splice.of_sums(*octets)


def _is_of_type(nf: str, hops: Sequence[HopReport], here: str) -> bool:
    return any(hop.address == here and (hop.nf or "").partition("/")[0] == nf for hop in hops)
