"""A session of real agents on the module: set up, led another way, its client moved, ended."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from m2m.datapath.kmod import is_loaded
from tests.support.chain import CLOSED, LiveHost, live_chain
from tests.support.echo import an_echo
from tests.support.live import PATIENCE
from tests.support.namespaces import NamespaceFactory

pytestmark = [
    pytest.mark.skipif(not is_loaded(), reason="the module m2m is not loaded here"),
    pytest.mark.needs("netns"),
    pytest.mark.timeout(300),
]

POLICY = f"""
nf firewall inline {{ fw1 = 10.9.2.2, fw2 = 10.9.5.2 }}
nf ids tap {{ ids1 = 10.9.3.2 }}
match(dstport={CLOSED}) >> {{firewall -> ids}}
"""
ELSEWHERE = "10.9.1.7"


async def test_a_session_is_set_up_changed_and_moved(
    netns: NamespaceFactory, tmp_path: Path
) -> None:
    options = ("--datapath", "kmod", "--linger", "0.5")
    async with live_chain(netns, tmp_path, *options, more=("fw2",), text=POLICY) as chain:
        client, fw2 = chain.client, chain.hosts["fw2"]
        async with an_echo(chain, CLOSED) as echo:
            (session,) = await trio.to_thread.run_sync(client.sessions)
            assert session.chain == ("firewall", "ids")

            used, spare = sorted((chain.fw, fw2), key=LiveHost.entries, reverse=True)
            instances = {chain.fw.label: "fw1", fw2.label: "fw2"}
            # Loss-free alone: no packet waits, so that no limit for that can pass on a slow host.
            report = await client.change(
                sessions=(session.id,), do="drain", old=(instances[used.label],), mode="lf"
            )
            assert report.error is None, report
            await echo.goes_on()
            assert (used.entries(), spare.entries()) == (0, 4)

            client.namespace.run("ip", "address", "flush", "dev", "eth0")
            client.namespace.address("eth0", f"{ELSEWHERE}/24")
            client.namespace.route("default", "via", "10.9.1.1")
            await echo.goes_on()
            path = await trio.to_thread.run_sync(chain.server.path, session.id)
            assert path.complete, path.problem
            first = path.hops[0]
            assert first.right is not None and first.right.src == ELSEWHERE
            assert first.supersession == session.supersession  # the application's own
        with trio.fail_after(PATIENCE):
            await chain.until_empty()
        assert [host.entries() for host in chain.hosts.values()] == [0] * 5
