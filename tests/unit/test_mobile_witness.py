"""What nft, ss and the hosts say of sessions whose ends have moved."""

from __future__ import annotations

import msgspec

from m2m.lab.mobile_witness import (
    Left,
    nothing_left,
    read_nft,
    socket_pairs,
    unchanged_sockets,
)
from tests.support.mobile import FLOW, SERVER, UE

NFT = {
    "nftables": [
        {"metainfo": {"version": "1.0.6"}},
        {"counter": {"name": "known", "packets": 12, "bytes": 900}},
        {"counter": {"name": "strange", "packets": 0, "bytes": 0}},
        {"set": {"name": "flows", "elem": [
            {"concat": [UE, "tcp", 40000, SERVER, 7002]},
            {"elem": {"val": {"concat": [SERVER, "udp", 7001, UE, 50000]}, "timeout": 9}},
        ]}},
        {"chain": {"name": "forward"}},
    ]
}  # fmt: skip
SS = """\
0      0          10.1.0.2:40000    10.4.0.2:7002
0      64      10.1.0.2%cell-a:40001    10.4.0.2:22
0      0         10.1.0.2:40002    10.0.7.2:3010
"""


def test_counters_and_flows_of_nft() -> None:
    seen = read_nft(msgspec.json.encode(NFT).decode())
    assert (seen.known, seen.strange) == (12, 0)
    assert seen.flows == {FLOW, ("udp", SERVER, 7001, UE, 50000)}
    assert not read_nft('{"nftables": [{"set": {"name": "flows"}}]}').flows


def test_only_connections_to_the_labs_ports_are_looked_at() -> None:
    assert next(iter(socket_pairs(SS))) == f"{UE} {SERVER}"
    assert len(list(socket_pairs(SS))) == 2


def test_sockets_with_another_address_are_told() -> None:
    right = {"ue": {f"{UE} {SERVER}"}, "srv": {f"{SERVER} {UE}"}}
    assert unchanged_sockets(right, UE, SERVER).held
    moved = {**right, "srv": {f"{SERVER} 10.2.0.2"}}
    assert not unchanged_sockets(moved, UE, SERVER).held
    assert not unchanged_sockets({**right, "ue": set()}, UE, SERVER).held


def test_whatever_is_left_is_told() -> None:
    clean = Left("ue", 0, 0, (), ())
    assert nothing_left([clean, clean]).held
    for other in (
        Left("fw", 1, 0, (), ()), Left("fw", 0, 2, (), ()), Left("ue", 0, 0, (UE,), ()),
        Left("ue", 0, 0, (), ("all/arp_ignore:1",)),
    ):  # fmt: skip
        check = nothing_left([clean, other])
        assert not check.held and check.seen.startswith(other.host)
