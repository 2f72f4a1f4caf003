"""Policy server and agents' clients over real TCP on loopback.

Nothing here sleeps: what is waited for is an event, and every wait is bounded.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from m2m.agent.policy_client import PolicyClient
from m2m.auth import DomainKey
from m2m.errors import M2MError
from m2m.policy import server as server_module
from m2m.policy.channel import Channel, Fault, Side
from m2m.policy.endpoint import Endpoint
from m2m.policy.location import AWAY_LOAD
from m2m.policy.messages import (
    Confirm,
    FromServer,
    Hello,
    ListAgents,
    Load,
    Push,
    Role,
    ToServer,
)
from m2m.policy.request import ServerAway, connect, list_agents, load_file
from m2m.policy.rules import PolicySet
from m2m.policy.server import PolicyServer
from m2m.policy.store import Store
from m2m.protocol.flow import Address, parse_address

KEY = DomainKey(b"k" * 32)
OTHER_KEY = DomainKey(b"o" * 32)

FIRST = """
nf firewall inline { fw1 = 10.0.2.2 }
nf ids tap choose=least-loaded { ids1 = 10.0.3.2, ids2 = 10.0.4.2 }
match(srcip=10.0.1.0/24 & dstport=80) >> {firewall -> ids} fail=closed
match(srcip=10.0.9.0/24) >> {firewall} fail=open
"""
SECOND = FIRST.replace("dstport=80", "dstport=443")


class Site:
    """A policy server on loopback that can be stopped and started again, on one port."""

    def __init__(self, nursery: trio.Nursery, store: Path, text: str = FIRST) -> None:
        self._nursery = nursery
        self._store_path = store
        self._text = text
        self._scope = trio.CancelScope()
        self._stopped = trio.Event()
        self.port = 0

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint("127.0.0.1", self.port)

    async def start(self) -> None:
        self._scope, self._stopped = trio.CancelScope(), trio.Event()
        await self._nursery.start(self._run)

    async def _run(self, *, task_status: trio.TaskStatus[None]) -> None:
        store = Store(self._store_path)
        try:
            self.server = PolicyServer(KEY, store, store.start_from("first.m2m", self._text))
            listeners = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
            self.port = listeners[0].socket.getsockname()[1]
            with self._scope:
                await self.server.run(listeners, task_status=task_status)
        finally:
            store.close()
            self._stopped.set()

    def forget(self) -> None:
        """Lose the store, companions and all."""
        for file in self._store_path.parent.glob(f"{self._store_path.name}*"):
            file.unlink()

    async def stop(self) -> None:
        self._scope.cancel()
        await self._stopped.wait()


class Host:
    """An agent's client, and what it was given."""

    def __init__(
        self, endpoint: Endpoint, tmp_path: Path, name: str, role: Role, *addresses: str
    ) -> None:
        self.addresses: list[Address] = [parse_address(one) for one in addresses]
        self.sessions = 0
        self.given: list[PolicySet] = []
        self.links: list[bool] = []
        self.refuse = False
        self._changed = trio.Event()
        self.client = PolicyClient(
            endpoint,
            KEY,
            name=name,
            role=role,
            addresses=lambda: self.addresses,
            load=lambda: Load(self.sessions, 0.5),
            on_policy=self._on_policy,
            on_link=self._on_link,
            cache=tmp_path / "run" / f"{name}.policy",
        )

    async def _on_policy(self, policy: PolicySet) -> None:
        if self.refuse:
            raise M2MError("the table is full")
        self.given.append(policy)
        self._wake()

    def _on_link(self, connected: bool, why: str) -> None:
        self.links.append(connected)
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    @property
    def policy(self) -> PolicySet:
        return self.given[-1]

    async def until(self, true: Callable[[], bool]) -> None:
        while not true():
            await self._changed.wait()


@asynccontextmanager
async def a_site(tmp_path: Path) -> AsyncIterator[tuple[Site, trio.Nursery]]:
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            site = Site(nursery, tmp_path / "store")
            await site.start()
            yield site, nursery
            nursery.cancel_scope.cancel()


