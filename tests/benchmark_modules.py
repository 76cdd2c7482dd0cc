"""Scripts of benchmarks/, imported by tests beside their own modules."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"


@contextmanager
def importable() -> Iterator[None]:
    """Within it they are. They have short names and import one another: none is left from before, nor afterwards."""
    search_path = list(sys.path)
    forget()
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield
    finally:
        sys.path[:] = search_path
        forget()


def forget() -> None:
    """Forget the modules of benchmarks/ and examples/ that were imported."""
    ours = (str(BENCHMARKS), str(ROOT / "examples"))
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(ours):
            del sys.modules[name]
