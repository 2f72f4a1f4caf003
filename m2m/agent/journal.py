"""What happened at this agent: counters, set-up times, and events for whoever watches."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import AsyncIterator

import structlog
import trio

from m2m.agent.api import Event, EventKind, FlowInfo, format_session
from m2m.protocol.flow import Flow

__all__ = ["Journal"]

_log = structlog.get_logger()

_SET_UPS = 1024  # of which the times are remembered
_BACKLOG = 256  # events kept for a reader that is slow


class Journal:
    """Counts, logs and tells. Costs next to nothing while nobody watches."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.set_up_times: deque[float] = deque(maxlen=_SET_UPS)  # s, held to released
        self._readers: dict[trio.MemorySendChannel[Event], trio.MemoryReceiveChannel[Event]] = {}

    def tell(
        self, kind: EventKind, text: str, session: int | None = None, flow: Flow | None = None
    ) -> None:
        """Count an event and pass it to all readers."""
        self.counts[kind.value] += 1
        if not self._readers:
            return
        event = Event(
            time.time(),
            kind,
            text,
            None if session is None else format_session(session),
            None if flow is None else FlowInfo.of(flow),
        )
        for send, receive in self._readers.items():
            try:
                send.send_nowait(event)
            except trio.WouldBlock:  # the oldest one makes room
                receive.receive_nowait()
                send.send_nowait(event)

    async def events(self) -> AsyncIterator[Event]:
        """What happens from now on."""
        send, receive = trio.open_memory_channel[Event](_BACKLOG)
        self._readers[send] = receive
        try:
            while True:
                yield await receive.receive()
        finally:
            del self._readers[send]

    def percentile(self, share: float) -> float | None:
        """The set-up time in seconds that *share* of the remembered ones stayed within."""
        ordered = sorted(self.set_up_times)
        if not ordered:
            return None
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
