"""Rule sets and configurations out of the documents, so that what these show is what is tested."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

from tests.support.chain import LiveHost

INLINE_NFS = Path(__file__).parents[2] / "docs/inline-nfs.md"
_FENCED = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@cache
def block(name: str) -> str:
    """What the page on inline functions has between fences, by the comment that names it."""
    for text in _FENCED.findall(INLINE_NFS.read_text()):
        if f"# {name}\n" in text:
            return str(text)
    raise AssertionError(f"{INLINE_NFS} has no {name}")


def load(host: LiveHost, name: str, *arguments: str) -> None:
    """Put in one of its rule sets."""
    path = host.run_dir / name
    path.write_text(block(name))
    command = ("nft", "-f") if name.endswith(".nft") else ("sh", "-e")
    host.namespace.run(*command, str(path), *arguments)


def counted(host: LiveHost) -> dict[str, int]:
    """Packets, by the named counters of its firewall."""
    listed = host.namespace.run("nft", "-j", "list", "counters", "table", "ip", "firewall").stdout
    found = (one["counter"] for one in json.loads(listed)["nftables"] if "counter" in one)
    return {one["name"]: one["packets"] for one in found}
