"""JSON that every reader takes, and our own JSON files: written with a seal, read through a schema.

It has no NaN and no infinity, null instead. A file that a later command reads holds a `seal`, the SHA-256 of all else
in it, so that a single changed letter is noticed. Files of older versions have none, and are read without.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from datafree.text import is_unicode, show, shown

SEAL = "seal"
MAX_BYTES = 10_000_000  # of a file that a run directory describes itself with
_SHOWN = 3  # faults of a file that an error names


class Damaged(ValueError):
    """A file that is no JSON, or is not what such a file says; the text is a line about it."""


class Form(BaseModel):
    """What a file of ours says. Types are not converted; keys of other versions are let pass."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


@dataclass(frozen=True, kw_only=True)
class Read:
    """A file as far as it is in its form."""

    content: dict[str, Any] = field(default_factory=dict)  # without the parts at fault
    faults: list[str] = field(default_factory=list)  # a line for each part that is not in its form
    changed: bool = False  # the seal does not fit: a part that is in its form may still be another than was written


def render(content: object) -> str:
    """`content` (mappings, lists, plain values) as indented JSON text."""
    return json.dumps(_finite(content), indent=2, allow_nan=False)


def sealed(content: Mapping[str, Any]) -> bytes:
    """`content` as a file to write, with its seal."""
    finite = json.loads(json.dumps(_finite(content), allow_nan=False))  # as it will be read: keys are texts
    return (json.dumps({**finite, SEAL: _seal_of(finite)}, indent=2, allow_nan=False) + "\n").encode()


def parse(text: str | bytes) -> Any:
    """Plain values of a JSON text; NaN and infinities are None, halves of characters escaped. Raises Damaged."""
    return _cleaned(_parsed(text))


def _parsed(text: str | bytes) -> Any:
    try:
        return json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"no JSON ({type(error).__name__})") from error


def _cleaned(value: Any) -> Any:
    try:
        return _encodable(value)
    except RecursionError as error:
        raise Damaged("no JSON (nested too deeply)") from error


def _encodable(value: Any) -> Any:
    r"""`value` with texts that can be written: `\udc..`, in names of files that are not UTF-8, is escaped."""
    if isinstance(value, dict):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_encodable(item) for item in value]
    return shown(value, lines=True) if isinstance(value, str) and not is_unicode(value) else value


def look(text: str | bytes, form: type[Form]) -> Read:
    """The parts of a JSON object that are in their form, and what is wrong with the others. Raises Damaged."""
    found = _parsed(text)
    if not isinstance(found, dict):
        raise Damaged(f"a {type(found).__name__} where key-value pairs are needed")
    seal = found.pop(SEAL, None)
    changed = seal is not None and seal != _seal_of(found)
    found = _cleaned(found)
    faults: list[str] = []
    for depth in (2, 1):  # of a section what is wrong in it, and the section where the rest does not do alone
        for place, line in _faults(found, form):
            faults += [line] if depth == 2 or len(place) > 1 else []
            _drop(found, place[:depth])
    return Read(content=found, faults=list(dict.fromkeys(faults)), changed=changed)


def _faults(content: dict[str, Any], form: type[Form]) -> list[tuple[tuple[int | str, ...], str]]:
    """Where `content` is not in its form, and a line for each place."""
    try:
        form.model_validate(content)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False)
        return [(each["loc"], _line(each["loc"], each["input"], each["msg"], each["type"])) for each in details]
    return []


def _drop(content: dict[str, Any], place: tuple[int | str, ...]) -> None:
    """Take out what stands at `place`; its whole section where that is no mapping."""
    section = content.get(str(place[0]))
    if len(place) > 1 and isinstance(section, dict):
        section.pop(place[1], None)
    else:
        content.pop(str(place[0]), None)


def look_at(file: Path, form: type[Form], most: int = MAX_BYTES) -> Read:
    """`look` at a file. Raises Damaged."""
    try:
        if (size := file.stat().st_size) > most:
            raise Damaged(f"{size:,} bytes, more than {most:,}")
        return look(file.read_bytes(), form)
    except OSError as error:
        raise Damaged(f"cannot be read: {error.strerror}") from error


def read(file: Path, form: type[Form], most: int = MAX_BYTES) -> dict[str, Any]:
    """A file of ours that is wholly in its form and as it was written. Raises Damaged."""
    found = look_at(file, form, most)
    if found.faults:
        raise Damaged("; ".join(found.faults[:_SHOWN]))
    if found.changed:
        raise Damaged("its checksum does not match")
    return found.content


def _line(place: tuple[int | str, ...], given: object, message: str, kind: str) -> str:
    name = show(".".join(str(part)[:40] for part in place))[1:-1]
    return f"{name} is missing" if kind == "missing" else f"{name} is {show(given)}: {message[0].lower()}{message[1:]}"


def _seal_of(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
