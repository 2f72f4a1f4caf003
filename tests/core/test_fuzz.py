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


@pytest.mark.needs("fuzzer")
@pytest.mark.timeout(int(os.environ.get("FUZZ_SECONDS", "0")) + 120)
def test_fuzz_translation(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    program = tmp_path / "fuzz"
    subprocess.run(
        ["clang", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-fno-sanitize-recover=all",
         "-fsanitize=fuzzer,address,undefined", f"-I{ROOT}/kmod", f"-I{ROOT}/m2m/datapath",
         str(ROOT / "tests/core/fuzz_translation.c"), "-o", str(program)],
        check=True,
    )  # fmt: skip

    seconds = os.environ.get("FUZZ_SECONDS")
    budget = f"-max_total_time={seconds}" if seconds else "-runs=200000"
    done = subprocess.run(
        [str(program), budget, "-seed=1", "-max_len=400", f"-artifact_prefix={tmp_path}/",
         str(corpus)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Done " in done.stderr
