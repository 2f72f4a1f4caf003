"""What an agent tells about itself, in text."""

from __future__ import annotations

import msgspec
import pytest

from m2m.agent.api import (
    Direction,
    FlowInfo,
    HopReport,
    Role,
    SessionState,
    UnknownSession,
    describe_policy,
    format_session,
    parse_session,
)
from m2m.datapath import Counters
from m2m.policy.rules import Choose, Fail, Instance, Kind, NfType, Policy, PolicySet
from m2m.protocol.flow import Flow, parse_address

FLOW = Flow.of(6, "10.0.1.2", 43210, "10.0.4.2", 80)


@pytest.mark.parametrize(
    ("flow", "text"),
    [
        (FLOW, "10.0.1.2:43210 > 10.0.4.2:80 tcp"),
        (Flow.of(17, "2001:db8::1", 53, "::2", 5353), "[2001:db8::1]:53 > [::2]:5353 udp"),
        (Flow.of(132, "10.0.0.1", 1, "10.0.0.2", 2), "10.0.0.1:1 > 10.0.0.2:2 132"),
    ],
)  # fmt: skip
def test_a_flow_goes_to_text_and_back(flow: Flow, text: str) -> None:
    info = FlowInfo.of(flow)
    assert str(info) == text
    assert info.flow() == flow


def test_text_that_is_no_flow_is_refused() -> None:
    with pytest.raises(ValueError, match="sctp"):
        FlowInfo("sctp", "10.0.0.1", 1, "10.0.0.2", 2).flow()


@pytest.mark.parametrize("session", [1, 0xABC, (1 << 64) - 1])
def test_session_ids_go_to_text_and_back(session: int) -> None:
    text = format_session(session)
    assert len(text) == 16
    assert parse_session(text) == session


@pytest.mark.parametrize("text", ["", "0", "xyz", "-1", "+1", " 1", "1_0", "0x1", "1" + "0" * 16])
def test_what_is_no_session_id_is_refused(text: str) -> None:
    with pytest.raises(UnknownSession, match="16 hexadecimal digits"):
        parse_session(text)


def test_a_hop_report_survives_msgpack_and_json() -> None:
    seen = Direction.of(Counters(10, 1500, 4000000000, 0.25, True, False))
    report = HopReport(
        session=format_session(7), host="fw1", address="10.0.1.1", role=Role.MIDDLEBOX,
        position="inline", nf="firewall/fw1", state=SessionState.ESTABLISHED,
        supersession=FlowInfo.of(FLOW), left=FlowInfo.of(FLOW), right=None, to_server=seen,
        to_client=None, prev="10.0.1.2", next=None,
    )  # fmt: skip
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(report), type=HopReport) == report
    assert msgspec.json.decode(msgspec.json.encode(report), type=HopReport) == report
    assert seen == Direction(10, 1500, 4000000000, 0.25, fin=True, rst=False)


def test_a_policy_set_is_described_in_text() -> None:
    instance = Instance("fw1", parse_address("10.0.1.2"), 3.0)
    policies = PolicySet(
        5,
        (Policy(0, "match(dstport=80) >> {firewall}", 4, ("firewall",), Fail.CLOSED),),
        (),
        (NfType("firewall", Kind.INLINE, Choose.HASH, (instance,)),),
    )
    info = describe_policy(policies, server="ctl:5263", connected=True)
    assert (info.generation, info.server, info.connected, info.rules) == (5, "ctl:5263", True, 0)
    assert info.policies[0].fail == "closed"
    assert info.nfs[0].kind == "inline"
    assert info.nfs[0].instances[0].address == "10.0.1.2"
