"""The rule that leads sessions to a proxy: what iptables is told, and when."""

from __future__ import annotations

from pathlib import Path

import pytest

from m2m.agent.interception import Interception
from m2m.datapath import proxy_rules
from m2m.errors import UnsupportedHost
from m2m.policy.rules import EMPTY, PolicySet
from m2m.protocol.flow import parse_address
from tests.support.agents import policy_set
from tests.support.iptables import Iptables

HERE = {parse_address("10.0.3.2")}
JUMP = "PREROUTING -p tcp -m mark --mark 0x4d325058 -j M2M-PROXY"


@pytest.fixture
def demux(tmp_path: Path) -> Path:
    """In the place of the host's own setting."""
    setting = tmp_path / "tcp_early_demux"
    setting.write_text("1\n")
    return setting


def with_port(port: int) -> PolicySet:
    return policy_set(f"nf cache proxy port={port} {{ c1 = 10.0.3.2 }}")


def test_it_is_put_in_one_step_and_jumped_to_first(iptables: Iptables) -> None:
    proxy_rules.install(3129)
    assert iptables.rules == [
        "*nat",
        ":M2M-PROXY - [0:0]",
        "-A M2M-PROXY -p tcp -j REDIRECT --to-ports 3129",
        "COMMIT",
    ]
    there = ["iptables-restore --noflush --wait 5", f"iptables --wait 5 -t nat -C {JUMP}"]
    assert iptables.told == there
    iptables.answers('case "$*" in *-C*) exit 1;; esac')
    proxy_rules.install(3129)
    assert iptables.told[2:] == [*there, f"iptables --wait 5 -t nat -I {JUMP}"]


def test_why_it_cannot_be(iptables: Iptables) -> None:
    iptables.answers("echo 'no chain/target/match by that name' >&2; exit 2")
    with pytest.raises(UnsupportedHost, match=r"no chain/target.*xt_REDIRECT"):
        proxy_rules.install(3129)


def test_it_follows_the_policy(iptables: Iptables, tmp_path: Path, demux: Path) -> None:
    iptables.answers('case "$*" in *-D*) exit 1;; esac')
    record = tmp_path / "agent.redirect"
    interception = Interception(record, demux)
    interception.follow(with_port(3129), {parse_address("10.0.9.9")})
    interception.remove()
    assert not (tmp_path / "told").exists(), "hosts without a proxy ask nobody"
    interception.follow(with_port(3129), HERE)
    interception.follow(with_port(3129), HERE)
    assert iptables.told.count("iptables-restore --noflush --wait 5") == 1
    interception.follow(with_port(3128), HERE)
    assert "-A M2M-PROXY -p tcp -j REDIRECT --to-ports 3128" in iptables.rules
    assert (record.read_text(), demux.read_text()) == ("1\n", "0\n")
    interception.follow(EMPTY, HERE)
    assert [line.split("nat ")[1] for line in iptables.told[-3:]] == [
        f"-D {JUMP}", "-F M2M-PROXY", "-X M2M-PROXY",
    ]  # fmt: skip
    assert not record.exists()
    assert demux.read_text() == "1\n"


def test_that_of_a_killed_agent_is_taken_out_or_over(
    iptables: Iptables, tmp_path: Path, demux: Path
) -> None:
    iptables.answers('case "$*" in *-D*) exit 1;; esac')
    record = tmp_path / "agent.redirect"
    record.write_text("1\n")
    demux.write_text("0\n")
    Interception(record, demux).follow(with_port(3129), HERE)
    assert len(iptables.told) == 2
    assert (record.read_text(), demux.read_text()) == ("1\n", "0\n")
    Interception(record, demux).follow(EMPTY, HERE)
    assert demux.read_text() == "1\n"
    assert iptables.told[-1].endswith("-X M2M-PROXY")
    assert not record.exists()


def test_what_cannot_be_led_is_told_and_tried_again(
    iptables: Iptables, tmp_path: Path, demux: Path
) -> None:
    iptables.answers("exit 1")
    interception = Interception(tmp_path / "agent.redirect", demux)
    interception.follow(with_port(3129), HERE)
    before = len(iptables.told)
    interception.follow(with_port(3129), HERE)
    assert len(iptables.told) > before
    interception.remove()
    assert demux.read_text() == "1\n"
    assert not (tmp_path / "agent.redirect").exists()
