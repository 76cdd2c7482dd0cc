"""Differences of two recipes: whether a directory begun with one may be resumed with another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from datafree.config import yaml
from datafree.errors import RunError
from datafree.text import show

_SHOWN = 5  # keys in which two recipes differ


def check_same(file: Path, recipe: dict[str, Any], is_free: Callable[[str], bool], what: str) -> None:
    """Raises RunError unless the recipe in `file` is `recipe` but for free keys, naming those that differ.

    `what` the directory holds: "a run", "a data set".
    """
    try:
        before = yaml.parse(file.read_text(encoding="utf-8"), str(file))
    except (ValueError, OSError) as error:
        raise RunError(f"{file} is damaged ({type(error).__name__}); choose another --out") from error
    changed = [line for line in differences(recipe, before) if not is_free(line.split(":")[0])]
    if changed:
        raise RunError(
            f"{file.parent} holds {what} of another recipe ({'; '.join(changed[:_SHOWN])}); choose another --out"
        )


def differences(here: Mapping[str, Any], in_run: object) -> list[str]:
    """A line for each key in which two resolved recipes differ: "training.lr: 0.1 here, 0.01 in the run"."""
    mine, theirs = dict(flat(here)), dict(flat(in_run if isinstance(in_run, Mapping) else {}))
    lines = []
    for key in dict.fromkeys([*mine, *theirs]):
        if key not in theirs:
            lines.append(f"{key}: {show(mine[key])} here, not set in the run")
        elif key not in mine:
            lines.append(f"{key}: not set here, {show(theirs[key])} in the run")
        elif mine[key] != theirs[key]:
            lines.append(f"{key}: {show(mine[key])} here, {show(theirs[key])} in the run")
    return lines


def flat(value: object, key: str = "") -> list[tuple[str, object]]:
    """Dotted keys and the scalars or flat lists at them."""
    dot = f"{key}." if key else ""
    if isinstance(value, Mapping) and value:
        return [pair for name, item in value.items() for pair in flat(item, f"{dot}{name}")]
    if isinstance(value, list) and any(isinstance(item, (Mapping, list)) for item in value):
        return [pair for index, item in enumerate(value) for pair in flat(item, f"{dot}{index}")]
    return [(key, value)] if key else []
