"""The patched libpcap beside the stock one: the stock one is given frames with the supersession's
headers, the patched one the same frames with a subsession's. Programs must see the same.

Each has a namespace of its own with a veth pair, ``x`` and ``y``; both watch ``y``.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from itertools import islice, takewhile
from pathlib import Path
from typing import NamedTuple

import pytest

from m2m.protocol.flow import Flow
from nf_adapters.pcap import Mapping, now
from nf_adapters.pcap.library import NAMES, is_patched, library_directory
from tests.support import libpcap, packets
from tests.support.libpcap import Handle, Library, Packet
from tests.support.namespaces import Namespace, NamespaceFactory

pytestmark = [pytest.mark.needs("netns", "libpcap"), pytest.mark.timeout(120)]

NAME = Flow.of(6, "10.0.1.1", 40000, "10.0.9.1", 80)
WIRE = Flow.of(6, "10.0.2.1", 61001, "10.0.3.1", 62001)
STRANGER = Flow.of(17, "10.0.1.1", 5000, "10.0.9.1", 53)

OURS = b"\x02m2m\0\1"  # the source address of every frame of the test
MARK = b"\x88\xb5"  # the type of the last one (IEEE 802: for experiments)
SOL_PACKET, VNET_HDR = 263, 15  # PACKET_VNET_HDR (linux/if_packet.h)
SLL2 = 276
TUN = Path("/dev/net/tun")
TUNSETIFF, TUN_WITHOUT_INFORMATION = 0x400454CA, 0x1001  # linux/if_tun.h

FILTERS = (
    "", "tcp", "udp", "ip", "not tcp",
    "host 10.0.1.1", "src host 10.0.1.1", "dst host 10.0.9.1", "host 10.0.2.1", "host 10.0.3.1",
    "net 10.0.1.0/24", "src net 10.0.9.0/24", "net 10.0.2.0/23",
    "port 80", "src port 40000", "dst port 80", "portrange 60000-65535", "tcp dst portrange 1-100",
    "tcp[tcpflags] & tcp-syn != 0", "tcp[13] = 2", "tcp[((tcp[12] & 0xf0) >> 2):4] = 0x47455420",
    "ip[2:2] > 100", "ip[16:4] = 0x0a000901", "udp[4:2] > 8", "tcp[0:2] = 40000",
    "len > 100", "less 60", "greater 1000", "len = 54",
    "inbound", "outbound", "inbound and host 10.0.1.1", "ifindex IFINDEX", "not ifindex IFINDEX",
    "vlan", "vlan 5", "vlan 5 and host 10.0.1.1", "not vlan", "tcp and (vlan or port 80)",
    "icmp", "icmp[icmptype] = 3", "icmp[20:4] = 0x0a000101", "ip[6:2] & 0x3fff != 0",
    "ether host 02:6d:32:6d:00:01", "ether proto 0x0800", "ip proto 17", "arp",
    "host 10.0.1.1 and not port 53",
)  # fmt: skip


class Frame(NamedTuple):
    data: bytes
    partial: tuple[int, int] | None = None  # where the checksum starts, and lies from there


def frames(session: Flow) -> list[Frame]:
    """What is sent of a session, in both directions, over TCP and UDP, and what is of none."""
    there, back = session, session.reverse()
    query, answer = there._replace(proto=17), back._replace(proto=17)
    ether = b"\x02m2m\0\2" + OURS
    ip = ether + b"\x08\x00"
    datagram = packets.udp(query, payload=bytes(range(200)))[20:]
    quoted = packets.tcp(there, payload=b"12345678")[:28]
    error = struct.pack("!BBHI", 3, 1, 0, 0) + quoted
    error = error[:2] + struct.pack("!H", packets.checksum(error)) + error[4:]
    router = Flow(1, Flow.of(1, "10.0.7.7", 0, "10.0.7.8", 0).src, 0, session.src, 0)
    plain = [
        packets.tcp(there, flags=packets.SYN, options=b"\2\4\5\xb4\1\3\3\7"),
        packets.tcp(back, flags=packets.SYN | packets.ACK, ack=1),
        packets.tcp(there, payload=b"GET / HTTP/1.0\r\n\r\n", seq=1),
        packets.tcp(back, payload=bytes(1200), seq=1),
        packets.udp(query, payload=b"who?"),
        packets.udp(answer, payload=b"me", with_checksum=False),
        packets.ipv4(query, datagram[:96], ident=9, fragment=0x2000),
        packets.ipv4(query, datagram[96:], ident=9, fragment=12),
        packets.ipv4(router, error),
        packets.udp(STRANGER, payload=b"query"),
    ]
    found = [Frame(ip + packet) for packet in plain]
    found.append(Frame(ether + b"\x81\x00\x00\x05\x08\x00" + plain[2]))
    found.append(Frame(ether + b"\x88\xa8\x00\x07\x81\x00\x00\x05\x08\x00" + plain[4]))
    unfinished = bytearray(plain[2])
    pseudo = session.src[12:] + session.dst[12:] + struct.pack("!HH", 6, len(unfinished) - 20)
    unfinished[36:38] = struct.pack("!H", 0xFFFF - packets.checksum(pseudo))
    found.append(Frame(ip + bytes(unfinished), (34, 16)))
    found.append(Frame(ether + b"\x08\x06" + bytes(28)))
    return found


def frames_of_ipv6() -> list[Frame]:
    """With the ports of a subsession: TCP, UDP, a first and a later fragment, an error."""
    ends = Flow.of(6, "fd00::1", 0, "fd00::2", 0)
    ports = struct.pack("!HH", WIRE.sport, WIRE.dport)

    def packet(next_header: int, body: bytes) -> bytes:
        head = struct.pack("!IHBB", 0x60000000, len(body), next_header, 64)
        return head + ends.src + ends.dst + body

    stream = packet(6, ports + bytes(8) + b"\x50\x02" + bytes(6))
    bodies = [
        stream,
        packet(17, ports + b"\0\x0c\1\2data"),
        packet(44, b"\x11\0\0\1\0\0\0\7" + ports + bytes(16)),
        packet(44, b"\x11\0\0\x10\0\0\0\7" + ports + bytes(16)),
        packet(58, b"\1\0\0\0\0\0\0\0" + stream),
    ]
    return [Frame(b"\x02m2m\0\2" + OURS + b"\x86\xdd" + body) for body in bodies]


class Side(NamedTuple):
    """A namespace and the library that watches there."""

    namespace: Namespace
    library: Library
    session: Flow

    def open(self, filter: str | None, *, device: str = "y", **options: object) -> Handle:  # noqa: A002
        """Every filter lets the last frame pass too."""
        if filter is not None:
            filter = filter.replace("IFINDEX", str(self.namespace.ifindex("y")))  # noqa: A001
            filter = f"ether proto 0x88b5 or ({filter})" if filter else ""  # noqa: A001
        with self.namespace.entered():
            return self.library.open(device, filter=filter, **options)  # type: ignore[arg-type]

    def warm(self, *handles: Handle, link: int = 14) -> None:
        """Past the first block, which stock libpcap filters in user space whatever it does later:
        on the snapshot alone, and without knowing the direction of a packet."""
        self.send([])
        for handle in handles:
            for _ in _until_mark(handle, link):
                pass

    def send(self, sent: list[Frame] | None = None) -> None:
        """All frames, in at ``y`` and then out there; then the last one."""
        for device in ("x", "y"):
            with self.namespace.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
                raw.setsockopt(SOL_PACKET, VNET_HDR, 1)
                raw.bind((device, 0))
                for frame in frames(self.session) if sent is None else sent:
                    start, offset = frame.partial or (0, 0)
                    needs = 1 if frame.partial else 0
                    raw.send(struct.pack("=BBHHHH", needs, 0, 0, 0, start, offset) + frame.data)
        with self.namespace.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind(("x", 0))
            raw.send(b"\x02m2m\0\2" + OURS + MARK + bytes(46))


def seen(handle: Handle, *, link: int = 14) -> list[Packet]:
    """What has come of the test's frames up to the last one; the handle is closed."""
    found = [
        packet for packet in _until_mark(handle, link) if link != 14 or packet.data[6:12] == OURS
    ]
    handle.close()
    return found


