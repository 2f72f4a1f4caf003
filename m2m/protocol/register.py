"""Which sessions are at a host, by everything that must tell them apart, and which were lately."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from types import MappingProxyType

from m2m.protocol.flow import Address, Flow
from m2m.protocol.session import Session
from m2m.protocol.translation import Position, SessionView

__all__ = ["Register"]

_ENDED = 4096  # ids remembered, lest a late SYN bring one back


class Register:
    """The sessions of one host.

    A *listed* session has entries in the datapath, or will have them: no two listed ones share a
    left leg, or the flow that this host's own stack sees: the supersession, unless a proxy here
    goes on with the session. One that is closing is not listed but still has its id.
    """

    def __init__(self) -> None:
        self._by_id: dict[int, Session] = {}
        self._by_former: dict[int, Session] = {}
        self._by_left: dict[Flow, Session] = {}
        self._by_flow: dict[Flow, Session] = {}
        self._at_proxy: dict[tuple[Address, int], list[Session]] = {}  # by the client's end
        self._ended: set[int] = set()
        self._ended_order: deque[int] = deque()
        self.by_id: Mapping[int, Session] = MappingProxyType(self._by_id)

    def get(self, session: int) -> Session | None:
        """The session with this id, closing or not."""
        return self._by_id.get(session)

    def called(self, name: int) -> Session | None:
        """The session that has this id, or has had it and may be called by it still."""
        return self._by_id.get(name) or self._by_former.get(name)

    def with_flow(self, flow: Flow) -> Session | None:
        """The listed session that this host's own stack sees as *flow*."""
        return self._by_flow.get(flow)

    def at_proxy(self, client: tuple[Address, int]) -> tuple[Session, ...]:
        """The listed halves at a proxy here of what begins at this address and port: those that
        come to it, and those by which it goes on."""
        return tuple(self._at_proxy.get(client, ()))

    def other_halves(self, half: SessionView) -> tuple[Session, ...]:
        """What a proxy here joins with this half."""
        both = self.at_proxy((half.supersession.src, half.supersession.sport))
        others = [one for one in both if (one.local is None) != (half.local is None)]
        same = [one for one in others if one.supersession == half.supersession]
        return tuple(same or others)  # a balancer goes on to another server

    def with_left(self, leg: Flow) -> Session | None:
        """The listed session that has this left leg, or has it beside its own."""
        return self._by_left.get(leg)

    def rivals(self, session: Session) -> set[Session]:
        """Listed sessions that cannot be beside this one."""
        found = {self._by_flow.get(session.here)}
        if session.left is not None:
            found.add(self._by_left.get(session.left))
        return {one for one in found if one is not None and one is not session}

    def list(self, session: Session) -> None:
        """Add a session, or add it again after its left leg has changed."""
        self._by_id[session.id] = session
        self._by_flow[session.here] = session
        if session.left is not None:
            self._by_left[session.left] = session
        if _is_half(session):
            both = self._at_proxy.setdefault(_client_of(session), [])
            if session not in both:
                both.append(session)

    def unlist(self, session: Session) -> None:
        """Its entries are out of the datapath; keep only its id."""
        if self._by_flow.get(session.here) is session:
            del self._by_flow[session.here]
        if session.left is not None and self._by_left.get(session.left) is session:
            del self._by_left[session.left]
        if _is_half(session):
            client = _client_of(session)
            both = [one for one in self._at_proxy.pop(client, []) if one is not session]
            if both:
                self._at_proxy[client] = both

    def list_leg(self, leg: Flow, session: Session) -> None:
        """Packets of a second left leg are accepted for this session, too."""
        self._by_left[leg] = session

    def unlist_leg(self, leg: Flow, session: Session) -> None:
        """They are not any more."""
        if self._by_left.get(leg) is session:
            del self._by_left[leg]

    def rename(self, session: Session, name: int) -> None:
        """Give it another id."""
        del self._by_id[session.id]
        self.remember_ended(session.id)
        session.id = name
        self._by_id[name] = session

    def list_name(self, former: int, session: Session) -> None:
        """Others may call it so still."""
        self._by_former[former] = session

    def unlist_name(self, former: int) -> None:
        """Nobody does any more."""
        self._by_former.pop(former, None)

    def forget(self, session: Session) -> None:
        """An unlisted session is gone. Its id is remembered for a while."""
        del self._by_id[session.id]
        self.remember_ended(session.id)
        if not self._by_id:  # give the memory of a busy day back, which deleting does not
            self._by_id.clear()
            self._by_left.clear()
            self._by_flow.clear()
            self._at_proxy.clear()

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


def _is_half(session: Session) -> bool:
    return session.local is not None or session.position is Position.PROXY


def _client_of(session: Session) -> tuple[Address, int]:
    return session.supersession.src, session.supersession.sport
