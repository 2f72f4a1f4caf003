"""Choosing instances: stable, fair, and never a host twice."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2m.policy.choose import ChainError, Resolved, assign, resolve
from m2m.policy.compile import compile_policy
from m2m.policy.language import parse
from m2m.policy.rules import Fail, Instance, Kind, Policy, PolicySet
from m2m.protocol.flow import Address, Flow, parse_address

ROOT = Path(__file__).parents[2]
WEB = Flow.of(6, "10.0.1.5", 4000, "10.0.9.1", 80)
WEB6 = Flow.of(6, "2001:db8::5", 4000, "2001:db8::9", 80)
FLOWS = [WEB._replace(sport=port) for port in range(1024, 2024)]


def policy_set(nfs: str, chain: str = "a") -> PolicySet:
    # Set up by hand: most of these chains no compiler would let pass.
    types = compile_policy(parse(nfs)).nfs
    return PolicySet(1, (Policy(0, "", 1, tuple(chain.split()), Fail.CLOSED),), (), types)


def hosts(nfs: str, chain: str = "a", flow: Flow = WEB, avoid: tuple[str, ...] = ()) -> list[str]:
    whole = policy_set(nfs, chain)
    away = {parse_address(address) for address in avoid}
    return [one.instance_name for one in resolve(whole, whole.policies[0], flow, away)]


def loaded(whole: PolicySet, loads: Mapping[str, float]) -> PolicySet:
    def instance(one: Instance) -> Instance:
        return msgspec.structs.replace(one, load=loads.get(one.name, one.load))

    nfs = tuple(
        msgspec.structs.replace(nf, instances=tuple(map(instance, nf.instances)))
        for nf in whole.nfs
    )
    return msgspec.structs.replace(whole, nfs=nfs)


FOUR = "{ w = 10.0.2.1, x = 10.0.2.2, y = 10.0.2.3, z = 10.0.2.4 }"


def test_says_what_it_chose() -> None:
    whole = policy_set("nf a inline { fw1 = 10.0.2.2 } nf b tap { ids1 = 10.0.3.2 }", "b a")
    assert resolve(whole, whole.policies[0], WEB) == (
        Resolved("b", Kind.TAP, "ids1", parse_address("10.0.3.2")),
        Resolved("a", Kind.INLINE, "fw1", parse_address("10.0.2.2")),
    )


def test_an_exemption_has_no_chain() -> None:
    assert hosts("nf a tap { x = 10.0.2.1 }", "") == []


def test_hash_spreads_flows_and_keeps_each_where_it_was() -> None:
    before = {flow: hosts(f"nf a tap {FOUR}", flow=flow)[0] for flow in FLOWS}
    shares = Counter(before.values())
    assert set(shares) == set("wxyz")
    assert min(shares.values()) > len(FLOWS) / 4 * 0.7
    without_z = "{ x = 10.0.2.2, w = 10.0.2.1, y = 10.0.2.3 }"
    after = {flow: hosts(f"nf a tap {without_z}", flow=flow)[0] for flow in FLOWS}
    assert all(after[flow] == name for flow, name in before.items() if name != "z")
    assert len({after[flow] for flow, name in before.items() if name == "z"}) == 3


def test_nf_types_choose_independently() -> None:
    nfs = "nf a tap { x = 10.0.2.1, y = 10.0.2.2 } nf b tap { x = 10.0.2.1, y = 10.0.2.2 }"
    pairs = {(*hosts(nfs, "a", flow), *hosts(nfs, "b", flow)) for flow in FLOWS[:100]}
    assert pairs == set(itertools.product("xy", repeat=2))


def test_hash_is_the_same_in_every_process() -> None:
    program = (
        "from tests.unit.test_policy_choose import *\n"
        "print(''.join(hosts(f'nf a tap {FOUR}', flow=flow)[0] for flow in FLOWS[:64]))"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert answers == {
        "".join(hosts(f"nf a tap {FOUR}", flow=flow)[0] for flow in FLOWS[:64]) + "\n"
    }


def test_hash_ignores_load_and_silence() -> None:
    whole = policy_set(f"nf a tap {FOUR}")
    [usual] = resolve(whole, whole.policies[0], WEB)
    busy = loaded(whole, {usual.instance_name: 1e6})
    assert resolve(busy, busy.policies[0], WEB, {usual.address}) == (usual,)


def test_least_loaded() -> None:
    whole = policy_set(f"nf a tap choose=least-loaded {FOUR}")
    whole = loaded(whole, {"w": 3, "x": 1, "y": 2, "z": 3})
    for flow in FLOWS[:20]:
        assert resolve(whole, whole.policies[0], flow)[0].instance_name == "x"
    equal = loaded(whole, {"x": 1, "y": 1})
    chosen = {resolve(equal, equal.policies[0], flow)[0].instance_name for flow in FLOWS[:40]}
    assert chosen == {"x", "y"}


def test_what_was_sent_there_since_the_report_counts() -> None:
    whole = policy_set(f"nf a tap choose=least-loaded {FOUR}")
    whole = loaded(whole, {"w": 9, "x": 0, "y": 4, "z": 9})
    placed: Counter[Address] = Counter()
    chosen: Counter[str] = Counter()
    for flow in FLOWS[:10]:
        [one] = resolve(whole, whole.policies[0], flow, (), placed)
        placed[one.address] += 1
        chosen[one.instance_name] += 1
    assert chosen == {"x": 7, "y": 3}, "both have seven now"


def test_agent_passes_over_hosts_that_did_not_answer() -> None:
    nfs = f"nf a tap choose=agent {FOUR}"
    [first] = hosts(nfs)
    addresses = {"w": "10.0.2.1", "x": "10.0.2.2", "y": "10.0.2.3", "z": "10.0.2.4"}
    [second] = hosts(nfs, avoid=(addresses[first],))
    assert second != first
    [third] = hosts(nfs, avoid=(addresses[first], addresses[second]))
    assert third not in (first, second)
    assert hosts(nfs, avoid=tuple(addresses.values())) == [first]  # rather than nobody


def test_no_host_comes_twice() -> None:
    nfs = "nf a tap { p = 10.0.2.1, q = 10.0.2.2 } nf b tap { r = 10.0.2.1, s = 10.0.2.2 }"
    chosen = {tuple(hosts(nfs, "a b", flow)) for flow in FLOWS[:40]}
    assert chosen == {("p", "s"), ("q", "r")}


def test_an_earlier_type_gives_way_to_one_without_a_choice() -> None:
    nfs = "nf a tap { p = 10.0.2.1, q = 10.0.2.2 } nf b tap { r = 10.0.2.1 }"
    assert {tuple(hosts(nfs, "a b", flow)) for flow in FLOWS[:40]} == {("q", "r")}


def test_a_chain_that_must_visit_a_host_twice_is_an_error() -> None:
    nfs = "nf a tap { p = 10.0.2.1 } nf b tap { r = 10.0.2.1 }"
    with pytest.raises(ChainError, match="every way to choose instances for a -> b visits one"):
        hosts(nfs, "a b")


@pytest.mark.parametrize("end", ["10.0.1.5", "10.0.9.1"])
def test_the_sessions_own_ends_are_no_middleboxes(end: str) -> None:
    assert hosts(f"nf a tap {{ p = {end}, q = 10.0.2.2 }}") == ["q"]
    with pytest.raises(ChainError, match=rf"only on the session's own client .*p at {end}"):
        hosts(f"nf a tap {{ p = {end} }}")


def test_instances_are_of_the_sessions_family() -> None:
    nfs = "nf a tap { p = 10.0.2.1, q = 2001:db8::2 }"
    assert hosts(nfs) == ["p"]
    assert hosts(nfs, flow=WEB6) == ["q"]
    with pytest.raises(ChainError, match="NF type a has no IPv6 instance"):
        hosts("nf a tap { p = 10.0.2.1 }", flow=WEB6)


def test_an_unknown_type_is_an_error() -> None:
    with pytest.raises(ChainError, match="names NF type b, which nobody declared"):
        hosts("nf a tap { p = 10.0.2.1 }", "b")


@given(
    st.lists(
        st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True), min_size=1, max_size=5
    )
)
def test_the_best_choice_is_found_whenever_there_is_one(preferences: list[list[int]]) -> None:
    def address(host: int) -> Address:
        return parse_address(f"10.0.0.{host}")

    options = [[Instance(str(host), address(host)) for host in wish] for wish in preferences]
    every = [way for way in itertools.product(*preferences) if len(set(way)) == len(way)]
    chosen = assign(options)
    if every:
        # product() counts in order of preference, the first list's first: its first is the best
        assert chosen is not None
        assert tuple(int(one.name) for one in chosen) == every[0]
    else:
        assert chosen is None
