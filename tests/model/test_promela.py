"""spin finds what it must in the models: the paper's gaps, and what each rule is for.

All of it, with the larger searches, is ``make model``.
"""

from __future__ import annotations

import pytest

from tests.model import prove
from tests.model.variants import BROKEN, HOLDING, PRINTED, Variant
from tests.support.promela import CheckError, check

pytestmark = pytest.mark.needs("spin", "gcc")

CONTENTION = HOLDING[0]
SMALL = [*PRINTED, CONTENTION, *(one for one in BROKEN if one.name != "late lock")]


@pytest.mark.parametrize("variant", SMALL, ids=lambda one: one.name)
def test_spin_finds_what_it_must(variant: Variant) -> None:
    found = variant.check()
    assert variant.objection(found) is None
    assert bool(found.trace) == (variant.fails_with is not None)


def test_a_broken_rule_makes_the_proof_fail(capsys: pytest.CaptureFixture[str]) -> None:
    """One that must hold, and does not."""
    broken = BROKEN[0]._replace(fails_with=None)
    assert not prove.show(broken, broken.check(), traces=False)
    said = capsys.readouterr().out
    assert "does not hold" in said
    assert "UPDATE_SYNACK" in said  # the trace


def test_a_rule_that_is_not_broken_after_all_is_told() -> None:
    sound = CONTENTION._replace(fails_with="anything")
    assert sound.objection(sound.check()) == "holds, but must not"


def test_a_search_that_is_cut_short_proves_nothing() -> None:
    with pytest.raises(CheckError, match="not searched through"):
        check(CONTENTION.model, CONTENTION.defines, seconds=0.01)
