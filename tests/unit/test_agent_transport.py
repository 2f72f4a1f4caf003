"""Datagrams between two agents on loopback, good and bad."""

import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from m2m.agent.transport import Transport
from m2m.auth import DomainKey
from m2m.errors import ConfigError
from m2m.identity import ANONYMOUS
from m2m.protocol.association import Association
from m2m.protocol.flow import Address, Flow, parse_address
from m2m.protocol.rebind import Bound, End, Leg, Rebind, Rebound, Result
from m2m.protocol.wire import Ack, Fin, Message, PathRep, PathReq

A, B, C = (parse_address(f"127.0.0.{n}") for n in (2, 3, 4))
LEG = Flow(6, A, 61000, B, 63264)
KEY = DomainKey(b"k" * 32)


class Host:
    """One end: what it has received, with the sender's address and the one it was asked at."""

    def __init__(self, port: int, seed: int, key: DomainKey = KEY) -> None:
        association = Association(key, random.Random(seed))
        self.gone: set[Address] = set()  # addresses that no interface has
        self.transport = Transport(association, port, lambda one: one not in self.gone)
        self.send, self._receive = trio.open_memory_channel[
            tuple[Address, Message, Address | None]
        ](1000)

    async def take(
        self, peer: Address, message: Message, at: Address | None, _device: bytes
    ) -> None:
        await self.send.send((peer, message, at))

    async def next(self) -> tuple[Address, Message, Address | None]:
        with trio.fail_after(10):
            return await self._receive.receive()


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def one_host() -> AsyncIterator[Host]:
    """All addresses of loopback are one host's, so it can talk to itself as its own neighbour."""
    host = Host(free_port(), 1)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.transport.run, host.take)
            yield host
            nursery.cancel_scope.cancel()
    finally:
        host.transport.close()


async def test_strangers_meet_and_the_first_message_arrives_once() -> None:
    async with one_host() as host:
        host.transport.send(B, Ack(1, LEG))
        host.transport.send(B, Fin(2, LEG))
        got = [(await host.next())[:2] for _ in range(2)]
        assert sorted(type(message).__name__ for _, message in got) == ["Ack", "Fin"]
        counts = host.transport.counters()
        assert (counts["sent.ack"], counts["received.ack"]) == (1, 1)
        assert (counts["sent.fin"], counts["received.fin"]) == (1, 1)
        assert counts["challenged"] == 2


async def test_a_message_leaves_from_our_end_of_its_subsession() -> None:
    """Whatever address the route prefers, the neighbour sees the one it knows."""
    async with one_host() as host:
        host.transport.send(B, Ack(1, LEG))
        assert await host.next() == (A, Ack(1, LEG), None)
        host.transport.send(A, Ack(1, LEG))  # to the left
        assert await host.next() == (B, Ack(1, LEG), None)


async def test_an_address_that_we_have_left_is_not_used() -> None:
    async with one_host() as host:
        host.gone.add(A)
        host.transport.send(B, Ack(1, LEG))
        peer, message, _ = await host.next()
        assert message == Ack(1, LEG) and peer != A


async def test_a_move_is_told_from_the_new_address_and_answered_from_the_hops() -> None:
    leg = Leg(7, End.CLIENT, 6, 1, (61000, 62000), (61000, 62000))
    done = Bound(7, End.CLIENT, 1, Result.DONE, (61000, 62000))
    async with one_host() as host:
        rebind = Rebind(7, C, A, B, ANONYMOUS, (leg,))
        host.transport.send(B, rebind)
        assert await host.next() == (A, rebind, None)
        host.transport.send(A, Rebound(7, A, B, (done,)))
        assert await host.next() == (B, Rebound(7, A, B, (done,)), None)


async def test_a_question_tells_where_it_was_asked_and_is_answered_from_there() -> None:
    async with one_host() as host:
        host.transport.send(B, PathReq(7))
        peer, question, at = await host.next()
        assert (question, at) == (PathReq(7), B)
        host.transport.send(peer, PathRep(7, b"report"), at)
        assert await host.next() == (B, PathRep(7, b"report"), None)


async def test_what_is_not_ours_is_counted_and_changes_nothing() -> None:
    async with one_host() as host:
        stranger = Association(DomainKey(b"x" * 32), random.Random(2))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            to = ("127.0.0.3", host.transport.port)
            for datagram in (b"", b"M2", b"x" * 100, b"x" * 5000, stranger.seal(B, Ack(1, LEG))):
                sender.sendto(datagram, to)
        host.transport.send(B, Ack(2, LEG))
        assert (await host.next())[1] == Ack(2, LEG)  # and nothing before it
        counts = host.transport.counters()
        assert counts["dropped.truncated"] == 2
        assert counts["dropped.bad-mac"] == 2
        assert counts["dropped.oversized"] == 1


async def test_a_burst_is_handled_whole() -> None:
    async with one_host() as host:
        host.transport.send(B, Ack(1, LEG))
        await host.next()  # they have met
        for number in range(200):
            host.transport.send(B, Ack(number + 2, LEG))
        got = [(await host.next())[1] for _ in range(200)]
        assert got == [Ack(number + 2, LEG) for number in range(200)]


async def test_what_cannot_be_sent_is_counted() -> None:
    async with one_host() as host:
        far = Flow(6, parse_address("192.0.2.77"), 61000, B, 63264)  # not an address of ours
        host.transport.send(B, Ack(1, far))
        unsent = {name for name in host.transport.counters() if name.startswith("unsent.")}
        assert len(unsent) == 1


def test_a_port_in_use_is_an_error_that_says_what_to_do() -> None:
    port = free_port()
    first = Host(port, 1)
    try:
        with pytest.raises(ConfigError, match=f"UDP port {port}: .* another --port"):
            Host(port, 2)
    finally:
        first.transport.close()


@pytest.mark.needs("root")
async def test_messages_go_before_what_waits() -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800)) as wire:
        wire.bind(("lo", 0x0800))
        wire.settimeout(10)
        async with one_host() as host:
            host.transport.send(B, Ack(1, LEG))
            await host.next()
            while True:
                packet = wire.recv(2048)
                sport = int.from_bytes(packet[20:22], "big")
                if packet[9] == socket.IPPROTO_UDP and sport == host.transport.port:
                    break
    assert packet[1] >> 2 == 48, "network control (RFC 4594)"
