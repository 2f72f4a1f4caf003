"""The core and the user-space applier under a fuzzer and sanitizers."""

import os
import subprocess
from pathlib import Path

import pytest

from m2m.protocol.flow import Flow
from m2m.protocol.translation import Action, Hook
from tests.support import packets
from tests.support.core import entry, key

ROOT = Path(__file__).parents[2]
TCP = Flow.of(6, "10.0.1.1", 40000, "10.0.9.1", 80)
NEXT = Flow.of(6, "10.0.1.1", 61001, "10.0.2.1", 62001)


def seeds() -> list[bytes]:
    """Whole inputs to begin with: a key, its entry, a packet."""
    udp, udp_next = TCP._replace(proto=17), NEXT._replace(proto=17)
    syn = packets.tcp(TCP, flags=packets.SYN, options=b"\1\2\4\5\xb4\1\1\4\2")
    tcp_entry = entry(Hook.IN, TCP, NEXT, action=Action.SEND, mss=1400, ifindex=1, mtu=1500)
    udp_entry = entry(Hook.OUT, udp, udp_next, action=Action.SEND, ifindex=1)
    return [
        key(Hook.IN, TCP) + tcp_entry + syn,
        key(Hook.IN, TCP) + tcp_entry + packets.tcp(TCP, payload=b"odd"),
        key(Hook.OUT, udp) + udp_entry + packets.udp(udp, payload=b"query"),
        key(Hook.OUT, udp) + udp_entry + packets.ipv4(udp, b"x" * 16, fragment=185),
    ]


# What the module's files include and user space has not: the shim stands for all of them.
KERNEL_HEADERS = (
    "linux/jiffies.h", "linux/mutex.h", "linux/netfilter.h", "linux/rcupdate.h", "linux/skbuff.h",
    "linux/spinlock.h", "linux/timekeeping.h", "linux/workqueue.h", "net/checksum.h", "net/ip.h",
    "net/net_namespace.h", "net/route.h", "net/tcp.h",
)  # fmt: skip
# Each kind of checksum; a split or a rewrite; room in front.
MODULE_DRAWS = [
    bytes((10, 9, 8, 7, 6, 5, 4, 3, 0xEE, 0x49, 0xF7, 0x11, 5, 120, kind, 32, 11, way, 7, 3))
    for kind in range(4)
    for way in (0, 1, 2)
]


def module_seeds() -> list[bytes]:
    """Whole inputs to begin with: what is drawn, and a packet."""
    udp = TCP._replace(proto=17)
    made = [
        packets.tcp(TCP, flags=packets.SYN, options=b"\1\2\4\5\xb4\1\1\4\2"),
        packets.tcp(TCP, payload=b"some that can be split", flags=0x91),
        packets.udp(udp, payload=b"query"),
        packets.ipv4(udp, b"x" * 16, fragment=185),
    ]
    return [draw + packet for draw in MODULE_DRAWS for packet in made]


@pytest.mark.needs("fuzzer")
@pytest.mark.timeout(int(os.environ.get("FUZZ_SECONDS", "0")) + 120)
def test_fuzz_translation(tmp_path: Path) -> None:
    fuzz(tmp_path, seeds(), "fuzz_translation.c", "-Wextra")


def splice_seeds() -> list[bytes]:
    """Whole inputs to begin with: a splice, a direction, a packet."""
    splice = bytes(range(1, 17)) + b"\3\xfd\0\0"
    stamp = b"\1\1\x08\x0a" + bytes(range(8))
    options = [b"", stamp, stamp + b"\1\1\5\x12" + bytes(16), b"\1\5\x0a" + bytes(8) + b"\x13\2\0"]
    made = [packets.tcp(TCP, payload=b"odd", options=each) for each in options]
    return [splice + way + packet for way in (b"\0", b"\1") for packet in made]


@pytest.mark.needs("fuzzer")
@pytest.mark.timeout(int(os.environ.get("FUZZ_SECONDS", "0")) + 120)
def test_fuzz_splice(tmp_path: Path) -> None:
    fuzz(tmp_path, splice_seeds(), "fuzz_splice.c", "-Wextra")


