"""Inline network functions as docs/inline-nfs.md sets them up, between real agents.

::

    client ── fw (firewall; the near squeezer) ── ids (Suricata; the far squeezer) ── server
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from m2m.agent.in_hand import in_hand
from m2m.datapath.hold import _bind, _Queues
from nf_adapters.skb.squeeze import MARK, is_squeezed
from tests.support.chain import LiveChain, LiveHost, change_chain, live_chain
from tests.support.document import block, counted, load
from tests.support.echo import an_echo
from tests.support.live import PATIENCE
from tests.support.namespaces import NamespaceFactory
from tests.support.packets import has_right_checksums
from tests.support.processes import Daemon, daemon
from tests.support.wiretap import Wiretap

pytestmark = [pytest.mark.needs("netns", "bpffs", "nfqueue", "nft"), pytest.mark.timeout(120)]

WEB, REFUSED, SQUEEZED, FAR_ALONE, TAPPED, OTHER = 80, 81, 7000, 7001, 7002, 7003
POLICY = f"""
nf near inline {{ near1 = 10.9.2.2 }}
nf far inline {{ far1 = 10.9.3.2 }}
nf firewall inline {{ fw1 = 10.9.2.2 }}
nf ips inline {{ ips1 = 10.9.3.2 }}
nf tap tap {{ tap1 = 10.9.5.2 }}
nf other inline {{ other1 = 10.9.5.2 }}
match(dstport={WEB} | dstport={REFUSED}) >> {{firewall -> ips}}
match(dstport={SQUEEZED}) >> {{near -> far}}
match(dstport={FAR_ALONE}) >> {{far}}
match(dstport={TAPPED}) >> {{tap}}
match(dstport={OTHER}) >> {{other}}
"""
TEXT = b"A line of text, of which there are many more that are like it.\n" * 4000
FW, IDS = (socket.inet_aton(f"10.9.{number}.2") for number in (2, 3))
_ETH_P_ALL, _SO_RCVBUFFORCE = 0x0003, 33
_LOOK = 0.02  # s between two looks at what a program has written; there is no event for it


@pytest.fixture
def more() -> tuple[str, ...]:
    """Middleboxes beside these."""
    return ()


@pytest.fixture
async def chain(
    netns: NamespaceFactory, tmp_path: Path, more: tuple[str, ...]
) -> AsyncIterator[LiveChain]:
    async with live_chain(
        netns, tmp_path, "--linger", "0.5", "--udp-idle", "30", more=more, text=POLICY
    ) as made:
        made.ids.namespace.sysctl("net.ipv4.ip_forward", 1)
        yield made


def invalid(host: LiveHost) -> int:
    """Packets that conntrack could make nothing of."""
    listed = host.namespace.run("iptables", "-nvxL", "FORWARD").stdout
    (line,) = (line for line in listed.splitlines() if "INVALID" in line)
    return int(line.split()[0])


async def exchange(
    here: trio.socket.SocketType, there: trio.socket.SocketType, text: bytes
) -> None:
    with trio.fail_after(PATIENCE):
        for sender, receiver in ((here, there), (there, here)):
            await sender.send(text)
            assert await receiver.recv(1 << 16) == text


async def datagrams(
    chain: LiveChain, port: int
) -> tuple[trio.socket.SocketType, trio.socket.SocketType]:
    """A session over UDP from client to server; its two sockets."""
    there = chain.server.socket(socket.SOCK_DGRAM)
    await there.bind(("0.0.0.0", port))
    here = chain.client.socket(socket.SOCK_DGRAM)
    await here.connect((chain.server.address, port))
    with trio.fail_after(PATIENCE):
        await here.send(b"first")
        _, client = await there.recvfrom(100)
        await there.connect(client)
    return here, there


@asynccontextmanager
async def suricata(host: LiveHost) -> AsyncIterator[Path]:
    """It inspects while the block runs; its log of events."""
    home = host.run_dir / "suricata"
    home.mkdir()
    for name in ("ips.yaml", "ips.rules"):
        (home / name).write_text(block(name))
    command = ("suricata", "-c", "ips.yaml", "-S", "ips.rules", "-q", "0", "-l", str(home))
    process = await trio.lowlevel.open_process(
        host.namespace.command(*command), cwd=home, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        said = b""
        with trio.fail_after(PATIENCE):
            while b"Engine started" not in said:
                data = await process.stdout.receive_some()  # type: ignore[union-attr]
                assert data, said
                said += data
        load(host, "ips.sh")
        yield home / "eve.json"
    finally:
        with trio.CancelScope(shield=True):
            process.send_signal(signal.SIGINT)
            await process.wait()


@pytest.mark.skipif(not shutil.which("suricata"), reason="suricata is not installed")
async def test_suricata_blocks_a_supersession_and_no_other(chain: LiveChain) -> None:
    """The ends are told, the chain has nothing of it left, and the log says why; the firewall
    before it lets all of that pass, and no other port."""
    load(chain.fw, "firewall.nft")
    early, its_end = await chain.connect(WEB)  # in mid-stream when it is inspected
    await exchange(early, its_end, b"hello")
    async with suricata(chain.ids) as log:
        bad, its = await chain.connect(WEB)
        good, other = await chain.connect(WEB)
        udp, datagram = await datagrams(chain, WEB)
        for pair in ((early, its_end), (bad, its), (good, other), (udp, datagram)):
            await exchange(*pair, b"hello")
        client = bad.getsockname()
        before = len(chain.ids.sessions())
        await bad.send(b"an attack")
        await early.send(b"an attack")
        with trio.fail_after(PATIENCE):
            for end in (bad, its, early, its_end):
                with pytest.raises(ConnectionResetError):
                    await end.recv(100)
            await chain.ids.until(lambda snapshot: snapshot.stats.sessions == before - 2)
            await udp.send(b"an attack")
            await exchange(good, other, b"still here")
            tcp = await _blocked(log, "attack in a stream", client)
            await _blocked(log, "attack in a datagram", udp.getsockname())
        assert (tcp["dest_ip"], tcp["dest_port"]) == (chain.server.address, WEB)
        assert (counted(chain.fw)["invalid"], counted(chain.fw)["refused"]) == (0, 0)
        with chain.client.socket(socket.SOCK_DGRAM) as refused, trio.fail_after(PATIENCE):
            await refused.connect((chain.server.address, REFUSED))
            await refused.send(b"nobody lets this pass")
            while not counted(chain.fw)["refused"]:  # noqa: ASYNC110
                await trio.sleep(_LOOK)
        for end in (bad, its, early, its_end, good, other, udp, datagram):
            end.close()


async def _blocked(log: Path, why: str, client: tuple[str, int]) -> dict[str, Any]:
    """What the log says of a session that was blocked."""
    while True:
        for event in _events(log):
            if event["event_type"] == "alert" and event["alert"]["signature"] == why:
                assert event["alert"]["action"] == "blocked"
                if (event["src_ip"], event["src_port"]) == client:
                    return event
        await trio.sleep(_LOOK)


def _events(log: Path) -> list[dict[str, Any]]:
    text = log.read_text() if log.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


@asynccontextmanager
async def squeezing(host: LiveHost, beyond: str) -> AsyncIterator[Daemon]:
    """The host's end of the stretch while the block runs; its rules stay."""
    command = (sys.executable, "-m", "nf_adapters.skb", "--queue", "10")
    async with daemon(host.namespace, host.run_dir, f"{host.label}-squeezer", *command) as made:
        load(host, "squeeze.sh", beyond)
        yield made


