"""Gateways in a policy: what may be written, and what it means for chains and held packets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2m.agent.chain import Chains
from m2m.agent.journal import Journal
from m2m.datapath._core import RuleTable
from m2m.policy.choose import ChainError
from m2m.policy.compile import compile_policy, evaluate
from m2m.policy.gateways import gateway_of, of_served_clients, served_by
from m2m.policy.language import PolicyError, parse
from m2m.policy.location import subset
from m2m.policy.messages import Role
from m2m.policy.rules import PolicySet
from m2m.protocol.flow import Address, Flow, format_address, parse_address

TEXT = """
gateway near = 10.0.1.2 serves 10.1.0.0/24, 10.3.0.7
nf edge inline { n = 10.0.1.2 }
nf fw inline { f = 10.0.3.2 }
nf ids tap { i = 10.0.4.2 }
nf border inline { b = 10.0.6.2 }
match(dstport=80) >> {fw -> ids}
match(dstport=81) >> {edge -> ids -> border}
match(dstport=82) >> {edge -> border}
match(srcip=10.1.0.0-10.1.0.9 | srcip=10.9.0.0/16) >> {fw}
gateway far = 10.0.6.2 serves 10.2.0.0/24
"""
POLICY = compile_policy(parse(TEXT))
PHONE, WEB, SERVER, UE = "10.1.0.2", "10.2.0.2", "10.0.7.2", "10.0.2.2"
NEAR, FAR = parse_address("10.0.1.2"), parse_address("10.0.6.2")


def chains_of(policy: PolicySet, at: tuple[Address, ...]) -> Chains:
    """Those of a gateway that has these addresses, or of another host."""
    chains = Chains(Journal(), lambda: at, lambda: ())
    chains.load(policy, RuleTable(policy))
    return chains


def hosts(src: str, dst: str, port: int, at: tuple[Address, ...] = ()) -> list[str]:
    flow = Flow.of(6, src, 40000, dst, port)
    policy = evaluate(POLICY, flow)
    assert policy is not None
    chains = chains_of(POLICY, at)
    hops = chains.hops(policy, flow)
    assert chains.types_to_pass(policy, flow) == tuple(hop.nf for hop in hops[:-1])
    return [f"{hop.nf or 'end'} {format_address(hop.address)}" for hop in hops]


def test_a_chain_ends_at_the_servers_gateway() -> None:
    assert hosts(UE, WEB, 80) == ["fw 10.0.3.2", "ids 10.0.4.2", "end 10.0.6.2"]
    assert hosts(UE, SERVER, 80) == ["fw 10.0.3.2", "ids 10.0.4.2", "end 10.0.7.2"]
    assert hosts(PHONE, WEB, 80, (NEAR,)) == ["fw 10.0.3.2", "ids 10.0.4.2", "end 10.0.6.2"]


def test_what_is_in_the_way_already_needs_no_leg() -> None:
    assert hosts(PHONE, WEB, 81, (NEAR,)) == ["ids 10.0.4.2", "end 10.0.6.2"]
    assert hosts(UE, WEB, 81) == ["edge 10.0.1.2", "ids 10.0.4.2", "end 10.0.6.2"]
    assert hosts(PHONE, WEB, 82, (NEAR,)) == ["end 10.0.6.2"]
    assert hosts(PHONE, SERVER, 82, (NEAR,)) == ["border 10.0.6.2", "end 10.0.7.2"]


def test_both_ends_behind_one_gateway() -> None:
    with pytest.raises(ChainError, match=r"both behind the gateway 10\.0\.1\.2.*ids -> border"):
        hosts(PHONE, "10.1.0.3", 81, (NEAR,))
    alone = compile_policy(parse(TEXT.replace("{edge -> border}", "{edge}")))
    flow = Flow.of(6, PHONE, 40000, "10.3.0.7", 82)
    policy = evaluate(alone, flow)
    assert policy is not None
    assert chains_of(alone, (NEAR,)).hops(policy, flow) == ()  # its own NF sees it in passing


def test_who_is_served_by_whom() -> None:
    for address, name in ((PHONE, "near"), ("10.3.0.7", "near"), (WEB, "far"), (UE, None)):
        found = gateway_of(POLICY, parse_address(address))
        assert (found.name if found else None) == name
    assert len(served_by(POLICY, (NEAR,))) == 2
    assert served_by(POLICY, (parse_address(UE),)) == ()


def test_clients_know_all_gateways() -> None:
    assert subset(POLICY, Role.CLIENT, [parse_address(UE)]).gateways == POLICY.gateways
    assert subset(POLICY, Role.GATEWAY, [NEAR]) == POLICY


@given(
    src=st.sampled_from([f"10.{a}.0.{b}" for a in (0, 1, 2, 3, 9) for b in (2, 7, 8, 9, 10)]),
    port=st.integers(79, 83),
)
def test_a_gateway_holds_what_its_clients_begin_and_nothing_else(src: str, port: int) -> None:
    held: PolicySet = of_served_clients(POLICY, (NEAR,))
    flow = Flow.of(6, src, 40000, SERVER, port)
    served = any(flow.src in network for network in served_by(POLICY, (NEAR,)))
    assert evaluate(held, flow) == (evaluate(POLICY, flow) if served else None)
    assert of_served_clients(POLICY, ()).rules == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gateway g = 10.0.0.1", "expected 'serves'"),
        ("gateway g = 10.0.0.0/24 serves 10.1.0.0/24", "an instance runs on one host"),
        ("gateway g = 10.0.0.1 serves 10.1.0.0/33", "10.1.0.0/33"),
        ("gateway G = 10.0.0.1 serves 10.1.0.0/24", "a name for a gateway"),
        ("gateway g = 10.0.0.1 serves 2001:db8::/32", "declare another gateway for it"),
        ("gateway g = 10.0.0.1 serves 10.1.0.0/24, 10.1.0.7", "g serves a part"),
        (
            "gateway g = 10.0.0.1 serves 10.1.0.0/24 gateway h = 10.0.0.2 serves 10.0.0.0/8",
            "g serves a part",
        ),
        (
            "gateway g = 10.0.0.1 serves 10.1.0.0/24\ngateway g = 10.0.0.2 serves 10.2.0.0/24",
            "a new name for a gateway",
        ),
        (
            "gateway g = 10.0.0.1 serves 10.1.0.0/24\ngateway h = 10.0.0.1 serves 10.2.0.0/24",
            "a new address for a gateway",
        ),
    ],
)
def test_what_cannot_be_is_named(text: str, said: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse(text)
    assert said in str(caught.value), caught.value
