"""What keeps packets in order while they change over: empty legs, and NF state that moves.

A leg is *empty* when as many wire packets have come by it as its other end says have gone. Some
may have been lost on the way, so it also is when nothing has come for a while. Counting, instead
of a marker behind the last packet, does without the network keeping order (§5.2 of the paper
assumes FIFO links; several queues of one network card are none).

State travels from the old host to its heir in parts that are acknowledged one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from m2m.protocol.events import Queued
from m2m.protocol.flow import Flow
from m2m.protocol.translation import Hook
from m2m.protocol.update import StatePart, parts_of

__all__ = ["Emptying", "Incoming", "Outgoing"]


class Emptying:
    """Looks at one entry's counter until no more is to come.

    ``delay`` is the time to the next look, in seconds; who waits for it sets it.
    """

    __slots__ = ("_given", "_quiet", "delay", "key", "limit", "seen", "target", "waited")

    def __init__(self, key: tuple[Hook, Flow], target: int | None, limit: float) -> None:
        self.key = key
        self.limit = limit  # s without a packet after which it counts as empty
        self.seen: int | None = None
        self.delay = 0.0
        self.waited = 0.0
        self.target = target
        self._quiet = 0.0
        self._given: dict[int, int] = {}  # to each queue, when it was first looked at

    def look(self, packets: int | None, at_most: float, queues: Sequence[Queued] = ()) -> bool:
        """Whether it is empty, now that its entry has seen *packets* (None: it is gone).

        It is not while something waits in *queues* that was put there before the first look.
        Others' packets come to them all the time, so they need not be found empty.
        """
        self.waited += self.delay
        waiting = [queue for queue in queues if self._waits_in(queue)]
        quiet = packets == self.seen and not waiting
        self._quiet = self._quiet + self.delay if quiet else 0.0
        self.delay = 0.0
        first, self.seen = self.seen is None, packets
        if packets is None or (self.target is not None and packets >= self.target):
            return True
        if first:
            return False
        return self._quiet >= self.limit - 1e-9 or self.waited >= at_most - 1e-9

    def _waits_in(self, queue: Queued) -> bool:
        given = self._given.setdefault(queue.number, queue.given)
        if _after(given, queue.given):
            return False  # another queue by now, with the number of one that is gone
        return _after(given, queue.done)


def _after(left: int, right: int) -> bool:
    return 0 < (left - right) & 0xFFFFFFFF < 1 << 31


class Outgoing:
    """An NF's state on its way to the heir."""

    __slots__ = ("_missing", "_parts")

    def __init__(self, state: bytes) -> None:
        """Raises :exc:`~m2m.protocol.wire.WireError` if it is too long."""
        self._parts = parts_of(state)
        self._missing = set(range(len(self._parts)))

    def acknowledged(self, part: int) -> None:
        """The heir has this part."""
        self._missing.discard(part)

    def to_send(self, session: int, change: int) -> Iterator[StatePart]:
        """What the heir has not acknowledged; its verdict is still out when it has everything,
        and then the last part asks for it."""
        last = len(self._parts) - 1
        for part in sorted(self._missing) or [last]:
            yield StatePart(session, change, part, len(self._parts), self._parts[part])


class Incoming:
    """An NF's state as it comes in."""

    __slots__ = ("_parts", "_received")

    def __init__(self, parts: int) -> None:
        self._parts = parts
        self._received: dict[int, bytes] = {}

    def add(self, message: StatePart) -> None:
        """A part has come, perhaps again."""
        if message.parts == self._parts:
            self._received.setdefault(message.part, message.data)

    @property
    def whole(self) -> bytes | None:
        """The state, once all parts are here."""
        if len(self._received) < self._parts:
            return None
        return b"".join(self._received[part] for part in range(self._parts))
