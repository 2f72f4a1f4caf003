"""The transactions that lock and unlock; what they do to packets is in tests/netns."""

from __future__ import annotations

import struct

from pyroute2.netlink.nfnetlink.nftsocket import (
    NFT_MSG_DELSETELEM,
    NFT_MSG_NEWSETELEM,
    nft_set_elem_list_msg,
)

from m2m.protocol.flow import Flow, Proto
from nf_adapters.state import LONGEST_LOCK
from nf_adapters.state.lock import _batch

FLOW = Flow.of(Proto.UDP, "10.0.0.1", 0x1234, "10.0.0.2", 53)
KEY = bytes([10, 0, 0, 1, 10, 0, 0, 2, 17, 0, 0, 0, 0x12, 0x34, 0, 0, 0, 53, 0, 0])
BACK = bytes([10, 0, 0, 2, 10, 0, 0, 1, 17, 0, 0, 0, 0, 53, 0, 0, 0x12, 0x34, 0, 0])


def messages(batch: bytes) -> list[tuple[int, bytes]]:
    """Type and text of each message."""
    found = []
    while batch:
        length, kind = struct.unpack_from("=IH", batch)
        found.append((kind, batch[:length]))
        batch = batch[(length + 3) & ~3 :]
    return found


def elements(text: bytes) -> list[tuple[bytes, int | None]]:
    """Key and timeout in ms of each element."""
    message = nft_set_elem_list_msg(text)
    message.decode()
    return [
        (
            element.get_attr("NFTA_SET_ELEM_KEY").get_attr("NFTA_DATA_VALUE"),
            element.get_attr("NFTA_SET_ELEM_TIMEOUT"),
        )
        for element in message.get_attr("NFTA_SET_ELEM_LIST_ELEMENTS")
    ]


def test_both_directions_are_locked_for_a_bounded_time() -> None:
    (begin, _), (kind, text), (end, _) = messages(_batch(NFT_MSG_NEWSETELEM, 0, 1, FLOW))
    assert (begin, kind, end) == (16, 10 << 8 | NFT_MSG_NEWSETELEM, 17)
    assert elements(text) == [(KEY, LONGEST_LOCK * 1000), (BACK, LONGEST_LOCK * 1000)]


def test_both_directions_are_unlocked() -> None:
    _, (_, text), _ = messages(_batch(NFT_MSG_DELSETELEM, 0, 1, FLOW))
    assert elements(text) == [(KEY, None), (BACK, None)]
