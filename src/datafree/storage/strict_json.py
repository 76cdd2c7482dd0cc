"""JSON that every reader takes: it has no NaN and no infinity, null instead."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def render(content: object) -> str:
    """`content` (mappings, lists, plain values) as indented JSON text."""
    return json.dumps(_finite(content), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
