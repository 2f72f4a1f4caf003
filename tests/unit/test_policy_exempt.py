"""M2M's own traffic is exempt, and nothing else is."""

from m2m.policy.compile import compile_policy, evaluate
from m2m.policy.exempt import Service, exempting
from m2m.policy.language import parse
from m2m.policy.rules import EMPTY
from m2m.protocol.flow import Flow, Proto

EVERYTHING = compile_policy(parse("nf proxy tap { p = 10.0.9.9 }\nmatch(any) >> {proxy}\n"))
OWN = (Service(Proto.UDP, 5262, symmetric=True), Service(Proto.TCP, 5263, symmetric=False))


def chain_of(proto, sport, dport):
    policy = evaluate(
        exempting(EVERYTHING, OWN), Flow.of(proto, "10.0.1.1", sport, "10.0.2.2", dport)
    )
    assert policy is not None
    return policy.chain


def test_messages_between_agents_go_straight():
    assert chain_of(Proto.UDP, 5262, 5262) == ()


def test_connections_to_the_policy_server_go_straight():
    assert chain_of(Proto.TCP, 40000, 5263) == ()


def test_everybody_else_still_goes_through_the_chain():
    assert chain_of(Proto.UDP, 40000, 5262) == ("proxy",)
    assert chain_of(Proto.TCP, 5262, 5262) == ("proxy",)
    assert chain_of(Proto.TCP, 5263, 80) == ("proxy",)


def test_without_rules_nothing_is_added():
    assert exempting(EMPTY, OWN) is EMPTY


def test_a_range_of_ports_is_both_ends_own():
    """Subsessions of hosts with agents, which a gateway forwards like other packets."""
    own = (*OWN, Service(Proto.TCP, 61000, symmetric=True, last=65535))

    def chain(sport, dport):
        flow = Flow.of(Proto.TCP, "10.0.1.1", sport, "10.0.2.2", dport)
        policy = evaluate(exempting(EVERYTHING, own), flow)
        assert policy is not None
        return policy.chain

    assert chain(61000, 65535) == chain(65535, 61000) == ()
    assert chain(60999, 61000) == chain(61000, 60999) == chain(61000, 80) == ("proxy",)
