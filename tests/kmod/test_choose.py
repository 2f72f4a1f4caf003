"""Which datapath an agent takes where the module is loaded."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from m2m.datapath import Datapath, DatapathError, Limits
from m2m.datapath.choose import left_behind, open_datapath
from m2m.datapath.hold_rules import Where
from m2m.datapath.kmod import is_loaded
from tests.support.namespaces import NamespaceFactory, run_prefix

pytestmark = [
    pytest.mark.skipif(not is_loaded(), reason="the module m2m is not loaded here"),
    pytest.mark.needs("netns", "bpffs", "nfqueue"),
]


@pytest.fixture
def name(netns: NamespaceFactory) -> Iterator[str]:
    with netns("kmod").entered():
        yield f"{run_prefix()}choose"


async def opened(kind: str, name: str) -> Datapath:
    return await open_datapath(
        kind, name, Limits(sessions=8), ports=(61000, 65535), where=Where.OUTPUT
    )


@pytest.mark.parametrize("first", ["kmod", "ebpf"])
async def test_sessions_are_taken_over_where_they_are(name: str, first: str) -> None:
    other = "ebpf" if first == "kmod" else "kmod"
    assert not left_behind(name)
    datapath = await opened(first, name)
    assert datapath.name == first
    await datapath.close(keep=True)
    assert left_behind(name)
    with pytest.raises(DatapathError, match=f"start it with --datapath={first}"):
        await opened(other, name)
    datapath = await opened("auto", name)
    assert datapath.name == first
    await datapath.close(keep=False)
    assert not left_behind(name)


async def test_the_module_is_taken_where_it_is_loaded(name: str) -> None:
    datapath = await opened("auto", name)
    assert datapath.name == "kmod"
    await datapath.close(keep=False)


async def test_a_gateway_has_fragments_put_together_while_it_is_one(name: str) -> None:
    for where in (Where.FORWARD, Where.OUTPUT, Where.FORWARD):
        datapath = await open_datapath(
            "kmod", name, Limits(sessions=8), ports=(61000, 65535), where=where
        )
        await datapath.close(keep=where is Where.OUTPUT)
    assert not left_behind(name)
