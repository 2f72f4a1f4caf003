"""An agent is killed at each step of a change: the session lives, and is whole afterwards.

::

    client (L) ── fw (old) ── ids (R) ── server          beside it: fw2 (new)

The message of the step is dropped by the router, so that the change stands still there.
``M2M_HEAVY=1`` (``make faults``) does so in every mode, and with taps in place of the firewalls.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from m2m.agent.config import AGENT_PORT
from m2m.errors import M2MError
from tests.support.chain import CLOSED, LiveChain, LiveHost, live_chain
from tests.support.echo import an_echo
from tests.support.live import PATIENCE
from tests.support.namespaces import NamespaceFactory
from tests.support.wiretap import Wiretap

pytestmark = [pytest.mark.needs("netns", "bpffs", "nfqueue", "nft"), pytest.mark.timeout(180)]

RATE = ("rate", "100mbit", "burst", "64k", "latency", "20ms")
POLICY = """
nf firewall {kind} {{ fw1 = 10.9.2.2{more} }}
nf ids tap {{ ids1 = 10.9.3.2 }}
match(dstport={port}) >> {{firewall -> ids}}
"""

# Steps by the message that is on its way: its type, who sends it, and who waits for it.
STEPS = {
    "the new path is made": (16, "client", "new"),  # UPDATE-SYN
    "the old path is locked": (23, "client", "old"),  # LOCK
    "all is in place": (17, "ids", "client"),  # UPDATE-SYNACK
    "substreams are parted": (24, "client", "ids"),  # UPDATE-SUB
    "a substream is acknowledged": (25, "ids", "client"),  # UPDATE-SUBACK
    "the old path is drained to the right": (26, "client", "old"),  # UPDATE-DRAIN
    "the old path is drained to the left": (27, "ids", "old"),  # UPDATE-DRAINED
    "state is moved": (28, "old", "new"),  # STATE
    "state has been moved": (29, "new", "old"),  # STATEACK
    "the new path is in": (18, "client", "new"),  # UPDATE-ACK
    "the old path is out": (19, "client", "old"),  # UPDATE-FIN
    "the old path is gone": (20, "ids", "old"),  # UPDATE-FINACK
}
# What has none of what stands still in other modes; and a tap's state does not move.
NOT_IN_LF = ("substream", "drained", "state")
NOT_IN_OP = ("substream",)
NOT_BY_TAPS = ("state",)
CASES = [("inline", "ss+op", step) for step in STEPS]
SHORT = [
    ("inline", "lf", "the new path is in"),
    ("inline", "op", "the old path is drained to the left"),
    ("tap", "ss+op", "the old path is drained to the right"),
]
LONG = [
    (kind, mode, step)
    for kind, mode, without in (
        ("inline", "lf", NOT_IN_LF),
        ("inline", "op", NOT_IN_OP),
        ("tap", "lf", NOT_IN_LF),
        ("tap", "op", NOT_IN_OP + NOT_BY_TAPS),
        ("tap", "ss+op", NOT_BY_TAPS),
    )
    for step in STEPS
    if not any(word in step for word in without)
]
CASES += LONG if os.environ.get("M2M_HEAVY") == "1" else SHORT
INSTANCES = {"fw": "fw1", "fw2": "fw2"}  # by the host's label
IN_HEADER = 64 + 3 * 8  # where a message's type is, in bits, behind an IP header


@pytest.fixture
def kind() -> str:
    """Of the firewalls."""
    return "inline"


@pytest.fixture
async def chain(netns: NamespaceFactory, tmp_path: Path, kind: str) -> AsyncIterator[LiveChain]:
    text = policy(kind)
    async with live_chain(netns, tmp_path, "--linger", "0.5", more=("fw2",), text=text) as made:
        for host in made.hosts.values():
            made.router.run("tc", "qdisc", "add", "dev", f"to-{host.label}", "root", "tbf", *RATE)
        made.router.run("nft", "add table ip m2mt; add chain ip m2mt c "
                        "{ type filter hook forward priority 0; }")  # fmt: skip
        yield made


def policy(kind: str, more: str = "") -> str:
    return POLICY.format(kind=kind, more=more, port=CLOSED)


def firewalls(chain: LiveChain) -> list[LiveHost]:
    """Where the session passes a firewall, and where it could: old and new."""
    both = [chain.fw, chain.hosts["fw2"]]
    return sorted(both, key=lambda host: not host.entries())


async def kill_at(
    chain: LiveChain, session: str, mode: str, message: int, victim: LiveHost
) -> None:
    """Begin a change, and kill the agent of *victim* as soon as *message* has left somewhere."""
    _, new = firewalls(chain)
    dropped = f"udp dport {AGENT_PORT} @th,{IN_HEADER},8 {message} drop"
    chain.router.run("nft", f"add rule ip m2mt c {dropped}")
    taps = [Wiretap(host.namespace, "eth0") for host in chain.hosts.values()]

    async def change() -> None:
        try:
            await chain.client.change(
                do="replace", old=("firewall",), new=(INSTANCES[new.label],), sessions=(session,),
                mode=mode,
            )  # fmt: skip
        except M2MError:
            assert victim is chain.client  # whoever asked it hears that it went away

    async def heard(tap: Wiretap, scope: trio.CancelScope) -> None:
        await tap.until(message)
        scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(change)
            with trio.fail_after(PATIENCE):
                async with trio.open_nursery() as listeners:
                    for tap in taps:
                        listeners.start_soon(heard, tap, listeners.cancel_scope)
            assert victim.agent is not None
            await victim.agent.stop(signal.SIGKILL)
            chain.router.run("nft", "flush chain ip m2mt c")
    finally:
        for tap in taps:
            tap.close()


async def is_whole(chain: LiveChain, session: str, kind: str) -> None:
    """Return when the session has one path, end to end, and no host has more of it than that."""

    def seen() -> tuple[str, dict[str, int]]:
        path = chain.server.path(session)
        entries = {host.label: host.entries() for host in chain.hosts.values()}
        return path.problem, entries

    def whole() -> bool:
        problem, entries = seen()
        off = firewalls(chain)[1].label
        each = 4 if kind == "inline" else 2
        expected = {"client": 2, "fw": each, "fw2": each, "ids": 2, "server": 2, off: 0}
        return not problem and entries == expected

    try:
        await chain.server.until(lambda _: whole(), patience=2 * PATIENCE)
    except trio.TooSlowError:
        raise AssertionError(f"the session is not whole: {seen()}") from None


@pytest.mark.parametrize(("kind", "mode", "step"), CASES)
async def test_a_killed_agent_leaves_a_session_that_lives_and_becomes_whole(
    chain: LiveChain, kind: str, mode: str, step: str
) -> None:
    """I5, I6"""
    message, *roles = STEPS[step]
    async with an_echo(chain, CLOSED) as echo:
        (session,) = await trio.to_thread.run_sync(chain.client.sessions)
        await chain.load_policy(policy(kind, ", fw2 = 10.9.5.2"))
        for role in roles:
            old, new = firewalls(chain)
            victim = {"client": chain.client, "ids": chain.ids, "old": old, "new": new}[role]
            await kill_at(chain, session.id, mode, message, victim)
            await echo.goes_on()  # without it
            await victim.start()
            await is_whole(chain, session.id, kind)
            await echo.goes_on()
