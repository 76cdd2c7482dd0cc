"""The sections of a recipe that a call from Python has left out, drafted as for `datafree distill TEACHER`.

What the call gives stays as it is, objects too.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from datafree.config import schema, yaml
from datafree.config.schema import Fault, Invalid
from datafree.errors import NetworkError, RecipeError
from datafree.networks.instances import is_live
from datafree.networks.load import NetworkSpec
from datafree.preflight.call_sections import plain
from datafree.preflight.draft import draft
from datafree.preflight.draft_text import recipe_text
from datafree.preflight.wishes import Wishes
from datafree.recipe.recipe import TASK
from datafree.recipe.training import TrainingOptions
from datafree.tasks.base import Task
from datafree.text import show

_SECTIONS = ("task", "teacher", "student", "source", "training")
_NO_OPTION = ("input_size", "upsample", "init", "licence")  # of a teacher's section


@dataclass(frozen=True, kw_only=True)
class Said:
    """The short options of a call; None where nothing was said."""

    weights: str | Path | None
    size: str | int | Sequence[int] | None
    classes: int | None
    compress: str | float | None
    photos: str | Path | None
    training: dict[str, Any] = field(default_factory=dict)  # time, device, seed


def completed(
    sections: dict[str, Any], said: Said, teacher: nn.Module | None, say: Callable[[str], None]
) -> tuple[dict[str, Any], str | None]:
    """All sections, and the text of the recipe that was drafted for those that were left out, if any were.

    `teacher`: where it was given as an object. Raises DatafreeError.
    """
    section = as_mapping(sections["teacher"], said.weights)
    kind, size = _of_task(sections["task"])
    if "student" in sections and kind == "whole" and sections["source"] is not None:
        _refuse(said)
        whole = _trained(sections, said)
        return ({**whole, "teacher": section} if said.weights is not None else whole), None
    section, changes = as_options(section)
    made = draft(
        section["network"],
        wishes_of(section, sections, said, size),
        changes,
        given=teacher,
        chooses_student="student" not in sections or _named(sections["student"]) is not None,
    )
    for line in made.lines:
        say(line)
    found = {key: value if sections.get(key) is None else sections[key] for key, value in made.sections.items()}
    found |= {key: sections[key] for key in ("student", "data") if sections.get(key) is not None}
    found["teacher"] = made.sections["teacher"]
    found |= {key: _merged(made.sections[key], sections[key]) for key in ("task", "training")}
    if "student" in made.sections:
        found["student"] = made.sections["student"]
    objects = teacher is not None or not all(isinstance(found[key], dict) for key in _SECTIONS)
    objects = objects or is_live(str(found["student"].get("network")))
    return found, None if objects else recipe_text(found, made.lines, made.comments)


def wishes_of(section: dict[str, Any], sections: dict[str, Any], said: Said, size: Any) -> Wishes:
    """What a call has said, as the command's options. `sections`: "task", and those of a student and data if any."""
    mean, std = (_listed(section.get(key)) for key in ("mean", "std"))
    args = section.get("args", {}).items()  # `as_options` has looked at them
    return Wishes(
        weights=None if section.get("weights") is None else Path(str(section["weights"])),
        args=tuple(f"{key}={yaml.render(value).partition(chr(10))[0]}" for key, value in args),
        size=_size(size if said.size is None else said.size),
        task=_get(sections["task"], "kind"),
        classes=said.classes if said.classes is not None else _get(sections["task"], "num_classes"),
        mean=mean,
        std=std,
        channels=section.get("channels"),
        channel_order=section.get("channel_order"),
        student=_named(sections.get("student")),
        compress=None if said.compress is None else str(said.compress),
        photos=None if said.photos is None else Path(said.photos),
        data=None if sections.get("data") is None else Path(sections["data"]),
        time=said.training.get("time"),
        device=said.training.get("device"),
        seed=said.training.get("seed"),
    )


def _listed(values: Any) -> str | None:
    """A number, or one for each channel, as the command's option has them."""
    if values is None:
        return None
    return ",".join(map(str, values)) if isinstance(values, (list, tuple)) else str(values)


