"""What the host lacks is said in one sentence, with what to do."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from m2m.datapath import host
from m2m.errors import UnsupportedHost

EVERYTHING = (1 << 41) - 1
NET_ADMIN, SYS_ADMIN, BPF = 1 << 12, 1 << 21, 1 << 38 | 1 << 39  # with CAP_PERFMON


@pytest.fixture
def capable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that has all."""
    monkeypatch.setattr(host.platform, "release", lambda: "6.1.0-13-amd64")
    monkeypatch.setattr(host, "_effective_capabilities", lambda: EVERYTHING)
    monkeypatch.setattr(host, "_is_mounted", lambda place: True)
    monkeypatch.setattr(host, "KERNEL_TYPES", Path("/"))


def message() -> str:
    with pytest.raises(UnsupportedHost) as caught:
        host.check()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_capable_host_is_let_through(capable: None) -> None:
    host.check()


@pytest.mark.parametrize("release", ["5.16.20", "4.19.0-amd64", "strange"])
def test_an_old_kernel(capable: None, monkeypatch: pytest.MonkeyPatch, release: str) -> None:
    monkeypatch.setattr(host.platform, "release", lambda: release)
    assert f"Linux {release} is too old" in message()
    assert "5.17 or newer" in message()


def test_not_root(capable: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_effective_capabilities", lambda: 0)
    assert "lacks CAP_NET_ADMIN and CAP_BPF and CAP_PERFMON; run the agent as root" in message()
    monkeypatch.setattr(host, "_effective_capabilities", lambda: BPF)
    assert "lacks CAP_NET_ADMIN;" in message()


@pytest.mark.parametrize("capabilities", [NET_ADMIN | BPF, NET_ADMIN | SYS_ADMIN])
def test_root_is_not_needed_where_its_powers_are(
    capable: None, monkeypatch: pytest.MonkeyPatch, capabilities: int
) -> None:
    monkeypatch.setattr(host, "_effective_capabilities", lambda: capabilities)
    host.check()


def test_a_kernel_that_does_not_describe_itself(
    capable: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(host, "KERNEL_TYPES", tmp_path / "vmlinux")
    assert f"{tmp_path}/vmlinux is missing" in message()
    assert "CONFIG_DEBUG_INFO_BTF" in message()


def test_no_bpf_file_system_in_the_kernel(
    capable: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(host, "_is_mounted", lambda place: False)
    monkeypatch.setattr(host, "BPFFS", tmp_path / "bpf")
    assert f"{tmp_path}/bpf is missing" in message()


def test_the_bpf_file_system_is_mounted_or_its_failure_told(
    capable: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        refused = len(commands) > 1
        return subprocess.CompletedProcess(command, refused, "", "mount: not permitted\n")

    monkeypatch.setattr(host, "_is_mounted", lambda place: False)
    monkeypatch.setattr(host, "BPFFS", tmp_path)
    monkeypatch.setattr(host.subprocess, "run", run)
    host.check()
    assert commands == [["mount", "-t", "bpf", "bpf", str(tmp_path)]]
    assert "(mount: not permitted)" in message()
