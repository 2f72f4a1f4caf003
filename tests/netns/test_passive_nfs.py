"""Passive network functions of Debian in a chain of two middleboxes: they see supersessions.

What they must never report is an address of a middlebox, or the one that the client has moved to.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

from m2m.lab import netns
from m2m.lab.lab import Lab
from m2m.protocol.flow import Flow
from nf_adapters.pcap.library import NAMES, library_directory
from tests.support import packets
from tests.support.libpcap import Library, environment
from tests.support.passive import (
    FIREWALL,
    IDS,
    NEEDS,
    OTHER_IDS,
    TCP_PORT,
    UDP_PORT,
    PassiveLab,
    Session,
    Watcher,
    passive_lab,
)

pytestmark = [pytest.mark.needs(*NEEDS), pytest.mark.timeout(180)]

SURICATA = Path(__file__).parents[1] / "support/suricata"
_PATIENCE = 20.0
_LOOK = 0.02  # s between two looks at what a program has written; there is no event for it


class Program(NamedTuple):
    """A network function: how it is started, when it watches, where it reports."""

    name: str
    command: tuple[str, ...]  # FILTER stands for the filter
    says: str | None  # None: nothing in time, it is looked whether it has its socket
    report: str | None = None  # a file in its home; None: its output
    stop: int = signal.SIGINT


PROGRAMS = (
    Program("tcpdump", ("tcpdump", "-i", "core", "-n", "-l", "FILTER"), "listening on"),
    Program("tcpdump-any", ("tcpdump", "-i", "any", "-n", "-l", "FILTER"), "listening on"),
    Program(
        "tcpdump-v2", ("tcpdump", "-i", "core", "--immediate-mode", "-n", "-l", "FILTER"),
        "listening on",
    ),
    Program("ngrep", ("ngrep", "-d", "core", "-l", "-q", "-t", "hello", "FILTER"), "match"),
    Program("p0f", ("p0f", "-i", "core", "-o", "log", "FILTER"), "main event loop", "log"),
    Program(
        "prads", ("prads", "-i", "core", "-l", "log", "-v", "-b", "FILTER"), None, "log"
    ),
    Program("tshark", ("tshark", "-i", "core", "-n", "-l", "-f", "FILTER"), "Capture started"),
    Program(
        "suricata", ("suricata", "--pcap=core", "-l", ".", "-k", "none", "-c", f"{SURICATA}.yaml",
                     "-S", f"{SURICATA}.rules", "FILTER"), "Engine started", "eve.json",
    ),
)  # fmt: skip


HERE = tuple(program for program in PROGRAMS if shutil.which(program.command[0]))


def where_installed(name: str) -> pytest.MarkDecorator:
    """Debian 12 has not got it, so nothing installs it for the tests."""
    missing = shutil.which(name) is None
    return pytest.mark.skipif(missing, reason=f"{name} is not installed, and need not be")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.needs(name))
        for name in sorted({program.command[0] for program in PROGRAMS})
    ],
)
def test_the_programs_are_here(name: str) -> None:
    """Those that the project's list of packages names; only Suricata can be done without."""
    assert name in {program.command[0] for program in HERE}


class Watching:
    """One program at one host."""

    def __init__(self, lab: Lab, program: Program, host: str, watcher: Watcher) -> None:
        self.program = program
        self.host = host
        self._lab = lab
        self._watcher = watcher

    @property
    def report(self) -> str:
        if self.program.report is None:
            return self._watcher.output
        path = self._watcher.home / self.program.report
        return path.read_text(errors="replace") if path.exists() else ""

    async def until(self, seen: Callable[[str], bool]) -> str:
        """Its report, as soon as it is as wanted."""
        with trio.move_on_after(_PATIENCE):
            while not seen(self.report):  # noqa: ASYNC110
                await trio.sleep(_LOOK)
            return self.report
        raise AssertionError(f"{self.program.name} at {self.host} reports\n{self.report}")

    async def stop(self) -> str:
        await self._watcher.stop(self.program.stop)
        return self.report


async def watching(here: PassiveLab, program: Program, host: str, text: str) -> Watching:
    command = [text if word == "FILTER" else word for word in program.command]
    watcher = await here.watch(host, program.name, *command, says=program.says)
    return Watching(here.lab, program, host, watcher)


def forbidden(here: PassiveLab) -> list[str]:
    """Addresses that only subsessions have; ``10.2.0.2`` is the client's at its second cell."""
    return [here.lab.address(host) for host in (FIREWALL, IDS, OTHER_IDS)] + ["10.2.0.2"]


def names(report: str, here: PassiveLab) -> set[str]:
    """The forbidden addresses that are in a report."""
    return {
        address
        for address in forbidden(here)
        if re.search(rf"(?<![\d.]){re.escape(address)}(?!\d)", report)
    }


