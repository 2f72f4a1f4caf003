"""Chains that are cut at proxies."""

from __future__ import annotations

import pytest

from m2m.policy.choose import ChainError, resolve
from m2m.policy.compile import compile_policy
from m2m.policy.explain import explain
from m2m.policy.language import PolicyError, parse, parse_source
from m2m.policy.parts import Part, parts_of
from m2m.policy.rules import Choose, Fail, Kind, Policy, PolicySet, Shows
from m2m.policy.source import Source
from m2m.protocol.flow import Flow, parse_address

NFS = """
nf firewall inline { fw1 = 10.0.2.2 }
nf cache proxy port=3129 { c1 = 10.0.3.2, c2 = 10.0.4.2 }
nf ids tap { ids1 = 10.0.5.2 }
nf balance proxy port=8000 choose=agent { b1 = 10.0.6.2 }
"""
FLOW = Flow.of(6, "10.0.1.2", 40000, "10.0.9.2", 80)


def compiled(rules: str, nfs: str = NFS) -> PolicySet:
    return compile_policy(parse_source(Source("test.m2m", nfs + rules)))


def hosts(*addresses: str) -> frozenset[bytes]:
    return frozenset(map(parse_address, addresses))


def test_what_a_proxy_is() -> None:
    _, cache, ids, balance = compiled("").nfs
    assert (cache.kind, cache.port, cache.choose) == (Kind.PROXY, 3129, Choose.HASH)
    assert (balance.port, balance.choose) == (8000, Choose.AGENT)
    assert ids.port == 0


def test_what_is_seen_behind_a_proxy() -> None:
    nf = "nf cache proxy port=3129 {}choose=agent {{ c1 = 10.0.3.2 }}"
    shown = [compiled("", nf.format(word)).nfs[0].shows for word in ("", "shows=proxy ")]
    assert shown == [Shows.CLIENT, Shows.PROXY]


def test_a_chain_is_cut_behind_each_proxy() -> None:
    policies = compiled(
        "match(proto=tcp & dstport=80) >> {firewall -> cache -> ids -> balance}\n"
        "match(dstport=81) >> {firewall -> ids}\n"
    )
    first, second = policies.policies
    before = hosts("10.0.2.2", "10.0.3.2", "10.0.4.2")
    assert parts_of(policies, first) == (
        Part(("firewall", "cache"), frozenset()),
        Part(("ids", "balance"), before),
        Part((), before | hosts("10.0.5.2", "10.0.6.2")),
    )
    assert parts_of(policies, second) == (Part(("firewall", "ids"), frozenset()),)
    # Somebody's else chain is not cut: nobody can choose for it.
    unknown = Policy(9, "", 1, ("nobody", "cache"), Fail.CLOSED)
    assert parts_of(policies, unknown) == (Part(unknown.chain, frozenset()),)


def test_no_host_is_in_two_parts() -> None:
    nfs = "nf cache proxy port=3129 { c1 = 10.0.3.2 }\nnf ids tap { a = 10.0.2.2, b = 10.0.5.2 }\n"
    policies = compiled("match(proto=tcp) >> {cache -> ids}", nfs)
    (policy,) = policies.policies
    (ids,) = resolve(
        policies, Policy(0, "", 1, ("ids",), Fail.CLOSED), FLOW, taken=hosts("10.0.2.2")
    )
    assert ids.instance_name == "b"
    with pytest.raises(ChainError, match="may be before the proxy"):
        resolve(
            policies, Policy(0, "", 1, ("ids",), Fail.CLOSED), FLOW,
            taken=hosts("10.0.2.2", "10.0.5.2"),
        )  # fmt: skip
    assert policy.chain == ("cache", "ids")
    # Two hosts are enough for two types, but not on both sides of a proxy.
    both = "nf fw inline { a = 10.0.2.2, b = 10.0.5.2 }\n" + nfs
    compiled("match(proto=tcp) >> {fw -> ids}", both)
    with pytest.raises(PolicyError, match="whose instances can be on different hosts"):
        compiled("match(proto=tcp) >> {fw -> cache -> ids}", both)


def test_a_proxy_may_be_the_server() -> None:
    policies = compiled("match(proto=tcp) >> {cache}")
    (policy,) = policies.policies
    (chosen,) = resolve(policies, policy, FLOW._replace(dst=parse_address("10.0.4.2")))
    assert chosen.instance_name == "c2"


def test_it_is_explained() -> None:
    policy = parse(NFS + "match(proto=tcp) >> {firewall -> cache -> ids}")
    found = explain(policy, FLOW)
    assert [hop.nf for hop in found.chain] == ["firewall", "cache", "ids"]
    assert any("ends at this proxy" in note for note in found.notes)
