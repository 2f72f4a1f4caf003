"""Network functions that run on a host: registered by their conversation, asked to be quiet."""

from __future__ import annotations

import struct
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from m2m.agent import control
from m2m.agent.dialogue import NfRun, Quiet
from m2m.agent.functions import Functions
from m2m.agent.states import States
from m2m.cli.nf_health import Health
from m2m.protocol.commands import ExportState
from m2m.protocol.events import Event, StateExported
from m2m.protocol.flow import Flow
from m2m.protocol.translation import Position, SessionView
from tests.unit.test_control import FakeSource

ABOUT = NfRun("prads", 4711, "ids")


async def test_one_is_there_as_long_as_its_conversation(tmp_path: Path) -> None:
    functions = Functions()
    async with trio.open_nursery() as nursery:
        path = tmp_path / "a.nf"
        await nursery.start(control.serve_nfs, path, FakeSource(0), functions)
        async with await trio.open_unix_socket(str(path)) as stream:
            await stream.send_all(msgspec.json.encode(ABOUT) + b"\n")
            await stream.send_all(msgspec.json.encode(Quiet(False, 7)) + b"\n")
            await wait_all_tasks_blocked(0.01)
            (one,) = functions.running
            assert (one.about, one.delivered) == (ABOUT, 7)
            done = trio.Event()

            async def quiesce() -> None:
                await functions.quiesce()
                done.set()

            nursery.start_soon(quiesce)
            asked = msgspec.json.decode(await stream.receive_some())
            assert (asked["item"], done.is_set()) == ("quiesce", False)
            await stream.send_all(msgspec.json.encode(Quiet(True, 9, asked["number"])) + b"\n")
            await done.wait()
            assert one.delivered == 9
        while functions.running:
            await wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("line", [b"{}\n", b"nonsense\n", b'{"quiet": 1, "delivered": "x"}\n'])
async def test_one_that_talks_nonsense_is_told_and_forgotten(tmp_path: Path, line: bytes) -> None:
    functions = Functions()
    async with trio.open_nursery() as nursery:
        path = tmp_path / "a.nf"
        await nursery.start(control.serve_nfs, path, FakeSource(0), functions)
        async with await trio.open_unix_socket(str(path)) as stream:
            await stream.send_all(msgspec.json.encode(ABOUT) + b"\n" + line)
            assert b"this is no answer" in await stream.receive_some()
        assert not functions.running
        nursery.cancel_scope.cancel()


async def test_one_that_does_not_answer_is_waited_for_half_a_second(
    autojump_clock: MockClock,
) -> None:
    functions = Functions()
    functions.add(ABOUT)
    began = trio.current_time()
    await functions.quiesce()
    assert trio.current_time() - began == pytest.approx(0.5)


async def test_a_tap_is_quiet_before_it_says_that_it_has_no_state() -> None:
    fed: list[Event] = []
    quiet = trio.Event()

    async def feed(event: Event) -> None:
        fed.append(event)

    async def no_adapter() -> None:
        return None

    states = States(no_adapter, feed)
    states.quiesce_taps = quiet.wait
    view = SessionView(1, Position.TAP, Flow.of(6, "10.0.0.1", 1, "10.0.0.2", 2), None, None)
    async with trio.open_nursery() as nursery:
        await nursery.start(states.run)
        states.move(ExportState(1, 2), view)
        await wait_all_tasks_blocked()
        assert fed == []
        quiet.set()
        await wait_all_tasks_blocked()
        assert fed == [StateExported(1, 2, b"")]
        nursery.cancel_scope.cancel()


async def test_health_is_read_from_the_page() -> None:
    health = Health()
    assert await health.quiesce(), "without a handle nothing has been captured"
    with open(health.path, "r+b") as page:  # noqa: ASYNC230  (memory)
        now = time.monotonic_ns()
        page.write(struct.pack("=I60x", 2))
        page.write(struct.pack("=QQQQ32x", 1, now, 5, 3))
        page.write(struct.pack("=QQQQ32x", 0, 0, 6, 0))
        page.flush()
        assert (health.delivered, health.restored) == (11, 3)
        assert not health.quiet_since(now)
        assert not await health.quiesce()
        page.seek(64)
        page.write(struct.pack("=QQ", 1, time.monotonic_ns() + 10**9))
        page.flush()
        assert await health.quiesce()
    health.close()


_HAS_A_WORD = """
import ctypes, mmap, sys
word = ctypes.c_uint32(0)
file = open(sys.argv[1], "r+b") if len(sys.argv) > 1 else None
page = mmap.mmap(file.fileno(), 2048) if file else None
print(ctypes.addressof(word), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("mapped", [True, False])
def test_memory_is_read_of_programs_that_have_the_page_alone(mapped: bool) -> None:
    health = Health()
    command = [sys.executable, "-c", _HAS_A_WORD, *([health.path] if mapped else [])]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as program:
        assert program.stdout is not None
        word = int(program.stdout.readline())
        with open(health.path, "r+b") as page:
            page.write(struct.pack("=I60x", 1))
            page.write(struct.pack("=QQQQQ", program.pid, 0, 0, 0, word))
        assert health.quiet_since(time.monotonic_ns() - 10**9) is mapped
        program.communicate()
    health.close()


async def test_a_page_that_a_program_has_spoilt_ends_nothing() -> None:
    health = Health()
    Path(health.path).write_bytes(b"\xff" * 2048)  # noqa: ASYNC240  (memory)
    assert health.delivered > 0
    assert health.quiet_since(time.monotonic_ns())
    health.close()
