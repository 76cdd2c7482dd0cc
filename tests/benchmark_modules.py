"""A script of benchmarks/, imported by a test beside its own modules."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Collection, Iterator
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
    forget(known)


def forget(but: Collection[str] = ()) -> None:
    """Forget the modules of benchmarks/ and examples/ that were imported, `but` for those of these names."""
    ours = (str(BENCHMARKS), str(ROOT / "examples"))
    for name in set(sys.modules) - set(but):
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(ours):
            del sys.modules[name]
