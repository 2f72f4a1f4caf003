"""Endpoints that move without M2M: the moves themselves, what runs under them, and the peers."""

from __future__ import annotations

import sys
from ipaddress import IPv4Interface

import pytest
import trio

from m2m.lab import mobile_witness
from m2m.lab.gaps import silence
from m2m.lab.handover import CELLS, CONTROL, OTHER_UE, SERVER, UE, handover
from m2m.lab.lab import Lab, open_lab
from m2m.lab.mobile_loads import transfer
from m2m.lab.moves import endpoint
from m2m.lab.mptcp import following
from m2m.lab.netns import LabError
from m2m.lab.probing import probing
from m2m.lab.ssh import ssh_session

pytestmark = pytest.mark.needs("root", "netns", "nft")

_SETTLE = 0.2  # s of probes before and after a move: what is looked at is traffic in real time


def plain(*, other_ue: bool = False):
    return open_lab(handover(name="testmoves", other_ue=other_ue), agents=False)


async def reaches(lab: Lab, host: str, source: str) -> bool:
    """Whether the control host answers *source*, an address of *host*."""
    command = [sys.executable, "-m", "m2m.lab.reach", source, lab.address(CONTROL), "9"]
    return (await lab.run(host, *command, check=False)).status == 0


async def test_after_each_move_the_new_address_is_reached_and_the_link_was_away() -> None:
    async with plain() as lab, endpoint(lab, UE) as ue, endpoint(lab, SERVER) as server:
        first = ue.at
        for mover in (ue, ue, server, server):
            was = mover.at
            moved = await mover.hand_over()
            assert mover.at != was and moved.outage > 0
            assert await reaches(lab, mover.host, str(mover.at.address.ip))
        assert ue.at == first
        other = IPv4Interface(f"{first.address.ip + 5}/24")
        assert (await ue.readdress(other)).outage > 0
        assert await reaches(lab, UE, str(other.ip))
        await ue.readdress(first.address)
        assert (await ue.prefer()).outage == 0
        assert await reaches(lab, UE, str(ue.at.address.ip))
        with pytest.raises(LabError, match="sends by cell-b"):
            await ue.leave(ue.at)
        await ue.leave(first)
        assert await reaches(lab, UE, str(ue.at.address.ip))
        assert (await ue.outage(0.1)).outage >= 0.1
        assert ue.at == first and await reaches(lab, UE, str(first.address.ip))


async def test_a_former_address_can_be_another_ues_at_once() -> None:
    async with plain(other_ue=True) as lab, endpoint(lab, UE) as ue, endpoint(lab, OTHER_UE) as two:
        former = ue.at
        await ue.hand_over()
        await two.take(former.address, former.router)
        assert await reaches(lab, OTHER_UE, str(former.address.ip))
        assert await reaches(lab, UE, str(ue.at.address.ip))


@pytest.mark.needs("ssh", "/usr/sbin/sshd")
async def test_ssh_and_a_checked_transfer_run_in_the_lab() -> None:
    async with plain() as lab, endpoint(lab, UE) as ue, endpoint(lab, SERVER):
        async with ssh_session(lab) as ssh, transfer(lab) as sending:
            await ssh.line()
            await ue.blink()
            await ssh.line()
            ends = await mobile_witness.sockets(lab)
        check = mobile_witness.unchanged_sockets(ends, lab.address(UE), lab.address(SERVER))
        assert check.held, check.seen
        assert (ssh.echoed.lines, ssh.echoed.wrong, ssh.echoed.ended) == (3, 0, None)
        assert sending.report.up and sending.report.up.bytes and not sending.report.up.wrong
        assert sending.report.down and sending.report.down.bytes and not sending.report.down.wrong


@pytest.mark.parametrize(("proto", "sessions"), [("udp", 1), ("tcp", 1), ("udp", 40), ("tcp", 40)])
async def test_every_probe_is_heard_at_both_ends(proto: str, sessions: int) -> None:
    watched = min(sessions, 5)
    async with (
        plain() as lab,
        endpoint(lab, UE) as ue,
        endpoint(lab, SERVER),
        probing(lab, proto, sessions=sessions, watched=watched, interval=2) as probes,
    ):
        await trio.sleep(_SETTLE)
        probes.moves.append(await ue.blink())
        await trio.sleep(_SETTLE)
    found = probes.found
    assert len(found.up.streams) == len(found.down.streams) == sessions
    assert [len(row) for row in found.added()] == [watched]
    assert found.ended == []
    if proto == "tcp":
        assert all(not one.lost and not one.corrupted for one in found.accounts())


async def test_plain_tcp_hears_nothing_after_a_move() -> None:
    async with (
        plain() as lab,
        endpoint(lab, UE) as ue,
        endpoint(lab, SERVER),
        probing(lab, "tcp") as probes,
    ):
        await trio.sleep(_SETTLE)
        moved = await ue.hand_over()
        probes.moves.append(moved)
        await trio.sleep(_SETTLE)
    (stream,) = probes.found.down.probes
    assert silence(stream.arrivals, moved, probes.found.down.end) is not None


@pytest.mark.parametrize("warned", [False, True])
async def test_mptcp_goes_on_by_the_other_cell(warned: bool) -> None:
    async with (
        plain() as lab,
        following(lab, CELLS, warned=warned) as listener,
        endpoint(lab, UE, listener) as ue,
        endpoint(lab, SERVER),
    ):
        listener("usable", ue.at)
        async with probing(lab, "mptcp") as probes:
            await trio.sleep(_SETTLE)
            moved = await ue.hand_over()
            probes.moves.append(moved)
            await trio.sleep(_SETTLE)
    assert probes.found.ended == []
    assert probes.found.up.probes[0].arrivals[-1] > moved.usable
    # Not warned, the server knows only the lost subflow by what it does not acknowledge. On this
    # way back the kernel's MPTCP may stand still for good (seen in half of the runs on 6.18): a
    # fault of the peer, which the bench shows and is no condition here.
    if warned:
        assert probes.found.down.probes[0].arrivals[-1] > moved.usable