def _until_mark(handle: Handle, link: int = 14) -> Iterator[Packet]:
    marks = 1 if link == 14 else 2  # out of one end, into the other
    for packet in handle.packets():
        if (packet.data[:2] if link == 20 else packet.data[link - 2 : link]) == MARK:
            marks -= 1
            if not marks:
                return
        else:
            yield packet


class Pair(NamedTuple):
    stock: Side
    patched: Side


@pytest.fixture
def pair(netns: NamespaceFactory, tmp_path: Path) -> Iterator[Pair]:
    made = []
    for label, path, session in (
        ("stock", libpcap.STOCK, NAME),
        ("patched", library_directory() / NAMES[0], WIRE),
    ):
        namespace = netns(label)
        namespace.sysctl("net.ipv6.conf.all.disable_ipv6", 1)
        namespace.sysctl("net.ipv6.conf.default.disable_ipv6", 1)
        namespace.run("ip", "link", "add", "x", "type", "veth", "peer", "name", "y")
        for device in ("x", "y"):
            namespace.run("ip", "link", "set", device, "up")
        made.append(Side(namespace, Library(path), session))
    pair = Pair(*made)
    path = tmp_path / "test.map"
    with pair.patched.namespace.entered():
        table = Mapping(path, 10).table
    for proto in (6, 17):
        wire, name = WIRE._replace(proto=proto), NAME._replace(proto=proto)
        table.publish(wire, name, False, now())
        table.publish(wire.reverse(), name.reverse(), False, now())
    with libpcap.environment(M2M_PCAP=str(path)):
        yield pair


