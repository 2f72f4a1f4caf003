"""Entries as ctnetlink's messages; what the kernel does with them is in tests/netns."""

from __future__ import annotations

from typing import Any

import pytest
from pyroute2.netlink.nfnetlink.nfctsocket import (
    IP_CT_TCP_FLAG_BE_LIBERAL,
    IP_CT_TCP_FLAG_DATA_UNACKNOWLEDGED,
    IP_CT_TCP_FLAG_MAXACK_SET,
    IPS_ASSURED,
    IPS_CONFIRMED,
    IPS_DST_NAT,
    IPS_DST_NAT_DONE,
    IPS_EXPECTED,
    IPS_OFFLOAD,
    IPS_SEEN_REPLY,
    IPS_SEQ_ADJUST,
    IPS_SRC_NAT,
    IPS_SRC_NAT_DONE,
)

from m2m.protocol.flow import Flow, Proto
from nf_adapters.state.ctnetlink import _attributes, _decode, _encode, _Message, _nest, _tuple
from nf_adapters.state.entry import Entry, Tcp, TcpSide

FLOW = Flow.of(Proto.TCP, "10.0.0.1", 40000, "10.0.0.2", 80)
STATUS = IPS_CONFIRMED | IPS_SEEN_REPLY | IPS_ASSURED
ENTRY = Entry(
    FLOW,
    STATUS,
    432000,
    Tcp(4, TcpSide(7, 7), TcpSide(14, 3)),
    mark=0x80000001,
    labels=bytes([*range(1, 9), *range(248, 256)]),
    zone=9,
    helper="ftp",
)


def told(**changed: Any) -> bytes:
    """The message that tells of ENTRY, altered."""
    return _encode(0, 0, 1, _attributes(ENTRY) | changed)


def test_an_entry_reads_as_it_was_written() -> None:
    found = _decode(told())
    assert found == (ENTRY, None)
    bare = Entry(FLOW._replace(proto=Proto.UDP), IPS_CONFIRMED, 30)
    assert _decode(_encode(0, 0, 1, _attributes(bare))) == (bare, None)


def test_a_written_entry_is_liberal_and_claims_no_sequence_numbers() -> None:
    message = _Message(told())
    message.decode()
    tcp = message.get_attr("CTA_PROTOINFO").get_attr("CTA_PROTOINFO_TCP")
    for name, side in (("ORIGINAL", 7), ("REPLY", 3)):
        value, mask = tcp.get_attr(f"CTA_PROTOINFO_TCP_FLAGS_{name}")
        assert value == side | IP_CT_TCP_FLAG_BE_LIBERAL
        assert mask & IP_CT_TCP_FLAG_MAXACK_SET


def test_flags_about_sequence_numbers_are_not_read() -> None:
    about = IP_CT_TCP_FLAG_MAXACK_SET | IP_CT_TCP_FLAG_DATA_UNACKNOWLEDGED
    flags = {"value": (3 | about, 0)}
    tcp = _nest(
        CTA_PROTOINFO_TCP_STATE=3,
        CTA_PROTOINFO_TCP_WSCALE_ORIGINAL=1,
        CTA_PROTOINFO_TCP_WSCALE_REPLY=2,
        CTA_PROTOINFO_TCP_FLAGS_ORIGINAL=flags,
        CTA_PROTOINFO_TCP_FLAGS_REPLY=flags,
    )
    entry = _decode(told(protoinfo=_nest(CTA_PROTOINFO_TCP=tcp))).entry
    assert entry.tcp == Tcp(3, TcpSide(1, 3), TcpSide(2, 3))


@pytest.mark.parametrize("timeout", [0, 1])
def test_the_last_second_can_be_imported(timeout: int) -> None:
    assert _decode(told(timeout=timeout)).entry.timeout == 1


@pytest.mark.parametrize(
    ("status", "why"),
    [
        (IPS_SRC_NAT, "NAT"),
        (IPS_DST_NAT, "NAT"),
        (IPS_SEQ_ADJUST, "sequence numbers"),
        (IPS_EXPECTED, "belongs to another connection"),
        (IPS_OFFLOAD, "flowtable"),
        (1 << 15, "flowtable"),
    ],
)
def test_what_cannot_be_moved_is_told(status: int, why: str) -> None:
    obstacle = _decode(told(status=STATUS | status)).obstacle
    assert obstacle is not None
    assert why in obstacle


def test_nat_that_changed_nothing_is_no_obstacle() -> None:
    found = _decode(told(status=STATUS | IPS_SRC_NAT_DONE | IPS_DST_NAT_DONE))
    assert found == (ENTRY, None)


def test_replies_to_another_address_are_nat() -> None:
    elsewhere = Flow.of(Proto.TCP, "10.0.0.2", 80, "192.0.2.1", 40000)
    obstacle = _decode(told(tuple_reply=_tuple(elsewhere))).obstacle
    assert obstacle is not None
    assert "NAT" in obstacle
