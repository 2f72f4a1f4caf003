"""Changing the chains of a lab's live sessions as ``m2mctl`` does, without its start-up time."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from m2m.agent.api import ChangeReport, SessionInfo
from m2m.agent.dialogue import AskPath, Change, ChangedItem, PathItem
from m2m.agent.order import Do
from m2m.cli.query import ask, one
from m2m.lab.lab import Lab
from m2m.lab.two_paths import CLIENT, NEW, NF, OLD, fork
from m2m.policy.rules import ChangeMode


async def change(lab: Lab, request: Change, host: str = CLIENT) -> list[ChangeReport]:
    """Ask the agent of *host*; one report per session, as they ended.

    Raises :exc:`M2MError` when the request as a whole is refused.
    """
    socket = lab.control_socket(host)
    items = await trio.to_thread.run_sync(lambda: list(ask(socket, request)))
    return [item.report for item in items if isinstance(item, ChangedItem)]


async def chain_of(lab: Lab, session: str) -> tuple[str, ...]:
    """What is between client and server now, as reports name it: ``("proxy/b",)``."""
    socket = lab.control_socket(CLIENT)
    found = await trio.to_thread.run_sync(lambda: one(socket, AskPath(session), PathItem))
    return tuple(hop.nf or hop.address for hop in found.path.hops[1:-1])


def instance(host: str) -> str:
    """The name of the NF on *b* or *c*."""
    return f"{NF}/{host}"


def other(name: str) -> str:
    """The other one of the two instances."""
    return instance(NEW if name == instance(OLD) else OLD)


class Swinging:
    """Replaces *b* by *c* and *c* by *b*, in turns, in one session.

    The host that leads is asked, the one where the paths fork: only there times are those of the
    change alone.
    """

    def __init__(self, lab: Lab, session: SessionInfo, now: str) -> None:
        self._lab = lab
        self._session = session.id
        self._leader = fork(lab.topology)
        self.now = now

    @classmethod
    async def of(cls, lab: Lab, session: SessionInfo) -> Swinging:
        """For a session, wherever it goes through now."""
        chain = await chain_of(lab, session.id)
        return cls(lab, session, next(nf for nf in chain if nf.startswith(f"{NF}/")))

    async def replace(self, mode: ChangeMode) -> ChangeReport:
        """Once; what became of it."""
        wanted = other(self.now)
        request = Change(
            do=Do.REPLACE, old=(self.now,), new=(wanted,), sessions=(self._session,), mode=mode
        )
        (report,) = await change(self._lab, request, self._leader)
        if report.error is None:
            self.now = wanted
        return report


async def gather(
    lab: Lab, sessions: Sequence[SessionInfo], host: str, mode: ChangeMode
) -> list[ChangeReport]:
    """Lead all *sessions* through *host*, wherever they were led before."""
    wanted = instance(host)
    elsewhere = tuple([one.id for one in sessions if wanted not in await chain_of(lab, one.id)])
    if not elsewhere:
        return []
    request = Change(
        do=Do.REPLACE, old=(other(wanted),), new=(wanted,), sessions=elsewhere, mode=mode
    )
    return await change(lab, request)
