"""``m2m-agent``: one agent, in the foreground, until it is told to stop."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence

import trio

from m2m import logs
from m2m.agent import host
from m2m.agent.agent import kept_record, ports_record, redirect_record, serve
from m2m.agent.config import Config, configure
from m2m.agent.interception import Interception
from m2m.agent.keeping import Keeping
from m2m.datapath import Datapath
from m2m.datapath.choose import open_datapath
from m2m.datapath.hold_rules import Where
from m2m.errors import M2MError, UnsupportedHost
from m2m.policy.messages import Role
from nf_adapters.state.lock import Locks


def main(argv: Sequence[str] | None = None) -> int:
    """Run with *argv* (default: the process's own); returns the exit status."""
    failed = False
    try:
        config = configure(sys.argv[1:] if argv is None else argv)
        logs.configure(config.log_level)
        host.require_root()
        if config.cleanup:
            trio.run(_clean_up, config)
        else:
            trio.run(serve, config, _open)
    except* M2MError as group:
        failed = True
        print(f"m2m-agent: {_first(group)}", file=sys.stderr)
    return int(failed)


async def _open(config: Config) -> Datapath:
    where = Where.FORWARD if config.role == Role.GATEWAY else Where.OUTPUT
    return await open_datapath(
        config.datapath, config.name, config.limits, ports=config.ports, where=where
    )


async def _clean_up(config: Config) -> None:
    datapath = await _open(config)
    await datapath.close(keep=False)
    host.release_ports(ports_record(config))
    Keeping(kept_record(config)).only(())
    Interception(redirect_record(config)).remove()
    with contextlib.suppress(UnsupportedHost):
        await Locks.take_out()
    # That its tables could be opened says that no agent of this name is running.
    for left in ("device", "kept", "map", "nf", "policy", "ports", "proxy", "sock"):
        (config.run_dir / f"{config.name}.{left}").unlink(missing_ok=True)


def _first(error: BaseException) -> BaseException:
    """The error that a group of one or more is about."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


if __name__ == "__main__":
    sys.exit(main())
