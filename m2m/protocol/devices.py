"""What a host remembers of a session's ends: their devices, and how often they have moved."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

from m2m.identity import ANONYMOUS, DEVICE_SIZE
from m2m.protocol.flow import Flow
from m2m.protocol.rebind import End
from m2m.protocol.session import Session
from m2m.protocol.translation import Position

__all__ = [
    "MAX_NUMBER", "NOTE_SIZE", "device_of", "former_note", "half_note", "has_moved", "is_open",
    "names_in", "note_of", "number_of", "open_note_of", "read_note", "set_device", "set_number",
    "set_rebound",
]  # fmt: skip

_NOTE = struct.Struct(f"!{DEVICE_SIZE}s{DEVICE_SIZE}sII")
NOTE_SIZE: Final = _NOTE.size
MAX_NUMBER: Final = 0xFFFFFFFF
# Each of two devices that nobody has.
_HALF: Final = b"\xff" * 2 * DEVICE_SIZE
_FORMER: Final = b"\xfe" * 2 * DEVICE_SIZE


def device_of(session: Session, end: End) -> bytes:
    """The device of one end of the session."""
    return session.client if end is End.CLIENT else session.server


def number_of(session: Session, end: End) -> int:
    """The number of that end's last move."""
    return session.moves[end]


def has_moved(session: Session) -> bool:
    """Whether it begins at this host, which had another address then."""
    return session.position is Position.CLIENT and number_of(session, End.CLIENT) > 0


def set_number(session: Session, end: End, number: int) -> None:
    """It has moved."""
    client, server = session.moves
    session.moves = (number, server) if end is End.CLIENT else (client, number)


def set_device(session: Session, end: End, device: bytes) -> None:
    """That end of the session belongs to *device*."""
    if end is End.CLIENT:
        session.client = device
    else:
        session.server = device


def set_rebound(session: Session, end: End, leg: Flow) -> None:
    """*leg* leads to that end."""
    client, server = session.rebound
    session.rebound = (leg, server) if end is End.CLIENT else (client, leg)


def note_of(session: Session) -> bytes:
    """What is kept of this in the kernel, :data:`NOTE_SIZE` bytes."""
    return _NOTE.pack(session.client, session.server, *session.moves)


def open_note_of(session: Session, end: End) -> bytes:
    """The same of an end that is being handed over, here or to here: whose it is, is left open."""
    devices = [session.client, session.server]
    devices[end] = ANONYMOUS
    return _NOTE.pack(*devices, *session.moves)


def is_open(note: bytes, *ends: End) -> bool:
    """Whether a note leaves open whose one of these *ends* is."""
    return len(note) == NOTE_SIZE and ANONYMOUS in (_NOTE.unpack(note)[end] for end in ends)


def open_number(note: bytes) -> int:
    """The number of the last move of the end that a note leaves open."""
    client, _, *moves = _NOTE.unpack(note)
    number: int = moves[End.CLIENT if client == ANONYMOUS else End.SERVER]
    return number


def half_note(name: int) -> bytes:
    """What is kept under the name of a right half where a proxy has left: the session is called
    *name* now."""
    return _HALF + name.to_bytes(NOTE_SIZE - len(_HALF))


def former_note(name: int) -> bytes:
    """What is kept under the former name of a session that is called *name* now, while the right
    neighbour may know no other one."""
    return _FORMER + name.to_bytes(NOTE_SIZE - len(_FORMER))


def names_in(notes: Mapping[int, bytes]) -> tuple[dict[int, int], dict[int, int]]:
    """The inverses of :func:`half_note` and of :func:`former_note`: under which names such notes
    are kept, and what is in them."""
    found: dict[bytes, dict[int, int]] = {_HALF: {}, _FORMER: {}}
    for kept, note in notes.items():
        names = found.get(note[: len(_HALF)])
        if names is not None:
            names[kept] = int.from_bytes(note[len(_HALF) :])
    return found[_HALF], found[_FORMER]


def read_note(session: Session, note: bytes) -> None:
    """The inverse of :func:`note_of`; what is no note says nothing."""
    if len(note) == NOTE_SIZE:
        session.client, session.server, first, second = _NOTE.unpack(note)
        session.moves = first, second
