"""Which of a test's many cases are in the default run: one or two; `pytest -m thorough` runs the others."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from _pytest.mark import ParameterSet


def some(every: Iterable[str | tuple[object, ...]], *by_default: str | tuple[object, ...]) -> list[ParameterSet]:
    """All as parameters of a test; those that are not in the default run are marked. Those in it must be among them."""
    cases = list(every)
    assert set(by_default) <= set(cases)
    marked = [(case, [] if case in by_default else [pytest.mark.thorough]) for case in cases]
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=marks) for case, marks in marked]
