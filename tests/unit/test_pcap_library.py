"""Finding the patched libpcap, and telling which programs get it."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from m2m.cli import nf
from nf_adapters.pcap.library import NAMES, LibraryError, examine, library_directory


@pytest.fixture
def directory() -> Path:
    return library_directory()


pytestmark = pytest.mark.needs("libpcap")


def test_a_program_of_debian_gets_it(directory: Path) -> None:
    verdict = examine("tcpdump", directory)
    assert verdict.served
    assert verdict.findings[-1].endswith(f"would get {directory / NAMES[0]}")


def test_set_uid_and_set_gid_programs_do_not(directory: Path, tmp_path: Path) -> None:
    copy = tmp_path / "tcpdump"
    shutil.copy(shutil.which("tcpdump") or "", copy)
    copy.chmod(0o755 | stat.S_ISUID)
    assert examine(str(copy), directory, as_root=False).served is False
    is_root = os.geteuid() == 0
    assert examine(str(copy), directory, as_root=is_root).served is is_root
    copy.chmod(0o755)
    assert examine(str(copy), directory, as_root=False).served is True


def test_scripts_and_programs_without_it_may_load_it_later(directory: Path, tmp_path: Path) -> None:
    script = tmp_path / "nf"
    script.write_text("#!/usr/bin/python3 -u\nimport pcap\n")
    script.chmod(0o755)
    for program in (str(script), "ls"):
        verdict = examine(program, directory)
        assert verdict.served is None
        assert "get" in verdict.findings[-1]


def test_static_programs_have_their_own(directory: Path, tmp_path: Path) -> None:
    static = tmp_path / "static"
    static.write_bytes(b"\x7fELF" + bytes(1000))
    static.chmod(0o755)
    verdict = examine(str(static), directory)
    assert verdict.served is False
    assert "linked statically" in verdict.findings[-1]


def test_another_libpcap_is_seen_through(directory: Path) -> None:
    """As with a program whose library has a path of its own."""
    system = Path("/usr/lib/x86_64-linux-gnu")
    verdict = examine("tcpdump", system)
    assert verdict.served is False
    assert "another one than ours" in verdict.findings[-1]


def test_what_is_not_there_is_told(tmp_path: Path, directory: Path) -> None:
    with pytest.raises(LibraryError, match="make libpcap"):
        library_directory([tmp_path])
    with pytest.raises(LibraryError, match="not on the PATH"):
        examine("no-such-program", directory)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run"], "no program is given"),
        (["run", "--", "tcpdump", "-i", "lo"], "no agent runs here"),
        (["run", "--buffer", "0", "--", "tcpdump"], "not between 1 and 1024"),
    ],
)
def test_run_says_what_is_missing(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = words.index("--") if "--" in words else len(words)
    command = [*words[:at], "--run-dir", str(tmp_path), *words[at:]]
    if "--buffer" in words:
        with pytest.raises(SystemExit):
            nf.main(command)
    else:
        assert nf.main(command) == 1
    assert said in capsys.readouterr().err


def test_doctor_tells_of_a_host_without_an_agent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert nf.main(["doctor", "--run-dir", str(tmp_path), "tcpdump"]) == 1
    said = capsys.readouterr().out
    assert "no agent runs here" in said
    assert said.endswith("it cannot be served\n")