def test_the_libraries_are_what_they_are_taken_for() -> None:
    assert not is_patched(libpcap.STOCK)
    directory = library_directory()
    assert all(is_patched(directory / name) for name in NAMES)


@pytest.mark.parametrize("immediate", [False, True], ids=["v3", "v2"])
def test_every_filter_delivers_the_same(pair: Pair, immediate: bool) -> None:
    opened = [
        [side.open(text, immediate=immediate) for text in FILTERS] for side in pair
    ]  # fmt: skip
    for side, handles in zip(pair, opened, strict=True):
        side.warm(*handles)
        side.send()
    different = []
    total = 0
    for text, stock, patched in zip(FILTERS, *opened, strict=True):
        expected, got = seen(stock), seen(patched)
        total += len(expected)
        if expected != got:
            different.append((text, len(expected), len(got)))
    assert different == []
    assert total > 10 * len(frames(NAME)), "filters that deliver nothing show nothing"


@pytest.mark.parametrize("immediate", [False, True], ids=["v3", "v2"])
def test_ipv6_is_left_alone(pair: Pair, immediate: bool) -> None:
    """Sessions have none yet: whatever its ports, it is seen as it was sent, by every filter."""
    texts = ("", "ip6", "tcp port 61001", "udp", "icmp6", "ip6[6] = 44", "not ip6", "inbound")
    opened = [[side.open(text, immediate=immediate) for text in texts] for side in pair]
    for side, handles in zip(pair, opened, strict=True):
        side.warm(*handles)
        side.send(frames_of_ipv6())
    found = [[seen(handle) for handle in handles] for handles in opened]
    assert found[0] == found[1]
    sent = [frame.data for frame in frames_of_ipv6()]
    assert [packet.data for packet in found[1][0]] == sent * 2  # in, and out
    assert [len(packets) for packets in found[1]] == [10, 10, 2, 6, 2, 4, 0, 5]


@pytest.mark.parametrize("snaplen", [20, 34, 40, 54, 60, 96, 128, 1000])
@pytest.mark.parametrize(
    "text", [None, "", "port 80", "tcp[((tcp[12] & 0xf0) >> 2):4] = 0x47455420"]
)
def test_short_snapshots(pair: Pair, snaplen: int, text: str | None) -> None:
    """The program gets no more than it asks for, of packets that are restored all the same; and
    a filter looks at what is behind the snapshot, as in the kernel."""
    handles = [side.open(text, snaplen=snaplen) for side in pair]
    for side, handle in zip(pair, handles, strict=True):
        side.warm(handle)
        side.send()
    expected, got = (seen(handle) for handle in handles)
    assert got == expected
    longest = max(packet.length for packet in expected)
    assert max(len(packet.data) for packet in expected) == min(snaplen, longest)


@pytest.mark.parametrize("datalink", [113, SLL2], ids=["sll", "sll2"])
@pytest.mark.parametrize("text", ["", "host 10.0.1.1", "inbound", "outbound and tcp"])
def test_the_any_device(pair: Pair, datalink: int, text: str) -> None:
    """Every frame comes twice, out of one end and into the other, in no certain order.

    But for a filter tagged frames are another matter: the kernel's sees the protocol of the tag
    where the program is shown that of the packet.
    """
    link = 20 if datalink == SLL2 else 16
    handles = [side.open(text, device="any", datalink=datalink) for side in pair]
    for side, handle in zip(pair, handles, strict=True):
        side.warm(handle, link=link)
        sent = frames(side.session)
        side.send([frame for frame in sent if not text or frame.data[12:14] == b"\x08\x00"])
    expected, got = (sorted(seen(handle, link=link)) for handle in handles)
    assert got == expected
    assert expected


