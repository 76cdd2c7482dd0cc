"""The syntax trees of the project's own files, parsed once for all tests that look at them."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path


@cache
def nodes_of(file: Path) -> tuple[ast.AST, ...]:
    """Every node of a module, in no order that means anything."""
    return tuple(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
