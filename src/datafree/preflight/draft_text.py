"""A drafted recipe as YAML with comments: a line for each option, in the order in which it was drafted."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

Comments = Mapping[tuple[str, str], str]  # (section, option) -> what stands behind it

_WIDTH = 100  # characters of an option's line at most, beyond which its comment stands above it
_PLAIN = re.compile(r"[A-Za-z/][\w./-]*|(?:\d+[hms])+", re.ASCII)  # texts that need no quotes
_WORDS = ("true", "false", "null")


def recipe_text(sections: Mapping[str, Any], lines: list[str], comments: Comments) -> str:
    """The whole file; `lines` stand above as comments."""
    parts = ["# Written by datafree. Edit it, and run it again: datafree distill THIS_FILE", *map(_comment, lines)]
    for name, section in sections.items():
        if not isinstance(section, dict):
            parts.append(f"{name}: {flow(section)}")
            continue
        parts.append(f"{name}:")
        parts += [_option(key, value, comments.get((name, key), "")) for key, value in section.items()]
    return "\n".join(parts) + "\n"


def _comment(line: str) -> str:
    return "# " + " ".join(line.split())


def _option(key: str, value: Any, comment: str) -> str:
    text = f"  {key}: {flow(value)}"
    if not comment:
        return text
    behind = f"{text:<40}  {_comment(comment)}"
    return behind if len(behind) <= _WIDTH else f"  {_comment(comment)}\n{text}"


def flow(value: Any) -> str:
    """A value in one line of YAML."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{flow(str(key))}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(flow, value)) + "]"
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return json.dumps(value, ensure_ascii=False)
