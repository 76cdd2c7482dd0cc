"""The version of a run's saved state, and what makes an older one of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

STATE_VERSION = 3

# What makes a state of an older version one of the next: version -> the change.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: lambda state: {**state, "coping": {"rollbacks": 0, "pace": 1.0, "parts": 1, "history": []}},
    2: lambda state: {**{("recovery" if key == "coping" else key): state[key] for key in state}, "verdict": 0},
}
