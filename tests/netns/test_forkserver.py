"""M2M's own programs, forked: in all that shows, alike to those that were started by themselves."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
import trio

from m2m.lab import process
from m2m.lab.forkserver import ForkServer
from m2m.lab.process import Running
from tests.support.namespaces import Namespace, NamespaceFactory

pytestmark = pytest.mark.needs("netns")

_TREE = Path(__file__).resolve().parents[2]
_PROGRAM = "tests.support.portrait"
_ADDED = {"PYTHONPATH": str(_TREE), "M2M_HOST": "host"}


@pytest.fixture(scope="module")
def forks() -> Iterator[ForkServer]:
    with closing(ForkServer()) as server:
        yield server


class Both:
    """The same program in the same place: by itself, and forked."""

    def __init__(self, forks: ForkServer, host: Namespace, home: Path) -> None:
        self._forks = forks
        self._host = host
        self._home = home
        self._log = home / "log"

    async def started(self, *arguments: str) -> list[Running]:
        alone = await process.spawn(
            "host", "portrait", self._host.path, [sys.executable, "-m", _PROGRAM, *arguments],
            home=self._home, log=self._log, env=_ADDED,
        )  # fmt: skip
        with self._log.with_suffix(".forked").open("ab") as output:
            forked = self._forks.start(
                [_PROGRAM, *arguments], self._host.path, home=self._home, output=output.fileno(),
                environment={**os.environ, **_ADDED},
            )  # fmt: skip
        return [alone, forked]

    async def end(self, *arguments: str) -> list[tuple[int, str]]:
        """How both end, and what they have said."""
        statuses = [await running.wait() for running in await self.started(*arguments)]
        return list(zip(statuses, self.said(), strict=True))

    def said(self) -> list[str]:
        return [log.read_text() for log in (self._log, self._log.with_suffix(".forked"))]


@pytest.fixture
def both(forks: ForkServer, netns: NamespaceFactory, tmp_path: Path) -> Both:
    return Both(forks, netns("host"), tmp_path)


async def test_they_are_the_same_kind_of_process(both: Both) -> None:
    (status, alone), (forked_status, forked) = await both.end("status", "0")
    assert status == forked_status == 0
    portrait, *rest = forked.replace("log.forked", "log").splitlines()
    assert json.loads(portrait) == json.loads(alone.splitlines()[0])
    assert rest == alone.splitlines()[1:]
    assert json.loads(portrait)["session"] and json.loads(portrait)["arguments"] == ["status", "0"]


async def test_a_status_is_told(both: Both) -> None:
    assert [status for status, _ in await both.end("status", "7")] == [7, 7]


async def test_an_error_is_told_as_any_other(both: Both) -> None:
    (status, alone), (forked_status, forked) = await both.end("error")
    assert status == forked_status == 1
    assert alone.splitlines()[-1] == forked.splitlines()[-1] == "LookupError: as it was told to"


async def test_what_cannot_be_imported_says_so_in_its_log(
    forks: ForkServer, netns: NamespaceFactory, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with log.open("ab") as output:
        gone = forks.start(["m2m.lab.nothing"], netns("host").path, home=tmp_path,
                           output=output.fileno(), environment={})  # fmt: skip
    assert await gone.wait() == 1
    assert "No module named 'm2m.lab.nothing'" in log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_a_signal_ends_it_and_is_told(both: Both, number: signal.Signals) -> None:
    for running in await both.started("wait"):
        born = process.birth(running.pid)
        await process.end({running.pid: born and born + 1})  # another process: left alone
        running.send_signal(number)
        assert await running.wait() == running.returncode == -number
        assert process.birth(running.pid) is None


async def test_it_is_ended_by_its_pid_and_birth(both: Both) -> None:
    started = await both.started("wait")
    await process.end({running.pid: process.birth(running.pid) for running in started})
    assert [await running.wait() for running in started] == [-signal.SIGTERM] * 2


_KILLED = """
import os, signal, sys
from pathlib import Path
from m2m.lab.forkserver import ForkServer

server = ForkServer()
namespace = Path("/proc/self/ns/net")
forked = server.start(["tests.support.portrait", "wait"], namespace, home=Path("/"),
                      output=os.open(os.devnull, os.O_WRONLY), environment=os.environ)
print(server._process.pid, forked.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_with_whoever_asks_it_ends_and_what_it_has_started_goes_on() -> None:
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED], stdout=subprocess.PIPE, cwd=_TREE, check=False
    )
    server, forked = map(int, killed.stdout.split())
    with suppress(ProcessLookupError), open(os.pidfd_open(server), "rb") as handle:
        select.select([handle], [], [])
    born = process.birth(forked)
    assert born is not None
    trio.run(process.end, {forked: born})
