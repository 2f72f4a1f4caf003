"""The bytes of a moved conntrack entry: what is exported can be imported, and nothing else can."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.nfnetlink.nfctsocket import IPS_CONFIRMED, IPS_SEEN_REPLY, IPS_SRC_NAT

from m2m.protocol.flow import Flow, Proto
from nf_adapters.state import BadState
from nf_adapters.state.entry import (
    KIND,
    MAX_SIZE,
    STATUS,
    TCP_FLAGS,
    VERSION,
    Entry,
    Tcp,
    TcpSide,
    decode,
    encode,
)

FLOW = Flow.of(Proto.TCP, "10.0.0.1", 40000, "10.0.0.2", 80)
UDP = FLOW._replace(proto=Proto.UDP)
TCP = Tcp(3, TcpSide(7, 3), TcpSide(14, 7))
ENTRY = Entry(FLOW, IPS_CONFIRMED | IPS_SEEN_REPLY, 432000, TCP)


def subsets(bits: int) -> st.SearchStrategy[int]:
    return st.integers(0, bits).map(lambda number: number & bits)


sides = st.builds(TcpSide, scale=st.integers(0, 14), flags=subsets(TCP_FLAGS))
tcps = st.builds(Tcp, state=st.integers(1, 9), original=sides, reply=sides)


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    flow = draw(st.sampled_from([FLOW, FLOW.reverse(), UDP, UDP.reverse()]))
    return Entry(
        flow=flow,
        status=draw(subsets(STATUS)) | IPS_CONFIRMED,
        timeout=draw(st.integers(1, 2**31 - 1)),
        tcp=draw(tcps) if flow.proto == Proto.TCP else None,
        mark=draw(st.integers(0, 2**32 - 1)),
        labels=draw(st.binary(max_size=16)),
        zone=draw(st.integers(0, 2**16 - 1)),
        helper=draw(st.text(st.characters(codec="ascii", categories=["L", "N"]), max_size=15)),
    )


@given(entries())
def test_what_is_exported_can_be_imported(entry: Entry) -> None:
    state = encode(entry)
    assert len(state) <= MAX_SIZE
    flow = FLOW if entry.flow.proto == Proto.TCP else UDP
    assert decode(state, flow) == entry
    assert decode(state, flow.reverse()) == entry


@given(st.binary(max_size=MAX_SIZE + 8))
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises(BadState, match="cannot be imported"):
        decode(noise, FLOW)


@given(st.data())
def test_a_damaged_state_is_refused_or_within_bounds(data: st.DataObject) -> None:
    state = bytearray(encode(ENTRY))
    at = data.draw(st.integers(0, len(state) - 1))
    state[at] = data.draw(st.integers(0, 255))
    try:
        entry = decode(bytes(state), FLOW)
    except BadState:
        return
    assert decode(encode(entry), FLOW) == entry


@pytest.mark.parametrize("cut", [1, 10, len(encode(ENTRY)) - 1])
def test_a_cut_state_is_refused(cut: int) -> None:
    with pytest.raises(BadState, match="truncated"):
        decode(encode(ENTRY)[:cut], FLOW)


def test_bytes_after_the_state_are_refused() -> None:
    with pytest.raises(BadState, match="trailing"):
        decode(encode(ENTRY) + b"\0", FLOW)


def test_too_many_bytes_are_refused() -> None:
    with pytest.raises(BadState, match="513 bytes"):
        decode(bytes(MAX_SIZE + 1), FLOW)


def altered(**changed: Any) -> bytes:
    """An entry's encoding with fields of any value."""
    fields = msgspec.to_builtins(ENTRY, builtin_types=(bytes,)) | changed
    return msgspec.msgpack.encode([KIND, VERSION, fields])


SIDE = {"scale": 7, "flags": 0}


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"timeout": 0}, r"timeout"),
        ({"timeout": 2**31}, r"timeout"),
        ({"status": 1 << 32}, r"status"),
        ({"status": IPS_CONFIRMED | IPS_SRC_NAT}, "never moved"),
        ({"status": IPS_SEEN_REPLY}, "in the making"),
        ({"mark": 2**32}, "mark"),
        ({"mark": -1}, "mark"),
        ({"zone": 2**16}, "zone"),
        ({"labels": bytes(17)}, "labels"),
        ({"helper": "x" * 16}, "helper"),
        ({"helper": "a\0b"}, "helper"),
        ({"tcp": None}, "a TCP state belongs to TCP"),
        ({"tcp": {"state": 0, "original": SIDE, "reply": SIDE}}, r"tcp.state"),
        ({"tcp": {"state": 10, "original": SIDE, "reply": SIDE}}, r"tcp.state"),
        ({"tcp": {"state": 3, "original": SIDE | {"scale": 15}, "reply": SIDE}}, "original.scale"),
        ({"tcp": {"state": 3, "original": SIDE, "reply": SIDE | {"flags": 0x28}}}, "reply.flags"),
        ({"flow": list(UDP)}, "of another session"),
        ({"flow": list(FLOW._replace(sport=1))}, "of another session"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_values_out_of_bounds_are_named(changed: dict[str, Any], complaint: str) -> None:
    assert decode(altered(), FLOW) == ENTRY
    with pytest.raises(BadState, match=complaint):
        decode(altered(**changed), FLOW)


def test_udp_has_no_tcp_state() -> None:
    with pytest.raises(BadState, match="a TCP state belongs to TCP"):
        decode(altered(flow=list(UDP)), UDP)


def test_other_kinds_and_versions_are_named() -> None:
    fields = msgspec.to_builtins(ENTRY, builtin_types=(bytes,))
    with pytest.raises(BadState, match="of kind 'ids'"):
        decode(msgspec.msgpack.encode(["ids", VERSION, fields]), FLOW)
    with pytest.raises(BadState, match="of version 2, and only version 1"):
        decode(msgspec.msgpack.encode([KIND, 2, {"anything": "else"}]), FLOW)
    with pytest.raises(BadState):
        decode(msgspec.msgpack.encode([KIND, VERSION, fields, "more"]), FLOW)
