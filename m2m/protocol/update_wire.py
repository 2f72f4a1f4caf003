"""The parts of the messages that change chains, in their order on the wire (wire-format.md)."""

from __future__ import annotations

from typing import Any, Final

from m2m.protocol.update import (
    Approve,
    Done,
    Join,
    Joined,
    Lock,
    Reject,
    Request,
    StateAck,
    StatePart,
    UpdateAck,
    UpdateAsk,
    UpdateDrain,
    UpdateDrained,
    UpdateEmpty,
    UpdateFin,
    UpdateFinAck,
    UpdateReject,
    UpdateSub,
    UpdateSubAck,
    UpdateSyn,
    UpdateSynAck,
)

__all__ = ["LAYOUTS"]

LAYOUTS: Final[tuple[tuple[int, type[Any], str], ...]] = (
    (
        16, UpdateSyn,
        ("subsession:flow change:change mode:mode leader:address supersession:flow hops:hops "
         "right:address mtu:mtu policy:u32 generation:u32 client:device server:device"),
    ),
    (17, UpdateSynAck, "change:change mtu:mtu splice:splice"),
    (18, UpdateAck, "subsession:flow change:u64 hops:u8"),
    (19, UpdateFin, "subsession:flow change:u64 count:count"),
    (20, UpdateFinAck, "subsession:flow change:u64 count:count held:u32"),
    (21, UpdateAsk, "subsession:flow change:u64"),
    (22, UpdateReject, "change:change cause:cause text:text blame:blame"),
    (
        23, Lock,
        ("subsession:flow change:change mode:mode leader:address steps:steps right:address "
         "splice:splice"),
    ),
    (24, UpdateSub, "change:change"),
    (25, UpdateSubAck, "change:change"),
    (26, UpdateDrain, "subsession:flow change:change count:count"),
    (27, UpdateDrained, "subsession:flow change:change count:count"),
    (28, StatePart, "change:change part:part parts:parts data:data"),
    (29, StateAck, "change:change part:u8 progress:progress"),
    (
        30, Request,
        "change:change mode:mode steps:steps right:address hops:hops added:splice",
    ),
    (31, Approve, "change:change"),
    (32, Reject, "change:change cause:cause text:text blame:blame"),
    (33, Done, "change:change held:u32 gone:bool"),
    (34, UpdateEmpty, "subsession:flow change:change"),
    (35, Join, "subsession:flow change:change name:change device:device mtu:mtu"),
    (36, Joined, "subsession:flow change:change"),
)  # fmt: skip
"""Type, message, and its parts as :class:`m2m.protocol._codec.Codec` takes them."""