@asynccontextmanager
async def both_squeezing(chain: LiveChain) -> AsyncIterator[tuple[Daemon, Daemon]]:
    """Near and far; the far one is there first, and to the last."""
    async with (
        squeezing(chain.ids, "10.9.1.0/24") as far,
        squeezing(chain.fw, "10.9.4.0/24") as near,
    ):
        yield near, far


def told(squeezer: Daemon) -> dict[str, int]:
    """What it has done, by its own account at its end."""
    (line,) = (line for line in squeezer.output.splitlines() if "event=ended" in line)
    return {name: int(count) for name, count in re.findall(r"(\w+)=(\d+)\b", line)}


@contextmanager
def on_the_stretch(chain: LiveChain) -> Iterator[list[bytes]]:
    """All squeezed packets, both ways, once the block is left."""
    packets: list[bytes] = []
    with chain.router.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as tap:
        tap.setblocking(False)
        tap.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 25)
        with chain.router.entered():
            tap.bind(("to-ids", _ETH_P_ALL))
        yield packets
        with suppress(BlockingIOError):
            while True:
                packets.append(tap.recv(1 << 16))
    packets[:] = filter(is_squeezed, packets)


async def pour(
    sender: trio.socket.SocketType, receiver: trio.socket.SocketType, data: bytes
) -> None:
    """Send all of it one way, and see it come."""

    async def send() -> None:
        view = memoryview(data)
        while view:
            view = view[await sender.send(view) :]

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            received = bytearray()
            while len(received) < len(data):
                received += await receiver.recv(1 << 16)
    assert received == data


async def test_payloads_are_smaller_on_the_stretch_alone(chain: LiveChain) -> None:
    """Bursts, fragments, what cannot get smaller, foreign marks; conntrack sees all of it whole."""
    async with both_squeezing(chain) as (near, far):
        with on_the_stretch(chain) as seen:
            here, there = await chain.connect(SQUEEZED)
            await pour(here, there, TEXT)
            await pour(there, here, TEXT)
            udp, its = await datagrams(chain, SQUEEZED)
            udp.setsockopt(
                socket.IPPROTO_IP, socket.IP_TOS, MARK << 2
            )  # means something else there
            for text in (TEXT[:1200], TEXT[:3900], half_random(3900), os.urandom(700)):
                await exchange(udp, its, text)
            assert invalid(chain.fw) == invalid(chain.ids) == 0
            for end in (here, there, udp, its):
                end.close()
    ours, theirs = told(near), told(far)
    assert ours["saved"] > len(TEXT) // 2 < theirs["saved"]
    assert 20 < ours["restored"] <= theirs["squeezed"]
    assert 20 < theirs["restored"] <= ours["squeezed"]
    assert ours["garbled"] == theirs["garbled"] == 0
    parts = [packet for packet in seen if packet[6] & 0x20]
    whole = [packet for packet in seen if not int.from_bytes(packet[6:8], "big") & 0x3FFF]
    assert parts and len(whole) > 40
    assert {packet[9] for packet in whole} == {socket.IPPROTO_TCP, socket.IPPROTO_UDP}
    assert {packet[12:20] for packet in seen} == {FW + IDS, IDS + FW}, "only subsessions"
    assert all(map(has_right_checksums, whole))


