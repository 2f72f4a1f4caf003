"""From names of network functions to hosts: one change of one chain."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2m.agent.api import HopReport, Role, SessionState
from m2m.agent.order import ME, Do, Wish
from m2m.agent.plan import Plan, Unfit, check, describe, hop_name, plan, plan_to_follow
from m2m.errors import M2MError
from m2m.policy.compile import compile_policy
from m2m.policy.language import parse
from m2m.protocol.flow import Address, Flow, format_address, parse_address

POLICY = compile_policy(
    parse(
        """
        nf firewall inline { fw1 = 10.0.2.1, fw2 = 10.0.2.2 }
        nf ids tap { ids1 = 10.0.3.1, ids2 = 10.0.3.2, both = 10.0.2.2 }
        nf proxy inline { px1 = 10.0.4.1, both = 10.0.9.9 }
        match(any) >> {firewall -> ids}
        """
    )
)
FLOW = Flow.of(6, "10.0.1.1", 4000, "10.0.5.1", 80)
ADDRESSES = {
    "client": "10.0.1.1", "server": "10.0.5.1",
    **{f"{nf.name}/{one.name}": format_address(one.address)
       for nf in POLICY.nfs for one in nf.instances},
}  # fmt: skip
KINDS = {nf.name: nf.kind.value for nf in POLICY.nfs}


def path(*middle: str) -> tuple[HopReport, ...]:
    """The path over these instances."""
    hops = []
    for name in ("client", *middle, "server"):
        nf = name if "/" in name else None
        position = KINDS[name.partition("/")[0]] if nf else name
        hops.append(
            HopReport(
                "1", name, ADDRESSES[name], Role.MIDDLEBOX, position, nf, SessionState.ESTABLISHED,
                None, None, None, None, None, None, None,
            )
        )  # fmt: skip
    return tuple(hops)


USUAL = path("firewall/fw1", "ids/ids1")


def told(made: Plan) -> tuple[str, list[str], str, list[str]]:
    """A plan in names: who leads, what goes, where it ends, what comes."""
    hosts = {parse_address(address): name for name, address in reversed(ADDRESSES.items())}
    new = [
        f"{nf.name}/{one.name}"
        for hop in made.hops
        for nf in POLICY.nfs
        for one in nf.instances
        if (nf.name, one.address) == (hop.nf, hop.address)
    ]
    return hosts[made.leader], [hosts[one.address] for one in made.steps], hosts[made.right], new


def planned(wish: Wish, hops: tuple[HopReport, ...] = USUAL, here: str = "client") -> Plan:
    check(wish, POLICY)
    return plan(wish, hops, ADDRESSES[here], FLOW, POLICY)


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        (Wish(Do.REMOVE, ("ids",)), ("firewall/fw1", ["ids/ids1"], "server", [])),
        (Wish(Do.REMOVE, ("ids1",)), ("firewall/fw1", ["ids/ids1"], "server", [])),
        (Wish(Do.REMOVE, ("10.0.3.1",)), ("firewall/fw1", ["ids/ids1"], "server", [])),
        (
            Wish(Do.REMOVE, ("firewall", "ids/ids1")),
            ("client", ["firewall/fw1", "ids/ids1"], "server", []),
        ),
        (
            Wish(Do.INSERT, new=("px1",), after="client"),
            ("client", [], "firewall/fw1", ["proxy/px1"]),
        ),
        (
            Wish(Do.INSERT, new=("px1",), before="ids"),
            ("firewall/fw1", [], "ids/ids1", ["proxy/px1"]),
        ),
        (
            Wish(Do.INSERT, new=("px1",), before="server"),
            ("ids/ids1", [], "server", ["proxy/px1"]),
        ),
        (
            Wish(Do.REPLACE, ("ids",), ("ids/ids2",)),
            ("firewall/fw1", ["ids/ids1"], "server", ["ids/ids2"]),
        ),
        (
            Wish(Do.REPLACE, ("firewall", "ids"), ("fw2", "ids2", "px1")),
            ("client", ["firewall/fw1", "ids/ids1"], "server",
             ["firewall/fw2", "ids/ids2", "proxy/px1"]),
        ),
        (Wish(Do.DRAIN, ("fw1",)), ("client", ["firewall/fw1"], "ids/ids1", ["firewall/fw2"])),
        (
            Wish(Do.DRAIN, ("fw1",), ("px1",)),
            ("client", ["firewall/fw1"], "ids/ids1", ["proxy/px1"]),
        ),
    ],
)  # fmt: skip
def test_names_become_hosts(wish: Wish, expected: tuple[object, ...]) -> None:
    assert told(planned(wish)) == expected


def test_me_is_the_host_that_is_asked() -> None:
    hops = USUAL
    assert told(planned(Wish(Do.REMOVE, (ME,)), hops, "ids/ids1"))[1] == ["ids/ids1"]
    made = planned(Wish(Do.INSERT, new=("px1",), after=ME), hops, "firewall/fw1")
    assert told(made) == ("firewall/fw1", [], "ids/ids1", ["proxy/px1"])


def test_the_state_of_an_inline_function_goes_to_its_like_and_a_taps_nowhere() -> None:
    made = planned(Wish(Do.REPLACE, ("firewall", "ids"), ("proxy/px1", "fw2", "ids2")))
    assert [step.heir for step in made.steps] == [parse_address(ADDRESSES["firewall/fw2"]), None]
    other = planned(Wish(Do.REPLACE, ("firewall",), ("px1",)))
    assert [step.heir for step in other.steps] == [None]


def test_a_tap_at_which_programs_capture_has_them_read_before_its_like_goes_on() -> None:
    hops = list(USUAL)
    hops[2] = msgspec.structs.replace(hops[2], watched=True)
    made = planned(Wish(Do.REPLACE, ("ids",), ("ids2",)), tuple(hops))
    assert [step.heir for step in made.steps] == [parse_address(ADDRESSES["ids/ids2"])]


def test_a_type_that_comes_gets_an_instance_that_is_not_on_the_path() -> None:
    hops = path("ids/ids1", "firewall/fw2")  # which is also ids/both
    assert told(planned(Wish(Do.REPLACE, ("ids",), ("ids",)), hops))[3] == ["ids/ids2"]


def test_a_host_that_does_not_answer_is_taken_last() -> None:
    policy = compile_policy(
        parse("nf a tap choose=agent { a1 = 10.0.2.1, a2 = 10.0.2.2 } match(any) >> {a}")
    )
    for away in ("10.0.2.1", "10.0.2.2"):
        wish = Wish(Do.INSERT, new=("a",), after="client")
        made = plan(wish, path(), "10.0.1.1", FLOW, policy, {parse_address(away)})
        assert format_address(made.hops[0].address) != away


def test_a_drained_instances_sessions_are_shared_by_the_others() -> None:
    policy = compile_policy(
        parse(
            "nf a tap choose=least-loaded { a1 = 10.0.2.1, a2 = 10.0.2.2, a3 = 10.0.2.3 }"
            "match(any) >> {a}"
        )
    )
    report = msgspec.structs.replace(path("ids/ids1")[1], address="10.0.2.1", nf="a/a1")
    hops = (USUAL[0], report, USUAL[-1])
    placed: Counter[Address] = Counter()
    for _ in range(10):
        made = plan(Wish(Do.DRAIN, ("a1",)), hops, "10.0.1.1", FLOW, policy, (), placed)
        placed.update(hop.address for hop in made.hops)
    assert sorted(placed.values()) == [5, 5]


@pytest.mark.parametrize(
    ("wish", "why"),
    [
        (
            Wish(Do.REMOVE, ("proxy",)),
            "does not pass proxy: its path is client -> firewall/fw1",
        ),
        (Wish(Do.REMOVE, ("ids", "firewall")), "does not pass ids -> firewall"),
        (Wish(Do.DRAIN, ("ids2",)), "does not pass ids2"),
        (Wish(Do.REPLACE, ("ids",), ("fw1",)), "firewall/fw1 is on the session's path already"),
        (Wish(Do.DRAIN, ("ids/ids1",), ("ids/ids1",)), "ids/ids1 is on the session's path already"),
    ],
)
def test_what_does_not_fit_a_session_says_so(wish: Wish, why: str) -> None:
    with pytest.raises(Unfit, match=why):
        planned(wish)


def test_ends_cannot_be_taken_out() -> None:
    for end in ("client", "server"):
        with pytest.raises(Unfit, match="client and the server"):
            planned(Wish(Do.REMOVE, (ME,)), USUAL, end)


def test_a_type_without_another_instance_says_what_to_do() -> None:
    hops = path("firewall/fw1", "firewall/fw2")
    with pytest.raises(M2MError, match="firewall has no instance that could"):
        planned(Wish(Do.REPLACE, ("firewall/fw1",), ("firewall",)), hops)


def test_two_that_can_only_be_on_one_host_are_refused() -> None:
    with pytest.raises(M2MError, match="visits one host twice"):
        planned(Wish(Do.INSERT, new=("firewall/fw2", "ids/both"), after="client"), path())


@pytest.mark.parametrize(
    ("wish", "why"),
    [
        (Wish(Do.REMOVE, ("nat",)), "'nat' is neither an NF type nor an instance .* there is fire"),
        (Wish(Do.REMOVE, ("both",)), "say ids/both or proxy/both"),
        (Wish(Do.REMOVE, ("client",)), "cannot be taken out or put in"),
        (Wish(Do.REMOVE), "remove what"),
        (Wish(Do.REPLACE, ("ids",)), "replace by what"),
        (Wish(Do.INSERT, new=("ids",)), "one place"),
        (Wish(Do.INSERT, new=("ids",), after="client", before="server"), "one place"),
        (Wish(Do.INSERT, new=("ids",), after="server"), "ends before the server"),
        (Wish(Do.INSERT, after="client"), "insert by what"),
        (Wish(Do.DRAIN, ("ids",)), "only an instance can be drained, and ids is none"),
    ],
)
def test_what_no_session_could_fit_is_refused_at_once(wish: Wish, why: str) -> None:
    with pytest.raises(M2MError, match=why):
        check(wish, POLICY)


def test_a_run_is_bounded() -> None:
    many = "".join(f"nf n{i} tap {{ n{i} = 10.9.0.{i} }}\n" for i in range(1, 10))
    policy = compile_policy(parse(many))
    wish = Wish(Do.INSERT, new=tuple(f"n{i}" for i in range(1, 10)), after="client")
    with pytest.raises(M2MError, match="at most 8"):
        plan(wish, path(), "10.0.1.1", FLOW, policy)


def test_hosts_are_named_by_what_they_are() -> None:
    assert describe(USUAL) == "client -> firewall/fw1 -> ids/ids1 -> server"
    assert hop_name(msgspec.structs.replace(USUAL[1], nf=None)) == "10.0.2.1"


# --- following a policy


def followed(chain: str, *middle: str) -> list[str] | None:
    """What comes to be of a path, change by change."""
    hops = path(*middle)
    for _ in range(10):
        made = plan_to_follow(chain.split(), hops, "10.0.1.1", FLOW, POLICY)
        if made is None:
            return [hop_name(hop) for hop in hops[1:-1]]
        addresses = [parse_address(hop.address) for hop in hops]
        first, last = addresses.index(made.leader) + 1, addresses.index(made.right)
        assert [step.address for step in made.steps] == addresses[first:last]
        names = [hop_name(hop) for hop in hops[1:-1]]
        hops = path(*names[: first - 1], *told(made)[3], *names[last - 1 :])
    raise AssertionError("it never ends")


@pytest.mark.parametrize(
    ("chain", "middle", "end"),
    [
        ("firewall ids", ["firewall/fw1", "ids/ids1"], ["firewall/fw1", "ids/ids1"]),
        ("ids", ["firewall/fw1", "ids/ids1"], ["ids/ids1"]),
        ("", ["firewall/fw1", "ids/ids1"], []),
        (
            "firewall proxy ids",
            ["firewall/fw1", "ids/ids1"],
            ["firewall/fw1", "proxy/px1", "ids/ids1"],
        ),
        ("proxy firewall", ["firewall/fw1", "ids/ids1"], ["proxy/px1", "firewall/fw1"]),
    ],
)
def test_what_the_path_has_in_order_stays(chain: str, middle: list[str], end: list[str]) -> None:
    assert followed(chain, *middle) == end


def test_what_is_to_come_at_another_place_is_never_taken_out_first() -> None:
    """The firewall would be missing meanwhile; another one is put in before it goes."""
    end = followed("ids firewall", "firewall/fw1", "ids/ids1")
    assert end == ["ids/ids2", "firewall/fw1"] or end == ["ids/ids1", "firewall/fw2"]
    with pytest.raises(M2MError, match="proxy has no instance"):
        plan_to_follow(
            ["ids", "proxy"], path("proxy/px1", "ids/ids1"), "10.0.1.1", FLOW,
            msgspec.structs.replace(POLICY, nfs=tuple(
                msgspec.structs.replace(nf, instances=nf.instances[:1]) for nf in POLICY.nfs
            )),
        )  # fmt: skip


@given(
    st.permutations(["firewall", "ids", "proxy"]).flatmap(
        lambda names: st.integers(0, 3).map(lambda size: names[:size])
    ),
    st.permutations(["firewall/fw1", "ids/ids1", "proxy/px1"]).flatmap(
        lambda names: st.integers(0, 3).map(lambda size: names[:size])
    ),
)
def test_any_chain_is_reached_from_any_other_or_it_says_what_is_missing(
    chain: list[str], middle: list[str]
) -> None:
    """Nothing that the chain has is ever missing on the way if the path had it."""
    try:
        end = followed(" ".join(chain), *middle)
    except M2MError as error:
        assert "declare another one" in str(error)  # noqa: PT017 - either is right
        return
    assert end is not None
    assert [name.partition("/")[0] for name in end] == chain


def test_an_instance_that_is_not_declared_any_more_is_replaced_and_its_state_moves() -> None:
    hops = list(path("firewall/fw1"))
    hops[1] = msgspec.structs.replace(hops[1], address="10.0.2.77")
    made = plan_to_follow(["firewall"], hops, "10.0.1.1", FLOW, POLICY)
    assert made is not None
    assert made.steps[0].address == parse_address("10.0.2.77")
    assert made.steps[0].heir == made.hops[0].address
