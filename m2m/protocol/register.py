"""Which sessions are at a host, by everything that must tell them apart, and which were lately."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from types import MappingProxyType

from m2m.protocol.flow import Flow
from m2m.protocol.session import Session

__all__ = ["Register"]

_ENDED = 4096  # ids remembered, lest a late SYN bring one back


class Register:
    """The sessions of one host.

    A *listed* session has entries in the datapath, or will have them: no two listed ones share a
    left leg or a supersession. One that is closing is not listed but still has its id.
    """

    def __init__(self) -> None:
        self._by_id: dict[int, Session] = {}
        self._by_left: dict[Flow, Session] = {}
        self._by_supersession: dict[Flow, Session] = {}
        self._ended: set[int] = set()
        self._ended_order: deque[int] = deque()
        self.by_id: Mapping[int, Session] = MappingProxyType(self._by_id)

    def get(self, session: int) -> Session | None:
        """The session with this id, closing or not."""
        return self._by_id.get(session)

    def with_supersession(self, flow: Flow) -> Session | None:
        """The listed session of this supersession."""
        return self._by_supersession.get(flow)

    def with_left(self, leg: Flow) -> Session | None:
        """The listed session that has this left leg, or has it beside its own."""
        return self._by_left.get(leg)

    def rivals(self, session: Session) -> set[Session]:
        """Listed sessions that cannot be beside this one."""
        found = {self._by_supersession.get(session.supersession)}
        if session.left is not None:
            found.add(self._by_left.get(session.left))
        return {one for one in found if one is not None and one is not session}

    def list(self, session: Session) -> None:
        """Add a session, or add it again after its left leg has changed."""
        self._by_id[session.id] = session
        self._by_supersession[session.supersession] = session
        if session.left is not None:
            self._by_left[session.left] = session

    def unlist(self, session: Session) -> None:
        """Its entries are out of the datapath; keep only its id."""
        if self._by_supersession.get(session.supersession) is session:
            del self._by_supersession[session.supersession]
        if session.left is not None and self._by_left.get(session.left) is session:
            del self._by_left[session.left]

    def list_leg(self, leg: Flow, session: Session) -> None:
        """Packets of a second left leg are accepted for this session, too."""
        self._by_left[leg] = session

    def unlist_leg(self, leg: Flow, session: Session) -> None:
        """They are not any more."""
        if self._by_left.get(leg) is session:
            del self._by_left[leg]

    def forget(self, session: Session) -> None:
        """An unlisted session is gone. Its id is remembered for a while."""
        del self._by_id[session.id]
        self.remember_ended(session.id)
        if not self._by_id:  # give the memory of a busy day back, which deleting does not
            self._by_id.clear()
            self._by_left.clear()
            self._by_supersession.clear()

    def remember_ended(self, session: int) -> None:
        """A session with this id has been, here or elsewhere."""
        if session not in self._ended:
            self._ended.add(session)
            self._ended_order.append(session)
            if len(self._ended_order) > _ENDED:
                self._ended.remove(self._ended_order.popleft())

    def has_ended(self, session: int) -> bool:
        """Whether a session with this id ended lately."""
        return session in self._ended