def test_a_filter_that_changes(pair: Pair) -> None:
    found = []
    for side in pair:
        handle = side.open("port 53")
        handle.set_filter("(port 80) or ether proto 0x88b5")
        side.send()
        found.append(list(_until_mark(handle)))
        handle.close()
    assert found[0] == found[1]
    assert found[0]


def test_statistics_count_what_passed_the_filter(pair: Pair) -> None:
    told = []
    for side in pair:
        handle = side.open("tcp and host 10.0.1.1")
        side.send()
        got = [*_until_mark(handle)]
        assert handle.received() == (len(got) + 1, 0)  # and the last frame
        told.append(handle.received())
        handle.close()
    assert told[0] == told[1]


@pytest.mark.parametrize("immediate", [False, True], ids=["v3", "v2"])
@pytest.mark.parametrize("text", ["", "port 80"])
def test_statistics_tell_of_what_was_lost(pair: Pair, immediate: bool, text: str) -> None:
    """A program that reads too late: of what was received it has got all but what was dropped."""
    sent = 3000
    for side in pair:
        handle = side.open(text, immediate=immediate, buffer=1 << 20, snaplen=1500)
        side.warm(handle)
        before, _ = handle.received()
        frame = frames(side.session)[3]
        assert len(frame.data) > 1000
        side.send([frame] * (sent // 2))  # in and out
        received, dropped = handle.received()
        assert (received - before, dropped > 0) == (sent + 1, True)
        got = sum(1 for _ in islice(handle.packets(), received - before - dropped))
        assert handle.received() == (received, dropped)
        assert got == received - before - dropped
        handle.close()


def test_what_is_refused_too_late_may_have_been_dropped(pair: Pair) -> None:
    """The one difference: a full ring drops packets that the filter would have refused."""
    dropped = []
    for side in pair:
        handle = side.open("port 53", buffer=1 << 20, snaplen=1500)
        side.warm(handle)
        side.send([frames(side.session)[3]] * 1500)
        dropped.append(handle.received()[1] > 0)
        handle.close()
    assert dropped == [False, True]


@pytest.mark.skipif(not TUN.exists(), reason=f"this kernel has no {TUN}")
@pytest.mark.parametrize("text", ["", "host 10.0.1.1", "tcp port 80"])
def test_raw_ip(pair: Pair, text: str) -> None:
    """A tunnel's device has no link layer."""
    found = []
    for side in pair:
        with side.namespace.entered():
            tun = os.open(TUN, os.O_RDWR)
        fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", b"raw", TUN_WITHOUT_INFORMATION))
        side.namespace.run("ip", "link", "set", "raw", "up")
        last = packets.udp(STRANGER, payload=b"the last one")
        with side.namespace.entered():
            handle = side.library.open("raw", filter=f"({text or 'ip'}) or udp port 53")
        bodies = [frame.data[14:] for frame in frames(side.session)[:8]]
        for body in bodies:
            os.write(tun, body)
        with side.namespace.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as raw:
            raw.bind(("raw", 0x0800))
            for body in [*bodies, last]:
                raw.send(body)
        found.append(list(takewhile(lambda packet: packet.data != last, handle.packets())))  # noqa: B023
        handle.close()
        os.close(tun)
    assert found[0] == found[1]
    assert len(found[0]) >= 8


def test_off_is_stock(pair: Pair) -> None:
    """With restoring off the patched library sees what the stock one sees there."""
    side = pair.patched
    stock = Side(side.namespace, pair.stock.library, side.session)
    with libpcap.environment(M2M_PCAP="off"):
        handles = [each.open(text) for each in (side, stock) for text in FILTERS]
    side.warm(*handles)
    side.send()
    found = [seen(handle) for handle in handles]
    assert found[: len(FILTERS)] == found[len(FILTERS) :]
    assert any(found)


@pytest.mark.parametrize(
    ("content", "mode", "why"),
    [
        (None, 0o640, "No such file or directory"),
        (b"", 0o640, "it is no mapping"),
        (b"x" * 8192, 0o640, "it is no mapping"),
        ("version", 0o640, "it is of another version"),
        ("size", 0o640, "its size is wrong"),
        ("good", 0o666, "others than root can write to it"),
    ],
)
def test_without_a_good_mapping_it_warns_once_and_is_stock(
    pair: Pair, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    content: bytes | str | None, mode: int, why: str,
) -> None:  # fmt: skip
    path = tmp_path / "bad.map"
    good = (tmp_path / "test.map").read_bytes()
    if isinstance(content, str):
        at, value = {"version": (8, 99), "size": (17, 0x40), "good": (0, good[0])}[content]
        content = good[:at] + bytes([value]) + good[at + 1 :]
    if content is not None:
        path.write_bytes(content)
        path.chmod(mode)
    side = Side(pair.patched.namespace, _fresh(tmp_path), WIRE)
    stock = Side(side.namespace, pair.stock.library, WIRE)
    with libpcap.environment(M2M_PCAP=str(path)):
        handles = [each.open(text) for each in (side, stock) for text in ("", "host 10.0.2.1")]
    side.send()
    found = [seen(handle) for handle in handles]
    assert found[:2] == found[2:]
    said = capfd.readouterr().err
    assert said.count("libpcap: packets keep their subsessions' addresses") == 1
    assert f"{path} cannot be used: {why}" in said


def _fresh(directory: Path) -> Library:
    """A library that has not warned yet in this process."""
    copy = directory / "libpcap-copy.so"
    copy.write_bytes((library_directory() / NAMES[0]).read_bytes())
    return Library(copy)


def test_the_mapping_of_the_own_namespace_is_found_among_others(pair: Pair, tmp_path: Path) -> None:
    with pair.stock.namespace.entered():
        Mapping(tmp_path / "another.map", 10)
    (tmp_path / "broken.map").write_bytes(b"")
    with libpcap.environment(M2M_PCAP=str(tmp_path)):
        handle = pair.patched.open("host 10.0.1.1")
    pair.patched.send()
    assert any(packet.data[26:30] == NAME.src[12:] for packet in seen(handle))


def test_each_packet_once(pair: Pair, tmp_path: Path) -> None:
    """A one-armed middlebox: what comes in by one tuple goes out by another."""
    side = pair.patched
    onward = WIRE._replace(sport=61007)
    with side.namespace.entered():
        table = Mapping(tmp_path / "test.map", 10).table
    table.publish(onward, NAME, True, now())
    both = [frame for flow in (WIRE, onward) for frame in frames(flow)[:1]]
    counts = {}
    for once in ("0", "1"):
        with libpcap.environment(M2M_PCAP_ONCE=once):
            handle = side.open("tcp and host 10.0.1.1 and inbound")
        side.send(both)
        counts[once] = len(seen(handle))
    assert counts == {"0": 2, "1": 1}


def test_a_mapping_of_another_size_is_taken_up(pair: Pair, tmp_path: Path) -> None:
    """The agent was started anew for more sessions: an open handle goes on with the new file."""
    side = pair.patched
    handle = side.open("")
    with side.namespace.entered():
        table = Mapping(tmp_path / "test.map", 1000).table
    other = NAME._replace(sport=45678)
    table.publish(WIRE, other, False, now())
    side.send(frames(WIRE)[:1])
    assert seen(handle)[0].data[34:36] == struct.pack("!H", other.sport)


@pytest.mark.parametrize("immediate", [False, True], ids=["v3", "v2"])
def test_names_looked_up_ahead_are_the_packets_own(
    pair: Pair, tmp_path: Path, immediate: bool
) -> None:
    """With a mapping that is too large for the processor's caches, and another one that comes
    while packets wait in the ring."""
    side, sessions, read = pair.patched, range(200), 30
    ether = frames(WIRE)[0].data[:14]
    sent = []
    for number in sessions:
        wire = WIRE._replace(dport=61000 + number)
        sent.append(frames(wire)[number % 12])
        sent.append(Frame(ether + packets.tcp(wire, payload=b"%d" % number)))

    def publish(size: int, first: int) -> None:
        with side.namespace.entered():
            table = Mapping(tmp_path / "test.map", size).table
        for number in sessions:
            wire = WIRE._replace(dport=61000 + number)
            assert table.publish(wire, NAME._replace(sport=first + number), False, now()) == 1

    publish(10_000, 20000)
    handle = side.open("tcp and greater 55 and less 57", immediate=immediate, snaplen=256)
    side.send(sent)
    found = []
    for packet in _until_mark(handle):
        if len(found) == read:
            publish(20_000, 30000)
        found.append((int(packet.data[54:]), int.from_bytes(packet.data[34:36], "big")))
    handle.close()
    expected = [(number, 20000 + number) for number in [*sessions, *sessions]]
    assert found[: read + 1] == expected[: read + 1]
    assert found[read + 1 :] == [(number, port + 10000) for number, port in expected[read + 1 :]]
