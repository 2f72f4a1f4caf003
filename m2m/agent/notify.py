"""Telling the service manager how the agent is (sd_notify); nothing without one."""

from __future__ import annotations

import sdnotify

__all__ = ["ready", "status", "stopping"]

_notifier = sdnotify.SystemdNotifier()


def ready(text: str) -> None:
    """The agent serves from now on."""
    _notifier.notify(f"READY=1\nSTATUS={text}")


def status(text: str) -> None:
    """One line on what the agent is doing."""
    _notifier.notify(f"STATUS={text}")


def stopping() -> None:
    """The agent is about to end."""
    _notifier.notify("STOPPING=1")
