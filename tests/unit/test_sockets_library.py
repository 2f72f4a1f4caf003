"""Which programs are proxies, which of them get the preload library, and how m2m-nf runs them."""

from __future__ import annotations

import os
import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from m2m.cli import nf
from nf_adapters.pcap.library import captures
from nf_adapters.program import LibraryError, find
from nf_adapters.sockets import library
from nf_adapters.sockets.library import BUILT, NAME, calls_sockets, examine, preload


@pytest.fixture(autouse=True)
def _not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "installed", lambda: None)


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    """Of an agent: m2m-nf looks whether one answers."""
    for ending in ("nf", "proxy"):
        (tmp_path / f"a.{ending}").touch()
    (tmp_path / "a.nf").unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "a.nf"))
        listener.listen()
        yield tmp_path


@pytest.mark.needs("tcpdump", "curl")
def test_a_proxy_is_what_accepts_and_begins_connections_and_captures_nothing() -> None:
    assert not calls_sockets(find("cat"))
    assert captures(find("tcpdump")) and not captures(find("curl"))
    for program in ("squid", "haproxy", "socat", "stunnel", "nginx"):
        if shutil.which(program):
            assert calls_sockets(find(program)) and not captures(find(program)), program


@pytest.mark.needs("nginx")
def test_who_gets_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = examine("nginx", as_root=True)
    assert verdict.served and "make install-sockets" in verdict.findings[-1]
    copy = tmp_path / "nginx"
    shutil.copy(shutil.which("nginx") or "", copy)
    copy.chmod(0o755 | stat.S_ISUID)
    assert examine(str(copy), as_root=False).served is False
    monkeypatch.setattr(library, "installed", lambda: BUILT)
    assert examine(str(copy), as_root=False).served
    assert examine("cat").served is False
    static = tmp_path / "static"
    static.write_bytes(b"\x7fELF" + bytes(1000))
    static.chmod(0o755)
    assert "m2m_nf.h" in examine(str(static)).findings[-1]


def test_an_installed_library_has_to_be_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert preload() == str(BUILT)
    monkeypatch.setattr(library, "installed", lambda: BUILT)
    assert preload() == NAME
    other = tmp_path / NAME
    other.write_bytes(b"\x7fELF")
    monkeypatch.setattr(library, "installed", lambda: other)
    with pytest.raises(LibraryError, match="of another version: sudo make install-sockets"):
        preload()


@pytest.mark.needs("nginx")
def test_run_becomes_the_program(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[tuple[str, list[str], dict[str, str]]] = []

    def execvpe(program: str, words: list[str], environment: dict[str, str]) -> None:
        became.append((program, words, environment))
        raise OSError(8, "Exec format error")

    monkeypatch.setattr(os, "execvpe", execvpe)
    monkeypatch.setenv("LD_PRELOAD", "libother.so")
    words = ["run", "--run-dir", str(run_dir), "--last-accept", "--", "nginx", "-t"]
    assert nf.main(words) == 1
    ((program, command, environment),) = became
    assert (program, command) == ("nginx", ["nginx", "-t"])
    assert environment["LD_PRELOAD"] == f"{BUILT}:libother.so"
    assert environment["M2M_SOCKETS"] == str(run_dir / "a.proxy")
    assert environment["M2M_SOCKETS_LAST"] == "1"


@pytest.mark.needs("nginx")
def test_doctor_tells_who_is_heard(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nf.main(["doctor", "--run-dir", str(run_dir), "nginx"]) == 0
    said = capsys.readouterr().out
    assert f"the agent's socket is {run_dir / 'a.proxy'}: it hears root and the members of" in said
    assert said.endswith("m2m-nf run --as proxy -- nginx ...\n")
    assert nf.main(["doctor", "--run-dir", str(run_dir), "--as", "proxy", "cat"]) == 1
    assert capsys.readouterr().out.endswith("it cannot be served\n")
    (run_dir / "a.proxy").unlink()
    assert nf.main(["doctor", "--run-dir", str(run_dir), "nginx"]) == 1
    assert "the agent has no socket" in capsys.readouterr().out
