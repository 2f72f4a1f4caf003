"""Messages between a proxy's process and its host's agent (``wire.h``), as bytes and back."""

from enum import IntEnum
from typing import Final, NamedTuple

from m2m.protocol.flow import Flow

SIZE: Final[int]
"""Bytes of every message."""

PATIENCE: Final[float]
"""Seconds that a process waits for an answer."""

class Kind(IntEnum):
    """What a message says."""

    ACCEPTED = ...
    CONNECTING = ...
    REVOKED = ...
    FOUND = ...
    UNKNOWN = ...
    READY = ...
    REFUSED = ...
    GONE = ...

class Message(NamedTuple):
    """One message; ``wire.h`` says what each kind has in it."""

    kind: Kind
    number: int
    session: int = 0
    flow: Flow | None = None
    text: str = ""

def encode(message: Message) -> bytes:
    """A text that is too long is cut."""

def decode(data: bytes) -> Message:
    """The inverse of :func:`encode`. Raises :class:`ValueError` telling what is wrong."""
