"""What iptables is told, and what a person is told when it will not listen."""

from __future__ import annotations

from pathlib import Path

import pytest

from m2m.datapath import hold_rules
from m2m.errors import UnsupportedHost
from tests.support.iptables import Iptables

OPENINGS = ("-p udp", "-p tcp --tcp-flags SYN,ACK SYN")


def install(*interfaces: str) -> None:
    hold_rules.install(interfaces, Path("/pins/hold"), Path("/pins/refuse"), 77)


def test_rules_are_replaced_in_one_step(iptables: Iptables) -> None:
    install("eth0", "wlan0")
    assert iptables.rules == [
        "*mangle",
        ":M2M-HOLD - [0:0]",
        ":M2M-QUEUE - [0:0]",
        "-A M2M-HOLD -o eth0 -m bpf --object-pinned /pins/hold -g M2M-QUEUE",
        "-A M2M-HOLD -o wlan0 -m bpf --object-pinned /pins/hold -g M2M-QUEUE",
        "-A M2M-QUEUE -m bpf --object-pinned /pins/refuse -j DROP",
        "-A M2M-QUEUE -j NFQUEUE --queue-num 77",
        "COMMIT",
    ]
    assert iptables.told == [
        "iptables-restore --noflush --wait 5",
        *(f"iptables --wait 5 -t mangle -C OUTPUT {opening} -j M2M-HOLD" for opening in OPENINGS),
    ], "the jumps are there already"


def test_a_jump_is_added_when_it_is_not_there(iptables: Iptables) -> None:
    iptables.answers('case "$*" in *-C*udp*) exit 1;; esac')
    install("eth0")
    added = [line for line in iptables.told if "-A" in line]
    assert added == ["iptables --wait 5 -t mangle -A OUTPUT -p udp -j M2M-HOLD"]


def test_no_packet_is_looked_at_where_nothing_is_to_be_held(iptables: Iptables) -> None:
    # What an agent that was killed had: a jump of each kind.
    iptables.answers("test $(grep -c -- '-D' told) -ne 2 -a $(grep -c -- '-D' told) -lt 4")
    install()
    assert iptables.told == [
        "iptables-restore --noflush --wait 5",
        *removals(2),
    ]
    assert not [line for line in iptables.rules if " -o " in line]


def removals(each: int) -> list[str]:
    """Of those of OUTPUT *each* one; of a gateway's none is there."""
    jumps = [f"OUTPUT {opening} -j M2M-HOLD" for opening in OPENINGS for _ in range(each)]
    jumps += [f"FORWARD {opening} -j M2M-HOLD" for opening in OPENINGS]
    jumps.append("PREROUTING -i m2m-none -m socket -j RETURN")
    return [f"iptables --wait 5 -t mangle -D {jump}" for jump in jumps]


def test_what_iptables_says_is_passed_on(iptables: Iptables) -> None:
    iptables.answers("echo; echo 'line 4: no bpf match' >&2; echo 'too bad' >&2; exit 2")
    with pytest.raises(UnsupportedHost, match=r"line 4: no bpf match; too bad.*xt_bpf"):
        install("eth0")


def test_a_missing_iptables_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnsupportedHost, match="install iptables"):
        install("eth0")


def test_every_jump_is_removed_and_absent_chains_are_no_error(
    iptables: Iptables, tmp_path: Path
) -> None:
    # Two of the first kind are there: the third -D fails, and so does all that follows.
    iptables.answers("test $(grep -c -- '-D' told) -le 2 || exit 1")
    hold_rules.remove()
    assert iptables.told == [
        *removals(3)[:3],
        *removals(1)[1:],
        *(
            f"iptables --wait 5 -t mangle {what} {chain}"
            for what in ("-F", "-X")
            for chain in ("M2M-HOLD", "M2M-QUEUE")
        ),
    ]


def test_a_gateway_looks_at_what_it_forwards_with_fragments_put_together(
    iptables: Iptables,
) -> None:
    hold_rules.install(["eth0"], Path("/h"), Path("/r"), 7, hold_rules.Where.FORWARD)
    asked = [told.split(" -t mangle ")[1] for told in iptables.told if " -C " in told]
    assert asked[-3:] == [
        *(f"-C FORWARD {opening} -j M2M-HOLD" for opening in OPENINGS),
        "-C PREROUTING -i m2m-none -m socket -j RETURN",
    ]
