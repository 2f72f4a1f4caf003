"""The host's settings: ports are added and taken back, the rest is only read."""

from pathlib import Path

import pytest

from m2m.agent import host
from m2m.errors import UnsupportedHost


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """A /proc/sys/net/ipv4 of our own."""
    made = tmp_path / "ipv4"
    for name, value in {
        "ip_forward": "0",
        "ip_local_reserved_ports": "80,61010-61020",
        "conf/all/rp_filter": "0",
        "conf/eth0/rp_filter": "1",
        "conf/eth1/rp_filter": "2",
        "conf/eth2/rp_filter": "0",
    }.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(value + "\n")
    return made


def reserved(net: Path) -> str:
    return (net / "ip_local_reserved_ports").read_text().strip()


def test_ports_are_added_to_those_reserved_and_taken_back(net: Path, tmp_path: Path) -> None:
    record = tmp_path / "record"
    host.reserve_ports(61000, 61030, record, net)
    assert reserved(net) == "80,61000-61030"
    host.release_ports(record, net)
    assert reserved(net) == "80,61010-61020"
    host.release_ports(record, net)  # a second time changes nothing
    assert reserved(net) == "80,61010-61020"


def test_a_successor_takes_back_what_a_killed_agent_added(net: Path, tmp_path: Path) -> None:
    record = tmp_path / "record"
    host.reserve_ports(61000, 61030, record, net)
    host.reserve_ports(61000, 61040, record, net)
    assert reserved(net) == "80,61000-61040"
    host.release_ports(record, net)
    assert reserved(net) == "80,61010-61020"


def test_ports_that_cannot_be_reserved_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedHost, match=r"cannot read .*ip_local_reserved_ports"):
        host.reserve_ports(61000, 61030, tmp_path / "record", tmp_path / "none")


def test_strict_interfaces_are_found(net: Path) -> None:
    names = ["eth0", "eth1", "eth2", "eth9"]
    assert host.strict_interfaces(names, net) == ["eth0"]
    (net / "conf/all/rp_filter").write_text("1")
    assert host.strict_interfaces(names, net) == ["eth0", "eth2", "eth9"]


def test_forwarding_is_read(net: Path) -> None:
    assert not host.forwards(net)
    (net / "ip_forward").write_text("1\n")
    assert host.forwards(net)


def test_not_root_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(UnsupportedHost, match=r"as user 1000 .* start it as root"):
        host.require_root()
