"""A real SSH session in a lab: Debian's sshd and ssh, with keys and settings of their own.

Nothing of the machine's own ssh is read or changed: no host key, no ``~/.ssh``, no agent. The
session runs ``cat``, so that each line comes back.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from time import monotonic

import msgspec
import trio

from m2m.lab import process
from m2m.lab.handover import SERVER, SSH, UE
from m2m.lab.lab import Lab
from m2m.lab.netns import LabError
from m2m.lab.pace import SLOWNESS
from m2m.lab.topology import Ready

_PRIVILEGE_SEPARATION = Path("/run/sshd")  # built into Debian's sshd
_CONFIG = """\
Port {port}
HostKey {home}/host
AuthorizedKeysFile {home}/authorized
PidFile none
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
StrictModes no
UseDNS no
PrintMotd no
"""
_PATIENCE = 60.0 * SLOWNESS  # s for a line to come back: TCP may have to repeat it


class Echoed(msgspec.Struct):
    """What came back of the lines that were sent."""

    lines: int = 0
    wrong: int = 0
    slowest: float = 0.0  # s until a line was back
    ended: str | None = None  # what ssh said when it ended too early


class SshSession:
    """A session that echoes lines; made by :func:`ssh_session`."""

    def __init__(self, client: trio.Process) -> None:
        self.echoed = Echoed()
        self._client = client
        self._got = b""

    async def line(self) -> None:
        """Send a line, and read what comes back."""
        assert self._client.stdin is not None and self._client.stdout is not None
        wanted = b"line %d\n" % self.echoed.lines
        begin = monotonic()
        with trio.move_on_after(_PATIENCE) as waiting:
            try:
                await self._client.stdin.send_all(wanted)
                while b"\n" not in self._got:
                    some = await self._client.stdout.receive_some()
                    if not some:
                        raise trio.BrokenResourceError("ssh has ended")
                    self._got += some
            except trio.BrokenResourceError as error:
                self.echoed.ended = str(error)
                return
        if waiting.cancelled_caught:
            self.echoed.ended = f"a line did not come back within {_PATIENCE:g} s"
            return
        line, _, self._got = self._got.partition(b"\n")
        self.echoed.lines += 1
        self.echoed.wrong += line + b"\n" != wanted
        self.echoed.slowest = max(self.echoed.slowest, monotonic() - begin)

    async def keep_echoing(self, period: float) -> None:
        """A line every *period* seconds, until cancelled or the session has ended."""
        while self.echoed.ended is None:
            await self.line()
            await trio.sleep(period)


@asynccontextmanager
async def ssh_session(lab: Lab) -> AsyncIterator[SshSession]:
    """sshd on the server and an SSH session from the UE, in the block. Raises :exc:`LabError`."""
    home = lab.directory / "ssh"
    home.mkdir(mode=0o700, exist_ok=True)
    address = lab.address(SERVER)
    for name in ("host", "user"):
        if not (home / name).exists():
            await _keygen(home / name)
    public = (home / "user.pub").read_text()
    (home / "authorized").write_text(f'restrict,command="exec cat" {public}')
    (home / "known").write_text(f"{address} {(home / 'host.pub').read_text()}")
    config = home / "sshd_config"
    config.write_text(_CONFIG.format(port=SSH, home=home))
    with _privilege_separation():
        await lab.start(
            SERVER, "sshd", ["/usr/sbin/sshd", "-D", "-e", "-f", str(config)],
            ready=Ready(port=SSH),
        )  # fmt: skip
        try:
            async with _client(lab, home, address) as session:
                yield session
        finally:
            with trio.CancelScope(shield=True):
                await lab.stop(SERVER, "sshd")


@contextmanager
def _privilege_separation() -> Iterator[None]:
    """Debian's sshd wants this directory, which its service makes where one runs."""
    made = not _PRIVILEGE_SEPARATION.exists()
    _PRIVILEGE_SEPARATION.mkdir(mode=0o755, exist_ok=True)
    try:
        yield
    finally:
        if made:
            with suppress(OSError):  # another lab may have it
                _PRIVILEGE_SEPARATION.rmdir()


async def _keygen(path: Path) -> None:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(path)]
    done = await trio.run_process(command, capture_stderr=True, check=False)
    if done.returncode:
        raise LabError(f"{' '.join(command)}: {done.stderr.decode().strip()}")


@asynccontextmanager
async def _client(lab: Lab, home: Path, address: str) -> AsyncIterator[SshSession]:
    command = [
        "ssh", "-F", "none", "-T", "-i", str(home / "user"), "-p", str(SSH),
        "-o", f"UserKnownHostsFile={home / 'known'}", "-o", "GlobalKnownHostsFile=none",
        "-o", "StrictHostKeyChecking=yes", "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none",
        "-o", "BatchMode=yes", "-o", "ConnectTimeout=30", f"root@{address}",
    ]  # fmt: skip
    log = lab.log(UE, "ssh")
    # No SSH_AUTH_SOCK, DISPLAY or whatever else of the caller's could matter to ssh.
    environment = {"PATH": os.environ["PATH"], "HOME": str(home)}
    with log.open("ab") as output:
        client = await trio.lowlevel.open_process(
            process.enter(lab.namespace(UE), command),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output.fileno(), cwd=home,
            env=environment, start_new_session=True,
        )  # fmt: skip
    session = SshSession(client)
    try:
        await session.line()
        if session.echoed.ended is not None:
            raise LabError(f"ssh to {address}: {session.echoed.ended}:\n{process.tail(log)}")
        yield session
    finally:
        client.kill()
        with trio.CancelScope(shield=True):
            await client.wait()
