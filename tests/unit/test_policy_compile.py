"""The compiler: the flat table means what the predicates say, and no rule is dead."""

from __future__ import annotations

import itertools
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2m.policy.compile import (
    MAX_ROWS,
    compile_file,
    compile_policy,
    evaluate,
    unserved_families,
)
from m2m.policy.language import PolicyError, parse
from m2m.policy.rules import FlatRule, Policy, PolicySet
from m2m.policy.syntax import PolicyFile, matches
from m2m.protocol.flow import Flow, format_address, parse_address

EXAMPLE = Path(__file__).parents[2] / "examples" / "policy.m2m"
NFS = """\
nf firewall inline { fw1 = 10.0.2.2 }
nf ids tap { ids1 = 10.0.4.2, ids2 = 10.0.2.2 }
"""
WEB = Flow.of(6, "10.0.1.5", 4000, "10.0.9.1", 80)
WEB6 = Flow.of(6, "2001:db8::5", 4000, "2001:db8::9", 80)


def compiled(text: str, **options: int) -> PolicySet:
    return compile_policy(parse(text, "f"), **options)


def error_of(text: str, **options: int) -> PolicyError:
    with pytest.raises(PolicyError) as caught:
        compiled(text, **options)
    return caught.value


def first_match(policy: PolicyFile, flow: Flow) -> int | None:
    """What the file says, read rule by rule."""
    return next((i for i, r in enumerate(policy.rules) if matches(r.predicate, flow)), None)


def test_a_whole_rule() -> None:
    text = NFS + "match(srcip=10.0.1.0/24 & dstport=80 & proto=tcp) >> {firewall -> ids} fail=open"
    result = compiled(text, generation=7)
    assert result.generation == 7
    assert result.policies == (
        Policy(0, text.split("\n")[2], 3, ("firewall", "ids"), result.policies[0].fail),
    )
    assert result.policies[0].fail == "open"
    assert result.rules == (
        FlatRule(
            0,
            parse_address("10.0.1.0"),
            parse_address("10.0.1.255"),
            bytes(16),
            b"\xff" * 16,
            0,
            65535,
            80,
            80,
            6,
            6,
        ),
    )
    assert [nf.name for nf in result.nfs] == ["firewall", "ids"]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(result), type=PolicySet) == result


def test_first_match_wins_and_an_empty_chain_exempts() -> None:
    result = compiled(
        NFS + "match(dstport=80 & srcport=1) >> {}\nmatch(dstport=80) >> {firewall}\n"
    )
    exempt = evaluate(result, WEB._replace(sport=1))
    assert exempt is not None
    assert exempt.chain == ()
    steered = evaluate(result, WEB)
    assert steered is not None
    assert steered.chain == ("firewall",)
    assert evaluate(result, WEB._replace(dport=81)) is None


def test_a_set_may_lack_policies() -> None:
    whole = compiled("match(dstport=1) >> {}\nmatch(dstport=80) >> {}")
    part = msgspec.structs.replace(whole, policies=whole.policies[1:], rules=whole.rules[1:])
    assert evaluate(part, WEB) == whole.policies[1]


def test_a_predicate_without_addresses_covers_both_families() -> None:
    result = compiled("match(dstport=80) >> {}")
    assert len(result.rules) == 1
    assert evaluate(result, WEB)
    assert evaluate(result, WEB6)


def test_only_tcp_and_udp_match() -> None:
    result = compiled("match(*) >> {}")
    assert (result.rules[0].proto_lo, result.rules[0].proto_hi) == (6, 17)
    assert evaluate(result, WEB._replace(proto=17))
    assert not evaluate(result, WEB._replace(proto=8))
    assert not evaluate(result, WEB._replace(proto=132))