async def test_each_agent_gets_what_its_location_needs(tmp_path: Path) -> None:
    async with a_site(tmp_path) as (site, nursery):
        client = Host(site.endpoint, tmp_path, "c", Role.CLIENT, "10.0.1.5")
        box = Host(site.endpoint, tmp_path, "fw1", Role.MIDDLEBOX, "10.0.2.2")
        server = Host(site.endpoint, tmp_path, "s", Role.SERVER, "10.0.5.2")
        for host in (client, box, server):
            await nursery.start(host.client.run)  # started: the first set is in force
        assert [policy.id for policy in client.policy.policies] == [0]
        assert [nf.name for nf in client.policy.nfs] == ["firewall", "ids"]
        assert box.policy == server.policy
        assert len(server.policy.policies) > 1
        assert client.client.connected


async def test_a_load_reaches_every_agent_and_says_who_has_confirmed(tmp_path: Path) -> None:
    async with a_site(tmp_path) as (site, nursery):
        client = Host(site.endpoint, tmp_path, "c", Role.CLIENT, "10.0.1.5")
        box = Host(site.endpoint, tmp_path, "fw1", Role.MIDDLEBOX, "10.0.2.2")
        for host in (client, box):
            await nursery.start(host.client.run)
        loaded = await load_file(site.endpoint, KEY, "second.m2m", SECOND, wait=10)
        assert (loaded.generation, loaded.agents, loaded.confirmed) == (2, 2, 2)
        assert loaded.waiting_for == ()
        assert client.policy.generation == box.policy.generation == 2
        assert client.policy.rules[0].dport_lo == 443


async def test_an_agent_that_cannot_take_a_set_is_named_and_keeps_the_old_one(
    tmp_path: Path,
) -> None:
    async with a_site(tmp_path) as (site, nursery):
        client = Host(site.endpoint, tmp_path, "c", Role.CLIENT, "10.0.1.5")
        await nursery.start(client.client.run)
        client.refuse = True
        loaded = await load_file(site.endpoint, KEY, "second.m2m", SECOND, wait=0.2)
        assert (loaded.agents, loaded.confirmed, loaded.waiting_for) == (1, 0, ("c",))
        assert client.policy.generation == 1
        client.refuse = False
        loaded = await load_file(site.endpoint, KEY, "third.m2m", FIRST, wait=10)
        assert (loaded.generation, loaded.confirmed) == (3, 1)


async def test_a_bad_file_is_refused_with_its_place_and_changes_nothing(tmp_path: Path) -> None:
    async with a_site(tmp_path) as (site, nursery):
        client = Host(site.endpoint, tmp_path, "c", Role.CLIENT, "10.0.1.5")
        await nursery.start(client.client.run)
        with pytest.raises(M2MError, match=r"bad\.m2m:1:1"):
            await load_file(site.endpoint, KEY, "bad.m2m", "nonsense")
        assert site.server.generation == 1
        assert len(client.given) == 1


async def test_the_same_text_again_is_no_new_generation(tmp_path: Path) -> None:
    async with a_site(tmp_path) as (site, _):
        assert (await load_file(site.endpoint, KEY, "x", FIRST)).generation == 1


async def test_every_set_an_agent_sees_is_whole(tmp_path: Path) -> None:
    """Atomicity: whichever of many quick changes an agent sees, it sees one file's set."""
    async with a_site(tmp_path) as (site, nursery):
        client = Host(site.endpoint, tmp_path, "c", Role.CLIENT, "10.0.1.5")
        await nursery.start(client.client.run)
        for port in range(100, 120):
            text = FIRST.replace("dstport=80", f"dstport={port}").replace("fw1", f"fw{port}")
            last = await load_file(site.endpoint, KEY, "p", text, wait=0)
        await client.until(lambda: client.policy.generation == last.generation)
        generations = [policy.generation for policy in client.given]
        assert generations == sorted(generations)
        assert generations[-1] == 21
        for policy in client.given[1:]:
            port = policy.rules[0].dport_lo
            assert policy.generation == port - 98
            assert policy.nfs[0].instances[0].name == f"fw{port}"


