"""What `datafree list` shows: methods and tasks with their options, networks, packaged recipes."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from typing import Annotated, Any, Literal

from datafree.config import options, yaml
from datafree.networks.load import network_names
from datafree.recipe.files import packaged_recipes
from datafree.recipe.recipe import SOURCE, TASK
from datafree.text import show


def listing() -> str:
    """The whole text."""
    parts = [
        "methods (source.method)",
        *(_class(name, kind) for name, kind in sorted(SOURCE.members.items())),
    ]
    parts += ["", "tasks (task.kind)", *(_class(name, kind) for name, kind in sorted(TASK.members.items()))]
    parts += ["", "networks (teacher.network, student.network)", *(f"  {name}" for name in network_names())]
    parts += [
        "  torchvision/..., timm/..., ultralytics/...: any other model of theirs",
        "  package.module:callable: your own",
    ]
    recipes = packaged_recipes() or {"none": ""}
    width = max(map(len, recipes))
    parts += [
        "",
        "packaged recipes",
        *(f"  {name:<{width}}  {about}".rstrip() for name, about in recipes.items()),
    ]
    return "\n".join(parts)


def _class(name: str, kind: type[Any]) -> str:
    """A class's first line of documentation, and a line for each option."""
    return "\n".join([f"  {name}: {(inspect.getdoc(kind) or '').partition(chr(10))[0]}", *_options(kind, 4)])


def _options(kind: type[Any], indent: int) -> list[str]:
    """A line for each option of a class: default, choices, its text. Parts of its own kind are listed below it."""
    hints = options.hints(kind)
    fields = [field for field in dataclasses.fields(kind) if field.init]
    texts = [f"{f.name} = {default}" if (default := _default(f)) else f"{f.name} (required)" for f in fields]
    width, lines = max(map(len, texts)), []
    for field, text in zip(fields, texts, strict=True):
        hint = hints[field.name]
        lines.append(f"{' ' * indent}{text:<{width}}  {_about(hint)}".rstrip())
        for part in typing.get_args(_bare(hint)):
            if dataclasses.is_dataclass(part) and inspect.getmodule(part) is inspect.getmodule(kind):
                assert isinstance(part, type)
                lines += [f"{' ' * indent}  each of {field.name}:", *_options(part, indent + 4)]
    return lines


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
    if isinstance(value, list) and value and dataclasses.is_dataclass(value[0]):
        return f"{len(value)} of them"
    return yaml.render(value).removesuffix("\n").removesuffix("\n...")


def _about(hint: Any) -> str:
    """The choices that a type has, and the text of its `Doc`: what an option is, and in which unit."""
    bare = _bare(hint)
    choices = " | ".join(map(str, typing.get_args(bare))) if typing.get_origin(bare) is Literal else ""
    return "; ".join(filter(None, [choices, options.text_of(hint)]))


def _bare(hint: Any) -> Any:
    """A type without what `Annotated` adds to it."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