def test_a_negated_address_is_any_other_of_either_family() -> None:
    result = compiled("match(~srcip=10.0.0.0/8) >> {}")
    assert not evaluate(result, WEB)
    assert evaluate(result, WEB._replace(src=parse_address("9.255.255.255")))
    assert evaluate(result, WEB6)
    assert [(format_address(r.src_lo), format_address(r.src_hi)) for r in result.rules] == [
        ("::", "9.255.255.255"),
        ("11.0.0.0", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ]


def test_all_of_a_family() -> None:
    v4, v6 = compiled("match(srcip=0.0.0.0/0) >> {}"), compiled("match(srcip=::/0) >> {}")
    assert evaluate(v4, WEB)
    assert not evaluate(v4, WEB6)
    assert not evaluate(v6, WEB)
    assert evaluate(v6, WEB6)


@pytest.mark.parametrize(
    ("predicate", "rows"),
    [
        ("*", 1),
        ("proto=tcp | proto=udp", 1),
        ("proto!=udp", 1),
        ("dstport=80 | dstport=81 | dstport=82-90", 1),
        ("dstport=80 | dstport=82", 2),
        ("dstport!=80", 2),
        ("~(dstport=0 | dstport=65535)", 1),
        ("srcip=10.0.0.0/9 | srcip=10.128.0.0/9", 1),
        ("(srcip=10.0.0.1 & dstport=80) | (srcip=10.0.0.2 & dstport=80)", 1),
        ("dstport=80 | (dstport=80 & srcport=1)", 1),  # the second is within the first
        ("~(dstport=80 & srcport=80)", 4),
        ("srcip!=10.0.0.1 & dstip!=10.0.0.1", 4),
        ("srcip=::/0 & dstip=::/0", 4),  # below and above the IPv4 block, at each end
    ],
)
def test_rows_are_few(predicate: str, rows: int) -> None:
    assert len(compiled(f"match({predicate}) >> {{}}").rules) == rows


def test_rows_that_earlier_rules_cover_are_left_out() -> None:
    result = compiled("match(dstport=80) >> {}\nmatch(dstport=80 | srcport=1) >> {}")
    assert [rule.policy for rule in result.rules] == [0, 1]


@pytest.mark.parametrize(
    ("predicate", "found"),
    [
        ("srcport=1 & srcport=2", "exclude each other"),
        ("proto=tcp & proto=udp", "exclude each other"),
        ("srcip=10.0.0.0/8 & srcip=11.0.0.0/8", "exclude each other"),
        ("~srcport=0-65535", "exclude each other"),
        ("dstport=80 | (srcport=1 & srcport=2)", "exclude each other"),
        ("~(srcport=1 | ~srcport=1)", "exclude each other"),
        ("srcip=10.0.0.0/8 & dstip=2001:db8::/32", "an IPv4 address for one end"),
        ("srcip=::/0 & dstip=0.0.0.0/0", "an IPv4 address for one end"),
        ("srcip=::/0 & srcip=0.0.0.0/0", "exclude each other"),
        ("dstport=80 | (srcip=::1 & dstip=10.0.0.1 & dstport=1)", "an IPv4 address for one end"),
    ],
)
def test_a_predicate_that_never_matches(predicate: str, found: str) -> None:
    error = error_of(f"match({predicate}) >> {{}}")
    assert error.expected == "terms that one session can satisfy together"
    assert found in error.found


@pytest.mark.parametrize(
    ("rules", "by"),
    [
        (["*", "dstport=80"], "line 1 takes"),
        (["dstport=80-90", "dstport=91-99", "dstport=85-95"], "lines 1 and 2 take"),
        (["dstport=80", "srcport=1", "srcip=10.0.0.1", "dstport=80 & srcport=2"], "line 1 takes"),
        (["dstport=80", "dstport!=80", "*"], "lines 1 and 2 take"),
        (["dstport=80", "srcport=1", "dstport=80 | srcport=1"], "lines 1 and 2 take"),
        (["srcip=0.0.0.0/0", "dstip=10.0.0.1"], "line 1 takes"),  # an IPv4 session has both
        (["srcip=0.0.0.0/0", "srcip=::/0", "dstport=80"], "lines 1 and 2 take"),
        (["proto=tcp", "proto=udp", "*"], "lines 1 and 2 take"),
        (["dstport=80", "srcport=80", "dstport!=80 & srcport!=80", "any"], "lines 1, 2 and 3 take"),
    ],
)
def test_an_unreachable_rule(rules: list[str], by: str) -> None:
    error = error_of("\n".join(f"match({rule}) >> {{}}" for rule in rules))
    assert error.expected == "a rule that some session reaches"
    assert by in error.found
    assert error.line == len(rules)


def test_a_rule_with_one_session_left_is_reachable() -> None:
    result = compiled(
        "match(~(srcip=10.0.0.1 & dstip=10.0.0.2 & srcport=3 & dstport=4 & proto=udp)) >> {}\n"
        "match(any) >> {}"
    )
    last = evaluate(result, Flow.of(17, "10.0.0.1", 3, "10.0.0.2", 4))
    assert last is not None
    assert last.id == 1


def test_the_number_of_rows_is_bounded() -> None:
    alternatives = " | ".join(f"(srcip=10.0.{i}.1 & dstport={i})" for i in range(9))
    assert len(compiled(f"match({alternatives}) >> {{}}", max_rows=9).rules) == 9
    error = error_of(f"\nmatch({alternatives}) >> {{}}", max_rows=8)
    assert error.expected == "a rule of at most 8 rows"
    assert error.line == 2
    error = error_of(f"match({alternatives}) >> {{}}\nmatch(srcport=1) >> {{}}", max_rows=9)
    assert error.expected == "at most 9 rows in the whole table"
    assert "the rule in line 1 has most, 9" in error.advice
    assert error.line == 2


@pytest.mark.parametrize(
    "predicate",
    [
        " & ".join(f"(srcip!=10.0.{i}.1 | dstport!={2 * i} | srcport!={3 * i})" for i in range(60)),
        "~(" + " | ".join(f"(srcip=10.0.{i}.0/24 & dstport={i})" for i in range(200)) + ")",
        " & ".join(f"{f}!={2 * i}" for f in ("srcport", "dstport") for i in range(9999)),
        " | ".join(f"(srcip=10.0.{i % 256}.0/24 & dstport={i})" for i in range(5000)),
    ],
)  # fmt: skip
def test_a_rule_that_explodes_is_refused_soon(predicate: str) -> None:
    error = error_of(f"match({predicate}) >> {{}}")
    assert error.expected == f"a rule of at most {MAX_ROWS} rows"


def test_a_large_ordinary_policy_compiles() -> None:
    text = "\n".join(
        f"match(srcip=10.{i // 200}.{i % 200}.0/24 & ~dstip=10.0.0.0/8 & dstport={i}) >> {{ids}}"
        for i in range(MAX_ROWS // 2)
    )
    assert len(compiled(NFS + text).rules) == MAX_ROWS


@pytest.mark.parametrize(
    ("nfs", "rule", "expected"),
    [
        ("nf b tap { x = 10.0.0.1 }", "match(any) >> {a -> b}", "different hosts"),
        (
            "nf b tap { x = 10.0.0.1, y = 10.0.0.2 } nf c tap { z = 10.0.0.2 }",
            "match(any) >> {a -> b -> c}",
            "different hosts",
        ),
        ("nf b tap { x = ::1 }", "match(any) >> {a -> b}", "an instance for IPv4"),
        ("", "match(dstip=2001:db8::/32) >> {a}", "an instance for IPv6"),
        ("nf b tap { x = ::1, y = 10.0.0.1 }", "match(srcip=10.0.0.9) >> {a -> b}", "different"),
    ],
)
def test_a_chain_that_no_hosts_can_serve(nfs: str, rule: str, expected: str) -> None:
    error = error_of(f"nf a tap {{ x = 10.0.0.1 }} {nfs}\n{rule}")
    assert expected in error.expected
    assert error.place == (2, len(rule) - 1)  # the last step


def test_a_chain_that_some_choice_of_hosts_can_serve() -> None:
    compiled(NFS + "match(any) >> {ids -> firewall}")  # ids1, for the firewall needs ids2's host


def test_families_without_instances_are_noted() -> None:
    result = compiled(
        NFS + "match(dstport=80) >> {ids}\nmatch(srcip=10.0.0.0/8) >> {ids}\nmatch(any) >> {}"
    )
    assert [unserved_families(result, policy) for policy in result.policies] == [("IPv6",), (), ()]


def test_the_example_compiles() -> None:
    result = compile_file(EXAMPLE)
    assert {len(policy.chain) for policy in result.policies} == {0, 1, 2}


# Random policies over few values, so that terms meet, and all sessions at which they can differ.

ADDRESSES = ["10.0.0.0/8", "10.0.0.4/30", "10.0.0.5", "0.0.0.0/0", "10.0.0.3-10.0.0.9", "::/0",
             "2001:db8::/32", "2001:db8::5", "::-::9"]  # fmt: skip
PORTS = ["0", "80", "80-90", "85-65535", "0-65535", "81"]
terms = st.one_of(
    st.builds(
        "{}{}{}".format,
        st.sampled_from(["srcip", "dstip"]),
        st.sampled_from(["=", "!="]),
        st.sampled_from(ADDRESSES),
    ),
    st.builds(
        "{}{}{}".format,
        st.sampled_from(["srcport", "dstport"]),
        st.sampled_from(["=", "!="]),
        st.sampled_from(PORTS),
    ),
    st.builds("proto{}{}".format, st.sampled_from(["=", "!="]), st.sampled_from(["tcp", "17"])),
)
predicates = st.recursive(
    terms,
    lambda inner: st.one_of(
        st.builds("~({})".format, inner),
        st.builds(lambda a, b: f"({a}) & ({b})", inner, inner),
        st.builds(lambda a, b: f"({a}) | ({b})", inner, inner),
        st.builds(lambda a, b: f"{a} & ~({b}) | {a}", terms, inner),
    ),
    max_leaves=6,
)
EDGES4 = ["0.0.0.0", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.8", "10.0.0.10",
          "10.255.255.255", "11.0.0.0"]  # fmt: skip
EDGES6 = ["::", "::9", "::a", "2001:db7::", "2001:db8::", "2001:db8::5", "2001:db8::6", "ffff::"]
EDGE_PORTS = [0, 1, 80, 81, 82, 84, 85, 91, 65535]
ENDS = [*itertools.product(EDGES4, EDGES4), *itertools.product(EDGES6, EDGES6)]
flows = st.builds(
    lambda proto, ends, sport, dport: Flow.of(proto, ends[0], sport, ends[1], dport),
    st.sampled_from([6, 17, 1]),
    st.sampled_from(ENDS),
    st.sampled_from(EDGE_PORTS),
    st.sampled_from(EDGE_PORTS),
)


@settings(max_examples=400)
@given(st.lists(predicates, min_size=1, max_size=4), st.lists(flows, min_size=1, max_size=30))
def test_the_table_agrees_with_the_predicates(rules: list[str], sessions: list[Flow]) -> None:
    policy = parse("\n".join(f"match({rule}) >> {{}}" for rule in rules))
    while True:
        try:
            result = compile_policy(policy)
            break
        except PolicyError as error:  # a dead rule: none of these sessions may decide by it
            dead = next(i for i, rule in enumerate(policy.rules) if rule.place.line == error.line)
            if error.expected == "a rule that some session reaches":
                assert dead not in [first_match(policy, flow) for flow in sessions]
            left = policy.rules[:dead] + policy.rules[dead + 1 :]
            policy = policy._replace(rules=left)
    for flow in sessions:
        decided = evaluate(result, flow)
        assert (decided.id if decided else None) == first_match(policy, flow)


port_terms = st.builds(
    "{}{}{}-{}".format,
    st.sampled_from(["srcport", "dstport"]),
    st.sampled_from(["=", "!="]),
    st.sampled_from([0, 2, 4]),
    st.sampled_from([4, 6, 65535]),
)
port_rules = st.lists(
    st.one_of(port_terms, st.builds("{} & {}".format, port_terms, port_terms)), max_size=7
)


@settings(max_examples=400)
@given(port_rules)
def test_unreachable_rules_are_found_exactly(rules: list[str]) -> None:
    """Every session that can make a difference is tried: ports next to all the bounds."""
    policy = parse("\n".join(f"match({rule}) >> {{}}" for rule in rules))
    ports = [0, 1, 2, 3, 4, 5, 6, 7, 65535]
    grid = [WEB._replace(sport=s, dport=d) for s in ports for d in ports]
    reached = {first_match(policy, flow) for flow in grid}
    dead = [i for i in range(len(rules)) if i not in reached]
    refused = None
    try:
        compile_policy(policy)
    except PolicyError as error:
        refused = error.line - 1
    assert refused == (dead[0] if dead else None)
