"""Telling the service manager how the agent is (sd_notify); nothing without one."""

from __future__ import annotations

import os
from functools import cache

import sdnotify
import trio

__all__ = ["keep_alive", "ready", "status", "stopping"]


@cache
def _notifier() -> sdnotify.SystemdNotifier:
    return sdnotify.SystemdNotifier()


def ready(text: str) -> None:
    """The agent serves from now on."""
    _notifier().notify(f"READY=1\nSTATUS={text}")


def status(text: str) -> None:
    """One line on what the agent is doing."""
    _notifier().notify(f"STATUS={text}")


def stopping() -> None:
    """The agent is about to end."""
    _notifier().notify("STOPPING=1")


async def keep_alive() -> None:
    """Give the service manager the signs of life it asks for (WatchdogSec), until cancelled.

    An agent that hangs holds first packets without end, and TCP does not repeat a SYN that still
    waits; one that is killed lets them go, and its successor takes the sessions over.
    """
    limit = int(os.environ.get("WATCHDOG_USEC", 0)) / 1e6
    while limit:
        _notifier().notify("WATCHDOG=1")
        await trio.sleep(limit / 2)
