"""Which cases of a parametrized test run by default."""

from collections.abc import Iterable
from typing import Any

import pytest


def some(cases: Iterable[Any], *quick: Any) -> list[Any]:
    """All cases; those that are not among the quick ones only with the slow tests."""
    known = list(cases)
    missing = [case for case in quick if case not in known]
    assert not missing, missing
    slow = pytest.mark.slow
    values = [case if isinstance(case, tuple) else (case,) for case in known]
    return [pytest.param(*one, marks=() if case in quick else slow) for one, case in zip(values, known, strict=True)]