async def test_new_addresses_bring_new_rules(tmp_path: Path) -> None:
    async with a_site(tmp_path) as (site, nursery):
        client = Host(site.endpoint, tmp_path, "c", Role.CLIENT, "10.0.1.5")
        await nursery.start(client.client.run)
        client.addresses = [parse_address("10.0.9.5")]
        client.client.addresses_changed()
        await client.until(lambda: [one.id for one in client.policy.policies] == [1])
        assert client.policy.generation == 1


async def test_server_away_and_back(tmp_path: Path) -> None:
    """The last set stays; the same client connects again and gets what has changed since."""
    async with a_site(tmp_path) as (site, nursery):
        client = Host(site.endpoint, tmp_path, "c", Role.CLIENT, "10.0.1.5")
        await nursery.start(client.client.run)
        await load_file(site.endpoint, KEY, "second.m2m", SECOND)
        await site.stop()
        await client.until(lambda: client.links == [True, False])
        assert not client.client.connected
        assert client.policy.generation == 2
        with pytest.raises(ServerAway, match="cannot reach the policy server at 127"):
            await client.client.agents()
        given = len(client.given)
        await site.start()
        await client.until(lambda: len(client.given) > given)
        assert client.links == [True, False, True]
        assert client.policy.generation == 2  # what was loaded survives, and its generation
        assert client.policy.rules[0].dport_lo == 443


async def test_an_agent_restarted_while_the_server_is_away_has_the_last_set(
    tmp_path: Path,
) -> None:
    async with a_site(tmp_path) as (site, nursery):
        first = Host(site.endpoint, tmp_path, "c", Role.CLIENT, "10.0.1.5")
        async with trio.open_nursery() as life:
            await life.start(first.client.run)
            loaded = await load_file(site.endpoint, KEY, "second.m2m", SECOND, wait=10)
            assert loaded.confirmed == 1  # and kept before
            life.cancel_scope.cancel()
        await site.stop()
        assert (tmp_path / "run" / "c.policy").stat().st_mode & 0o777 == 0o600
        again = Host(site.endpoint, tmp_path, "c", Role.CLIENT, "10.0.1.5")
        await nursery.start(again.client.run)
        assert again.policy.generation == 2
        assert again.policy.rules == first.policy.rules


@pytest.mark.parametrize("damage", [b"", b"x" * 15, b"x" * 100])
async def test_a_damaged_kept_set_is_ignored(tmp_path: Path, damage: bytes) -> None:
    kept = tmp_path / "run" / "c.policy"
    kept.parent.mkdir()
    kept.write_bytes(damage)
    async with a_site(tmp_path) as (site, nursery):
        await site.stop()
        client = Host(site.endpoint, tmp_path, "c", Role.CLIENT, "10.0.1.5")
        await nursery.start(client.client.run)  # started all the same: the server is away
        assert client.given == []
        assert client.links == [False]


async def test_a_kept_set_of_another_domain_is_ignored(tmp_path: Path) -> None:
    async with a_site(tmp_path) as (site, nursery):
        async with trio.open_nursery() as life:
            client = Host(site.endpoint, tmp_path, "c", Role.CLIENT, "10.0.1.5")
            await life.start(client.client.run)
            life.cancel_scope.cancel()
        await site.stop()
        kept = tmp_path / "run" / "c.policy"
        kept.rename(tmp_path / "run" / "d.policy")  # another agent's, as good as another key
        other = Host(site.endpoint, tmp_path, "d", Role.CLIENT, "10.0.1.5")
        await nursery.start(other.client.run)
        assert other.given == []


async def test_a_server_that_lost_its_store_passes_its_agents_generation(tmp_path: Path) -> None:
    async with a_site(tmp_path) as (site, nursery):
        client = Host(site.endpoint, tmp_path, "c", Role.CLIENT, "10.0.1.5")
        await nursery.start(client.client.run)
        for text in (SECOND, FIRST, SECOND):
            await load_file(site.endpoint, KEY, "p", text, wait=10)
        assert client.policy.generation == 4
        await site.stop()
        site.forget()
        given = len(client.given)
        await site.start()
        await client.until(lambda: len(client.given) > given)
        assert client.policy.generation == site.server.generation == 5
        assert client.policy.rules[0].dport_lo == 80  # its file's, as it knows no other


