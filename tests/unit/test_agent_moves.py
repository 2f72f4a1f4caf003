"""What an agent makes of its network: which sessions move, and in which order."""

from __future__ import annotations

from itertools import chain as joined

from trio.testing import MockClock, wait_all_tasks_blocked

from m2m.protocol.flow import parse_address
from m2m.protocol.rebind import MAX_LEGS, Rebind
from m2m.protocol.translation import Hook
from tests.support.agents import FIREWALL, Chain, pass_time, running

ELSEWHERE = parse_address("10.0.5.1")
PORT, FIRST = 80, 40000


async def many(chain: Chain, number: int) -> list[int]:
    """Sessions of the client, in the order in which they were opened."""
    for sport in range(FIRST, FIRST + number):
        chain.client.open(PORT, sport)
        await wait_all_tasks_blocked()
    return list(chain.client.sessions.node.sessions)


async def packet(chain: Chain, place: int) -> None:
    """One of a session, from its client; later than all before."""
    await pass_time(0.1)
    chain.client.datapath.packet(Hook.OUT, chain.client.flow(PORT, FIRST + place))


async def told(chain: Chain) -> list[list[int]]:
    """The sessions of each REBIND that the client has sent when its network has changed."""
    before = len(chain.seen)
    await chain.client.sessions.follow_network()
    return [
        [leg.session for leg in message.legs]
        for _, _, message in chain.seen[before:]
        if isinstance(message, Rebind)
    ]


async def test_those_move_first_that_have_had_packets_last(autojump_clock: MockClock) -> None:
    async with running() as chain:
        sessions = await many(chain, 2 * MAX_LEGS + 5)
        for place in (3, 50, 31):
            await packet(chain, place)
        chain.client.routes.own = ELSEWHERE
        batches = await told(chain)
        assert [len(batch) for batch in batches] == [MAX_LEGS, MAX_LEGS, 5]
        assert batches[0][:3] == [sessions[31], sessions[50], sessions[3]]
        assert sorted(joined.from_iterable(batches)) == sorted(sessions)


async def test_while_there_is_no_way_it_is_found_out_who_waits(autojump_clock: MockClock) -> None:
    async with running() as chain:
        sessions = await many(chain, MAX_LEGS + 1)
        await packet(chain, 20)
        chain.client.routes.own = ELSEWHERE
        chain.client.routes.cut.add(parse_address(FIREWALL))
        assert await told(chain) == []
        await packet(chain, 7)  # which is not looked for any more
        chain.client.routes.cut.clear()
        batches = await told(chain)
        assert batches[0][0] == sessions[20]
        assert sorted(joined.from_iterable(batches)) == sorted(sessions)


async def test_few_sessions_are_not_looked_at(autojump_clock: MockClock) -> None:
    async with running() as chain:
        sessions = await many(chain, MAX_LEGS)
        await packet(chain, 7)
        chain.client.routes.own = ELSEWHERE
        assert await told(chain) == [sessions]


async def test_sessions_that_have_lost_their_address_wait_for_the_next(
    autojump_clock: MockClock,
) -> None:
    """The kernel knows of a way before its news of an address by it has been read."""
    async with running() as chain:
        await many(chain, 3)
        before = chain.client.kernel.rows()
        routes = chain.client.routes
        routes.own, routes.ifindex, routes.unread = ELSEWHERE, 7, True
        assert await told(chain) == []
        after = chain.client.kernel.rows()
        assert [row.entry for row in after] == [row.entry for row in before]
        routes.unread = False
        assert len(await told(chain)) == 1
