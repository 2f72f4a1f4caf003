"""m2m-policy: what it prints, and how it fails."""

from __future__ import annotations

import argparse
import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from m2m.cli import policy_serve
from m2m.cli.policy import main
from m2m.errors import ConfigError
from m2m.policy.explain import Outcome, explain, parse_flow
from m2m.policy.language import parse
from m2m.protocol.flow import Flow

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "policy.m2m"
WEB = Flow.of(6, "10.0.1.5", 4000, "10.0.9.1", 80)
POLICY = """\
nf firewall inline { fw1 = 10.0.2.2 }
nf ids tap choose=least-loaded { ids1 = 10.0.4.2 }
nf dpi tap choose=agent { dpi1 = 10.0.6.2 }
nf six tap { s = 2001:db8::6 }

match(dstport=53) >> {}
match(srcip=10.0.1.0/24 & dstport=80) >> {firewall -> ids -> dpi}
match(dstport=81) >> {six} fail=open
match(dstport=82) >> {six}
"""


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "site.m2m"
    path.write_text(POLICY)
    return path


def test_check_shows_what_it_compiled(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(policy)]) == 0
    out = capsys.readouterr().out
    assert "match(srcip=10.0.1.0/24 & dstport=80) >> {firewall -> ids -> dpi}" in out
    assert "fw1 10.0.2.2" in out
    assert "line 8: IPv4 sessions go on without a chain, its chain has no IPv4 instances" in out
    assert "line 9: IPv4 sessions are dropped" in out
    assert "4 rules make 4 rows" in out