def told_of(session: Session) -> Callable[[str], bool]:
    """Whether a report has both ends of a session, however it writes them."""
    wanted = [str(part) for end in (session.client, session.server) for part in end]
    patterns = [re.compile(rf"(?<!\d){re.escape(part)}(?!\d)") for part in wanted]
    return lambda report: all(pattern.search(report) for pattern in patterns)


def on(session: Session, here: PassiveLab) -> str:
    """The filter that a user writes who knows of no subsessions."""
    client, server = session.client[0], session.server[0]
    return f"host {client} and host {server} and (port {TCP_PORT} or port {UDP_PORT})"


async def grown(watched: list[Watching], act: Callable[[], Awaitable[None]]) -> None:
    """Everyone that tells of each packet tells of more after *act*."""
    telling = ("tcpdump", "ngrep", "tshark", "suricata")
    every = [one for one in watched if one.program.name.startswith(telling)]
    before = {id(one): len(one.report) for one in every}
    await act()
    for one in every:
        await one.until(lambda report, one=one: len(report) > before[id(one)] + 200)


async def test_before_during_and_after_a_handover_and_a_replacement() -> None:
    async with passive_lab() as here:
        probe = await here.connect()
        text = on(probe, here)
        watched = [await watching(here, program, IDS, text) for program in HERE]
        watched += [await watching(here, program, FIREWALL, text) for program in PROGRAMS[:2]]

        first = await here.connect()
        await first.talk()
        for one in watched:
            await one.until(told_of(first))

        async def handed_over() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(first.talk, 50)
                await here.ue.hand_over()

        await grown(watched, handed_over)
        await grown(watched, first.talk)

        late = [await watching(here, program, OTHER_IDS, text) for program in HERE]

        async def replaced() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(first.talk, 50)
                await here.replace(IDS, OTHER_IDS)

        await replaced()
        await grown(late, first.talk)
        await here.ue.hand_over()  # back again: what begins now has the first address
        await grown(late, first.talk)
        await here.only(OTHER_IDS)
        second = await here.connect()
        await second.talk()
        for one in late:
            await one.until(told_of(second))
        for one in watched + late:
            report = await one.stop()
            assert names(report, here) == set(), (one.program.name, one.host, report)
        for session in (probe, first, second):
            session.close()


async def test_without_a_filter_no_packet_of_a_session_has_another_name() -> None:
    """All that passes but M2M's own messages and the routers' talk."""
    async with passive_lab() as here:
        control = here.lab.address("control")
        own = f"not port 5262 and not host {control} and ip"
        program = Program("tcpdump", ("tcpdump", "-i", "any", "-n", "-l", "FILTER"), "listening on")
        watched = [
            await watching(here, program, host, own) for host in (FIREWALL, IDS, "srv", "ue")
        ]
        stream, datagrams = await here.connect(), await here.datagrams()
        await stream.talk()
        await datagrams.talk(5, b"x" * 4000)  # in fragments
        for one in watched:
            report = await one.until(told_of(stream))
            report = await one.until(told_of(datagrams))
            report = await one.until(lambda text: "hello" in text or "length 25" in text)
            report = await one.until(lambda text: text.count("ip-proto-17") >= 10)
            assert names(report, here) == set(), (one.host, report)
        stream.close()
        datagrams.close()


async def test_each_packet_once_on_request() -> None:
    async with passive_lab() as here:
        counts = {}
        for name, options, times in (("twice", (), 2), ("once", ("--once",), 1)):
            watcher = await here.watch(
                IDS, name, "tcpdump", "-i", "core", "-n", "-l", f"tcp port {TCP_PORT}",
                says="listening on", options=options,
            )  # fmt: skip
            session = await here.connect()
            session.here.shutdown(1)
            one = Watching(here.lab, PROGRAMS[0], IDS, watcher)
            await one.until(lambda text, times=times: text.count("Flags [F.]") >= times)
            session.close()
            counts[name] = (await one.stop()).count("Flags [S]")
        assert counts == {"twice": 2, "once": 1}


async def test_dumpcap_writes_supersessions_to_its_file() -> None:
    async with passive_lab() as here:
        out = here.lab.directory / "out.pcapng"
        command = ("dumpcap", "-i", "core", "-f", "FILTER", "-w", str(out))
        program = Program("dumpcap", command, "File:")
        probe = await here.connect()
        one = await watching(here, program, IDS, on(probe, here))
        await probe.talk(5)
        with trio.fail_after(_PATIENCE):
            while not out.exists() or out.stat().st_size < 20 * 100:  # noqa: ASYNC110
                await trio.sleep(_LOOK)
        await one.stop()
        done = await trio.run_process(["tcpdump", "-n", "-v", "-r", out], capture_stdout=True)
        assert told_of(probe)(done.stdout.decode())
        assert names(done.stdout.decode(), here) == set()
        probe.close()


