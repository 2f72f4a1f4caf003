"""Moving what a network function knows about one session to another instance of it (§5.2, §5.3).

While a session's packets are held back on both sides, the agent of the old instance's host calls
:meth:`~StateAdapter.quiesce` and :meth:`~StateAdapter.export`, the agent of the new one's
:meth:`~StateAdapter.import_`, and the old one's :meth:`~StateAdapter.release` at the end:

    old    quiesce ─► export ─────────► release(keep=False)     moved
                         │      └─────► release(keep=True)      the change was undone
    new                  └─► import_
                                └─────► release(keep=False)     undone after the import

``docs/nf-state.md`` tells how to write an adapter for another function.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from m2m.errors import M2MError
from m2m.protocol.flow import Flow
from m2m.protocol.update import MAX_PART, MAX_PARTS

__all__ = [
    "BadState", "Immovable", "LONGEST_LOCK", "MAX_STATE", "NoState", "NotLocked",
    "StateAdapter", "StateError",
]  # fmt: skip

LONGEST_LOCK = 5.0
"""s after :meth:`StateAdapter.quiesce` that a state is locked at most, whatever becomes of the
agent: one that is killed in mid-move leaves nothing locked."""

MAX_STATE = MAX_PART * MAX_PARTS
"""Bytes of an exported state at most: what agents carry from host to host."""


class StateError(M2MError):
    """The state of a session could not be locked, read or put in."""


class NoState(StateError):
    """The function knows nothing of this session: there is nothing to move."""


class Immovable(StateError):
    """The state exists, but would be wrong at any other host; the message says why."""


class NotLocked(StateError):
    """The state was never quiesced, or so long ago that the lock has ended."""


class BadState(StateError):
    """These bytes are not a state that can be put in here. Nothing was changed."""


class StateAdapter(ABC):
    """One network function's state, on this host.

    *flow* is always the supersession's, client to server. Calls for different flows may overlap.
    A call that is cancelled has happened or has not.
    """

    kind: ClassVar[str]
    """What states are of: only an adapter of the same kind can import them."""

    @abstractmethod
    async def quiesce(self, flow: Flow) -> None:
        """Lock the state: from now on no packet changes or uses it.

        The caller has seen to it that none is under way any more; one that comes all the same is
        dropped and counted. The lock ends with :meth:`release`, or by itself after
        :data:`LONGEST_LOCK`.

        Raises :exc:`NoState`, :exc:`Immovable`, or :exc:`StateError` when the state is locked
        already. The state is then as it was.
        """

    @abstractmethod
    async def export(self, flow: Flow) -> bytes:
        """All that another instance needs to go on, at most :data:`MAX_STATE` bytes.

        Raises :exc:`NotLocked` when the state is not quiesced, else as :meth:`quiesce`.
        """

    @abstractmethod
    async def import_(self, flow: Flow, state: bytes) -> None:
        """Put in what :meth:`export` gave elsewhere; what was here of this session is replaced.

        To be called before the session's packets come this way. Raises :exc:`BadState`, or
        :exc:`StateError` when this host refuses; either way the session is as it was here.
        """

    @abstractmethod
    async def release(self, flow: Flow, *, keep: bool) -> None:
        """The move is over: unlock, and without *keep* forget the session first.

        ``keep=False`` at the old instance after a move, and at the new one when a change is
        undone after the import; ``keep=True`` at the old one when it is undone. No error when
        there is no state or no lock (any more).
        """

    @abstractmethod
    async def close(self) -> None:
        """Unlock everything and let go."""
