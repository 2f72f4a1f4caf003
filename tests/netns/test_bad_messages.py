"""What agents and the policy server are sent by mistake or malice: counted, dropped, no more."""

from __future__ import annotations

import random
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from m2m.agent.config import AGENT_PORT
from m2m.auth import DomainKey
from m2m.policy.channel import Codec, Side
from m2m.policy.endpoint import POLICY_PORT
from m2m.protocol.association import Association
from m2m.protocol.flow import Flow, Proto, parse_address
from m2m.protocol.translation import Position
from m2m.protocol.wire import (
    HEADER_SIZE,
    MAC_SIZE,
    MAX_DATAGRAM,
    Ack,
    Cause,
    Fin,
    Hop,
    Rst,
    Syn,
    SynAck,
)
from tests.support.chain import CLOSED, LiveChain, LiveHost, live_chain
from tests.support.live import PATIENCE
from tests.support.namespaces import NamespaceFactory
from tests.support.wiretap import Frame, Wiretap

pytestmark = [pytest.mark.needs("netns", "bpffs", "nfqueue"), pytest.mark.timeout(120)]

SYN, SYNACK, ACK, FIN, FINACK = 1, 2, 3, 4, 5


@pytest.fixture
async def chain(netns: NamespaceFactory, tmp_path: Path) -> AsyncIterator[LiveChain]:
    async with live_chain(netns, tmp_path, "--linger", "0.2", "--log-level", "debug") as made:
        yield made


def state(chain: LiveChain) -> dict[str, object]:
    """All that control messages can change, at all hosts."""
    return {
        label: (
            [(one.id, one.state, one.left, one.right) for one in host.sessions()],
            host.keys(),
            host.stats().ports,
            host.reserved_ports(),
            processed(host),
        )
        for label, host in chain.hosts.items()
    }


def processed(host: LiveHost) -> dict[str, int]:
    control = host.stats().control
    return {name: n for name, n in control.items() if name.startswith(("sent.", "received."))}


def dropped(host: LiveHost) -> dict[str, int]:
    control = host.stats().control
    return {name[8:]: n for name, n in control.items() if name.startswith("dropped.")}


async def until_refused(host: LiveHost, count: int) -> None:
    """Return when *host* has counted so many datagrams that it did not process."""
    with trio.fail_after(PATIENCE):
        await host.until(lambda seen: refused(seen.stats.control) >= count)
    assert refused(host.stats().control) == count


async def until_refused_by_all(chain: LiveChain, count: int) -> None:
    with trio.fail_after(PATIENCE):
        for host in chain.hosts.values():
            await host.until(lambda _: sum(count_refused(chain).values()) >= count)
    assert sum(count_refused(chain).values()) == count


def count_refused(chain: LiveChain) -> dict[str, int]:
    return {label: refused(host.stats().control) for label, host in chain.hosts.items()}


def refused(control: dict[str, int]) -> int:
    return control["challenged"] + sum(
        n for name, n in control.items() if name.startswith("dropped.")
    )


def malformed(key: DomainKey, leg: Flow, session: int) -> dict[str, list[bytes]]:
    """Datagrams by the reason for which an agent must refuse them. What they are about exists."""
    stranger = Association(key, random.Random(1))
    fin = stranger.seal(leg.dst, Fin(session, leg))
    body = fin[:-MAC_SIZE]
    chain = (Hop(leg.dst, Position.SERVER),)
    syn = Syn(session + 1, leg, leg, chain, 1500, 0, 1, 1000)

    def signed(data: bytes) -> bytes:
        return data + key.mac(data)

    return {
        "truncated": [
            b"", b"M2", fin[: HEADER_SIZE + MAC_SIZE - 1], signed(body[:-1]),
            signed(body[:HEADER_SIZE]),
        ],
        "oversized": [bytes(MAX_DATAGRAM + 1), bytes(9000), signed(body + b"\0")],
        "version": [signed(b"M2\x03" + body[3:]), signed(b"M2\x00" + body[3:])],
        "type": [signed(b"M2\x02\x00" + body[4:]), signed(b"M2\x02\x63" + body[4:])],
        "magic": [signed(b"GE" + body[2:])],
        "value": [
            signed(body[:4] + b"\x80" + body[5:]), signed(body[:32] + bytes(8) + body[40:]),
        ],
        "bad-mac": [
            fin[:-1], fin[:-1] + bytes([fin[-1] ^ 1]), fin[:40] + b"\x01" + fin[41:], bytes(200),
            *(Association(DomainKey(b"x" * 32), random.Random(2)).seal(leg.dst, message)
              for message in (Fin(session, leg), syn)),
        ],
        # Authentic, and not new to anybody who has recorded it: nothing but the epoch is wrong.
        "": [
            stranger.seal(leg.dst, message)
            for message in (
                syn, SynAck(session, leg, 1500), Ack(session, leg), Fin(session, leg),
                Rst(session, leg, Cause.UNKNOWN_SESSION, ""),
            )
        ],
    }  # fmt: skip


