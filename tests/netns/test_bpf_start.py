"""Opening and attaching the eBPF datapath where something stands in the way."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path

import pytest
import trio

from m2m.datapath import NOTE_SIZE, DatapathError, Ended, EndReason, Limits, layout
from m2m.datapath._bpf import Map
from m2m.datapath.bpf import EbpfDatapath
from m2m.datapath.pins import Pins, directory_of
from m2m.datapath.tables import Config
from m2m.errors import ConfigError, UnsupportedHost
from m2m.protocol.flow import Flow, Proto
from m2m.protocol.translation import Position, SessionView, Toward, entries_for
from tests.support.namespaces import Namespace, NamespaceFactory
from tests.support.sessions import session

pytestmark = pytest.mark.needs("netns", "bpffs", "nfqueue")

ENTRIES = entries_for(
    SessionView(
        5, Position.CLIENT, Flow.of(Proto.TCP, "10.9.0.1", 40000, "10.9.0.9", 80), None,
        Flow.of(Proto.TCP, "10.9.0.1", 61000, "10.9.0.2", 62000),
    )
)  # fmt: skip


@pytest.fixture
def host(netns: NamespaceFactory) -> Iterator[Namespace]:
    """A namespace with an Ethernet interface, ``eth0``, in which the test runs."""
    made = netns("host")
    netns.link(made, ("eth0", "10.9.0.1/24"), netns("other"), ("eth0", "10.9.0.2/24"))
    with made.entered():
        yield made


async def test_one_agent_of_a_name(host: Namespace) -> None:
    first = await EbpfDatapath.open(host.name)
    with pytest.raises(DatapathError, match=f"another agent called {host.name} is running"):
        await EbpfDatapath.open(host.name)
    await first.close(keep=True)
    second = await EbpfDatapath.open(host.name)
    await second.close(keep=False)


async def test_a_name_that_cannot_be(host: Namespace) -> None:
    for name in ("", "../else", "a/b", ".hidden", "x" * 64):
        with pytest.raises(ConfigError, match="--name"):
            await EbpfDatapath.open(name)


# The verifier's log of this one is longer than what is kept of it.
REFUSED = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
SEC("tc") int refused(struct __sk_buff *skb)
{
	volatile long steps[8];
	#pragma unroll
	for (int step = 0; step < 500; step++)
		steps[step % 8] = step;
	return *(int *)(long)skb->len;
}
"""


@pytest.mark.needs("clang")
async def test_of_a_program_that_the_verifier_refuses_its_verdict_is_told(
    host: Namespace, tmp_path: Path
) -> None:
    compiled = tmp_path / "refused.o"
    multiarch = f"/usr/include/{sysconfig.get_config_var('MULTIARCH')}"
    clang = ["clang", "-O2", "-g", "-target", "bpf", "-idirafter", multiarch, "-xc", "-c", "-"]
    await trio.run_process([*clang, "-o", str(compiled)], stdin=REFUSED.encode())
    pins = Pins(host.name)
    with pytest.raises(UnsupportedHost, match=r"R\d invalid mem access '\w+'\)$") as told:
        pins.load(compiled, {})
    pins.release(keep=False)
    assert "\n" not in str(told.value)


async def test_a_name_with_dots(host: Namespace) -> None:
    name = f"{host.name}.example.org"
    datapath = await EbpfDatapath.open(name)
    await datapath.close(keep=False)
    assert not directory_of(name).exists()


@contextmanager
def _pinned_config(name: str) -> Iterator[Config]:
    table = Map.pinned(directory_of(name) / "config")
    config = Config(table)
    yield config
    config.close()
    table.close()


async def test_tables_of_another_version_with_sessions_are_not_touched(host: Namespace) -> None:
    datapath = await EbpfDatapath.open(host.name)
    await datapath.install(ENTRIES)
    await datapath.close(keep=True)
    with _pinned_config(host.name) as config:
        config[layout.LAYOUT_VERSION] = 999
    with pytest.raises(DatapathError, match=r"layout 999, not \d+.*rm -r /sys/fs/bpf/m2m/"):
        await EbpfDatapath.open(host.name)
    with _pinned_config(host.name) as config:
        config[layout.LAYOUT_VERSION] = layout.VERSION
    datapath = await EbpfDatapath.open(host.name)
    assert {row.entry for row in await datapath.rows(e.key for e in ENTRIES)} == set(ENTRIES)
    await datapath.close(keep=False)


