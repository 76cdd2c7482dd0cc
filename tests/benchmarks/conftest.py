"""Each file of tests has the scripts of benchmarks/ to import, in modules of its own."""

from collections.abc import Iterator

import pytest

from benchmark_modules import importable


@pytest.fixture(scope="module", autouse=True)
def benchmarks_importable() -> Iterator[None]:
    with importable():
        yield
