"""Packed structures of ``kmod/core``, filled in by name at the offsets that C itself reports."""

from __future__ import annotations

import sys

from m2m.datapath import _core
from m2m.protocol.flow import Flow
from m2m.protocol.translation import Action, Hook, Position, Toward

IPV4 = b"\0" * 10 + b"\xff\xff"
LAYOUT = _core.layout()


def pack(structure: str, **fields: int | bytes) -> bytes:
    """*structure* with these fields, all others zero. Numbers are in the machine's order."""
    size, places = LAYOUT[structure]
    data = bytearray(size)
    for name, value in fields.items():
        offset, length = places[name]
        raw = value if isinstance(value, bytes) else value.to_bytes(length, sys.byteorder)
        assert len(raw) == length, (structure, name, len(raw), length)
        data[offset : offset + length] = raw
    return bytes(data)


def field(structure: str, data: bytes, name: str) -> int:
    """A number out of a packed structure."""
    return int.from_bytes(raw_field(structure, data, name), sys.byteorder)


def raw_field(structure: str, data: bytes, name: str) -> bytes:
    """A field out of a packed structure, as it lies there."""
    offset, length = LAYOUT[structure][1][name]
    return data[offset : offset + length]


def key(hook: Hook, flow: Flow) -> bytes:
    """``struct m2m_key``: the flow's 40 bytes, the hook in the first pad byte."""
    packed = bytearray(flow.pack())
    packed[37] = hook
    return bytes(packed)


def entry(
    match_hook: Hook, match: Flow, rewrite: Flow, *, action: Action = Action.DELIVER,
    toward: Toward = Toward.RIGHT, position: Position = Position.SERVER, **fields: int | bytes,
) -> bytes:  # fmt: skip
    """``struct m2m_entry`` that rewrites *match* to *rewrite*, sealed for its key."""
    raw = pack(
        "m2m_entry", src=rewrite.src[12:], dst=rewrite.dst[12:],
        sport=rewrite.sport.to_bytes(2, "big"), dport=rewrite.dport.to_bytes(2, "big"),
        role=action | toward << 2 | position << 3, **fields,
    )  # fmt: skip
    return _core.seal(key(match_hook, match), raw)


def translation(
    hook: Hook, match: Flow, rewrite: Flow, *, action: Action = Action.DELIVER,
    **fields: int | bytes,
) -> _core.Translation:  # fmt: skip
    """The entry, ready to judge and rewrite."""
    packed = entry(hook, match, rewrite, action=action, **fields)
    return _core.Translation(key(hook, match), packed)
