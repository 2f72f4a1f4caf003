"""Labs without M2M in them: built, entered, shown, ended, and cleaned up after a crash.

a ──── b ──── c        a: nginx, b: forwards, c: a tcpdump
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from m2m.lab import netns, state
from m2m.lab.lab import open_lab
from m2m.lab.netns import LabError
from m2m.lab.process import birth
from m2m.lab.topology import Ready, Topology, parse

pytestmark = pytest.mark.needs("netns", "nginx", "tcpdump", "curl")

LAB = "testlab"
TEXT = """
[hosts.a]
[[hosts.a.run]]
kind = "nginx"
ports = [80, 8080]
pages = { "index.html" = "hello", "big" = 100000 }
[hosts.b]
[hosts.c]
[[hosts.c.run]]
kind = "command"
name = "sniffer"
command = ["tcpdump", "-i", "b", "-n", "-l", "tcp"]
ready = { log = "listening on" }
[[links]]
between = ["a", "b"]
addresses = ["10.1.0.1/24", "10.1.0.2/24"]
[[links]]
between = ["b", "c"]
addresses = ["10.2.0.1/24", "10.2.0.2/24"]
rate = "100mbit"
mtu = 1400
"""


def topology(name: str = LAB) -> Topology:
    return parse(f'name = "{name}"\n{TEXT}')


def left_over(name: str) -> list[str]:
    """What there still is of a lab."""
    paths = [*Path("/run/netns").glob(f"m2m-{name}-*"), *state.RUN.glob(f"{name}.json")]
    paths += [path for path in (state.directory(name),) if path.exists()]
    return [str(path) for path in paths]


@pytest.fixture(autouse=True)
def no_leftovers() -> Iterator[None]:
    """Whatever happens in a test, its labs go, and a test that lost one fails."""
    yield
    lost = [name for name in (LAB, f"{LAB}2") if left_over(name)]
    for name in lost:
        trio.run(state.clean, name)
    assert not lost


async def test_services_answer_across_a_forwarding_host() -> None:
    async with open_lab(topology()) as lab:
        page = await lab.run("c", "curl", "-sS", "http://10.1.0.1:8080/")
        big = await lab.run("c", "curl", "-sS", "http://10.1.0.1/big")
    assert page.out == "hello"
    assert len(big.out) == 100000 and big.out.startswith("000000000000000\n000000000000001\n")


async def test_links_have_their_rate_and_mtu_and_offloads_stay_on() -> None:
    async with open_lab(topology()) as lab:
        shaped = await lab.run("c", "tc", "qdisc", "show", "dev", "b")
        free = await lab.run("a", "tc", "qdisc", "show", "dev", "b")
        link = await lab.run("c", "ip", "link", "show", "dev", "b")
        offloads = await lab.run("a", "ethtool", "-k", "b")
    assert "tbf" in shaped.out and "rate 100Mbit" in shaped.out and "pfifo_fast" in shaped.out
    assert "tbf" not in free.out
    assert "mtu 1400" in link.out
    assert "tcp-segmentation-offload: on" in offloads.out


async def test_one_processor_takes_what_comes_over_a_link_with_a_rate() -> None:
    async with open_lab(topology()):
        masks = {}
        for host, link in (("a", "b"), ("b", "a"), ("b", "c"), ("c", "b")):
            shown = await trio.run_process(
                ["ip", "netns", "exec", netns.namespace(LAB, host), "cat",
                 f"/sys/class/net/{link}/queues/rx-0/rps_cpus"], capture_stdout=True,
            )  # fmt: skip
            masks[host, link] = int(shown.stdout.replace(b",", b""), 16).bit_count()
    one = int((os.cpu_count() or 1) > 1)
    assert masks == {("a", "b"): 0, ("b", "a"): 0, ("b", "c"): one, ("c", "b"): one}


async def test_ipv6_is_silent_and_no_filter_asks_for_the_reverse_path() -> None:
    async with open_lab(topology()) as lab:
        for path, value in (("ipv6/conf/b/disable_ipv6", "1"), ("ipv4/conf/b/rp_filter", "0")):
            got = await lab.run("a", "cat", f"/proc/sys/net/{path}")
            assert got.out.strip() == value


async def test_a_failing_command_is_told_with_what_it_said() -> None:
    async with open_lab(topology()) as lab:
        with pytest.raises(LabError, match=r"ls /nowhere on a .*status 2.*No such file"):
            await lab.run("a", "ls", "/nowhere")
        assert (await lab.run("a", "ls", "/nowhere", check=False)).status == 2
        with pytest.raises(LabError, match=r"did not end within 0\.1 s"):
            await lab.run("a", "tcpdump", "-i", "lo", timeout=0.1)


async def test_a_process_that_does_not_start_is_told_with_its_log() -> None:
    async with open_lab(topology()) as lab:
        with pytest.raises(LabError, match=r"(?s)sniffer on a ended .*No such device"):
            await lab.start(
                "a", "sniffer", ["tcpdump", "-i", "nothere"], ready=Ready(log="listening on")
            )


async def test_a_service_that_dies_ends_the_lab() -> None:
    async def lose_one() -> None:
        async with open_lab(topology()) as lab:
            os.kill(lab.pid("c", "sniffer"), signal.SIGKILL)
            await trio.sleep_forever()

    with pytest.raises(LabError, match="sniffer on c ended with status -9"):
        await lose_one()
    assert not left_over(LAB)


async def test_a_process_can_be_stopped_and_started_again() -> None:
    async with open_lab(topology()) as lab:
        first = lab.pid("c", "sniffer")
        await lab.stop("c", "sniffer", signal.SIGKILL)
        assert birth(first) is None
        await lab.start("c", "sniffer", ["tcpdump", "-i", "b"], ready=Ready(log="listening on"))
        assert lab.pid("c", "sniffer") != first


async def test_cancelling_takes_everything_down() -> None:
    with trio.CancelScope() as scope:
        async with open_lab(topology()):
            inside = netns.processes_inside(LAB)
            scope.cancel()
            await trio.sleep_forever()
    assert inside and not any(map(birth, inside))
    assert not left_over(LAB)


async def test_two_labs_of_the_same_addresses_run_side_by_side() -> None:
    async with open_lab(topology()) as one, open_lab(topology(f"{LAB}2")) as two:
        for lab in (one, two):
            assert (await lab.run("c", "curl", "-sS", "http://10.1.0.1/")).out == "hello"
        assert one.pid("a", "nginx") != two.pid("a", "nginx")
        assert not netns.processes_inside(LAB) & netns.processes_inside(f"{LAB}2")


async def test_a_lab_in_use_is_neither_built_twice_nor_taken_down() -> None:
    async with open_lab(topology()):
        with pytest.raises(LabError, match=f"in use by process {os.getpid()}"):
            async with open_lab(topology()):
                pass
        with pytest.raises(LabError, match="in use"):
            await state.take_down(LAB)


async def test_without_root_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LabError, match="needs root; run it with sudo"):
        async with open_lab(topology()):
            pass


# -- the command line ------------------------------------------------------------------------


def m2m_lab(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "m2m.cli.lab", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_up_status_exec_down(tmp_path: Path) -> None:
    file = tmp_path / "lab.toml"
    file.write_text(f'name = "{LAB}"\n{TEXT}')

    up = m2m_lab("up", str(file))
    assert (up.returncode, up.stderr) == (0, "")
    try:
        again = m2m_lab("up", str(file))
        assert again.returncode == 1 and "is up; end it first" in again.stderr

        status = m2m_lab("status", LAB)
        assert status.returncode == 0
        assert "nginx" in status.stdout and "sniffer" in status.stdout

        page = m2m_lab("exec", "--lab", LAB, "c", "curl", "-sS", "http://10.1.0.1/")
        assert (page.returncode, page.stdout) == (0, "hello")
        failed = m2m_lab("exec", "--lab", LAB, "c", "sh", "-c", "exit 7")
        assert failed.returncode == 7
        nobody = m2m_lab("exec", "--lab", LAB, "z", "true")
        assert nobody.returncode == 1 and "no host 'z'; it has: a, b, c" in nobody.stderr

        os.kill(next(p.pid for p in state.State.load(LAB).processes if p.name == "sniffer"), 9)
        dead = m2m_lab("status", LAB)
        assert dead.returncode == 1 and "ended" in dead.stdout
    finally:
        down = m2m_lab("down", LAB)
    assert (down.returncode, down.stderr) == (0, "")
    assert not left_over(LAB)
    gone = m2m_lab("status", LAB)
    assert gone.returncode == 1 and f"no lab '{LAB}'" in gone.stderr


def test_down_leaves_a_process_alone_that_has_the_pid_of_an_old_one() -> None:
    with subprocess.Popen(["sleep", "1000"]) as other:
        born = birth(other.pid)
        assert born is not None
        started = state.Started("a", "old", other.pid, born - 1, "/dev/null")
        state.State(LAB, {"a": None}, {"a": "10.1.0.1"}, [started]).save()
        assert m2m_lab("down", LAB).returncode == 0
        assert birth(other.pid) == born
        other.kill()


_STAYS_UP = """
import sys, trio
from pathlib import Path
from m2m.cli.lab import trio_run
from m2m.lab.lab import open_lab
from m2m.lab.topology import load

