"""The schema of a recipe: plain values to checked objects and back, every fault reported at once.

Types are checked by pydantic, field by field: a string is no number, an integer is a float, a list a tuple.
Sections that choose a class by name (`method: degan`) are `Family` members, also where they are nested.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import re
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Protocol, runtime_checkable

from pydantic import AllowInfNan, ConfigDict, PlainValidator, Strict, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUndefinedAnnotation

from datafree.config import options, paths
from datafree.errors import DatafreeError
from datafree.text import did_you_mean, show


class Fault(NamedTuple):
    """What is wrong at a key, given from the section on downwards."""

    key: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        return f"{'.'.join(self.key)}: {self.text}" if self.key else self.text


class Invalid(ValueError):
    """A section with faults. A ValueError, so that pydantic carries it through nested fields."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = list(faults)
        super().__init__("; ".join(map(str, self.faults)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """Classes that a section chooses among: a name in `members`, or a subclass of `base` by import path."""

    base: type[Any]
    label: str  # the key that chooses: "method", "kind"
    members: Mapping[str, type[Any]]

    def name_of(self, kind: type[Any]) -> str:
        """What the label says for `kind`."""
        known = next((name for name, member in self.members.items() if member is kind), None)
        return known or f"{kind.__module__}:{kind.__qualname__}"


Families = tuple[Family, ...]


@runtime_checkable
class NamesFiles(Protocol):
    """An object that names files by more than its fields of type Path."""

    def located(self) -> Any:
        """The same with these paths as `paths.expand` reads them. Raises Invalid."""


def build(kind: type[Any], given: object, families: Families = (), inherited: Mapping[str, Any] | None = None) -> Any:
    """The dataclass `kind` made from the section `given`. `inherited` fills options that are not given.

    Paths besides fields of type Path are expanded where there are `families`, as a recipe has them: what a run's own
    files say in such places is not the user's word, and must not be filled with their variables.
    Raises Invalid with every fault of the section and of those nested in it.
    """
    if not isinstance(given, Mapping):
        raise Invalid([Fault((), f"{show(given)} is not a section of `option: value` lines")])
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    hints = options.hints(kind)
    faults = [
        Fault(
            (_text(key),),
            f"no such option{did_you_mean(key, fields)}; {kind.__name__} has: {', '.join(fields)}",
        )
        for key in given
        if key not in fields
    ]
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in given:
            try:
                values[name] = _check_value(hints[name], given[name], families)
            except Invalid as error:
                faults += [Fault((name, *fault.key), fault.text) for fault in error.faults]
        elif inherited and name in inherited:
            values[name] = inherited[name]
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            faults.append(Fault((name,), "is missing, and has no default"))
    if faults:
        raise Invalid(faults)
    try:
        made = kind(**values)
        return made.located() if families and isinstance(made, NamesFiles) else made
    except Invalid:
        raise
    except (DatafreeError, ValueError, TypeError) as error:  # its own checks, on all options together
        raise Invalid([Fault((), str(error))]) from error


def choose(family: Family, given: object, families: Families, wanted: type[Any] | None = None) -> Any:
    """The member of `family` that the section `given` names, made from the rest of it. Raises Invalid.

    `wanted`: the only class allowed, whose name may then be left out.
    """
    label, names = family.label, ", ".join(family.members)
    if not isinstance(given, Mapping):
        raise Invalid([Fault((), f"{show(given)} is not a section with a `{label}` ({names})")])
    rest = {key: value for key, value in given.items() if key != label}
    name = given.get(label)
    if wanted is not None:
        if label in given and name != family.name_of(wanted):
            raise Invalid([Fault((label,), f"{show(name)} does not fit here; only {family.name_of(wanted)} does")])
        return build(wanted, rest, families)
    if label not in given:
        raise Invalid([Fault((label,), f"is missing; one of: {names}; or your own as 'package.module:Class'")])
    if isinstance(name, str) and name in family.members:
        return build(family.members[name], rest, families)
    if isinstance(name, str) and ":" in name:
        return build(_import_class(name, family), rest, families)
    hint = did_you_mean(name, family.members)
    raise Invalid(
        [Fault((label,), f"{show(name)} is not one of: {names}{hint}; or your own as 'package.module:Class'")]
    )


def plain(value: object, families: Families = ()) -> Any:
    """`value` as dicts, lists, strings and numbers, every default filled in: what `build` takes."""
    if isinstance(value, Path):
        return paths.shorten(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item, families) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, families) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        section = {f.name: plain(getattr(value, f.name), families) for f in dataclasses.fields(value) if f.init}
        family = next((family for family in families if isinstance(value, family.base)), None)
        return {family.label: family.name_of(type(value)), **section} if family else section
    return value


def _text(key: object) -> str:
    """A key as an error shows it; odd ones quoted."""
    return key if isinstance(key, str) and re.fullmatch(r"[\w-]{1,80}", key) else show(key)


def _import_class(name: str, family: Family) -> type[Any]:
    """The user's own class by import path. The recipe is the user's, so naming it there is enough."""
    key = (family.label,)
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", name):
        raise Invalid([Fault(key, f"{show(name)} is not of the form 'package.module:Class'")])
    module, _, attribute = name.partition(":")
    try:
        kind = getattr(importlib.import_module(module), attribute, None)
    except Exception as error:  # the user's module may raise anything while it is imported
        raise Invalid([Fault(key, f"{name!r} cannot be imported ({type(error).__name__}: {error})")]) from error
    base = family.base
    if not (isinstance(kind, type) and issubclass(kind, base) and dataclasses.is_dataclass(kind)):
        raise Invalid([Fault(key, f"{name!r} is not a subclass of {base.__module__}.{base.__name__}")])
    if inspect.isabstract(kind):
        missing = ", ".join(sorted(kind.__abstractmethods__))
        raise Invalid([Fault(key, f"{name!r} does not define {missing}, which every {base.__name__} needs")])
    return kind


def _check_value(hint: Any, given: object, families: Families) -> Any:
    """`given` as the type `hint`, or Invalid with keys below this value."""
    try:
        adapter = TypeAdapter(_strict(hint, families), config=ConfigDict(arbitrary_types_allowed=True))
        return adapter.validate_python(given)
    except ValidationError as error:
        raise Invalid(_faults(error, given)) from error
    except (PydanticSchemaGenerationError, PydanticUndefinedAnnotation) as error:
        raise Invalid([Fault((), f"its type {hint} is none that a recipe can write")]) from error


def _strict(hint: Any, families: Families) -> Any:
    """The type to check for a field annotated `hint`: no conversions, paths expanded, sections built."""
    if hint is int:
        return Annotated[int, Strict(), options.INT64]
    if hint in (str, bool):
        return Annotated[hint, Strict()]
    if hint is float:
        return Annotated[hint, Strict(), AllowInfNan(False), options.FLOAT]
    if hint is Path:
        return Annotated[Path, PlainValidator(_read_path)]
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        family = next((family for family in families if issubclass(hint, family.base)), None)
        if family is None:
            return Annotated[Any, PlainValidator(lambda given: build(hint, given, families))]
        wanted = None if hint is family.base else hint
        return Annotated[Any, PlainValidator(lambda given: choose(family, given, families, wanted))]
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is None:
        return hint
    if origin is Literal:
        return Annotated[hint, options.choice(inner)]
    if origin is Annotated:
        extras = (*options.validators(inner[1:]), *inner[1:])
        return functools.reduce(lambda base, extra: Annotated[base, extra], extras, _strict(inner[0], families))
    parts = tuple(part if part is Ellipsis else _strict(part, families) for part in inner)
    if origin in (typing.Union, types.UnionType):
        return typing.Union[parts]  # noqa: UP007  (a union of a list made at run time)
    return origin[parts]


def _read_path(given: object) -> Path:
    try:
        return paths.expand(given)
    except ValueError as error:
        raise Invalid([Fault((), str(error))]) from error


_REASONS = {
    "int_type": "is not a whole number",
    "int_from_float": "is not a whole number",
    "float_type": "is not a number",
    "finite_number": "is not a finite number",
    "bool_type": "is not true or false",
    "string_type": "is not a text (put it in quotes)",
    "list_type": "is not a list",
    "tuple_type": "is not a list",
    "dict_type": "is not a section of `key: value` lines",
}


def _faults(error: ValidationError, given: object) -> list[Fault]:
    """pydantic's errors about `given`, one for each place: the branches of a union are joined by "or"."""
    found: dict[tuple[str, ...], dict[str, str]] = {}
    nested: list[Fault] = []
    for detail in error.errors(include_url=False):
        key, value = _place(detail["loc"], given)
        context = detail.get("ctx", {})
        cause = context.get("error")
        kind = detail["type"]
        if isinstance(cause, Invalid):
            nested += [Fault((*key, *fault.key), fault.text) for fault in cause.faults]
            continue
        if kind == "literal_error":
            reason = f"is not one of: {context['expected'].replace(chr(39), '')}"
            reason += did_you_mean(value, re.findall(r"'([^']*)'", context["expected"]))
        elif kind == "missing":  # of a tuple: a list that is too short
            reason = f"has too few values, it needs {int(detail['loc'][-1]) + 1}"
        elif isinstance(cause, options.Refused):
            kind, reason = "refused", str(cause)
        elif kind == "too_long":
            reason = f"has too many values, it needs {context['max_length']}"
        else:
            reason = _REASONS.get(kind, f"is refused: {detail['msg'][0].lower()}{detail['msg'][1:]}")
        found.setdefault(key, {})[f"{kind} {context.get('expected', '')}"] = reason
        found[key].setdefault("", show(value))
    joined = []
    for key, reasons in found.items():
        # A value that is refused for what it is had the right type: what other branches expect is beside the point.
        best = [text for name, text in reasons.items() if name.startswith("refused")]
        texts = best or [text for name, text in reasons.items() if name]
        joined.append(Fault(key, f"{reasons['']} {' or '.join(texts)}"))
    return joined + nested


def _place(loc: tuple[int | str, ...], given: Any) -> tuple[tuple[str, ...], Any]:
    """Where in `given` an error is, and the value there; pydantic's names of union branches are dropped."""
    key: list[str] = []
    for part in loc:
        in_list = isinstance(given, list) and isinstance(part, int) and part < len(given)
        if in_list or (isinstance(given, Mapping) and part in given):
            given = given[part]
            key.append(str(part))
    return tuple(key), given
