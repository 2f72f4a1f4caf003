"""The scenarios that each datapath passes: what docs/kmod.md says is what is played."""

from __future__ import annotations

import re
from pathlib import Path

from m2m.cli import lab

_TREE = Path(__file__).resolve().parents[2]
_PLAYED = {"`make test-vm`": "VM_SCENARIOS", "`make test-vm-more`": "VM_MORE"}


def _table() -> dict[str, str]:
    """What the document says of the module, by the scenario."""
    text = (_TREE / "docs/kmod.md").read_text()
    rows = re.findall(
        r"^\| `m2m-lab (?:run )?([a-z-]+)` \| [^|]+ \| ([^|]+) \|$", text, re.MULTILINE
    )
    return dict(rows)


def _played(variable: str) -> list[str]:
    text = (_TREE / "Makefile").read_text().replace("\\\n", "")
    found = re.search(rf"^{variable} := (.*)$", text, re.MULTILINE)
    assert found is not None
    return found[1].split()


def test_every_scenario_is_told_of() -> None:
    single = {lab._PROCESS, lab._GATEWAY, lab._BALANCE, lab._REMOVAL}
    assert _table().keys() == {"demo", *lab._SCENARIOS, *lab._MOBILITY, *single}


def test_those_that_the_module_passes_are_played_with_it() -> None:
    for where, variable in _PLAYED.items():
        told = [name for name, said in _table().items() if said == where]
        assert sorted(told) == sorted(_played(variable))


def test_others_have_a_reason() -> None:
    assert all(said in _PLAYED or len(said.split()) > 5 for said in _table().values())
