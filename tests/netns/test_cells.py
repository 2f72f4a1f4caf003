"""The first middlebox changes with the cell: sessions follow the policy of where they are."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import msgspec
import pytest
import trio

from m2m.lab.handover import SERVER, UE, handover
from m2m.lab.lab import Lab, open_lab
from m2m.lab.moves import endpoint
from m2m.lab.probing import probing

pytestmark = pytest.mark.needs("root", "netns", "bpf", "bpffs", "nfqueue", "iptables", "nft")

_PATIENCE = 10.0  # s for a chain to be what it is to be
_LOOK = 0.05  # s between two looks


async def chains(lab: Lab) -> list[str]:
    """The network functions that the UE's sessions pass."""
    found = []
    for one in await lab.sessions(UE):
        path = await lab.path(UE, one.id)
        found.append(" ".join((hop.nf or "?").partition("/")[0] for hop in path.hops[1:-1]))
    return found


async def until(true: Callable[[], Awaitable[bool]]) -> bool:
    """Whether it becomes true in time."""
    with trio.move_on_after(_PATIENCE):
        while not await true():  # noqa: ASYNC110 - other processes tell no event of it
            await trio.sleep(_LOOK)
        return True
    return False


async def forwarded(lab: Lab, host: str, counter: str) -> int:
    done = await lab.run(host, "nft", "--json", "list", "counter", "ip", "firewall", counter)
    items = msgspec.json.decode(done.out)["nftables"]
    return int(next(item["counter"]["packets"] for item in items if "counter" in item))


async def passes(lab: Lab, chain: str) -> bool:
    return await chains(lab) == [chain] * 5


async def sees_more(lab: Lab, host: str, than: int) -> bool:
    return await forwarded(lab, host, "known") > than + 100


@pytest.mark.timeout(120)
@pytest.mark.parametrize("proto", ["tcp", "udp"])
async def test_the_first_hop_changes_with_the_cell(proto: str) -> None:
    async with (
        open_lab(handover(first_per_cell=True, name=f"cells{proto}"), agents=False) as lab,
        endpoint(lab, UE) as ue,
        endpoint(lab, SERVER),
    ):
        await lab.start_agents()
        async with probing(lab, proto, sessions=5, watched=5, interval=2.0) as probes:
            assert await chains(lab) == ["fw-a ids"] * 5
            for cell, chain in (("b", "fw-b ids"), ("a", "fw-a ids"), ("b", "fw-b ids")):
                probes.moves.append(await ue.hand_over())
                assert await until(partial(passes, lab, chain)), await chains(lab)
                before = await forwarded(lab, f"fw-{cell}", "known")
                assert await until(partial(sees_more, lab, f"fw-{cell}", before))
        assert probes.found.ended == []
        for account in probes.found.accounts():
            assert account.duplicated == account.corrupted == 0
            assert proto == "udp" or account.lost == 0
        for host in ("fw-a", "fw-b"):
            assert await forwarded(lab, host, "strange") == 0