async def test_loads_that_favour_another_instance_are_pushed(tmp_path: Path) -> None:
    async with a_site(tmp_path) as (site, nursery):
        ids1 = Host(site.endpoint, tmp_path, "ids1", Role.MIDDLEBOX, "10.0.3.2")
        ids2 = Host(site.endpoint, tmp_path, "ids2", Role.MIDDLEBOX, "10.0.4.2")
        ids1.sessions = 5
        client = Host(site.endpoint, tmp_path, "c", Role.CLIENT, "10.0.1.5")
        await nursery.start(client.client.run)
        assert [one.load for one in client.policy.nfs[1].instances] == [AWAY_LOAD, AWAY_LOAD]
        for host in (ids1, ids2):
            await nursery.start(host.client.run)

        def loads() -> list[float]:
            return [one.load for one in client.policy.nfs[1].instances]

        await client.until(lambda: loads()[1] == 0 and loads()[0] in (5, AWAY_LOAD))
        assert client.policy.generation == 1


async def test_agents_are_listed_with_what_they_report(tmp_path: Path) -> None:
    async with a_site(tmp_path) as (site, _):
        box = Host(site.endpoint, tmp_path, "fw1", Role.MIDDLEBOX, "10.0.2.2")
        box.sessions = 7
        async with trio.open_nursery() as life:
            await life.start(box.client.run)
            await load_file(site.endpoint, KEY, "p", SECOND, wait=10)
            (seen,) = await box.client.agents()
            life.cancel_scope.cancel()
        assert (seen.name, seen.role, seen.addresses) == ("fw1", Role.MIDDLEBOX, ("10.0.2.2",))
        assert (seen.connected, seen.generation, seen.sessions, seen.cpu) == (True, 2, 7, 0.5)
        assert seen.instances == ("firewall/fw1",)
        await site.stop()
        await site.start()
        (after,) = await list_agents(site.endpoint, KEY)
        assert not after.connected
        assert (after.name, after.generation, after.sessions) == ("fw1", 2, 7)


async def test_a_connection_without_the_key_gets_nothing_and_is_counted(tmp_path: Path) -> None:
    async with a_site(tmp_path) as (site, _):
        with pytest.raises(ServerAway, match=r"is the key file the same|do not have the same key"):
            await connect(site.endpoint, OTHER_KEY)
        stream = await trio.open_tcp_stream("127.0.0.1", site.port)
        await stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
        with contextlib.suppress(trio.BrokenResourceError):
            while await stream.receive_some():
                pass
        await list_agents(site.endpoint, KEY)  # it goes on serving
        assert site.server.faults[Fault.NOT_M2M] == 1
        assert sum(site.server.faults.values()) == 2


# --- one connection, over streams in memory


@asynccontextmanager
async def a_talk(nursery: trio.Nursery, server: PolicyServer) -> AsyncIterator[Channel[FromServer]]:
    ours, its = trio.testing.memory_stream_pair()
    nursery.start_soon(server.serve, its)
    async with await Channel.open(ours, KEY, Side.CLIENT, FromServer) as channel:
        yield channel


def a_server() -> PolicyServer:
    store = Store(":memory:")
    return PolicyServer(KEY, store, store.start_from("p", FIRST))


def hello(name: str = "c", generation: int = 0) -> Hello:
    return Hello(name, Role.CLIENT, (parse_address("10.0.1.5"),), generation)


async def test_an_agent_that_comes_again_takes_its_earlier_connection_over() -> None:
    server = a_server()
    with trio.fail_after(5):
        async with (
            trio.open_nursery() as nursery,
            a_talk(nursery, server) as first,
            a_talk(nursery, server) as second,
        ):
            await first.send(hello())
            assert isinstance(await first.receive(), Push)
            await second.send(hello())
            assert isinstance(await second.receive(), Push)
            assert await first.receive() is None
            async with a_talk(nursery, server) as asking:
                await asking.send(ListAgents())
                listed = await asking.receive()
            assert [one.connected for one in listed.agents] == [True]  # type: ignore[union-attr]
            await second.aclose()


