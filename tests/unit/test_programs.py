"""What a lab starts, as commands and files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from m2m.agent.config import configure
from m2m.lab import programs
from m2m.lab.netns import LabError
from m2m.lab.topology import Command, Host, Iperf3, Nginx, Ready, Role


def test_filler_has_its_size_and_no_two_equal_lines() -> None:
    assert programs.filler(0) == b""
    assert programs.filler(20) == b"000000000000000\n0000"
    lines = programs.filler(100_000).splitlines()
    assert len(lines) == len(set(lines)) == 100_000 // 16


def test_nginx_keeps_everything_in_its_home(tmp_path: Path) -> None:
    pages: dict[str, str | int] = {"index.html": "hi", "deep/er": 33}
    (program,) = programs.of(Nginx([80, 8080], pages), tmp_path / "home")
    home = tmp_path / "home"
    assert (home / "pages" / "index.html").read_text() == "hi"
    assert (home / "pages" / "deep" / "er").stat().st_size == 33
    conf = (home / "nginx.conf").read_text()
    assert "listen 80;" in conf and "listen 8080;" in conf
    paths = [word.rstrip(";") for word in conf.split() if word.startswith("/")]
    assert paths and all(Path(path).is_relative_to(home) for path in paths)
    assert program.ready == Ready(port=80)


def test_iperf3_is_one_server_per_port(tmp_path: Path) -> None:
    assert [(p.argv[-1], p.ready) for p in programs.of(Iperf3([5201, 5202]), tmp_path)] == [
        ("5201", Ready(port=5201)),
        ("5202", Ready(port=5202)),
    ]


def test_a_command_is_taken_as_it_is(tmp_path: Path) -> None:
    item = Command("sniffer", ["tcpdump", "-i", "r0"], Ready(log="listening on"))
    assert programs.of(item, tmp_path) == [("sniffer", item.command, item.ready)]


def test_the_agent_understands_its_command_line(tmp_path: Path) -> None:
    host = Host(role=Role.CLIENT, agent=["--linger", "1"])
    program = programs.agent(
        host, "lab-client", policy_server="10.0.5.2", key=tmp_path / "key", run_dir=tmp_path
    )
    config = configure(program.argv[1:])
    assert (config.role, config.name) == ("client", "lab-client")
    assert config.policy_server == ("10.0.5.2", 5263)
    assert config.key_file == tmp_path / "key" and not config.insecure
    assert config.control_socket == tmp_path / "lab-client.sock"
    assert config.limits.linger == 1
    assert program.ready == Ready(notify=True)


def test_a_tool_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(LabError, match=r"/nowhere/m2mctl is missing"):
        programs.tool("m2mctl")
