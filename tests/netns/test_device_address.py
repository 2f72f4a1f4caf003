"""An address that goes with the host: sockets and policies know it by that, wherever it is."""

from __future__ import annotations

import sys

import msgspec
import pytest

from m2m.agent.api import SessionInfo
from m2m.lab.handover import PROBES_UDP, SERVER, UE, handover
from m2m.lab.lab import Lab, open_lab
from m2m.lab.moves import Endpoint, endpoint
from m2m.lab.topology import Ready, Topology

pytestmark = pytest.mark.needs("root", "netns", "bpf", "bpffs", "nfqueue", "iptables", "nft")

DEVICE = "100.64.0.7"

_SERVE = f"""
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("0.0.0.0", {PROBES_UDP}))
print("listening", flush=True)
while True:
    data, peer = server.recvfrom(100)
    server.sendto(peer[0].encode(), peer)
"""
# Lines of our input are sent; what the server saw as their source is printed.
_ASK = f"""
import socket, sys
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.settimeout(2)
client.bind(({DEVICE!r}, 0))
client.connect((sys.argv[1], {PROBES_UDP}))
for attempt in range(3):
    try:
        client.send(b"who am I?")
        print(client.recv(100).decode())
        break
    except TimeoutError:
        pass
"""


def lab_with_device(name: str) -> Topology:
    topology = handover(name=name, middleboxes=1)
    assert topology.policy is not None and topology.policy.text is not None
    text = topology.policy.text.replace("match((", f"match(srcip={DEVICE} & (").replace(
        "match(dstport", f"match(srcip={DEVICE} & dstport"
    )
    ue = topology.hosts[UE]
    hosts = {
        **topology.hosts,
        UE: msgspec.structs.replace(ue, agent=[*ue.agent, "--device-address", DEVICE]),
    }
    policy = msgspec.structs.replace(topology.policy, text=text)
    return msgspec.structs.replace(topology, hosts=hosts, policy=policy)


async def ask(lab: Lab) -> str:
    done = await lab.run(UE, sys.executable, "-c", _ASK, lab.address(SERVER))
    return done.out.strip()


async def sessions(lab: Lab) -> list[SessionInfo]:
    return await lab.sessions(UE)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("preferred", [False, True], ids=["bound to", "by the route"])
async def test_it_is_the_same_in_both_cells(preferred: bool) -> None:
    """*preferred*: the default route names it as source, so unchanged applications use it."""
    async with (
        open_lab(lab_with_device(f"device{preferred:d}"), agents=False) as lab,
        endpoint(lab, UE) as ue,
        endpoint(lab, SERVER),
    ):
        await lab.start_agents()
        await lab.start(SERVER, "who", [sys.executable, "-c", _SERVE], ready=Ready(log="listening"))
        for move in range(3):
            if preferred:
                await prefer(lab, ue)
            assert await ask(lab) == DEVICE
            found = await sessions(lab)
            assert len(found) == move + 1 and {one.supersession.src for one in found} == {DEVICE}
            await ue.hand_over()
        left = (await lab.run(UE, "ip", "route", "show", "table", "local", DEVICE)).out
        assert DEVICE in left
        await lab.stop(UE, "agent")


async def prefer(lab: Lab, ue: Endpoint) -> None:
    await lab.run(
        UE, "ip", "route", "replace", "default", "via", ue.at.gateway, "dev", ue.at.router,
        "src", DEVICE,
    )  # fmt: skip