@pytest.mark.parametrize("message", [Confirm(1), Load(0, 0.0)])
async def test_what_only_agents_say_needs_a_hello_first(message: ToServer) -> None:
    server = a_server()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery, a_talk(nursery, server) as channel:
            await channel.send(message)
            assert await channel.receive() is None
    assert server.faults == {Fault.MALFORMED: 1}


@pytest.mark.parametrize("message", [hello("other"), ListAgents()])
async def test_an_agent_stays_who_it_said_it_is(message: ToServer) -> None:
    server = a_server()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery, a_talk(nursery, server) as channel:
            await channel.send(hello())
            await channel.receive()
            await channel.send(message)
            assert await channel.receive() is None
    assert server.faults == {Fault.MALFORMED: 1}


@pytest.mark.parametrize(
    "message",
    [
        Load(-1, 0.0),
        Load(0, 1.5),
        Hello("", Role.CLIENT, (), 0),
        Hello("c", Role.CLIENT, (b"short",), 0),
        hello(generation=1 << 31),
    ],
)
async def test_values_that_cannot_be_are_refused(message: ToServer) -> None:
    server = a_server()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery, a_talk(nursery, server) as channel:
            await channel.send(message)
            assert await channel.receive() is None
    assert server.faults == {Fault.MALFORMED: 1}


async def test_a_silent_agent_counts_as_gone(autojump_clock: trio.testing.MockClock) -> None:
    server = a_server()
    async with trio.open_nursery() as nursery, a_talk(nursery, server) as channel:
        await channel.send(hello())
        assert isinstance(await channel.receive(), Push)
        assert await channel.receive() is None
    assert trio.current_time() == server_module._SILENCE
    assert server.faults == {Fault.TIMEOUT: 1}


async def test_an_agent_that_does_not_read_is_given_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = a_server()
    ours, its = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve, its)
        channel = await Channel.open(ours, KEY, Side.CLIENT, FromServer)
        await trio.testing.wait_all_tasks_blocked()
        its.send_stream.send_all_hook = trio.sleep_forever  # as a full window does
        await channel.send(hello())
    assert trio.current_time() == server_module._SEND_TIMEOUT
    assert server.faults == {Fault.TIMEOUT: 1}


async def test_pushes_for_loads_alone_keep_their_distance(
    mock_clock: trio.testing.MockClock,
) -> None:
    """Loads that tip to and fro every 100 ms for ten seconds: one push a second."""
    server = a_server()
    arrivals: list[float] = []

    async def listen(channel: Channel[FromServer]) -> None:
        while isinstance(await channel.receive(), Push):
            arrivals.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(server._follow_loads)
        async with (
            a_talk(nursery, server) as client,
            a_talk(nursery, server) as ids1,
            a_talk(nursery, server) as ids2,
        ):
            await client.send(hello())
            await ids1.send(Hello("ids1", Role.MIDDLEBOX, (parse_address("10.0.3.2"),), 0))
            await ids2.send(Hello("ids2", Role.MIDDLEBOX, (parse_address("10.0.4.2"),), 0))
            nursery.start_soon(listen, client)
            for step in range(101):
                await ids1.send(Load(10 + step % 2 * 10, 0.0))
                await ids2.send(Load(15, 0.0))
                await client.send(Load(0, 0.0))
                await trio.testing.wait_all_tasks_blocked()
                mock_clock.jump(0.1)
            nursery.cancel_scope.cancel()
    pushes = [at for at in arrivals if at > 0.5]  # without those of the agents' coming
    assert 9 <= len(pushes) <= 10
    apart = [later - earlier for earlier, later in itertools.pairwise(pushes)]
    assert min(apart) >= server_module._PUSH_INTERVAL - 1e-6


def test_every_message_survives_the_wire() -> None:
    for message in (hello(), Load(1, 0.5, {"x": 1}), Confirm(3), ListAgents()):
        packed = msgspec.msgpack.encode(message)
        assert msgspec.msgpack.decode(packed, type=ToServer) == message
