"""The recipe that a directory was begun with, and whether another may go on with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from datafree import yaml12
from datafree.errors import RunError
from datafree.recipe import differences

_SHOWN = 5  # keys in which two recipes differ


def check_same(file: Path, recipe: dict[str, Any], is_free: Callable[[str], bool], what: str) -> None:
    """Raises RunError unless the recipe in `file` is `recipe` but for free keys, naming those that differ.

    `what` the directory holds: "a run", "a data set".
    """
    try:
        before = yaml12.parse(file.read_text(encoding="utf-8"), str(file))
    except (ValueError, OSError) as error:
        raise RunError(f"{file} is damaged ({type(error).__name__}); choose another --out") from error
    changed = [line for line in differences(recipe, before) if not is_free(line.split(":")[0])]
    if changed:
        raise RunError(
            f"{file.parent} holds {what} of another recipe ({'; '.join(changed[:_SHOWN])}); choose another --out"
        )
