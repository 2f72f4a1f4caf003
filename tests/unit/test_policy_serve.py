"""``m2m-policy serve`` and ``load`` as processes: ready, load, SIGTERM, SIGKILL, start again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from m2m.auth import DomainKey

POLICY = """
nf firewall inline { fw1 = 10.0.2.2 }
match(dstport=80) >> {firewall} fail=closed
"""


class Installation:
    """A policy server's files, and the commands that use them."""

    def __init__(self, tmp_path: Path) -> None:
        self.directory = tmp_path
        self.key = tmp_path / "key"
        DomainKey.generate(self.key)
        self.file = tmp_path / "policy.m2m"
        self.file.write_text(POLICY)
        with socket.socket() as probe:  # free now, and nobody else asks for it by number
            probe.bind(("127.0.0.1", 0))
            self.at = "127.0.0.1:%d" % probe.getsockname()[1]

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "m2m.cli.policy", *arguments, "--key-file", str(self.key)]

    @asynccontextmanager
    async def serving(self, end: signal.Signals, status: int) -> AsyncIterator[None]:
        """The server, from READY=1 until *end* is sent; it must exit with *status*."""
        notifications = self.directory / "notify"
        notifications.unlink(missing_ok=True)
        with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_DGRAM) as ready:
            await ready.bind(os.fspath(notifications))
            process = await trio.lowlevel.open_process(
                self.command("serve", str(self.file), "--listen", self.at),
                env=os.environ | {"NOTIFY_SOCKET": os.fspath(notifications)},
                stderr=subprocess.DEVNULL,
            )
            try:
                assert (await ready.recv(1024)).startswith(b"READY=1")
                yield
                process.send_signal(end)
                assert await process.wait() == status
            finally:
                if process.returncode is None:
                    process.kill()
                    with trio.CancelScope(shield=True):
                        await process.wait()

    async def load(self, file: Path) -> subprocess.CompletedProcess[str]:
        done = await trio.run_process(
            self.command("load", str(file), "--server", self.at),
            capture_stdout=True, capture_stderr=True, check=False,
        )  # fmt: skip
        return subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
        )

    def version(self, name: str, port: int) -> Path:
        file = self.directory / name
        file.write_text(POLICY.replace("dstport=80", f"dstport={port}"))
        return file


@pytest.fixture
def installed(tmp_path: Path) -> Installation:
    return Installation(tmp_path)


async def test_what_was_loaded_survives_a_kill_and_generations_go_on(
    installed: Installation,
) -> None:
    with trio.fail_after(60):
        async with installed.serving(signal.SIGKILL, -signal.SIGKILL):
            done = await installed.load(installed.version("a.m2m", 81))
            assert (done.returncode, done.stdout) == (
                0, "generation 2: in force at 0 of 0 connected agents\n",
            )  # fmt: skip
        async with installed.serving(signal.SIGTERM, 0):
            again = await installed.load(installed.directory / "a.m2m")
            assert again.stdout.startswith("generation 2:")  # it is what the server has
            other = await installed.load(installed.version("b.m2m", 82))
            assert other.stdout.startswith("generation 3:")
    store = installed.directory / "m2m-policy.sqlite"
    assert os.stat(store).st_mode & 0o777 == 0o600


async def test_a_bad_file_is_shown_where_it_is_and_nothing_is_sent(
    installed: Installation,
) -> None:
    bad = installed.directory / "bad.m2m"
    await trio.Path(bad).write_text("match(dstport=80) >> {nothing}")
    with trio.fail_after(30):
        done = await installed.load(bad)  # there is no server: it is not even asked
    assert done.returncode == 1
    assert done.stderr.startswith(f"{bad}:1:")


async def test_without_a_server_load_says_so_in_one_sentence(installed: Installation) -> None:
    with trio.fail_after(30):
        done = await installed.load(installed.file)
    assert done.returncode == 1
    assert done.stderr == (
        f"m2m-policy: cannot reach the policy server at {installed.at}: Connection refused\n"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--listen", "nonsense:x"], "is not HOST, HOST:PORT"),
        (["--listen", "203.0.113.1"], "cannot listen at 203.0.113.1:5263: Cannot assign"),
        (["--store", "/proc/none"], "cannot use the policy store /proc/none"),
    ],
)
async def test_what_keeps_it_from_serving_is_one_sentence(
    installed: Installation, arguments: list[str], said: str
) -> None:
    with trio.fail_after(30):
        done = await trio.run_process(
            installed.command("serve", str(installed.file), *arguments),
            capture_stderr=True, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert said in done.stderr.decode()
    assert len(done.stderr.decode().splitlines()) == 1
