"""What `datafree list` shows: methods and tasks with their options, networks, packaged recipes."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from typing import Any, Literal

from datafree import yaml12
from datafree.networks.load import network_names
from datafree.recipe import SOURCE, TASK, packaged_recipes
from datafree.wording import show


def listing() -> str:
    """The whole text."""
    parts = [
        "methods (source.method)",
        *(_class(name, kind) for name, kind in sorted(SOURCE.members.items())),
    ]
    parts += ["", "tasks (task.kind)", *(_class(name, kind) for name, kind in sorted(TASK.members.items()))]
    parts += ["", "networks (teacher.network, student.network)", *(f"  {name}" for name in network_names())]
    parts += ["  torchvision/..., timm/...: any other model of theirs", "  package.module:callable: your own"]
    recipes = packaged_recipes() or {"none": ""}
    width = max(map(len, recipes))
    parts += [
        "",
        "packaged recipes",
        *(f"  {name:<{width}}  {about}".rstrip() for name, about in recipes.items()),
    ]
    return "\n".join(parts)


def _class(name: str, kind: type[Any]) -> str:
    """A class's first line of documentation, and a line for each option: default, choices, its comment."""
    lines = [f"  {name}: {(inspect.getdoc(kind) or '').partition(chr(10))[0]}"]
    hints, comments = typing.get_type_hints(kind), _comments(kind)
    fields = [field for field in dataclasses.fields(kind) if field.init]
    shown = [
        (field.name, _default(field), _comment(hints[field.name], comments.get(field.name, ""))) for field in fields
    ]
    texts = [f"{name} = {default}" if default else f"{name} (required)" for name, default, _ in shown]
    width = max(map(len, texts))
    lines += [f"    {text:<{width}}  {comment}".rstrip() for text, (_, _, comment) in zip(texts, shown, strict=True)]
    return "\n".join(lines)


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return ""
    if isinstance(value, tuple):
        return show([float(f"{item:.3g}") if isinstance(item, float) else item for item in value])
    if isinstance(value, float):
        return f"{value:g}"
    return yaml12.render(value).removesuffix("\n").removesuffix("\n...")


def _comment(hint: Any, comment: str) -> str:
    choices = " | ".join(map(str, typing.get_args(hint))) if typing.get_origin(hint) is Literal else ""
    return "; ".join(filter(None, [choices, comment]))


def _comments(kind: type[Any]) -> dict[str, str]:
    """The comment on each field's line: our classes say there what an option is, and in which unit."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            source = inspect.getsource(base)
            found |= dict(re.findall(r"^ {4}(\w+):[^#\n]*  # (.+)$", source, re.MULTILINE))
    return found
