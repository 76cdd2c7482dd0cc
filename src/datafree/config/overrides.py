"""Changes to a recipe on the command line: `training.lr=1e-3`, `source.parts.0.path=photos`.

Values are YAML. A section given whole is merged into the recipe's, unless it names another method, kind or
network: then it replaces it, since one method's options mean nothing to another (`source={method: noise}`).
An empty section empties (`teacher.args={}`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from datafree.config import yaml
from datafree.errors import RecipeError
from datafree.text import show


def apply_override(given: dict[str, Any], override: str) -> None:
    """Change the recipe `given` as "key.sub=value" says. Raises ValueError, a line for each fault."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ValueError(f"the override {show(override)} is not of the form key.sub=value (training.steps=500)")
    value = yaml.parse(text, f"the override {show(override)}")
    at: Any = given
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(at, list):
            if not (part.isascii() and part.isdigit() and len(part) < 10 and int(part) < len(at)):
                raise ValueError(f"{key}: {'.'.join(parts[:depth])} is a list of {len(at)} values, numbered from 0")
            part_key: Any = int(part)
        elif isinstance(at, dict):
            part_key = part
            if not last and at.get(part) is None:
                at[part] = {}
        else:
            raise ValueError(f"{key}: {'.'.join(parts[:depth])} is {show(at)}, not a section")
        if last:
            before = at.get(part_key) if isinstance(at, dict) else at[part_key]
            at[part_key] = _merged(before, value)
        else:
            at = at[part_key]


def require_overrides(overrides: Sequence[str]) -> None:
    """Raise RecipeError for what is not of the form key.sub=value, whatever the recipe."""
    problems = []
    for override in overrides:
        try:
            apply_override({}, override)
        except ValueError as error:
            problems += str(error).splitlines()
    if problems:
        raise RecipeError(problems)


def _merged(before: object, after: object) -> object:
    """Sections merge key by key; another method, kind or network, or anything else, replaces."""
    if not isinstance(before, dict) or not isinstance(after, dict) or not after:
        return after
    if any(label in after and after[label] != before.get(label) for label in ("method", "kind", "network")):
        return after
    return {**before, **{key: _merged(before.get(key), value) for key, value in after.items()}}


def times_fewer(text: str) -> float | None:
    """The number of a wish such as 4x, above 1; None for another text."""
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)x?", text, re.ASCII)
    return None if match is None or float(match[1]) <= 1 else float(match[1])


def set_classes(count: int) -> str:
    """The way out where a task has another number of classes: in a recipe, and on a command line."""
    return f"set task.num_classes={count} (--classes {count})"


def student_overrides(student: str | None, compress: str | None) -> list[str]:
    """What --student and --compress change in a recipe. Raises RecipeError."""
    if compress is not None and student not in (None, "auto"):
        raise RecipeError(
            [f"--compress {show(compress)} belongs to --student auto, and the student is {show(student)}"]
        )
    if compress is not None and times_fewer(compress) is None:
        raise RecipeError([f"--compress {show(compress)}: say how many times smaller, such as 4x"])
    if student is None and compress is None:
        return []
    args = {} if compress is None else {"compress": compress}
    return [f"student={json.dumps({'network': 'auto' if student is None else student, 'args': args})}"]


def training_overrides(device: str | None, seed: int | None) -> list[str]:
    """What --device and --seed change in a recipe."""
    given = {"device": device, "seed": seed}
    return [f"training.{name}={json.dumps(value)}" for name, value in given.items() if value is not None]
