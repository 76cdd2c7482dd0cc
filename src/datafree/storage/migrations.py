"""The version of a run's saved state, and what makes an older one of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from datafree.errors import RunError

STATE_VERSION = 3

# What makes a state of an older version one of the next: version -> the change.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: lambda state: {**state, "coping": {"rollbacks": 0, "pace": 1.0, "parts": 1, "history": []}},
    2: lambda state: {**{("recovery" if key == "coping" else key): state[key] for key in state}, "verdict": 0},
}


def migrated(state: dict[str, Any], file: Path) -> dict[str, Any]:
    """A state as this version has it. Raises RunError for one of a version that is not known."""
    version = state.get("version")
    while version in MIGRATIONS:
        state = {**MIGRATIONS[version](state), "version": version + 1}
        version += 1
    if version != STATE_VERSION:
        raise RunError(f"{file} has state version {version}, this datafree reads 1 to {STATE_VERSION}")
    return state
