"""The patch series for libpcap: every release of Debian's that is named takes it, line by line."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parents[2] / "patches/libpcap"


def _load() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("libpcap_build", str(HERE / "build"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


build = _load()


@pytest.mark.needs("patch", "libpcap")
@pytest.mark.parametrize("release", build.releases())
def test_a_release_takes_the_series(release: str, tmp_path: Path) -> None:
    tree = build.unpack(release, tmp_path)
    build.patch(tree)
    source = (tree / "pcap-linux.c").read_text()
    assert source.count("m2m_pcap_restore(") == 1
    assert not list(tree.glob("*.rej"))


def test_every_patch_is_in_the_series_and_says_why() -> None:
    named = build.series()
    assert named == sorted(HERE.glob("*.patch"))
    for path in named:
        title, _, why = path.read_text().partition("--- a/")[0].partition("\n\n")
        assert title and "\n" not in title and len(why) > 100, path.name


def test_a_source_with_another_checksum_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "CACHE", tmp_path)
    monkeypatch.setattr(build, "_mirrors", lambda: [f"file://{tmp_path}"])
    name = "libpcap_1.0.orig.tar.gz"
    for place in (tmp_path / "source", tmp_path / "pool/main/libp/libpcap"):
        place.mkdir(parents=True)
        (place / name).write_bytes(b"something else")
    with pytest.raises(build.BuildError, match="could not be had"):
        build.fetch(name, "0" * 64)
    assert not (tmp_path / "source" / name).exists()
