"""A policy for everything steers everything but M2M's own traffic."""

from __future__ import annotations

import signal

import msgspec
import pytest
import trio

from m2m.lab.lab import open_lab
from m2m.lab.topology import Nginx, PolicyServer, chain

pytestmark = pytest.mark.needs("root", "netns", "bpf", "bpffs", "nfqueue", "iptables", "nginx")

POLICY = "nf mb1 tap { mb1 = 10.0.1.2 }\nmatch(any) >> {mb1} fail=closed\n"


async def test_agents_reach_each_other_and_the_policy_server() -> None:
    line = chain(1, name="broad")
    web = msgspec.structs.replace(
        line.hosts["server"], run=[Nginx(ports=[80], pages={"index.html": "hello"})]
    )
    # On the server's host, so that a client's agent reaches it only through the network.
    topology = msgspec.structs.replace(
        line, hosts={**line.hosts, "server": web}, policy=PolicyServer("server", text=POLICY)
    )
    async with open_lab(topology) as lab:
        url = f"http://{lab.address('server')}/"
        with trio.fail_after(30):
            assert (await lab.run("client", "curl", "-sS", "--max-time", "9", url)).out == "hello"
            assert (await lab.stats("client")).setups.get("established") == 1

            # The next agent has the policy from its predecessor before it reaches the server.
            await lab.stop("client", "agent", signal.SIGKILL)
            await lab.start_agent("client")
            while not (await lab.policy("client")).connected:
                pass
            assert (await lab.run("client", "curl", "-sS", "--max-time", "9", url)).out == "hello"
