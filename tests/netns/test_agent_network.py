"""An agent follows its host's interfaces while it runs."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from m2m.datapath.pins import directory_of
from tests.support.namespaces import NamespaceFactory, run_prefix
from tests.support.processes import Daemon, daemon

pytestmark = pytest.mark.needs("netns", "bpffs", "nfqueue")

NAME = run_prefix() + "lone"


@pytest.fixture
async def agent(netns: NamespaceFactory, tmp_path: Path) -> AsyncIterator[Daemon]:
    host, other = netns("lone"), netns("other")
    netns.link(host, ("eth0", "10.9.0.1/24"), other, ("eth0", "10.9.0.2/24"))
    own = ("--name", NAME, "--run-dir", str(tmp_path))
    command = ("m2m.cli.agent", "--role", "server", "--insecure", *own)
    async with daemon(host, tmp_path, "agent", *command) as started:
        yield started
    await trio.to_thread.run_sync(
        host.run, sys.executable, "-m", "m2m.cli.agent", "--cleanup", *own
    )


def attached() -> set[int]:
    """The interfaces that have programs, by their pins."""
    pins = (path.name.split("-") for path in directory_of(NAME).iterdir())
    return {int(parts[1]) for parts in pins if parts[0] in ("link", "tc")}


async def test_interfaces_come_and_go(agent: Daemon) -> None:
    host = agent.namespace
    eth0 = host.ifindex("eth0")
    assert attached() == {eth0}

    host.run("ip", "link", "add", "eth1", "type", "veth", "peer", "eth2")
    await agent.says("STATUS=Serving on eth0, eth1, eth2")
    assert attached() == {eth0, host.ifindex("eth1"), host.ifindex("eth2")}

    host.run("ip", "link", "delete", "eth1")
    await agent.says("STATUS=Serving on eth0")
    assert attached() == {eth0}

    host.run("ip", "link", "set", "eth0", "down")
    host.run("ip", "link", "set", "eth0", "name", "lan0")
    await agent.says("STATUS=Serving on lan0")
    assert await agent.stop() == 0
