"""Debian's proxies, each private to a test and led by ``m2m-nf run``: Squid, HAProxy, socat (a
process for each connection), stunnel and tinyproxy (a thread for each)."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import trio

from m2m.lab.process import listens, wait_ready
from m2m.lab.programs import tool
from m2m.lab.topology import Ready
from nf_adapters.sockets.library import installed
from tests.support.live import PATIENCE
from tests.support.namespaces import Namespace

ROOT = Path(__file__).parents[2]
USER = "proxy"  # Debian's, of Squid
_STATE = Path("/run/squid")  # compiled in: where Squid's processes meet

_SQUID = """\
http_port {port} intercept
http_port 127.0.0.1:{other}
visible_hostname squid.test
http_upgrade_request_protocols OTHER allow all
cache_effective_user {user}
pid_filename {home}/squid.pid
cache_log {home}/cache.log
access_log none
coredump_dir {home}
cache_mem 16 MB
workers {workers}
http_access allow all
pinger_enable off
shutdown_lifetime 0 seconds
forwarded_for off
"""

# It connects to where its client meant to go.
_HAPROXY = """\
global
    maxconn 2000
    nbthread 2
defaults
    mode {mode}
    timeout connect 20s
    timeout client 20s
    timeout server 20s
frontend web
    bind 0.0.0.0:{port}
    default_backend meant
backend meant
    server meant 0.0.0.0:0
"""

_TINYPROXY = """\
Port {port}
Timeout 60
MaxClients 100
"""

_STUNNEL = """\
foreground = yes
pid =
[web]
accept = 0.0.0.0:{port}
connect = {server}:{server_port}
cert = {home}/both.pem
"""


class Proxy:
    """Where one runs, and by which agent: that with the control socket *agent*, None without M2M.
    *home* is a folder that everybody may enter."""

    def __init__(
        self, place: Namespace, home: Path, agent: Path | None, port: int, *leave: str
    ) -> None:
        """*leave*: how it leaves sessions (``m2m-nf run``)."""
        self.place = place
        self.home = home
        self.port = port
        self._agent = agent
        self._leave = leave

    def command(self, *program: str) -> list[str]:
        led = [] if self._agent is None else [tool("m2m-nf"), "run", *self._leave, "--"]
        return self.place.command(*led, *program)

    @property
    def environment(self) -> dict[str, str]:
        led = {} if self._agent is None else {"M2M_SOCKET": str(self._agent)}
        return {**os.environ, **led}

    @asynccontextmanager
    async def _running(self, command: Sequence[str]) -> AsyncIterator[None]:
        log = self.home / f"{command[0]}.log"
        with log.open("wb") as output:
            process = await trio.lowlevel.open_process(
                self.command(*command), stdout=output, stderr=output, env=self.environment
            )
        try:
            ready = Ready(port=self.port)  # few of them have a word for it, and none the same
            await wait_ready(process, command[0], ready, namespace=self.place.path, log=log)
            yield
        finally:
            process.terminate()
            with trio.CancelScope(shield=True):
                await process.wait()

    @asynccontextmanager
    async def squid(self, workers: int = 0) -> AsyncIterator[None]:
        """As a daemon with so many workers; with none, one process in the foreground."""
        for path in (self.home, _STATE):
            path.mkdir(exist_ok=True)
            shutil.chown(path, USER, USER)
        conf = self.home / "squid.conf"
        settings = {"port": self.port, "other": self.port + 1, "home": self.home, "user": USER}
        conf.write_text(_SQUID.format(workers=workers or 1, **settings))
        command = ["squid", "-f", str(conf), "-n", f"t{os.getpid()}"]
        if not workers:
            async with self._running([*command, "-N"]):
                yield
            return
        try:
            await trio.run_process(self.command(*command), env=self.environment)
            with trio.fail_after(PATIENCE):
                # What was started has ended, and what goes on is no child of this process.
                while not self._is_ready():  # noqa: ASYNC110  (no event)
                    await trio.sleep(0.02)
            yield
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(PATIENCE):
                running = [pid for pid in self.place.pids() if "squid" in _command_of(pid)]
                handles = [os.pidfd_open(pid) for pid in running]
                await trio.run_process(self.place.command(*command, "-k", "shutdown"), check=False)
                for handle in handles:
                    await trio.lowlevel.wait_readable(handle)
                    os.close(handle)

    def _is_ready(self) -> bool:
        pid = self.home / "squid.pid"
        return pid.exists() and listens(int(pid.read_text()), self.port, self.place.path)

    @asynccontextmanager
    async def haproxy(self, mode: str = "http") -> AsyncIterator[None]:
        conf = self.home / "haproxy.conf"
        conf.write_text(_HAPROXY.format(port=self.port, mode=mode))
        async with self._running(["haproxy", "-db", "-f", str(conf)]):
            yield

    @asynccontextmanager
    async def socat(self, server: tuple[str, int]) -> AsyncIterator[None]:
        listen = f"TCP-LISTEN:{self.port},fork,reuseaddr,backlog=512"
        async with self._running(["socat", listen, "TCP:{}:{}".format(*server)]):
            yield

    @asynccontextmanager
    async def tinyproxy(self) -> AsyncIterator[None]:
        """Its clients address it; a thread for each connection."""
        conf = self.home / "tinyproxy.conf"
        conf.write_text(_TINYPROXY.format(port=self.port))
        async with self._running(["tinyproxy", "-d", "-c", str(conf)]):
            yield

    @asynccontextmanager
    async def balance(self, server: tuple[str, int]) -> AsyncIterator[None]:
        """Not Debian's; a process for each connection."""
        command = ["balance", "-f", str(self.port), "{}:{}".format(*server)]
        async with self._running(command):
            yield

    @asynccontextmanager
    async def stunnel(self, server: tuple[str, int]) -> AsyncIterator[None]:
        """Its clients speak TLS with it; any certificate."""
        await trio.run_process(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
             "-nodes", "-subj", "/CN=test", "-keyout", "key.pem", "-out", "cert.pem"],
            cwd=self.home, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        parts = (self.home / name for name in ("key.pem", "cert.pem"))
        (self.home / "both.pem").write_text("".join(part.read_text() for part in parts))
        (self.home / "both.pem").chmod(0o600)
        conf = self.home / "stunnel.conf"
        host, port = server
        conf.write_text(
            _STUNNEL.format(port=self.port, server=host, server_port=port, home=self.home)
        )
        async with self._running(["stunnel", str(conf)]):
            yield


def _command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


@contextmanager
def library_installed() -> Iterator[None]:
    """As ``make install-sockets`` does it; undone if it was not before."""
    was_there = installed() is not None
    subprocess.run(["make", "-s", "-C", ROOT, "install-sockets"], check=True)
    try:
        yield
    finally:
        if not was_there:
            subprocess.run(["make", "-s", "-C", ROOT, "uninstall-sockets"], check=True)
