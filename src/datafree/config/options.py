"""Types of options: the numbers, files and folders that a field takes, and how a value outside them is reported.

    target_weight: Annotated[Weight, Doc("of the teacher's loss on the preset targets")] = 0.4

Bounds are pydantic's own, so that any other can be written at the field: `Annotated[float, Field(gt=0, le=1)]`.
A recipe's values are checked by `schema`, all at once; those of a constructor call by `check`.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from numbers import Real
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic.fields import FieldInfo
from typing_extensions import Doc

from datafree.config.duration import seconds_of
from datafree.errors import DataError, DatafreeError
from datafree.text import show

_BOUNDS: dict[str, Callable[[Any, Any], bool]] = {
    "ge": operator.ge,
    "gt": operator.gt,
    "le": operator.le,
    "lt": operator.lt,
}
_WORDS = {"ge": "{:g} or more", "gt": "above {:g}", "le": "{:g} or less", "lt": "below {:g}"}


class Refused(ValueError):
    """A value of the right type that an option does not take, and why: "is too small; it must be 1 or more"."""


def hints(kind: Any) -> dict[str, Any]:
    """The types of a class's fields, with their bounds and texts."""
    return _hints(kind)


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)  # evaluates each annotation: milliseconds


def text_of(hint: Any) -> str:
    """What the `Doc` of a field's type says, or nothing."""
    extras = typing.get_args(hint)[1:] if typing.get_origin(hint) is Annotated else ()
    return next((extra.documentation for extra in extras if isinstance(extra, Doc)), "")


def check(options: Any, error: type[DatafreeError] = DataError) -> None:
    """Raises `error` for the first option of a dataclass's object that is outside its bounds or not of its choices."""
    try:
        known = hints(type(options))
    except NameError:  # a user's own class with a type that is imported for the type checker alone
        return
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        for wanted in _refusals(known[field.name], value):
            raise error(f"{field.name} is {show(value)}; it must be {wanted}")


def _refusals(hint: Any, value: object) -> Iterator[str]:
    """What `value` or its items would have to be, as far as bounds and choices say."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        bounds = _bounds(inner[1:])
        if isinstance(value, Real) and not _holds(bounds, value):
            yield _in_words(bounds)
        yield from _refusals(inner[0], value)
    elif origin is Literal and (value not in inner or type(value) not in map(type, inner)):
        yield f"one of: {', '.join(map(str, inner))}"
    elif origin in (typing.Union, types.UnionType):
        for part in inner:
            yield from _refusals(part, value) if typing.get_origin(part) is not Literal else ()
    elif origin in (tuple, list) and isinstance(value, (tuple, list)):
        parts = inner * len(value) if origin is list or inner[-1] is Ellipsis else inner
        for part, item in zip([p for p in parts if p is not Ellipsis], value, strict=False):
            yield from _refusals(part, item)


def validators(extras: Iterable[Any]) -> list[AfterValidator]:
    """What refuses a number outside the bounds that `Annotated` has in `extras`, in our words."""
    bounds = _bounds(extras)
    return [AfterValidator(functools.partial(_number, bounds))] if bounds else []


def _number(bounds: dict[str, Any], value: Any) -> Any:
    if isinstance(value, Real) and not _holds(bounds, value):
        sides = {name[0] for name in bounds}  # g: a lowest one, l: a highest one
        what = "out of range" if len(sides) > 1 else "too small" if "g" in sides else "too large"
        raise Refused(f"is {what}; it must be {_in_words(bounds)}")
    return value


def _holds(bounds: dict[str, Any], value: Any) -> bool:
    return all(_BOUNDS[name](value, bound) for name, bound in bounds.items())


def _in_words(bounds: dict[str, Any]) -> str:
    if bounds.keys() == {"ge", "le"}:
        return "from {ge:g} to {le:g}".format(**bounds)
    return ", and ".join(_WORDS[name].format(bounds[name]) for name in _BOUNDS if name in bounds)


def _bounds(extras: Iterable[Any]) -> dict[str, Any]:
    """The bounds in what `Annotated` adds to a type: pydantic's `Field`, or annotated-types' `Ge` and the like."""
    found: dict[str, Any] = {}
    for extra in extras:
        if isinstance(extra, FieldInfo):
            found |= _bounds(extra.metadata)
        else:
            given = {name: getattr(extra, name, None) for name in _BOUNDS}
            found |= {name: bound for name, bound in given.items() if isinstance(bound, Real)}
    return found


def _int64(value: int) -> int:
    if abs(value) >= 2**63:
        raise Refused("is too large" if value > 0 else "is too small")
    return value


def _there(path: Path) -> Path:
    if not path.exists():
        raise Refused(f"is not here {_looked(path)}")
    return path


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise Refused(f"is {'a file, not a folder' if path.exists() else 'no folder here'} {_looked(path)}")
    return path


def _file(path: Path) -> Path:
    if not path.is_file():
        raise Refused(f"is {'a folder, not a file' if path.exists() else 'no file here'} {_looked(path)}")
    return path


def _duration(value: Any) -> Any:
    if not isinstance(value, str) or seconds_of(value) is None:
        raise Refused("is not a time; write it as 90s, 9m or 1h30m")
    return value


def _looked(path: Path) -> str:
    return f"(looked for {path if str(path).isprintable() else show(str(path))})"


def _float(value: float) -> float:
    if abs(value) > LARGEST:
        raise Refused(f"is too {'large' if value > 0 else 'small'}; numbers go up to {LARGEST:g}")
    return value


def choice(known: tuple[Any, ...]) -> BeforeValidator:
    """What refuses a value that only equals one of the choices, as `true` equals 1."""

    def check(value: Any) -> Any:
        if value in known and type(value) not in map(type, known):
            raise Refused(f"is not one of: {', '.join(map(str, known))}")
        return value

    return BeforeValidator(check)


LARGEST = 1e30  # of numbers that are no counts: what float32 holds, and room for a sum

INT64 = AfterValidator(_int64)  # what torch and YAML's readers hold; of every whole number

FLOAT = AfterValidator(_float)

Count = Annotated[int, Field(ge=0)]
PositiveInt = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Weight = Annotated[float, Field(ge=0)]  # of a term of a loss; 0 turns it off
Temperature = Annotated[float, Field(ge=1e-3, le=1e3)]  # of a softmax; its square scales the loss
Share = Annotated[float, Field(ge=0, le=1)]  # a fraction or a probability
CropArea = Annotated[float, Field(gt=0, le=1)]  # of a crop, a share of its image's; 1 is the whole image
Momentum = Annotated[float, Field(ge=0, lt=1)]  # of a running average; 1 would never move
ExistingFolder = Annotated[Path, AfterValidator(_folder)]
ExistingFile = Annotated[Path, AfterValidator(_file)]
ExistingPath = Annotated[Path, AfterValidator(_there)]  # a file or a folder
Duration = Annotated[str, BeforeValidator(_duration)]  # such as 90s, 9m or 1h30m: `duration.seconds_of`