async def test_a_replaced_tap_has_read_all_before_the_session_goes_on() -> None:
    """``op``: the agent knows of its programs and waits until they have what was captured; also of
    one that waits for packets by itself, outside libpcap (p0f)."""
    (p0f,) = (program for program in PROGRAMS if program.name == "p0f")
    async with passive_lab() as here:
        session = await here.connect()
        one = await watching(here, PROGRAMS[0], IDS, on(session, here))
        other = await watching(here, p0f, IDS, on(session, here))
        await session.talk(20)
        await here.replace(IDS, OTHER_IDS)
        # 20 questions and answers, each coming and going: all printed, without waiting for any
        assert one.report.count("Flags [P.]") == 80
        names = (await here.lab.stats(IDS)).functions
        assert {name.split()[0] for name in names} == {"tcpdump", "p0f"}
        log = here.lab.log(IDS, "agent").read_text()
        assert "network function runs" in log
        assert "has not read all it captured" not in log
        await one.stop()
        await other.stop()
        session.close()


async def test_one_that_does_not_read_holds_nothing_up_for_long() -> None:
    """A stopped program: the agent waits for it in vain, says so, and the session goes on."""
    async with passive_lab() as here:
        session = await here.connect()
        one = await watching(here, PROGRAMS[0], IDS, on(session, here))
        await session.talk()
        await one.until(told_of(session))
        (name,) = (await here.lab.stats(IDS)).functions
        pid = int(name.split("(")[1].rstrip(")"))
        os.kill(pid, signal.SIGSTOP)
        try:
            await here.replace(IDS, OTHER_IDS)
        finally:
            os.kill(pid, signal.SIGCONT)
        log = here.lab.log(IDS, "agent").read_text()
        assert "a network function has not read all it captured" in log
        await session.talk()
        await one.stop()
        session.close()


async def test_network_functions_in_python() -> None:
    """The example, by pypcap, and a program of python-libpcap's, in our own environment."""
    example = Path(__file__).parents[2] / "examples/passive_nf.py"
    sniffer = Path(sys.executable).with_name("libpcap-capture")
    command = (sys.executable, "-u", str(sniffer), "-i", "core", "-v", "FILTER")
    programs = (
        Program("pypcap", (sys.executable, str(example), "core", "FILTER"), "watching core"),
        Program("python-libpcap", command, None, stop=signal.SIGTERM),  # SIGINT waits for a packet
    )
    async with passive_lab() as here:
        probe = await here.connect()
        watched = [await watching(here, program, IDS, on(probe, here)) for program in programs]
        await probe.talk()
        for one in watched:
            await one.until(told_of(probe))
            assert names(await one.stop(), here) == set()
        probe.close()


async def test_what_an_inline_function_injects_goes_by_the_subsession() -> None:
    """The frame has the supersession's headers; the server's socket gets it."""
    async with passive_lab() as here:
        session = await here.datagrams()
        ends = (*session.client, *session.server)
        datagram = packets.udp(Flow.of(17, *ends), payload=b"from the middle")
        neighbour = (await here.lab.run(FIREWALL, "ip", "neigh", "show", "dev", "core")).out
        to = bytes.fromhex(neighbour.split("lladdr ")[1].split()[0].replace(":", ""))
        library = Library(library_directory() / NAMES[0])

        def inject() -> None:
            handle = library.open("core")
            handle.inject(to + bytes(5) + b"\2" + b"\x08\x00" + datagram)
            handle.close()

        with environment(M2M_PCAP=str(here.mapping(FIREWALL))):
            netns.inside(here.lab.namespace(FIREWALL), inject)
        with trio.fail_after(_PATIENCE):
            assert await session.there.recv(100) == b"from the middle"
        session.close()


async def test_names_survive_the_agent() -> None:
    """Killed, away, and back: captures show the same all the while; ended sessions are forgotten
    by the next agent."""
    async with passive_lab() as here:
        first, gone = await here.connect(), await here.connect()
        one = await watching(here, PROGRAMS[0], IDS, on(first, here))
        await here.lab.stop(IDS, "agent", signal.SIGKILL)
        inode = here.mapping(IDS).stat().st_ino
        await first.talk()
        await one.until(told_of(first))
        gone.close()
        await here.lab.start_agent(IDS)
        assert here.mapping(IDS).stat().st_ino == inode
        await grown([one], lambda: first.talk(5))
        assert names(await one.stop(), here) == set()
        first.close()


@where_installed("snort")
async def test_snort() -> None:
    command = ("snort", "-i", "core", "-A", "console", "-k", "none", "-v", "FILTER")
    await _optional(Program("snort", command, "Commencing packet processing"))


@where_installed("zeek")
async def test_zeek() -> None:
    command = ("zeek", "-C", "-i", "core", "-f", "FILTER")
    await _optional(Program("zeek", command, "listening on core", "conn.log"))


async def _optional(program: Program) -> None:
    async with passive_lab() as here:
        probe = await here.connect()
        one = await watching(here, program, IDS, on(probe, here))
        session = await here.connect()
        await session.talk()
        session.close()
        await one.stop()
        assert told_of(session)(one.report)
        assert names(one.report, here) == set()
        probe.close()