@pytest.mark.needs("fuzzer")
@pytest.mark.timeout(int(os.environ.get("FUZZ_SECONDS", "0")) + 120)
def test_fuzz_module(tmp_path: Path) -> None:
    """The module's own files that touch packets, compiled with as much of a kernel as they need."""
    for name in KERNEL_HEADERS:
        stub = tmp_path / "kernel" / name
        stub.parent.mkdir(parents=True, exist_ok=True)
        stub.write_text('#include "shim.h"\n')
    # As in the kernel, packets lie where they come: headers need not be aligned.
    fuzz(
        tmp_path, module_seeds(), "module/fuzz_module.c", f"-I{tmp_path}/kernel",
        f"-I{ROOT}/tests/core/module", "-fno-sanitize=alignment", "-fno-strict-aliasing",
    )  # fmt: skip


@pytest.mark.needs("fuzzer")
@pytest.mark.timeout(int(os.environ.get("FUZZ_SECONDS", "0")) + 120)
def test_fuzz_sockets_table(tmp_path: Path) -> None:
    """What the preload library knows of a proxy's sockets, in any order of what becomes of them."""
    seed = bytes((0, 0, 2, 1, 45, 3, 6, 0, 14, 0, 4, 0))
    fuzz(
        tmp_path, [seed], "fuzz_sockets_table.c", "-Wextra", "-Wno-unused-function",
         f"-I{ROOT}/nf_adapters/sockets", runs=30_000,
    )  # fmt: skip


def relay_seeds() -> list[bytes]:
    """Whole inputs to begin with: calls, each with its first octet."""
    get = b"GET / HTTP/1.1\r\nUpgrade: a\r\n\r\n"
    post = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nA: b\r\n\r\n"
    uncacheable = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nCache-Control: a, private\r\n\r\n"
    switches = b"HTTP/1.1 101 Switching\r\n\r\n"
    early = b"HTTP/1.1 103 Early\r\n\r\n"
    ways = {"asks": 2, "sent": 1, "from": 3, "to": 0}

    def calls(**streams: bytes) -> bytes:
        return b"".join(
            bytes([ways[way] | 10 << 2]) + data.ljust(144) for way, data in streams.items()
        )

    once = {"asks": get, "sent": get, "from": uncacheable, "to": early + uncacheable}
    # Padded with spaces, heads are malformed: an octet at a time they are not.
    exact = b"".join(
        bytes([ways[way], octet]) for way, data in once.items() for octet in data + b"body"
    )
    connect = b"".join(bytes([2, octet]) for octet in b"CONNECT")
    return [
        exact,
        exact.replace(b"\2G\2E\2T", connect),
        calls(**once),
        b"\xff" + calls(**once),
        calls(asks=get, sent=get, **{"from": switches}, to=switches),
        calls(asks=post, sent=post, to=uncacheable),
    ]


@pytest.mark.needs("fuzzer")
@pytest.mark.timeout(int(os.environ.get("FUZZ_SECONDS", "0")) + 120)
def test_fuzz_relay(tmp_path: Path) -> None:
    """What is found in the streams of a program that is to leave sessions."""
    fuzz(
        tmp_path, relay_seeds(), "fuzz_relay.c", "-Wextra", "-Wno-unused-function",
        f"-I{ROOT}/nf_adapters/sockets", runs=10_000, longest=1500,
    )  # fmt: skip


def fuzz(
    tmp_path: Path, inputs: list[bytes], source: str, *options: str, runs: int = 200_000,
    longest: int = 400,
) -> None:  # fmt: skip
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(inputs):
        (corpus / f"seed-{number}").write_bytes(seed)
    program = tmp_path / "fuzz"
    subprocess.run(
        ["clang", "-g", "-O1", "-Wall", "-Werror", "-fno-sanitize-recover=all",
         "-fsanitize=fuzzer,address,undefined", *options, f"-I{ROOT}/kmod",
         f"-I{ROOT}/m2m/datapath", str(ROOT / "tests/core" / source), "-o", str(program)],
        check=True,
    )  # fmt: skip

    seconds = os.environ.get("FUZZ_SECONDS")
    budget = f"-max_total_time={seconds}" if seconds else f"-runs={runs}"
    done = subprocess.run(
        [str(program), budget, "-seed=1", f"-max_len={longest}", f"-artifact_prefix={tmp_path}/",
         str(corpus)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Done " in done.stderr
