"""Live sessions follow a new policy where it says so, and stay as they are where not."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from m2m.agent.api import Role
from m2m.agent.following import Following
from m2m.agent.openings import Fate
from m2m.policy.rules import PolicySet
from m2m.protocol.flow import format_address
from m2m.protocol.update import Mode, UpdateSyn
from tests.support.agents import FIREWALL, IDS, pass_time, policy_set
from tests.support.changing import NFS, OTHER, PORT, LiveSession, a_live_session, larger_policy
from tests.support.proxying import POLICY, proxying


async def told(chain: LiveSession, *policies: PolicySet) -> None:
    """Every host gets these policies, one after the other."""
    following = Following(chain.client.sessions, chain.client.asking)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(following.run)
        for policy in policies:
            await chain.load(policy)
            following.policy_changed()
            await pass_time(0.01)
        await pass_time(10)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("chain_of_policy", "way"),
    [
        ("ids", (IDS,)),
        ("", ()),
        ("firewall", (FIREWALL,)),
        ("ids -> firewall", (IDS, OTHER)),
    ],
)
async def test_they_follow_to_the_chain_that_the_policy_says(
    autojump_clock: MockClock, chain_of_policy: str, way: tuple[str, ...]
) -> None:
    async with a_live_session() as chain:
        await told(chain, larger_policy("live=follow", 2, chain_of_policy))
        assert chain.carries(*way)


@pytest.mark.parametrize(
    "options", ["", "live=stay", "live=follow allow={operator}", "live=follow allow={}"]
)
async def test_they_stay_unless_the_policy_lets_them_follow(
    autojump_clock: MockClock, options: str
) -> None:
    async with a_live_session() as chain:
        await told(chain, larger_policy(options, 2, "ids"))
        assert chain.carries(FIREWALL, IDS)


async def test_they_follow_in_the_mode_of_the_policy(autojump_clock: MockClock) -> None:
    async with a_live_session() as chain:
        await told(chain, larger_policy("live=follow change=lf", 2, "ids"))
        modes = {one.mode for _, _, one in chain.seen if isinstance(one, UpdateSyn)}
        assert modes == {Mode.LF}


async def test_a_policy_of_the_same_generation_brings_only_loads(
    autojump_clock: MockClock,
) -> None:
    async with a_live_session() as chain:
        await told(chain, larger_policy("live=follow", 1, "ids"))
        assert chain.carries(FIREWALL, IDS)


async def test_an_instance_that_is_gone_from_the_policy_is_replaced_with_its_state(
    autojump_clock: MockClock,
) -> None:
    async with a_live_session() as chain:
        nfs = NFS.replace(f"fw1 = {FIREWALL}, ", "")
        rule = f"match(dstport={PORT}) >> {{firewall -> ids}} live=follow"
        await told(chain, policy_set(nfs + rule, 2))
        assert chain.carries(OTHER, IDS)
        path = await chain.client.paths.path(chain.session)
        assert [hop.nf for hop in path.hops[1:-1]] == ["firewall/fw2", "ids/ids1"]
        assert chain.client.flow(PORT) in chain.other.nf_state.known


async def test_a_session_that_no_rule_matches_keeps_its_chain(autojump_clock: MockClock) -> None:
    async with a_live_session() as chain:
        await told(chain, policy_set(f"{NFS}match(dstport=1) >> {{ids}} live=follow", 2))
        assert chain.carries(FIREWALL, IDS)


async def test_one_that_cannot_follow_keeps_its_chain_and_the_reason_is_told(
    autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    async with a_live_session() as chain:
        chain.kill(chain.other)
        await told(chain, larger_policy("live=follow", 2, "ids -> firewall"))
        assert chain.carries(FIREWALL, IDS)
        assert "session does not follow" in capsys.readouterr().out


async def test_of_two_policies_in_quick_succession_the_last_one_counts(
    autojump_clock: MockClock,
) -> None:
    async with a_live_session() as chain:
        await told(
            chain,
            larger_policy("live=follow", 2, ""),
            larger_policy("live=follow", 3, "firewall -> ids"),
            larger_policy("live=follow", 4, "ids"),
        )
        path = await chain.client.paths.path(chain.session)
        assert [(hop.nf or "").partition("/")[0] for hop in path.hops[1:-1]] == ["ids"]


async def test_a_session_whose_client_has_moved_follows_what_holds_there(
    autojump_clock: MockClock,
) -> None:
    async with a_live_session() as chain:
        session = chain.client.sessions.node.sessions[chain.session]
        assert session.right is not None
        there = f"srcip={format_address(session.right.src)}"
        session.moves = 1, 0
        rule = f"match({there} & dstport={PORT}) >> {{ids}} live=follow"
        await told(chain, policy_set(NFS + rule, 1))
        assert chain.carries(IDS)


FILTER = "10.0.0.8"


@pytest.mark.parametrize(
    ("chain_of_policy", "before", "behind"),
    [
        ("firewall -> cache -> filter -> ids", ["firewall"], ["filter", "ids"]),
        ("cache -> filter", [], ["filter"]),
        ("filter -> firewall -> cache", ["filter", "firewall"], []),
        # Connections that stand end where they do.
        ("firewall -> ids", ["firewall"], ["ids"]),
        ("ids -> other", ["firewall"], ["ids"]),
    ],
)
async def test_each_half_at_a_proxy_follows_by_itself(
    autojump_clock: MockClock, chain_of_policy: str, before: list[str], behind: list[str]
) -> None:
    async with proxying() as chain:
        came = await chain.come()
        assert (await chain.go_on(came, chain.outgoing())).fate is Fate.STEERED
        hosts = [*chain.all, chain.host(FILTER, Role.MIDDLEBOX)]
        rule = f"match(dstport=80 & proto=tcp) >> {{{chain_of_policy}}} live=follow"
        more = f"nf filter inline {{ f1 = {FILTER} }}\nnf other proxy port=1 {{ o = 10.0.0.9 }}\n"
        policy = policy_set(POLICY.partition("match")[0] + more + rule, 2)
        async with trio.open_nursery() as nursery:
            for host in hosts:
                await host.sessions.load_policy(policy)
                following = Following(host.sessions, host.asking)
                following.policy_changed()
                nursery.start_soon(following.run)
            await pass_time(10)
            nursery.cancel_scope.cancel()
        (right,) = chain.proxy.sessions.node.register.other_halves(came.view)
        found = [await chain.proxy.paths.path(session) for session in (came.id, right.id)]
        types = [[(hop.nf or "").partition("/")[0] for hop in path.hops] for path in found]
        assert types == [["", *before, "cache"], ["cache", *behind, ""]]
        for path in found:
            assert path.complete
        assert chain.opens(chain.outgoing()) == (chain.server, came.supersession)
