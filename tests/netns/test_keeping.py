"""Addresses that sessions keep alive, in real namespaces."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from m2m.agent.keeping import Keeping
from m2m.protocol.flow import parse_address
from tests.support.namespaces import Namespace, NamespaceFactory

A, OTHER = parse_address("10.9.0.1"), parse_address("10.9.0.7")
LINKS = ("eth0", "eth1")
_ARP = 0x0806
_REQUEST = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1)  # Ethernet, IPv4 (RFC 826)


class Pair:
    """Hosts *a* and *b* on two links; *b* knows a way to 10.9.0.1 by both."""

    def __init__(self, netns: NamespaceFactory, record: Path) -> None:
        self.a, self.b = netns("a"), netns("b")
        netns.link(self.a, ("eth0", "10.9.0.1/24"), self.b, ("eth0", "10.9.0.2/24"))
        netns.link(self.a, ("eth1", "10.9.1.1/24"), self.b, ("eth1", "10.9.1.2/24"))
        self.record = record
        self.keeping = self.open()

    def open(self) -> Keeping:
        with self.a.entered():
            return Keeping(self.record)

    def keep(self) -> None:
        with self.a.entered():
            self.keeping.keep(A, LINKS)

    def only(self, *addresses: bytes) -> None:
        with self.a.entered():
            self.keeping.only(addresses)

    def leave(self) -> None:
        """The address goes; both hosts have another way to each other."""
        self.a.run("ip", "address", "del", "10.9.0.1/24", "dev", "eth0")
        self.b.run("ip", "route", "add", "10.9.0.1/32", "via", "10.9.1.1")
        self.a.route("10.9.0.2/32", "via", "10.9.1.2")

    def routes(self) -> str:
        return self.a.run("ip", "route", "show", "table", "local", "proto", "77").stdout

    def arp_ignore(self) -> list[str]:
        return [
            self.a.run("sysctl", "-n", f"net.ipv4.conf.{name}.arp_ignore").stdout.strip()
            for name in LINKS
        ]

    def answers_arp(self, device: str) -> bool:
        """Whether *a* says there that it has 10.9.0.1."""
        with self.b.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ARP)) as asking:
            asking.bind((device, _ARP))
            asking.settimeout(0.3)
            own = asking.getsockname()[4]
            ether = b"\xff" * 6 + own + struct.pack("!H", _ARP)
            sender = own + socket.inet_aton("10.9.0.2" if device == "eth0" else "10.9.1.2")
            target = bytes(6) + socket.inet_aton("10.9.0.1")
            asking.send(ether + _REQUEST + sender + target)
            try:
                while True:
                    heard = asking.recv(64)
                    if heard[20:22] == b"\0\2" and heard[28:32] == target[6:]:
                        return True
            except TimeoutError:
                return False


@pytest.fixture
def pair(netns: NamespaceFactory, tmp_path: Path) -> Iterator[Pair]:
    made = Pair(netns, tmp_path / "ue.kept")
    for host in (made.a, made.b):
        for name in ("all", *LINKS):
            host.run("sysctl", "-qw", f"net.ipv4.conf.{name}.rp_filter=0")
    yield made
    made.keeping.close()


def connected(a: Namespace, b: Namespace) -> tuple[socket.socket, socket.socket]:
    with b.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("10.9.0.2", 0))
        listener.listen()
        near = a.socket(socket.AF_INET, socket.SOCK_STREAM)
        near.bind(("10.9.0.1", 0))
        near.connect(listener.getsockname())
        far, _ = listener.accept()
    for one in (near, far):
        one.settimeout(10)
    return near, far


def test_sockets_live_on_without_their_address_on_any_interface(pair: Pair) -> None:
    near, far = connected(pair.a, pair.b)
    with near, far:
        pair.keep()
        pair.leave()
        near.sendall(b"still here")
        assert far.recv(100) == b"still here"
        far.sendall(b"I hear you")
        assert near.recv(100) == b"I hear you"


def test_without_it_they_do_not(pair: Pair) -> None:
    near, far = connected(pair.a, pair.b)
    with near, far:
        pair.leave()
        near.settimeout(0.5)
        far.sendall(b"hello?")
        with pytest.raises(OSError):
            near.recv(100)


def test_only_who_has_the_address_answers_for_it(pair: Pair) -> None:
    assert pair.answers_arp("eth0")
    pair.keep()
    assert pair.answers_arp("eth0")  # an interface has it still
    pair.a.run("ip", "address", "del", "10.9.0.1/24", "dev", "eth0")
    pair.a.run("ip", "address", "add", "10.9.0.7/24", "dev", "eth0")
    assert not pair.answers_arp("eth0")
    assert not pair.answers_arp("eth1")


def test_everything_is_taken_back(pair: Pair) -> None:
    pair.keep()
    pair.keep()
    assert pair.routes().count("10.9.0.1") == 1
    assert pair.arp_ignore() == ["3", "3"]
    assert pair.record.exists()
    pair.only(A, OTHER)
    assert "10.9.0.1" in pair.routes()
    pair.only()
    assert (pair.routes(), pair.arp_ignore(), pair.record.exists()) == ("", ["0", "0"], False)


def test_the_next_agent_takes_back_what_a_killed_one_left(pair: Pair) -> None:
    pair.keep()
    pair.keeping.close()
    pair.keeping = pair.open()
    assert pair.keeping.kept == {A}
    pair.only()
    assert (pair.routes(), pair.arp_ignore(), pair.record.exists()) == ("", ["0", "0"], False)


def test_stricter_settings_are_left_alone(pair: Pair) -> None:
    pair.a.run("sysctl", "-qw", "net.ipv4.conf.eth1.arp_ignore=1")
    pair.keep()
    assert pair.arp_ignore() == ["3", "1"]
    pair.only()
    assert pair.arp_ignore() == ["0", "1"]


def test_multicast_groups_are_joined_where_they_were(pair: Pair) -> None:
    pair.keep()
    member = struct.pack("=4s4s", socket.inet_aton("239.1.2.3"), socket.inet_aton("10.9.0.1"))
    with pair.a.socket(socket.AF_INET, socket.SOCK_DGRAM) as joined:
        joined.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
        groups = pair.a.run("ip", "maddress", "show", "dev", "eth0").stdout
    assert "239.1.2.3" in groups


def test_a_torn_record_is_no_reason_to_stop(pair: Pair) -> None:
    pair.keeping.close()
    pair.record.write_bytes(b'{"addresses": ["10.')
    pair.keeping = pair.open()
    assert not pair.keeping.kept
