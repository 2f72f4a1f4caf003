"""``m2m-policy serve`` and ``m2m-policy load``: what they do with their arguments."""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path

import sdnotify
import structlog
import trio

from m2m import logs
from m2m.auth import DomainKey
from m2m.errors import ConfigError
from m2m.policy.compile import compile_policy
from m2m.policy.endpoint import POLICY_PORT, Endpoint
from m2m.policy.language import parse_source
from m2m.policy.messages import Loaded
from m2m.policy.request import load_file
from m2m.policy.server import PolicyServer
from m2m.policy.source import Source
from m2m.policy.store import Store

__all__ = ["main_load", "main_serve"]

_log = structlog.get_logger()

_EVERYWHERE = "*"
_HERE = "127.0.0.1"


def main_serve(args: argparse.Namespace) -> int:
    """Serve ``args.file`` until SIGTERM or SIGINT. Raises :exc:`M2MError`.

    ``args`` has file, listen, store (both may be None), key_file and insecure.
    """
    logs.configure()
    key = _key(args)
    source = Source.read(args.file)
    compile_policy(parse_source(source))  # before it becomes a version of the store
    path = args.store or Path(args.file).absolute().with_name("m2m-policy.sqlite")
    store = Store(path)
    try:
        server = PolicyServer(key, store, store.start_from(args.file, source.text))
        trio.run(_serve, server, args.listen)
    finally:
        store.close()
    return 0


def main_load(args: argparse.Namespace) -> int:
    """Compile ``args.file`` here, then have the server take it over. Raises :exc:`M2MError`.

    ``args`` has file, server (may be None), key_file and insecure. Returns 1 when an agent
    did not confirm in time.
    """
    logs.configure()
    key = _key(args)
    server = Endpoint.parse(args.server or _HERE)
    source = Source.read(args.file)
    compile_policy(parse_source(source))
    loaded: Loaded = trio.run(load_file, server, key, os.fspath(args.file), source.text)
    print(
        f"generation {loaded.generation}: in force at {loaded.confirmed} of "
        f"{loaded.agents} connected agents"
    )
    if loaded.waiting_for:
        print(f"not confirmed yet by {', '.join(loaded.waiting_for)}")
    return 1 if loaded.waiting_for else 0


async def _serve(server: PolicyServer, listen: str | None) -> None:
    endpoint = Endpoint(_EVERYWHERE, POLICY_PORT)
    if listen is not None:
        endpoint = Endpoint.parse(listen, host=_EVERYWHERE)
    listeners = await _listen(endpoint)
    notifier = sdnotify.SystemdNotifier()
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run, listeners)
            _log.info("serving", at=str(endpoint), generation=server.generation)
            notifier.notify(f"READY=1\nSTATUS=Serving at {endpoint}")
            await anext(aiter(signals))
            notifier.notify("STOPPING=1")
            nursery.cancel_scope.cancel()


async def _listen(endpoint: Endpoint) -> list[trio.SocketListener]:
    host = None if endpoint.host == _EVERYWHERE else endpoint.host
    try:
        return await trio.open_tcp_listeners(endpoint.port, host=host)
    except OSError as error:
        raise ConfigError(
            f"cannot listen at {endpoint}: {error.strerror or error}; choose another address or "
            "port with --listen, or stop what uses it"
        ) from error


def _key(args: argparse.Namespace) -> DomainKey:
    if args.insecure:
        _log.warning("insecure: whoever reaches the port can change the policy")
        return DomainKey.insecure()
    return DomainKey.load(args.key_file)