async def test_bad_datagrams_are_counted_by_reason_and_change_nothing(chain: LiveChain) -> None:
    here, there = await chain.connect(CLOSED)
    with here, there, chain.router.socket(socket.AF_INET, socket.SOCK_DGRAM) as noise:
        fw = chain.fw
        (session,) = fw.sessions()
        assert session.left is not None
        leg = Flow(
            Proto.TCP, parse_address(session.left.src), session.left.sport,
            parse_address(session.left.dst), session.left.dport,
        )  # fmt: skip
        noise.bind(("10.9.2.1", AGENT_PORT))  # its challenges come back here and are not answered
        bad = malformed(DomainKey.load(fw.run_dir / "key"), leg, int(session.id, 16))
        before, refused_before = state(chain), refused(fw.stats().control)
        dropped_before, challenged = dropped(fw), fw.stats().control["challenged"]
        for datagrams in bad.values():
            for datagram in datagrams:
                noise.sendto(datagram, (fw.address, AGENT_PORT))
        await until_refused(fw, refused_before + sum(map(len, bad.values())))
        assert state(chain) == before
        assert fw.stats().control["challenged"] == challenged + len(bad.pop(""))
        sent = {reason: len(datagrams) for reason, datagrams in bad.items()}
        assert dropped(fw) == Counter(dropped_before) + Counter(sent)
        await here.send(b"still there?")
        assert await there.recv(100) == b"still there?"


async def test_the_policy_server_gives_bad_connections_up_and_serves_on(chain: LiveChain) -> None:
    key = DomainKey.load(chain.server.run_dir / "key")
    here, there = await chain.connect(CLOSED)
    before, policies = state(chain), [host.policy() for host in chain.hosts.values()]
    greeting = Codec(key, Side.CLIENT).take()
    with here, there:
        for said, fault in {
            b"GET / HTTP/1.1\r\n\r\n": "not-m2m",
            b"M2P\x09" + greeting[4:]: "version",
            greeting[:20]: "no-proof",
            greeting + b"\0\0\0\0" + bytes(MAC_SIZE): "bad-mac",
            greeting + b"\xff\xff\xff\xff": "no-proof",
        }.items():
            with chain.router.socket(socket.AF_INET, socket.SOCK_STREAM) as noise:
                stranger = trio.SocketStream(trio.socket.from_stdlib_socket(noise))
                with trio.fail_after(PATIENCE):
                    await stranger.socket.connect((chain.server.address, POLICY_PORT))
                    await stranger.send_all(said)
                    await stranger.send_eof()
                    while await stranger.receive_some():
                        pass
            chain.client.agents()  # a whole conversation later that one is over
            line = chain.policy.output.splitlines()[-1]
            assert f"fault={fault} " in line and 'peer="10.9.4.1 port ' in line
        assert state(chain) == before
        assert [host.policy() for host in chain.hosts.values()] == policies
        connected = [agent.name for agent in chain.client.agents() if agent.connected]
        assert sorted(connected) == sorted(host.name for host in chain.hosts.values())


async def test_recorded_messages_change_nothing_when_they_come_again(chain: LiveChain) -> None:
    """While the session lives, when it is over, and when the agents have been restarted."""
    with ExitStack() as stack:
        taps = {}
        for label in chain.hosts:
            taps[label] = Wiretap(chain.router, f"to-{label}")
            stack.callback(taps[label].close)
        recorded: dict[str, list[Frame]] = {}

        async def again(why: str) -> None:
            """Send everything again, to everybody: refused by all, and nothing changes."""
            for label, host in chain.hosts.items():
                before, refused_before = state(chain), count_refused(chain)
                challenged = host.stats().control["challenged"]
                taps[label].send(recorded[label])
                refused_before[label] += len(recorded[label])
                await until_refused(host, refused_before[label])
                # Challenges go to the hosts that once sent this. They have moved on, too.
                challenged = host.stats().control["challenged"] - challenged
                await until_refused_by_all(chain, sum(refused_before.values()) + challenged)
                assert state(chain) == before, f"{why}: repeated to {label}"

        here, there = await chain.connect(CLOSED)
        with here, there, trio.fail_after(PATIENCE):
            for label, types in {
                "client": [SYNACK], "fw": [SYN, SYNACK, ACK], "ids": [SYN, SYNACK, ACK],
                "server": [SYN, ACK],
            }.items():  # fmt: skip
                recorded[label] = await taps[label].until(*types)
            await again("alive")
            await here.send(b"still there?")
            assert await there.recv(100) == b"still there?"
        with trio.fail_after(PATIENCE):
            await chain.until_empty()
        recorded = {label: tap.frames() for label, tap in taps.items()}
        assert {FIN, FINACK} <= {one.type for frames in recorded.values() for one in frames}
        await again("over")
        for host in chain.hosts.values():
            assert host.agent is not None
            await host.agent.stop()
            await host.start()
            await again(f"{host.label} restarted")
        assert [host.entries() for host in chain.hosts.values()] == [0, 0, 0, 0]
