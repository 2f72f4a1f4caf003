"""For inline functions that have changed the length of a connection's streams, and do so no more
(``docs/splicing.md``, "Functions that change lengths")::

    from nf_adapters.skb.leaving import Stays, leave

    try:
        leave(flow, (22, 0))
    except Stays:
        ...

The packets that the function passes on meanwhile are part of it, so this belongs in a thread.
"""

from __future__ import annotations

from pathlib import Path

from m2m.agent.dialogue import ChangedItem, NfChange
from m2m.agent.order import Do
from m2m.cli.query import Refusal, ask, find_socket
from m2m.errors import M2MError
from m2m.policy.explain import as_predicate
from m2m.policy.rules import ChangeMode
from m2m.protocol.flow import Flow

__all__ = ["Stays", "leave"]

_UNDECIDED = "timeout"


class Stays(M2MError):
    """The function stays in the session: why. *free*: it may change lengths again; else it is not
    known whether its host is being taken out, and it goes on with the sum that it has told."""

    def __init__(self, why: str, *, free: bool) -> None:
        super().__init__(why)
        self.free = free


def leave(
    flow: Flow, added: tuple[int, int], *, agent: str | None = None, run_dir: Path | None = None
) -> bool:
    """Have this host taken out of the chain of a connection, its *flow* from client to server, to
    whose streams to server and to client the function has *added* so many octets (negative: taken
    out), all of them acknowledged, and adds no more.

    Returns when it is out, after some seconds at most: True when no packet of the session comes
    here any more, False if some may, which the function goes on to translate. Raises :exc:`Stays`.
    *agent* and *run_dir*: which one, where several run here or not in the usual place.
    """
    request = NfChange(Do.REMOVE, match=as_predicate(flow), mode=ChangeMode.LF, added=added)
    try:
        socket = find_socket(run_dir, agent, ending=".nf")
    except M2MError as error:
        raise Stays(str(error), free=True) from None
    try:
        for item in ask(socket, request):
            if isinstance(item, ChangedItem):
                report = item.report
                if report.error is not None:
                    raise Stays(report.error, free=report.cause != _UNDECIDED)
                return report.total is not None
    except Stays:
        raise
    except M2MError as error:
        raise Stays(str(error), free=isinstance(error, Refusal)) from None
    raise Stays("the agent has not said what became of it", free=False)
