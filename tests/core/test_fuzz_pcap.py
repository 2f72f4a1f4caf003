"""The restore library of captures under a fuzzer and sanitizers."""

import mmap
import os
import struct
import subprocess
from pathlib import Path

import pytest

from m2m.protocol.flow import Flow
from nf_adapters.pcap._mapping import MIN_CELLS, Table, lay_out, size_of
from tests.support import packets

ROOT = Path(__file__).parents[2]
SECONDS = os.environ.get("FUZZ_SECONDS")
WIRE = Flow.of(6, "10.0.2.1", 61001, "10.0.3.1", 62001)
UDP = WIRE._replace(proto=17)
HEADERS = (
    (0, bytes(12) + b"\x08\x00"),
    (0, bytes(12) + b"\x81\x00\x00\x05\x08\x00"),
    (1, b""),
    (2, bytes(14) + b"\x08\x00"),
    (4, b"\x08\x00" + bytes(18)),
)


def frames() -> list[bytes]:
    """Whole inputs to begin with: link type, flags, a frame that is in the mapping."""
    quoted = packets.tcp(WIRE)[:28]
    error = struct.pack("!BBHI", 11, 0, 0, 0) + quoted
    bodies = [
        packets.tcp(WIRE, flags=packets.SYN, options=b"\2\4\5\xb4"),
        packets.udp(UDP, payload=b"query"),
        packets.ipv4(UDP, packets.udp(UDP, payload=bytes(24))[20:44], fragment=0x2000),
        packets.ipv4(UDP, bytes(8), fragment=3),
        packets.ipv4(Flow.of(1, "10.0.3.9", 0, "10.0.2.1", 0), error),
    ]
    return [
        bytes([link, 0]) + header + body
        for number, body in enumerate(bodies)
        for link, header in HEADERS[number:] + HEADERS[:1]
    ]


def mappings() -> list[bytes]:
    """A mapping with some tuples, and one in which they are over; without the gap in between."""
    memory = mmap.mmap(-1, size_of(MIN_CELLS))
    lay_out(memory, MIN_CELLS, 0, 0)
    table = Table(memory)
    for port in range(20):
        table.publish(WIRE._replace(sport=61000 + port), WIRE, bool(port % 2), port)
    found = [memory[:64] + memory[4096:]]
    for port in range(0, 20, 3):
        table.end(WIRE._replace(sport=61000 + port))
    table.sweep(64)
    return [*found, memory[:64] + memory[4096:]]


@pytest.mark.needs("fuzzer")
@pytest.mark.timeout(int(SECONDS or "0") + 120)
@pytest.mark.parametrize(
    ("name", "seeds", "longest", "runs"),
    [("mapping", mappings, 8192, 8_000), ("frame", frames, 200, 300_000)],
)
def test_fuzz_pcap(tmp_path: Path, name: str, seeds, longest: int, runs: int) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    program = tmp_path / "fuzz"
    includes = [f"-I{ROOT / room}" for room in ("kmod", "m2m/datapath", "nf_adapters/pcap")]
    subprocess.run(
        ["clang", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function",
         "-fno-sanitize-recover=all", "-fsanitize=fuzzer,address,undefined", *includes,
         str(ROOT / f"tests/core/fuzz_pcap_{name}.c"), "-o", str(program)],
        check=True,
    )  # fmt: skip
    budget = f"-max_total_time={SECONDS}" if SECONDS else f"-runs={runs}"
    done = subprocess.run(
        [str(program), budget, "-seed=1", f"-max_len={longest}", f"-artifact_prefix={tmp_path}/",
         str(corpus)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Done " in done.stderr
