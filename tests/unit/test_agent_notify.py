"""What the service manager hears."""

from __future__ import annotations

import socket

import pytest
import sdnotify
import trio

from m2m.agent import notify


@pytest.fixture
def manager(monkeypatch, tmp_path):
    """The manager's end of the notification socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(tmp_path / "notify"))
        end.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setattr(notify, "_notifier", sdnotify.SystemdNotifier)
        yield end


def heard(manager: socket.socket) -> list[bytes]:
    messages = []
    try:
        while True:
            messages.append(manager.recv(1000))
    except BlockingIOError:
        return messages


def test_it_is_ready_and_stops(manager):
    notify.ready("client c serves")
    notify.stopping()
    assert heard(manager) == [b"READY=1\nSTATUS=client c serves", b"STOPPING=1"]


async def test_signs_of_life_come_twice_as_often_as_asked_for(manager, monkeypatch, autojump_clock):
    monkeypatch.setenv("WATCHDOG_USEC", "10000000")
    with trio.move_on_after(12):
        await notify.keep_alive()
    assert heard(manager) == [b"WATCHDOG=1"] * 3


async def test_without_a_watchdog_nothing_is_said(manager, monkeypatch):
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    await notify.keep_alive()
    assert heard(manager) == []
