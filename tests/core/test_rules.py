"""Rule tables in C against the same rules read in Python."""

from hypothesis import given
from hypothesis import strategies as st

from m2m.datapath._core import RuleTable
from m2m.policy.compile import compile_policy, evaluate
from m2m.policy.language import parse
from m2m.policy.rules import EMPTY, FlatRule, PolicySet
from m2m.protocol.flow import Flow, parse_address

# Few values, so that bounds are hit often.
address = st.sampled_from(
    [parse_address(text) for text in ("10.0.0.0", "10.0.0.1", "10.0.1.0", "192.0.2.1")]
    + [parse_address("2001:db8::1"), b"\0" * 16, b"\xff" * 16, b"\0" * 8 + b"\xff" * 8]
) | st.binary(min_size=16, max_size=16)
port = st.sampled_from([0, 1, 79, 80, 81, 255, 256, 65534, 65535])
proto = st.sampled_from([0, 6, 17, 255])
flows = st.builds(Flow, proto, address, port, address, port)


def bounds(values: st.SearchStrategy) -> st.SearchStrategy:
    return st.tuples(values, values).map(sorted)


@st.composite
def rules(draw: st.DrawFn) -> FlatRule:
    values = [draw(bounds(kind)) for kind in (address, address, port, port, proto)]
    return FlatRule(draw(st.integers(0, 5)), *(end for pair in values for end in pair))


def holds(rule: FlatRule, flow: Flow) -> bool:
    return (
        rule.src_lo <= flow.src <= rule.src_hi
        and rule.dst_lo <= flow.dst <= rule.dst_hi
        and rule.sport_lo <= flow.sport <= rule.sport_hi
        and rule.dport_lo <= flow.dport <= rule.dport_hi
        and rule.proto_lo <= flow.proto <= rule.proto_hi
    )


def policy_set(table: list[FlatRule]) -> PolicySet:
    return PolicySet(generation=1, policies=(), rules=tuple(table), nfs=())


@given(st.lists(rules(), max_size=6), flows)
def test_the_first_rule_that_holds_decides(table: list[FlatRule], flow: Flow) -> None:
    expected = next((rule.policy for rule in table if holds(rule, flow)), None)
    assert RuleTable(policy_set(table)).match(flow) == expected


@given(rules(), st.data())
def test_every_bound_is_inclusive(rule: FlatRule, data: st.DataObject) -> None:
    def end(low: object, high: object) -> object:
        return data.draw(st.sampled_from([low, high]))

    flow = Flow(
        end(rule.proto_lo, rule.proto_hi), end(rule.src_lo, rule.src_hi),
        end(rule.sport_lo, rule.sport_hi), end(rule.dst_lo, rule.dst_hi),
        end(rule.dport_lo, rule.dport_hi),
    )  # fmt: skip
    assert RuleTable(policy_set([rule])).match(flow) == rule.policy


def test_no_rules_match_nothing() -> None:
    table = RuleTable(EMPTY)
    assert len(table) == 0
    assert table.match(Flow.of(6, "10.0.0.1", 1, "10.0.0.2", 2)) is None


WRITTEN = compile_policy(
    parse("""
    nf firewall inline { fw1 = 10.0.1.2 }
    nf ids tap { ids1 = 10.0.2.2 }
    match(srcip=10.0.1.0/24 & dstport=80) >> {}
    match(srcip=10.0.0.0/16 & (dstport=80 | dstport=256-65535)) >> {firewall -> ids}
    match(proto=udp & ~dstport=1) >> {ids} fail=open
    """)
)


@given(flows)
def test_a_compiled_policy_means_the_same_in_c(flow: Flow) -> None:
    policy = evaluate(WRITTEN, flow)
    assert RuleTable(WRITTEN).match(flow) == (None if policy is None else policy.id)


def test_the_compiled_policy_tells_flows_apart() -> None:
    """Or the test above would compare little."""
    table = RuleTable(WRITTEN)
    found = {
        table.match(Flow.of(6, "10.0.1.9", 5, "192.0.2.1", 80)),
        table.match(Flow.of(6, "10.0.2.9", 5, "192.0.2.1", 80)),
        table.match(Flow.of(17, "192.0.2.9", 5, "192.0.2.1", 80)),
        table.match(Flow.of(17, "192.0.2.9", 5, "192.0.2.1", 1)),
    }
    assert found == {0, 1, 2, None}
