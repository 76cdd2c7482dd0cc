"""Modules of benchmarks/ have short names and import one another: none outlives the file of tests that imported it."""

from collections.abc import Iterator

import pytest

from benchmark_modules import forget


@pytest.fixture(scope="module", autouse=True)
def none_from_another_file() -> Iterator[None]:
    """Else a file that forgets some of them leaves the others with modules that nobody can reach to replace."""
    forget()
    yield
    forget()