async def main():
    async with open_lab(load(Path(sys.argv[1]))):
        print("up", flush=True)
        await trio.sleep_forever()

sys.exit(trio_run(main))
"""


@pytest.fixture
def other_run(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has the lab up."""
    file = tmp_path / "lab.toml"
    file.write_text(f'name = "{LAB}"\n{TEXT}')
    command = [sys.executable, "-c", _STAYS_UP, str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None and run.stdout.readline() == "up\n"
        yield run
        run.kill()


def test_what_a_killed_run_left_is_cleaned_by_the_next(other_run: subprocess.Popen[str]) -> None:
    other_run.kill()
    other_run.wait()
    orphans = netns.processes_inside(LAB)
    assert orphans and all(map(birth, orphans)), "the processes survive the kill"
    # Started a moment before the kill: in no state file.
    inside = ["nsenter", f"--net=/run/netns/m2m-{LAB}-b", "sh", "-c", "echo in; exec sleep 999"]
    unknown = subprocess.Popen(inside, stdout=subprocess.PIPE, text=True)
    assert unknown.stdout is not None and unknown.stdout.readline() == "in\n"
    pins = state.PINS / state.agent_name(LAB, "b")
    if state.PINS.parent.is_mount():
        pins.mkdir(parents=True)

    async def next_run() -> str:
        async with open_lab(topology()) as lab:
            assert unknown.wait(timeout=10) in (-signal.SIGTERM, -signal.SIGKILL)
            assert not any(map(birth, orphans))
            assert not pins.exists()
            return (await lab.run("c", "curl", "-sS", "http://10.1.0.1/")).out

    assert trio.run(next_run) == "hello"


def test_sigterm_ends_a_run_in_order(other_run: subprocess.Popen[str]) -> None:
    """As Ctrl-C does: nothing stays behind."""
    other_run.terminate()
    assert other_run.wait(timeout=20) == 128 + signal.SIGTERM
    assert not left_over(LAB)
