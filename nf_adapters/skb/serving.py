"""A netfilter queue that a program of ours serves."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import NoReturn

import sdnotify
from netfilterqueue import NetfilterQueue, Packet

from m2m.errors import M2MError

__all__ = ["serve"]


def serve(number: int, judge: Callable[[Packet], None]) -> None:
    """Have *judge* give a verdict on each packet until SIGTERM or SIGINT comes. Raises
    :exc:`M2MError` where the queue cannot be had."""
    queue = NetfilterQueue()
    try:
        queue.bind(number, judge)
    except OSError as error:
        raise M2MError(
            f"netfilter queue {number} cannot be had ({error}): run this as root, and see "
            "/proc/net/netfilter/nfnetlink_queue for queues that others have"
        ) from error
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, _end)
    sdnotify.SystemdNotifier().notify("READY=1")
    try:
        queue.run()
    except SystemExit:
        pass
    finally:
        queue.unbind()


def _end(*_: object) -> NoReturn:
    raise SystemExit(0)
