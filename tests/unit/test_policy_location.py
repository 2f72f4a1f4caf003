"""What of a policy set goes to which host."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from m2m.policy.compile import compile_policy
from m2m.policy.language import parse_source
from m2m.policy.location import AWAY_LOAD, favoured, instances_at, subset, with_loads
from m2m.policy.messages import Role
from m2m.policy.rules import PolicySet
from m2m.policy.source import Source
from m2m.protocol.flow import Flow, parse_address

TEXT = """
nf firewall inline { fw1 = 10.0.2.2 }
nf ids tap choose=least-loaded { ids1 = 10.0.3.2, ids2 = 10.0.3.3 }
nf proxy inline { px1 = 10.0.2.2, px2 = 10.0.3.2 }
match(srcip=10.0.1.0/24 & dstport=80) >> {firewall -> ids} fail=closed
match(srcip=10.0.9.0/24) >> {proxy} fail=open
match(dstport=443) >> {ids} fail=open
"""
POLICY = compile_policy(parse_source(Source("p", TEXT)), 7)


def address(text: str) -> bytes:
    return parse_address(text)


def names(policy: PolicySet) -> list[str]:
    return [nf.name for nf in policy.nfs]


def test_a_client_gets_the_rules_its_own_sessions_can_match_and_what_they_name() -> None:
    part = subset(POLICY, Role.CLIENT, [address("10.0.9.4")])
    assert [policy.id for policy in part.policies] == [1, 2]
    assert {rule.policy for rule in part.rules} == {1, 2}
    assert names(part) == ["ids", "proxy"]
    assert part.generation == 7
    assert len(next(nf for nf in part.nfs if nf.name == "ids").instances) == 2


def test_a_client_with_several_addresses_gets_the_rules_of_each() -> None:
    part = subset(POLICY, Role.CLIENT, [address("10.0.9.4"), address("10.0.1.1")])
    assert part == POLICY


def test_a_client_without_addresses_gets_nothing_but_the_generation() -> None:
    assert subset(POLICY, Role.CLIENT, []) == PolicySet(7, (), (), ())


def test_middleboxes_and_servers_get_everything_any_session_may_come_their_way() -> None:
    assert subset(POLICY, Role.MIDDLEBOX, [address("10.0.3.2")]) == POLICY
    assert subset(POLICY, Role.SERVER, []) == POLICY


@given(
    st.sampled_from(["10.0.0.255", "10.0.1.0", "10.0.1.255", "10.0.2.0", "10.0.9.1", "::1"]),
    st.integers(1, 65535),
    st.sampled_from([79, 80, 81, 443]),
)
def test_the_part_of_a_client_decides_over_its_sessions_as_the_whole(
    source: str, sport: int, dport: int
) -> None:
    flow = Flow.of(6, source, sport, "::9" if ":" in source else "10.0.4.2", dport)
    part = subset(POLICY, Role.CLIENT, [flow.src])

    def decider(policy: PolicySet) -> int | None:
        return next(
            (
                rule.policy
                for rule in policy.rules
                if rule.src_lo <= flow.src <= rule.src_hi
                and rule.dst_lo <= flow.dst <= rule.dst_hi
                and rule.sport_lo <= flow.sport <= rule.sport_hi
                and rule.dport_lo <= flow.dport <= rule.dport_hi
                and rule.proto_lo <= flow.proto <= rule.proto_hi
            ),
            None,
        )

    assert decider(part) == decider(POLICY)


def test_loads_go_only_to_types_that_choose_by_them() -> None:
    loaded = with_loads(POLICY, {address("10.0.3.2"): 4.0, address("10.0.2.2"): 9.0})
    assert [[one.load for one in nf.instances] for nf in loaded.nfs] == [
        [0.0],
        [4.0, AWAY_LOAD],
        [0.0, 0.0],
    ]


def test_the_least_loaded_are_favoured_and_ties_share() -> None:
    one, two = address("10.0.3.2"), address("10.0.3.3")
    assert favoured(with_loads(POLICY, {one: 4.0, two: 5.0})) == {("ids", "ids1")}
    assert favoured(with_loads(POLICY, {two: 5.0})) == {("ids", "ids2")}
    assert favoured(with_loads(POLICY, {})) == {("ids", "ids1"), ("ids", "ids2")}


def test_instances_are_named_by_type_and_name() -> None:
    assert instances_at(POLICY, [address("10.0.2.2")]) == ("firewall/fw1", "proxy/px1")
