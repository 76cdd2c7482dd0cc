"""Recipes as files: the packaged ones, their text, its sections. Read without torch, so that a slip is said at once."""

from __future__ import annotations

import os
import re
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from datafree.config import yaml
from datafree.errors import RecipeError
from datafree.text import did_you_mean, show

MAX_BYTES = 1_000_000  # of a recipe file
NEEDED = ("task", "teacher", "student", "source")  # sections
SECTIONS = ("name", *NEEDED, "training", "data")
NOT_IN_NAMES = re.compile(r"[^\w.-]+", re.ASCII)  # a name names a directory


def _packaged() -> Traversable:
    return resources.files("datafree") / "builtin" / "recipes"


def packaged_recipes() -> dict[str, str]:
    """The recipes that come with the package: name -> the first comment line."""
    folder = _packaged()
    found = {}
    for file in sorted(folder.iterdir(), key=lambda file: file.name) if folder.is_dir() else []:
        if file.name.endswith(".yaml"):
            first = file.read_text(encoding="utf-8").partition("\n")[0]
            found[file.name.removesuffix(".yaml")] = first.lstrip("# ") if first.startswith("#") else ""
    return found


def read_text(path_or_name: str) -> tuple[str, str, str]:
    """A recipe's text, what to call it in errors, and its default name. Raises RecipeError."""
    given = os.path.expanduser(path_or_name) if path_or_name.startswith("~/") else path_or_name  # noqa: PTH111
    path = Path(given)  # as it is where nobody knows the user's home
    if "\0" not in path_or_name and path.exists() and not path.is_dir():
        try:
            with path.open("rb") as file:
                content = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise RecipeError([f"{path} cannot be read: {error.strerror}"]) from error
        if len(content) > MAX_BYTES:
            raise RecipeError([f"{path} is larger than {MAX_BYTES:,} bytes; is it a recipe?"])
        try:
            return (
                content.decode("utf-8-sig"),
                path.name,
                NOT_IN_NAMES.sub("-", path.stem).strip("-._")[:80] or "recipe",
            )
        except UnicodeDecodeError as error:
            raise RecipeError([f"{path} is not text in UTF-8 (byte {error.start}); is it a recipe?"]) from error
    known = packaged_recipes()
    if path_or_name in known:
        text = (_packaged() / f"{path_or_name}.yaml").read_text(encoding="utf-8")
        return text, f"{path_or_name}.yaml", path_or_name
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        problem = f"{path} is a folder" if "\0" not in path_or_name and path.is_dir() else f"there is no file {path}"
        raise RecipeError(
            [f"{problem}; give a recipe file, or the name of a packaged recipe (`datafree list` shows them)"]
        )
    hint = did_you_mean(path_or_name, known)
    raise RecipeError([f"there is no file or packaged recipe {show(path_or_name)}{hint}; `datafree list` shows them"])


def sections(text: str, file_name: str) -> dict[Any, Any]:
    """What is written in a recipe's text, by its sections. Raises RecipeError."""
    try:
        given = yaml.parse(text, file_name)
    except ValueError as error:
        raise RecipeError(str(error).splitlines()) from error
    given = {} if given is None else given
    if not isinstance(given, dict):
        raise RecipeError([f"{file_name} holds {show(given)}, not sections such as `task:` and `teacher:`"])
    return given


def require_recipe(path_or_name: str) -> None:
    """Raise RecipeError for a recipe that is not there, is no YAML or has a section that no recipe has."""
    text, file_name, _ = read_text(path_or_name)
    if strange := [key for key in sections(text, file_name) if key not in SECTIONS]:
        raise RecipeError([unknown_section(key) for key in strange])


def unknown_section(key: object) -> str:
    """What is wrong with a section of that name."""
    known = f"a recipe has: {', '.join(SECTIONS)}"
    return f"{show(key)}: no such section{did_you_mean(str(key), SECTIONS)}; {known}"
