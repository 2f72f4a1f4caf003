"""Gateways in real namespaces: the scenario, and datagrams of which the first has to wait."""

from __future__ import annotations

import re
import sys

import msgspec
import pytest
import trio

from m2m.lab.gateways import CHAIN, FAR, NEAR, PHONE, SERVER, WEB, gateways
from m2m.lab.incremental import Report
from m2m.lab.lab import open_lab
from m2m.lab.netns import LabError
from m2m.lab.programs import tool
from m2m.lab.state import agent_name
from m2m.lab.topology import Ready, Role

pytestmark = pytest.mark.needs(
    "root", "netns", "bpf", "bpffs", "nfqueue", "iptables", "nft", "curl", "nginx"
)

_PORT = 7001  # whose UDP sessions go through the chain
_COUNT, _SIZE = 20, 4000  # datagrams, and bytes of each: three fragments

_ECHO = f"""
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("0.0.0.0", {_PORT}))
print("listening", flush=True)
while True:
    data, peer = server.recvfrom(65535)
    server.sendto(data, peer)
"""
_SEND = f"""
import socket, sys
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.settimeout(5)
client.connect((sys.argv[1], {_PORT}))
for number in range({_COUNT}):
    client.send(bytes([number]) * {_SIZE})
for _ in range({_COUNT}):
    data = client.recv(65535)
    print(data[0], len(data), len(set(data)))
"""


@pytest.mark.timeout(120)
async def test_every_check_holds() -> None:
    done = await trio.run_process(
        [tool("m2m-lab"), "run", "gateway", "--json"],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    assert done.stdout, done.stderr.decode()
    report = msgspec.json.decode(done.stdout, type=Report)
    assert [check for check in report.checks if not check.held] == []
    assert done.returncode == 0 and len(report.fetches) == 6
    # Not on a terminal, the live view is what it showed last: each leg with its packets.
    _, _, shown = done.stderr.decode().partition(f"{PHONE} fetches a page from {SERVER}")
    leg = r"\n +gw-a +10\.0\.1\.2:\d+ → 10\.0\.3\.2:\d+ +[\d,]+ packets *\n +fw +10\.0\.3\.2:"
    assert re.match(leg, shown), shown[:200]


@pytest.mark.timeout(120)
async def test_fragmented_datagrams_wait_as_a_whole_and_keep_their_order() -> None:
    """All but the first fragment of a datagram have no ports: none may go ahead, or astray."""
    async with open_lab(gateways(name="gwfrag")) as lab:
        await lab.start(WEB, "echo", [sys.executable, "-c", _ECHO], ready=Ready(log="listening"))
        done = await lab.run(PHONE, sys.executable, "-c", _SEND, lab.address(WEB))
        assert done.out.splitlines() == [f"{number} {_SIZE} 1" for number in range(_COUNT)]
        for host in (NEAR, FAR):
            assert (await lab.stats(host)).setups["established"] == 1
        seen = await lab.run("core", "nft", "list", "counter", "ip", "seen", "known")
        assert "packets 0" in seen.out


@pytest.mark.timeout(120)
async def test_a_host_with_an_agent_behind_a_gateway_is_its_own_client() -> None:
    """Even if all that comes from there is to be held: it is not steered once more."""
    topology = gateways(name="gwown")
    assert topology.policy is not None and topology.policy.text is not None
    phone = msgspec.structs.replace(topology.hosts[PHONE], role=Role.CLIENT)
    text = topology.policy.text + "match(srcip=10.1.0.0/24) >> {firewall}\n"
    policy = msgspec.structs.replace(topology.policy, text=text)
    hosts = {**topology.hosts, PHONE: phone}
    topology = msgspec.structs.replace(topology, hosts=hosts, policy=policy)
    async with open_lab(topology) as lab:
        url = f"http://{lab.address(SERVER)}:{CHAIN}/page"
        done = await lab.run(PHONE, "curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", url)
        assert done.out == "200"
        assert (await lab.stats(PHONE)).setups["established"] == 1
        assert "established" not in (await lab.stats(NEAR)).setups


@pytest.mark.timeout(120)
async def test_nothing_stays_when_a_gateway_is_cleaned_up() -> None:
    async with open_lab(gateways(name="gwend")) as lab:
        rules = "iptables-save -t mangle | grep -c -e M2M -e socket"
        held = await lab.run(NEAR, "sh", "-c", rules)
        assert int(held.out) > 4
        await lab.stop(NEAR, "agent")  # sessions would run on
        await lab.run(
            NEAR, tool("m2m-agent"), "--cleanup", "--name", agent_name(lab.name, NEAR),
            "--run-dir", str(lab.control_socket(NEAR).parent),
        )  # fmt: skip
        left = await lab.run(NEAR, "sh", "-c", rules, check=False)
        assert left.out.strip() == "0"


async def test_a_host_that_does_not_forward_is_no_gateway() -> None:
    with pytest.raises(LabError, match=r"sysctl -w net\.ipv4\.ip_forward=1"):  # noqa: PT012
        async with open_lab(gateways(name="gwstill"), agents=False) as lab:
            await lab.run(NEAR, "sysctl", "-qw", "net.ipv4.ip_forward=0")
            await lab.start_agents()
