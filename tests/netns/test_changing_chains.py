"""Real agents change the chain of a session that is busy; its ends notice nothing.

::

    client ── fw (inline) ── ids (tap) ── server         beside them: fw2 (inline), ids2 (tap)
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tests.support.chain import (
    BUSY,
    CLOSED,
    TAPPED,
    TRIES,
    LiveChain,
    LiveHost,
    change_chain,
    live_chain,
)
from tests.support.echo import an_echo
from tests.support.live import PATIENCE
from tests.support.namespaces import NamespaceFactory

pytestmark = [pytest.mark.needs("netns", "bpffs", "nfqueue"), pytest.mark.timeout(180)]

MODES = ("lf", "op", "ss+op")
RATE = ("rate", "200mbit", "burst", "64k", "latency", "20ms")  # two CPUs carry it with ease
NFS = """
nf firewall inline { fw1 = 10.9.2.2, fw2 = 10.9.5.2 }
nf ids tap { ids1 = 10.9.3.2, ids2 = 10.9.6.2 }
"""
POLICY = f"""
nf firewall inline {{ fw1 = 10.9.2.2 }}
nf ids tap {{ ids1 = 10.9.3.2 }}
match(dstport={CLOSED}) >> {{firewall -> ids}}
match(dstport={TAPPED}) >> {{ids}}
"""
LARGER = f"""{NFS}
match(dstport={CLOSED}) >> {{firewall -> ids}} change=lf allow={{operator, nf}}
match(dstport={TAPPED}) >> {{ids}}
"""


class Six(LiveChain):
    """The chain with two more middleboxes."""

    @property
    def fw2(self) -> LiveHost:
        return self.hosts["fw2"]

    @property
    def ids2(self) -> LiveHost:
        return self.hosts["ids2"]


@pytest.fixture
async def chain(netns: NamespaceFactory, tmp_path: Path) -> AsyncIterator[LiveChain]:
    async with live_chain(
        netns, tmp_path, "--linger", "0.5", more=("fw2", "ids2"), text=POLICY
    ) as made:
        made.__class__ = Six
        for host in made.hosts.values():
            made.router.run("tc", "qdisc", "add", "dev", f"to-{host.label}", "root", "tbf", *RATE)
        yield made


def _way(chain: LiveChain, *middle: str) -> tuple[str, ...]:
    return chain.client.name, *middle, chain.server.name


async def _only_session(host: LiveHost) -> str:
    (session,) = await trio.to_thread.run_sync(host.sessions)
    return session.id


@pytest.mark.parametrize("mode", MODES)
async def test_what_is_between_the_ends_changes_under_a_running_transfer(
    chain: Six, mode: str
) -> None:
    """I3, I4: the session passes what it should, byte for byte, and old hosts keep nothing."""
    async with an_echo(chain, CLOSED) as echo:
        session = await _only_session(chain.client)
        await chain.load_policy(LARGER)
        now = ("firewall/fw1", "ids/ids1")

        async def change(asked: LiveHost, then: tuple[str, ...], **wish: object) -> None:
            nonlocal now
            report = await change_chain(asked, session, mode=mode, **wish)
            assert (report.before, report.after) == (_way(chain, *now), _way(chain, *then))
            assert (report.mode, report.retransmissions is not None) == (mode, True)
            await echo.goes_on()
            now = then

        # Replace a tap, and back; by the host that leads, and by one that does not.
        swapped = ("firewall/fw1", "ids/ids2")
        await change(chain.fw, swapped, do="replace", old=("ids",), new=("ids2",))
        assert chain.ids.entries() == 0
        await change(chain.server, (*now[:1], "ids/ids1"), do="drain", old=("ids2",))
        assert chain.ids2.entries() == 0
        # Replace the inline one, take one out, put one in, and a whole run.
        await change(chain.client, ("firewall/fw2", "ids/ids1"), do="drain", old=("fw1",))
        assert chain.fw.entries() == 0
        await change(chain.ids, ("firewall/fw2",), do="remove", old=("ids",))
        await change(chain.fw2, (), do="remove", old=("firewall",))
        assert (chain.fw2.entries(), chain.client.entries(), chain.server.entries()) == (0, 2, 2)
        await change(chain.client, ("firewall/fw1", "ids/ids2"), do="insert",
                     new=("fw1", "ids2"), after="client")  # fmt: skip
        await change(chain.client, ("ids/ids1", "firewall/fw2"), do="replace",
                     old=("firewall", "ids"), new=("ids1", "fw2"))  # fmt: skip
        path = await trio.to_thread.run_sync(chain.server.path, session)
        assert path.complete, path.problem
    with trio.fail_after(PATIENCE):
        await chain.until_empty()
    assert {host.label: host.entries() for host in chain.hosts.values()} == dict.fromkeys(
        chain.hosts, 0
    )


def _m2m(host: LiveHost, module: str, *words: str) -> list[dict[str, object]]:
    """Run m2mctl or m2m-nf on a host; its JSON lines."""
    done = host.namespace.run(
        sys.executable, "-m", module, *words, "--json", "--agent", host.name,
        "--run-dir", str(host.run_dir), check=False,
    )  # fmt: skip
    assert done.stderr == "", done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


async def test_operators_and_network_functions_ask_by_their_commands(chain: Six) -> None:
    async with an_echo(chain, CLOSED) as echo:
        session = await _only_session(chain.client)
        await chain.load_policy(LARGER)

        async def run(host: LiveHost, module: str, *words: str) -> dict[str, object]:
            for _ in range(TRIES):
                (told,) = await trio.to_thread.run_sync(_m2m, host, module, *words)
                await echo.goes_on()
                if told["cause"] not in BUSY:
                    break
            return told

        told = await run(chain.client, "m2m.cli.ctl", "replace", "ids", "ids2", session)
        assert (told["error"], told["mode"]) == (None, "lf")  # as its policy says
        told = await run(chain.ids2, "m2m.cli.nf", "migrate", "me", "to", "ids/ids1")
        assert (told["error"], told["after"]) == (
            None, list(_way(chain, "firewall/fw1", "ids/ids1")),
        )  # fmt: skip
        told = await run(chain.ids, "m2m.cli.nf", "remove", "me", "--match", f"dstport={CLOSED}")
        assert (told["error"], told["after"]) == (None, list(_way(chain, "firewall/fw1")))
        told = await run(chain.fw, "m2m.cli.nf", "insert", "ids2", "after", "me", "--mode", "op")
        assert (told["error"], told["mode"]) == (None, "op")
        assert told["after"] == list(_way(chain, "firewall/fw1", "ids/ids2"))

        await chain.load_policy(LARGER.replace(", nf}", "}"))
        told = await run(chain.fw, "m2m.cli.nf", "remove", "me")
        assert "nf may not ask for changes of this session" in str(told["error"])
        assert told["by"] == chain.fw.name


async def test_a_refusal_says_by_whom_and_the_session_goes_on(chain: Six) -> None:
    async with an_echo(chain, CLOSED) as echo:
        session = await _only_session(chain.client)
        await chain.load_policy(LARGER)
        assert chain.ids2.agent is not None
        await chain.ids2.agent.stop()
        report = await chain.client.change(
            do="replace", old=("ids",), new=("ids2",), sessions=(session,), mode="op"
        )
        assert (report.cause, report.by) == ("timeout", "firewall/fw1")
        assert report.before == report.after == _way(chain, "firewall/fw1", "ids/ids1")
        await echo.goes_on()


async def test_many_sessions_are_drained_side_by_side(chain: Six) -> None:
    async with trio.open_nursery() as nursery:
        streams = []

        async def open_one(
            *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
        ) -> None:
            async with an_echo(chain, TAPPED) as echo:
                streams.append(echo)
                task_status.started()
                await trio.sleep_forever()

        for _ in range(8):
            await nursery.start(open_one)
        await chain.load_policy(LARGER)
        drained: list[dict[str, object]] = []
        for _ in range(TRIES):
            told = await trio.to_thread.run_sync(_m2m, chain.ids, "m2m.cli.ctl", "drain", "ids1")
            drained += [line for line in told if line["error"] is None]
            if len(drained) == len(streams):
                break
            assert {line["cause"] for line in told} <= {None, *BUSY}, told
        assert len(drained) == len(streams)
        assert chain.ids.entries() == 0
        for echo in streams:
            await echo.goes_on(1 << 18)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("live", ["stay", "follow"])
async def test_live_sessions_follow_a_new_policy_where_it_says_so(chain: Six, live: str) -> None:
    async with an_echo(chain, CLOSED) as echo:
        session = await _only_session(chain.client)
        rule = f"match(dstport={CLOSED}) >> {{ids -> firewall}} live={live} change=op"
        only = NFS.replace("fw1 = 10.9.2.2, ", "")
        await chain.load_policy(only + rule)

        def arrived() -> bool:
            path = chain.client.path(session)
            return [hop.nf for hop in path.hops[1:-1]] == ["ids/ids1", "firewall/fw2"]

        if live == "follow":
            await chain.server.until(lambda _: arrived())
            assert chain.fw.entries() == 0
        else:
            await echo.goes_on()
            assert not arrived()
        await echo.goes_on()


@pytest.mark.needs("nft")
@pytest.mark.parametrize("mode", ["op", "ss+op"])
async def test_a_stateful_firewall_hands_its_sessions_over(chain: Six, mode: str) -> None:
    """The new one has never seen the session, picks nothing up in mid-connection, and lets it
    pass; one without its state it refuses."""
    for host in (chain.fw, chain.fw2):
        host.namespace.run(
            "nft", "table ip filter { chain forward { type filter hook forward priority 0; "
            f"policy drop; ct state established accept; ct state new tcp dport {CLOSED} accept; }}"
            " ; }",
        )  # fmt: skip
        host.namespace.sysctl("net.netfilter.nf_conntrack_tcp_loose", 0)
        host.namespace.sysctl("net.netfilter.nf_conntrack_tcp_be_liberal", 0)
    async with an_echo(chain, CLOSED) as echo:
        session = await _only_session(chain.client)
        await chain.load_policy(LARGER)
        for new in ("fw2", "fw1"):
            wish = {"do": "replace", "old": ("firewall",), "new": (new,), "mode": mode}
            await change_chain(chain.client, session, **wish)
            await echo.goes_on()
        wish = {"do": "replace", "old": ("firewall",), "new": ("fw2",), "mode": "lf"}
        await change_chain(chain.client, session, **wish)  # but its state does not move along
        with trio.move_on_after(1.0) as scope:
            await echo.goes_on()
        assert scope.cancelled_caught
