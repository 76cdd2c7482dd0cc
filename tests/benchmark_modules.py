"""A script of benchmarks/, imported by a test beside its own modules."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"


@contextmanager
def imported(name: str) -> Iterator[ModuleType]:
    """The module; it, its like and those of examples/ are forgotten afterwards, since their names are short ones."""
    search_path, known = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module(name)
    sys.path[:] = search_path
    ours = (str(BENCHMARKS), str(ROOT / "examples"))
    for other in set(sys.modules) - known:
        if str(getattr(sys.modules[other], "__file__", None) or "").startswith(ours):
            del sys.modules[other]
