"""What breaks, and what is left of it: hosts out of reach, agents and servers killed."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from m2m.datapath.hold_rules import CHAIN
from m2m.datapath.pins import directory_of
from m2m.lab import netns as lab_netns
from m2m.lab import state as lab_state
from m2m.lab.process import birth
from tests.support import namespaces
from tests.support.capabilities import BPFFS
from tests.support.chain import CLOSED, OPEN, LiveChain, LiveHost, live_chain
from tests.support.live import PATIENCE
from tests.support.namespaces import NamespaceFactory

pytestmark = [pytest.mark.needs("netns", "bpffs", "nfqueue"), pytest.mark.timeout(120)]

ROOT = Path(__file__).parents[2]
DECIDED = 5.0  # s within which a set-up has an outcome; the agents give up after one


@pytest.fixture
async def chain(netns: NamespaceFactory, tmp_path: Path) -> AsyncIterator[LiveChain]:
    async with live_chain(netns, tmp_path, "--linger", "0.2") as made:
        yield made


async def nothing_is_left(*hosts: LiveHost) -> None:
    for host in hosts:
        await host.until_empty()
        assert (host.entries(), host.stats().ports) == (0, 0), host.label


async def works(chain: LiveChain) -> None:
    """A session goes through all hosts, and is gone from them when this returns."""
    here, there = await chain.connect(CLOSED)
    with here, there:
        assert [len(host.sessions()) for host in chain.hosts.values()] == [1, 1, 1, 1]
    await nothing_is_left(*chain.hosts.values())


async def test_a_host_out_of_reach_is_decided_over_in_time(chain: LiveChain) -> None:
    for link in ("to-ids", "to-fw"):  # behind the first hop, and the first hop itself
        chain.router.run("ip", "link", "set", link, "down")
        with trio.fail_after(DECIDED):
            why, connected = await chain.refusal(CLOSED)
        assert not connected and "dropped" in why
        with trio.fail_after(DECIDED):
            why, connected = await chain.refusal(OPEN)
        assert connected and "passed on unsteered" in why
        await nothing_is_left(chain.client, chain.server)
        chain.router.run("ip", "link", "set", link, "up")
    await nothing_is_left(*chain.hosts.values())
    await works(chain)


async def test_an_agent_that_hangs_is_decided_over_and_changes_nothing_when_it_wakes(
    chain: LiveChain,
) -> None:
    assert chain.ids.agent is not None
    chain.ids.agent.process.send_signal(signal.SIGSTOP)
    try:
        with trio.fail_after(DECIDED):
            why, connected = await chain.refusal(CLOSED)
        # Whom it names depends on who gives up first, for which a busy machine leaves little time.
        assert not connected and "does not answer" in why
    finally:
        chain.ids.agent.process.send_signal(signal.SIGCONT)  # SYNs and their RSTs wait there
    await nothing_is_left(*chain.hosts.values())
    await works(chain)


async def test_without_the_policy_server_the_last_set_stays_in_force(chain: LiveChain) -> None:
    before = chain.client.policy()
    await chain.policy.stop(signal.SIGKILL)
    assert chain.fw.agent is not None
    await chain.fw.agent.stop(signal.SIGKILL)
    await chain.fw.start()  # with no server to ask
    await works(chain)
    after = chain.client.policy()
    assert (after.generation, after.policies, after.connected) == (
        before.generation, before.policies, False,
    )  # fmt: skip
    await chain.start_policy_server()
    with trio.fail_after(PATIENCE):
        for host in chain.hosts.values():
            await host.until(lambda _, host=host: host.policy().connected)
    assert all(agent.connected for agent in chain.client.agents())
    assert chain.client.policy().generation == before.generation
    await works(chain)


async def test_what_a_killed_agent_left_is_replaced_or_taken_away(chain: LiveChain) -> None:
    here, there = await chain.connect(CLOSED)
    with here, there:
        for host in (chain.client, chain.fw):
            assert host.agent is not None
            await host.agent.stop(signal.SIGKILL)
        assert kernel_part(chain.client) == {
            "jumps": 2, "queue rules": 1, "queues": 0, "pins": True, "ports": "61000-65535",
        }  # fmt: skip
        await chain.client.start()
        assert kernel_part(chain.client) == {
            "jumps": 2, "queue rules": 1, "queues": 1, "pins": True, "ports": "61000-65535",
        }  # fmt: skip
        await chain.fw.clean_up()
        for host in (chain.fw, chain.client):
            await host.clean_up()
            assert kernel_part(host) == {
                "jumps": 0, "queue rules": 0, "queues": 0, "pins": False, "ports": "",
            }  # fmt: skip
            assert not list(host.run_dir.glob(f"{host.name}.*"))


def kernel_part(host: LiveHost) -> dict[str, object]:
    """What there is of an agent outside it."""
    rules = host.namespace.run("iptables-save", "-t", "mangle").stdout
    with host.namespace.entered():
        queues = Path("/proc/thread-self/net/netfilter/nfnetlink_queue").read_text()
    return {
        "jumps": rules.count(f"-j {CHAIN}"),
        "queue rules": rules.count("-j NFQUEUE"),
        "queues": len(queues.splitlines()),
        "pins": directory_of(host.name).exists(),
        "ports": host.reserved_ports(),
    }


_RUN_OF_TESTS = """
import os, sys, trio
from pathlib import Path
from tests.support.chain import CLOSED, live_chain
from tests.support.namespaces import RUN_VARIABLE, NamespaceFactory