async def test_empty_tables_of_another_version_or_size_are_made_anew(host: Namespace) -> None:
    for sessions in (16, 16, 64):
        datapath = await EbpfDatapath.open(host.name, Limits(sessions=sessions))
        await datapath.attach([host.ifindex("eth0")])
        await datapath.close(keep=True)
        with _pinned_config(host.name) as config:
            assert config[layout.LAYOUT_VERSION] == layout.VERSION
            config[layout.LAYOUT_VERSION] = 999
        flows = Map.pinned(directory_of(host.name) / "flows")
        assert flows.max_entries == 2 * sessions
        flows.close()
    datapath = await EbpfDatapath.open(host.name, Limits(sessions=64))
    await datapath.close(keep=False)


async def test_sessions_of_an_agent_that_kept_no_notes_are_taken_over(host: Namespace) -> None:
    datapath = await EbpfDatapath.open(host.name)
    await datapath.install(ENTRIES)
    await datapath.close(keep=True)
    (directory_of(host.name) / "notes").unlink()
    datapath = await EbpfDatapath.open(host.name)
    assert await datapath.kept() == {}
    await datapath.keep({5: bytes(NOTE_SIZE)})
    assert {row.entry for row in await datapath.rows(e.key for e in ENTRIES)} == set(ENTRIES)
    await datapath.close(keep=False)


async def test_a_start_that_was_cut_short_is_no_obstacle(host: Namespace) -> None:
    datapath = await EbpfDatapath.open(host.name)
    await datapath.close(keep=True)
    (directory_of(host.name) / "config").unlink()
    datapath = await EbpfDatapath.open(host.name)
    await datapath.close(keep=False)


async def test_an_interface_that_cannot_be_served_changes_nothing(host: Namespace) -> None:
    host.run("ip", "tuntap", "add", "tun0", "mode", "tun")
    datapath = await EbpfDatapath.open(host.name)
    try:
        eth0, tun0 = host.ifindex("eth0"), host.ifindex("tun0")
        await datapath.attach([eth0])
        with pytest.raises(DatapathError, match=r"interface tun0 \(\d+\) cannot be served.*type"):
            await datapath.attach([eth0, tun0])
        with pytest.raises(DatapathError, match="interface number 9999 cannot be served"):
            await datapath.attach([9999])
        assert datapath._attachments.interfaces() == {eth0}
    finally:
        await datapath.close(keep=False)


async def test_what_leaves_the_host_is_looked_at_only_where_it_can_be_of_a_session(
    host: Namespace,
) -> None:
    """The first session that needs it brings the program, also past an interface that went."""
    host.run("ip", "link", "add", "eth1", "type", "veth", "peer", "name", "eth2")
    eth0, eth1 = host.ifindex("eth0"), host.ifindex("eth1")
    datapath = await EbpfDatapath.open(host.name)
    try:
        await datapath.attach([eth0, eth1])
        host.run("ip", "link", "del", "eth1")
        pins = directory_of(host.name)
        await datapath.install(entries_for(session(Position.TAP)))
        assert not list(pins.glob("link-*-out"))
        await datapath.install(entries_for(session(Position.SERVER, number=2)))
        assert [pin.name for pin in pins.glob("link-*-out")] == [f"link-{eth0}-out"]
    finally:
        await datapath.close(keep=False)


async def test_an_interface_that_went_is_let_go(host: Namespace) -> None:
    datapath = await EbpfDatapath.open(host.name)
    try:
        await datapath.attach([host.ifindex("eth0")])
        host.run("ip", "link", "del", "eth0")
        await datapath.attach([])
        assert datapath._attachments.interfaces() == set()
    finally:
        await datapath.close(keep=False)


async def test_i9_what_an_installation_that_was_cut_short_left_goes_by_itself(
    host: Namespace,
) -> None:
    """Without the entry that speaks for its session, nobody would ever report it."""
    datapath = await EbpfDatapath.open(host.name, Limits(sessions=16, tcp_idle=0.001))
    try:
        speaker = [entry for entry in ENTRIES if entry.toward is Toward.RIGHT]
        others = [entry for entry in ENTRIES if entry.toward is Toward.LEFT]
        await datapath.install(others)
        with trio.fail_after(10):
            while await datapath.rows(entry.key for entry in others):
                datapath._sweeper.sweep()
                await trio.lowlevel.checkpoint()
        # A whole session is reported, and stays until the agent removes it.
        await datapath.install(ENTRIES)
        async with aclosing(datapath.events()) as events:
            with trio.fail_after(10):
                assert await anext(events) == Ended(ENTRIES[0].session, EndReason.IDLE)
        assert len(await datapath.rows(entry.key for entry in [*speaker, *others])) == 2
    finally:
        await datapath.close(keep=False)