def half_random(size: int) -> bytes:
    """It gets smaller by half."""
    return os.urandom(size // 2) + bytes(size - size // 2)


@pytest.mark.parametrize("more", [("tap",)])
async def test_the_pair_comes_and_goes_under_a_running_transfer(chain: LiveChain) -> None:
    """Also with changes that begin and end at hosts that squeeze, whose checkpoints are of what
    they send."""
    async with (
        both_squeezing(chain) as (near, far),
        squeezing(chain.hosts["tap"], "10.9.4.0/24") as other,
        an_echo(chain, SQUEEZED, TEXT) as echo,
    ):
        (session,) = await trio.to_thread.run_sync(chain.client.sessions)
        for mode, wish in (
            ("ss+op", {"do": "insert", "new": ("tap1",), "after": "near"}),
            ("op", {"do": "remove", "old": ("tap",)}),
            ("ss+op", {"do": "remove", "old": ("near", "far")}),
            ("lf", {"do": "insert", "new": ("near1", "far1"), "after": "client"}),
            ("op", {"do": "remove", "old": ("near", "far")}),
            ("ss+op", {"do": "insert", "new": ("near1", "far1"), "after": "client"}),
            ("op", {"do": "replace", "old": ("near",), "new": ("other1",)}),
        ):
            await change_chain(chain.client, session.id, mode=mode, **wish)
            await echo.goes_on(1 << 18)
        await echo.goes_on()
    for done in (told(near), told(far), told(other)):
        assert min(done["squeezed"], done["restored"]) > 20


def test_an_agent_passes_over_a_queue_that_is_taken(netns: NamespaceFactory) -> None:
    """Also where the numbers end."""
    names = map(str, itertools.count())
    name = next(name for name in names if zlib.crc32(name.encode()) % 32768 == 32767)
    with netns("host").entered():
        queues = _Queues()
        taken = [_bind(name, 1, queues) for _ in range(2)]
    assert [queue.number for queue in taken] == [65535, 32768]
    for queue in (*taken, queues):
        queue.close()


async def test_queues_are_numbered_apart_waited_for_and_stand_garbage(chain: LiveChain) -> None:
    async with both_squeezing(chain) as (near, far):
        for host in chain.hosts.values():
            with host.namespace.entered():
                own, *others = sorted((queue.number for queue in in_hand()), reverse=True)
            assert 32768 <= own <= 65535
            assert others == ([10] if host in (chain.fw, chain.ids) else [])
        again = (sys.executable, "-m", "nf_adapters.skb", "--queue", "10")
        taken = chain.ids.namespace.run(*again, check=False)
        assert taken.returncode == 1 and "netfilter queue 10 cannot be had" in taken.stderr
        here, there = await datagrams(chain, FAR_ALONE)
        here.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, MARK << 2)
        await here.send(b"not what it says it is")
        here.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0)
        await exchange(here, there, b"nothing special")
        here.close()
        there.close()
        await _waited_for(chain, near)
    assert told(far)["garbled"] == 1
    assert "packet dropped" in far.output


async def _waited_for(chain: LiveChain, near: Daemon) -> None:
    """``op``: the near program sleeps with packets in its queue, and its host does not leave
    before; no packet is lost or overtaken."""
    drain = 26  # UPDATE-DRAIN
    here, there = await datagrams(chain, SQUEEZED)
    found = await trio.to_thread.run_sync(chain.client.sessions)
    (session,) = (one for one in found if one.supersession.dport == SQUEEZED)
    near.process.send_signal(signal.SIGSTOP)
    asked, passed_on = (Wiretap(one.namespace, "eth0") for one in (chain.client, chain.fw))
    texts = [b"%d" % number * 100 for number in range(20)]
    for text in texts[:10]:
        await here.send(text)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            partial(change_chain, chain.client, session.id, mode="op", do="remove",
                    old=("near",))
        )  # fmt: skip
        try:
            with trio.fail_after(PATIENCE):
                await asked.until(drain)
            for text in texts[10:]:
                await here.send(text)
            with trio.move_on_after(0.1):
                await passed_on.until(drain)
        finally:
            near.process.send_signal(signal.SIGCONT)
        assert drain not in {frame.type for frame in passed_on.frames()}
    with trio.fail_after(PATIENCE):
        assert [await there.recv(1000) for _ in texts] == texts
    for end in (here, there, asked, passed_on):
        end.close()