def test_check_as_json(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(policy), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["rows"] == 4
    assert answer["policies"][1] == {
        "id": 1,
        "line": 7,
        "text": "match(srcip=10.0.1.0/24 & dstport=80) >> {firewall -> ids -> dpi}",
        "chain": ["firewall", "ids", "dpi"],
        "fail": "closed",
        "change": "op",
        "live": "stay",
        "allow": ["operator", "policy"],
        "rows": 1,
    }
    assert answer["policies"][0]["fail"] is None
    assert answer["nfs"][1] == {
        "name": "ids",
        "kind": "tap",
        "choose": "least-loaded",
        "instances": [{"name": "ids1", "address": "10.0.4.2"}],
    }
    assert len(answer["notes"]) == 2


def test_check_notes_an_unused_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p"
    path.write_text("nf ids tap { a = 10.0.0.1 }")
    assert main(["check", str(path)]) == 0
    assert "NF type ids is in no chain" in capsys.readouterr().out


def test_check_tells_the_place_of_an_error(
    policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy.write_text(POLICY + "match(any) >> {proxy}\n")
    assert main(["check", str(policy)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"{policy}:10:16: expected the name of a declared NF type")
    assert main(["check", str(policy) + ".no"]) == 1
    assert capsys.readouterr().err.startswith("m2m-policy: cannot read policy file ")


@pytest.mark.parametrize(
    "session",
    [
        ["tcp 10.0.1.5:4000 10.0.9.1:80"],
        ["tcp", "10.0.1.5:4000", "10.0.9.1:80"],
        ["10.0.1.5:4000 > 10.0.9.1:80 tcp"],
        ["10.0.1.5:4000 -> 10.0.9.1:80 6"],
    ],
)
def test_explain(policy: Path, capsys: pytest.CaptureFixture[str], session: list[str]) -> None:
    assert main(["explain", str(policy), *session]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0] == "10.0.1.5:4000 > 10.0.9.1:80 tcp: steered"
    assert lines[1].startswith(f"  by {policy}:7: match(srcip=10.0.1.0/24 & dstport=80)")
    assert lines[2] == "  1. firewall (inline): fw1 at 10.0.2.2, chosen by hash"
    assert lines[4] == "  3. dpi (tap): dpi1 at 10.0.6.2, chosen by agent"
    assert lines[6] == (
        "  live sessions keep their chains; operator, policy may ask for changes, change=op"
    )
    assert lines[-2:] == [
        f"  {policy}:6: match(dstport=53) >> {{}}",
        "    dstport=53 failed: dstport is 80",
    ]


def test_explain_as_json(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(policy), "tcp 10.0.1.5:4000 10.0.9.1:80", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["outcome"] == "steered"
    assert answer["line"] == 7
    assert [hop["instance"] for hop in answer["chain"]] == ["fw1", "ids1", "dpi1"]
    assert (answer["change"], answer["live"]) == ("op", "stay")
    assert answer["allow"] == ["operator", "policy"]
    assert answer["missed"] == [
        {
            "line": 6,
            "text": "match(dstport=53) >> {}",
            "why": ["dstport=53 failed: dstport is 80"],
        }
    ]


@pytest.mark.parametrize(
    ("session", "outcome", "line"),
    [
        ("tcp 10.0.1.5:4000 10.0.9.1:80", Outcome.STEERED, 7),
        ("udp [2001:db8::1]:4000 [2001:db8::2]:53", Outcome.EXEMPT, 6),
        ("udp 10.0.2.5:4000 10.0.9.1:80", Outcome.UNMATCHED, None),
        ("tcp [2001:db8::1]:4000 [2001:db8::2]:81", Outcome.STEERED, 8),
        ("tcp 10.0.1.5:4000 10.0.9.1:81", Outcome.PASSED, 8),
        ("tcp 10.0.1.5:4000 10.0.9.1:82", Outcome.DROPPED, 9),
        ("tcp 10.0.1.5:4000 10.0.2.2:80", Outcome.DROPPED, 7),  # the firewall is the server
    ],
)
def test_outcomes(session: str, outcome: Outcome, line: int | None) -> None:
    answer = explain(parse(POLICY), parse_flow(session))
    assert (answer.outcome, answer.line) == (outcome, line)
    assert answer.notes or outcome is Outcome.STEERED
    before = 4 if line is None else line - 6
    assert [missed.line for missed in answer.missed] == list(range(6, 6 + before))
    assert all(missed.why for missed in answer.missed)


def test_a_printed_flow_can_be_read_again() -> None:
    for flow in (WEB, Flow.of(17, "2001:db8::1", 1, "::", 65535)):
        assert parse_flow(str(flow)) == flow


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "write it as 'tcp 10.0.1.5:4000 10.0.9.1:80'"),
        ("tcp 10.0.1.5:4000", "write it as"),
        ("icmp 10.0.1.5:4000 10.0.9.1:80", "'icmp' is no protocol"),
        ("tcp 10.0.1.5 10.0.9.1:80", "'10.0.1.5' is not ADDRESS:PORT"),
        ("tcp host:1 10.0.9.1:80", "'host:1' is not ADDRESS:PORT"),
        ("tcp 10.0.1.5:x 10.0.9.1:80", "'x' is no port"),
        ("tcp 10.0.1.5:65536 10.0.9.1:80", "'65536' is no port"),
        ("tcp 10.0.1.5:² 10.0.9.1:80", "'²' is no port"),
        ("tcp 2001:db8::1:80 [::1]:80", "needs brackets"),
        ("tcp [10.0.0.1]:80 10.0.0.2:80", "needs brackets"),
        ("tcp 10.0.1.5:1 [::1]:80", "one address family"),
    ],
)
def test_sessions_that_cannot_be_read(text: str, wrong: str) -> None:
    with pytest.raises(ConfigError, match="cannot read session") as caught:
        parse_flow(text)
    assert wrong in str(caught.value)


def test_keygen_writes_a_private_key_and_overwrites_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "domain.key"
    assert main(["keygen", str(path)]) == 0
    key = path.read_bytes()
    assert len(key) >= 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert main(["keygen", str(path)]) == 1
    captured = capsys.readouterr()
    assert "is not overwritten" in captured.err
    assert path.read_bytes() == key
    assert key.hex() not in captured.out + captured.err


def test_the_example_is_what_its_comments_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(EXAMPLE)]) == 0
    assert "note:" not in capsys.readouterr().out
    assert main(["explain", str(EXAMPLE), "tcp 10.0.1.5:4000 10.0.9.1:80", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [hop["nf"] for hop in answer["chain"]] == ["firewall", "ids"]


def test_a_reader_that_has_enough_is_no_error(policy: Path) -> None:
    program = "import sys; from m2m.cli.policy import main; sys.exit(main(sys.argv[1:]))"
    with subprocess.Popen(
        [sys.executable, "-c", program, "check", str(policy), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""


@pytest.mark.parametrize(
    ("arguments", "called", "expected"),
    [
        (
            ["serve", "F", "--listen", "10.0.0.1:99", "--key-file", "K", "--store", "S"],
            "main_serve",
            {"file": "F", "listen": "10.0.0.1:99", "key_file": "K", "store": "S"},
        ),
        (
            ["load", "F", "--server", "10.0.0.1", "--insecure"],
            "main_load",
            {"file": "F", "server": "10.0.0.1", "key_file": None, "insecure": True},
        ),
    ],
)
def test_serve_and_load_get_their_arguments(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], called: str, expected: dict[str, object]
) -> None:
    seen: list[argparse.Namespace] = []

    def run(args: argparse.Namespace) -> int:
        seen.append(args)
        return 3

    monkeypatch.setattr(policy_serve, called, run)
    assert main(arguments) == 3
    assert expected.items() <= vars(seen[0]).items()


@pytest.mark.parametrize("command", ["serve", "load"])
def test_no_key_no_start(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "F"])
    assert "--key-file --insecure is required" in capsys.readouterr().err