def as_mapping(teacher: NetworkSpec | dict[str, Any], weights: str | Path | None) -> dict[str, Any]:
    """A teacher's section with what was said, defaults left out; `weights`: those that were given beside it.

    Raises NetworkError for weights beside a network that is an object.
    """
    section: dict[str, Any] = teacher if isinstance(teacher, dict) else plain(_said_in(teacher))
    if weights is not None and is_live(str(section["network"])):
        raise NetworkError("weights is given beside a network that is an object already: leave it out")
    return section if weights is None else {**section, "weights": str(weights)}


def as_options(section: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A teacher's section with a mean and std of images in [0, 1]; as overrides what the command has no option for.

    Raises RecipeError for keys and values that a recipe would refuse.
    """
    wide = {key: [section[key]] * 3 for key in ("mean", "std") if type(section.get(key)) in (int, float)}
    try:
        made: NetworkSpec = schema.build(NetworkSpec, {**section, **wide})
    except Invalid as error:
        raise RecipeError([str(Fault(("teacher", *fault.key), fault.text)) for fault in error.faults]) from error
    if "pixel_range" in section:
        kept = {key: value for key, value in section.items() if key != "pixel_range"}
        section = {**kept, "mean": made.mean, "std": made.std}
    return section, [f"teacher.{key}={json.dumps(section[key])}" for key in _NO_OPTION if key in section]


def _said_in(teacher: NetworkSpec) -> dict[str, Any]:
    """Its section, defaults left out."""
    bare = NetworkSpec(network=teacher.network)
    names = [option.name for option in dataclasses.fields(teacher)]
    said = {name: getattr(teacher, name) for name in names if getattr(teacher, name) != getattr(bare, name)}
    return {"network": teacher.network, **said}


def _of_task(task: Any) -> tuple[str, Any]:
    """Whether a task is known as a "whole", and its image size."""
    size = _get(task, "image_size")
    whole = isinstance(task, Task) or (isinstance(task, Mapping) and size is not None and "num_classes" in task)
    return "whole" if whole else "part", size


def get_size(task: Any) -> Any:
    """The image size that a task's section or object says; None where it does not."""
    return _get(task, "image_size")


def _get(task: Any, key: str) -> Any:
    """The kind, num_classes or image_size of a task; None where it does not say."""
    if isinstance(task, Task):
        return {"kind": TASK.name_of(type(task)), "num_classes": task.num_classes, "image_size": task.image_size}[key]
    return task.get(key) if isinstance(task, Mapping) else None


def _size(size: str | int | Sequence[int] | None) -> str | None:
    if size is None or isinstance(size, str):
        return size
    return "x".join(map(str, size)) if isinstance(size, Sequence) else str(size)


def _named(student: Any) -> str | None:
    """The name of a student's section that says nothing else."""
    if (
        isinstance(student, Mapping)
        and student.keys() == {"network"}
        and not str(student["network"]).startswith("live/")
    ):
        return str(student["network"])
    return None


def _merged(drafted: dict[str, Any], given: Any) -> Any:
    """What was given of a section, and for the rest what was drafted; an object is whole."""
    if given is None:
        return drafted
    return {**drafted, **given} if isinstance(given, Mapping) else given


def _trained(sections: dict[str, Any], said: Said) -> dict[str, Any]:
    """The sections with the short options of training in it."""
    more = {key: value for key, value in said.training.items() if value is not None}
    training = sections["training"]
    if not more:
        return sections
    if isinstance(training, TrainingOptions):
        return {**sections, "training": dataclasses.replace(training, **more)}
    return {**sections, "training": {**(training or {}), **more}}


def _refuse(said: Said) -> None:
    """Options that would have no effect, as nothing is left to be chosen. Raises RecipeError."""
    for key in ("size", "classes", "compress", "photos"):
        if (value := getattr(said, key)) is not None:
            raise RecipeError(
                [f"{key}={show(value)} has no effect, as student, task and source are all given: leave it out"]
            )