async def main():
    os.environ[RUN_VARIABLE] = str(os.getpid())
    async with live_chain(NamespaceFactory(), Path(sys.argv[1])) as chain:
        await chain.connect(CLOSED)
        print("up", flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


def test_what_a_killed_test_run_left_is_taken_away_by_the_next(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _RUN_OF_TESTS, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as killed:
        assert killed.stdout is not None and killed.stdout.readline() == "up\n"
        killed.kill()
    own = f"{namespaces.PREFIX}{killed.pid}-*"
    places = [Path("/run/netns"), BPFFS / "m2m"]
    left = [path.name for place in places for path in place.glob(own)]
    assert len(left) == 5 + 4  # namespaces and pins
    agents = [pid for path in places[0].glob(own) for pid in inside(path.name)]
    assert len(agents) == 4 + 1  # and the policy server
    handles = [os.pidfd_open(pid) for pid in agents]
    namespaces.remove_leftovers()
    assert [path.name for place in places for path in place.glob(own)] == []
    for handle in handles:
        assert select.select([handle], [], [], PATIENCE)[0], "it has not ended"
        os.close(handle)


def inside(namespace: str) -> list[int]:
    return [int(pid) for pid in namespaces.run("ip", "netns", "pids", namespace).stdout.split()]


@pytest.mark.needs("nft", "nginx", "iperf3", "tcpdump", "curl")
def test_what_a_killed_demo_left_is_taken_away() -> None:
    command = [sys.executable, "-u", "-m", "m2m.cli.lab", "demo"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        said = next((line for line in demo.stdout if "through the chain" in line), None)
        demo.kill()
    assert said is not None, "the demo ended before it was killed"
    orphans = lab_netns.processes_inside("demo")
    assert len(orphans) > 5  # agents, servers, captures
    assert len(list((BPFFS / "m2m").glob("demo-*"))) == 4
    down = [sys.executable, "-m", "m2m.cli.lab", "down", "demo"]
    assert subprocess.run(down, check=False, timeout=60).returncode == 0
    assert [pid for pid in orphans if birth(pid) is not None] == []
    assert not list((BPFFS / "m2m").glob("demo-*"))
    assert not list(Path("/run/netns").glob("m2m-demo-*"))
    assert not list(lab_state.RUN.glob("demo*[!k]"))  # all but the lock
