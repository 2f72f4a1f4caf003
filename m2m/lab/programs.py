"""What a lab starts in its hosts, as commands: M2M's own programs and the real ones around it."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from m2m.lab.netns import LabError
from m2m.lab.topology import Command, Host, Iperf3, Nft, Nginx, Ready

_NGINX_CONF = """\
# Private to one lab host: nothing is read from or written to nginx's usual places.
pid {home}/nginx.pid;
error_log stderr warn;
daemon off;
worker_processes 1;
events {{ worker_connections 1024; }}
http {{
    access_log {home}/access.log;
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    default_type text/plain;
    sendfile on;
    server {{
{listens}
        root {home}/pages;
    }}
}}
"""


_MODULES = {"m2m-agent": "m2m.cli.agent", "m2m-policy": "m2m.cli.policy"}


class Program(NamedTuple):
    """A process to start: its command and when it counts as started."""

    name: str
    argv: list[str]
    ready: Ready


def tool(name: str) -> str:
    """The path of one of M2M's own commands, of the installation that runs now."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        raise LabError(f"{path} is missing; install M2M there: make setup")
    return str(path)


def module(argv: Sequence[str]) -> list[str] | None:
    """What ``python -m`` does the same with as this command of M2M's own; None: it is another."""
    match argv:
        case [sys.executable, "-m", name, *arguments] if name.startswith("m2m."):
            return [name, *arguments]
        case [command, *arguments] if own := _MODULES.get(Path(command).name):
            return [own, *arguments]
    return None


def agent(host: Host, name: str, *, policy_server: str, key: Path, run_dir: Path) -> Program:
    """The agent of a host; it says READY=1 when it can serve."""
    assert host.role is not None
    argv = [
        tool("m2m-agent"), "--role", host.role, "--name", name,
        "--policy-server", policy_server, "--key-file", str(key), "--run-dir", str(run_dir),
        *host.agent,
    ]  # fmt: skip
    return Program("agent", argv, Ready(notify=True))


def policy_server(policy: Path, address: str, *, key: Path, store: Path) -> Program:
    """The policy server, which is ready when it listens."""
    argv = [
        tool("m2m-policy"), "serve", str(policy), "--listen", address,
        "--key-file", str(key), "--store", str(store),
    ]  # fmt: skip
    return Program("policy", argv, Ready(notify=True))


def of(item: Nginx | Iperf3 | Command, home: Path) -> list[Program]:
    """The processes of one ``run`` table; *home* is a directory of its own to keep files in."""
    if isinstance(item, Nginx):
        return [_nginx(item, home)]
    if isinstance(item, Iperf3):
        return [
            Program(f"iperf3-{port}", ["iperf3", "-s", "-p", str(port)], Ready(port=port))
            for port in item.ports
        ]
    return [Program(item.name, item.command, item.ready)]


def _nginx(item: Nginx, home: Path) -> Program:
    pages = home / "pages"
    pages.mkdir(parents=True)
    for path, content in item.pages.items():
        page = pages / path.lstrip("/")
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_bytes(content.encode() if isinstance(content, str) else filler(content))
    listens = "\n".join(f"        listen {port};" for port in item.ports)
    conf = home / "nginx.conf"
    conf.write_text(_NGINX_CONF.format(home=home, listens=listens))
    argv = ["nginx", "-e", "stderr", "-p", str(home), "-c", str(conf)]
    return Program("nginx", argv, Ready(port=item.ports[0]))


def filler(size: int) -> bytes:
    """*size* bytes in which a lost, doubled or moved piece shows: numbered lines."""
    lines = (b"%015d\n" % number for number in itertools.count())
    return b"".join(itertools.islice(lines, size // 16 + 1))[:size]


def name_of(item: Nft | Nginx | Iperf3 | Command) -> str:
    """What a ``run`` table's files are called."""
    return item.name if isinstance(item, Command) else type(item).__name__.lower()
