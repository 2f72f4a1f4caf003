"""A person is told of one error, whatever nursery it came through."""

from __future__ import annotations

import pytest

from m2m.lab.lab import plain_errors
from m2m.lab.netns import LabError


def test_the_only_error_is_raised_as_itself():
    with pytest.raises(LabError, match="one"), plain_errors():
        raise ExceptionGroup("outer", [ExceptionGroup("inner", [LabError("one")])])


def test_of_several_for_people_the_first_is_raised():
    with pytest.raises(LabError, match="one"), plain_errors():
        raise ExceptionGroup("outer", [LabError("one"), ExceptionGroup("in", [LabError("two")])])


def test_a_defect_among_them_is_not_hidden():
    with pytest.raises(ExceptionGroup) as raised, plain_errors():
        raise ExceptionGroup("outer", [LabError("one"), TypeError("a defect")])
    assert raised.value.subgroup(TypeError) is not None
