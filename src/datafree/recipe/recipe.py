"""A recipe: what to distil, from what, and how. YAML -> checked objects, and back to a fully resolved recipe.

    name: street                                   # names the run directory; the file's name without it
    task: {kind: segmentation, num_classes: 12, image_size: [128, 128]}
    teacher: {network: smp/deeplabv3, args: {encoder: resnet50}, weights: $DATAFREE_DATA/teacher.safetensors}
    student: {network: smp/deeplabv3, args: {encoder: mobilenet_v2}}
    source: {method: degan, proxy: {path: $DATAFREE_DATA/proxy}}
    training: {steps: 2000, lr: 1e-3}
    data: $DATAFREE_DATA/camvid/test               # labelled; only scores, never trains or chooses

Every fault is found before any work, all at once. `config/yaml.py` says which YAML, `config/paths.py` which paths.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datafree.config import schema
from datafree.config.options import ExistingPath
from datafree.config.overrides import apply_override
from datafree.config.schema import Families, Family, Fault, Invalid
from datafree.errors import RecipeError
from datafree.networks.load import NetworkSpec
from datafree.recipe.files import NEEDED, NOT_IN_NAMES, SECTIONS, read_text, sections, unknown_section
from datafree.recipe.sections import read_network, read_training
from datafree.recipe.training import TrainingOptions
from datafree.sources import SOURCES
from datafree.sources.base import ImageSource
from datafree.tasks import TASKS
from datafree.tasks.base import Task
from datafree.text import show

_LONGEST_NAME = 240  # letters; of the 255 that the system takes, some are for what is beside it

SOURCE = Family(base=ImageSource, label="method", members=SOURCES)
TASK = Family(base=Task, label="kind", members=TASKS)
FAMILIES: Families = (SOURCE, TASK)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Checked objects, ready to run."""

    name: str
    task: Task
    teacher: NetworkSpec
    student: NetworkSpec
    source: ImageSource
    training: TrainingOptions
    data: Path | None = None  # labelled images: only scores, never trains or chooses


@dataclass(frozen=True, kw_only=True)
class _Outline:
    """The parts of a recipe that are plain options."""

    name: str
    data: ExistingPath | None = None


def load_recipe(path_or_name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, or the packaged one of that name, with `key.sub=value` overrides.

    Raises RecipeError with every fault. `overrides` says how overrides are read.
    """
    return read_recipe(*read_text(path_or_name), overrides)


def read_recipe(text: str, file_name: str, stem: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that is written in `text`, of a file called so in errors; `stem` names it unless it says otherwise."""
    given = sections(text, file_name)
    problems: list[str] = []
    for override in overrides:
        try:
            apply_override(given, override)
        except ValueError as error:
            problems += str(error).splitlines()
    try:
        recipe = make_recipe(given, stem)
    except Invalid as error:
        problems += [str(fault) for fault in error.faults]
    if problems:
        raise RecipeError(problems)
    return recipe


def dump(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe: plain values, every default filled in; as YAML, it loads as an equal recipe."""
    values = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)}
    return {name: schema.plain(value, FAMILIES) for name, value in values.items()}


def make_recipe(given: Mapping[str, Any], stem: str) -> Recipe:
    """The recipe of `given` sections, called `stem` unless they say otherwise. Raises Invalid with all faults.

    A section is a mapping of options, as YAML has it, or the object that one would be made into.
    """
    faults = [Fault((), unknown_section(key)) for key in given if key not in SECTIONS]
    task, teacher = _task_and_teacher(given, faults)
    student = _part(given, "student", NetworkSpec, lambda section: read_network(section, teacher, FAMILIES), faults)
    source = _part(given, "source", ImageSource, lambda section: schema.choose(SOURCE, section, FAMILIES), faults)
    if task is not None and source is not None:
        faults += [Fault(("source", "method"), text) for text in _unserved(task, source)]
    training = _part(given, "training", TrainingOptions, lambda section: read_training(section, FAMILIES), faults)
    try:
        outline = schema.build(_Outline, {"name": stem, **{k: given[k] for k in ("name", "data") if k in given}})
        if NOT_IN_NAMES.search(outline.name) or outline.name[:1] in ("", "-", ".", "_"):
            problem = "cannot name a run directory: letters, digits, '.', '_', '-' only, a letter or digit first"
            faults.append(Fault(("name",), f"{show(outline.name)} {problem}"))
        elif len(outline.name) > _LONGEST_NAME:
            problem = f"has {len(outline.name)} letters; it names a run directory, which takes {_LONGEST_NAME}"
            faults.append(Fault(("name",), f"{show(outline.name)} {problem}"))
    except Invalid as error:
        faults += error.faults
    if not faults and outline.data is not None and outline.data.is_file() and not task.reads_files:
        faults.append(Fault(("data",), f"is a file, not a folder (looked for {outline.data})"))
    if faults:
        raise Invalid(faults)
    for each in source.all_sources():
        each.size_bank(task.image_size)
    return Recipe(
        name=outline.name,
        task=task,
        teacher=teacher,
        student=student,
        source=source,
        training=training,
        data=outline.data,
    )


def _unserved(task: Task, source: ImageSource) -> list[str]:
    """A line for each source, of those that `source` holds too, that makes no images for `task`."""
    kind = TASK.name_of(type(task))
    others = ", ".join(name for name, method in SOURCES.items() if isinstance(task, method.serves))
    return [
        f"{SOURCE.name_of(type(each))} makes images for task.kind={TASK.name_of(each.serves)}, not for {kind}; "
        f"for that: {others}"
        for each in source.all_sources()
        if not isinstance(task, each.serves)
    ]


def make_task_and_teacher(given: Mapping[str, Any]) -> tuple[Task, NetworkSpec]:
    """The sections `task` and `teacher` of `given`, for work that needs no others. Raises Invalid with all faults."""
    faults: list[Fault] = []
    task, teacher = _task_and_teacher(given, faults)
    if faults:
        raise Invalid(faults)
    return task, teacher


def _task_and_teacher(given: Mapping[str, Any], faults: list[Fault]) -> tuple[Any, Any]:
    task = _part(given, "task", Task, lambda section: schema.choose(TASK, section, FAMILIES), faults)
    return task, _part(given, "teacher", NetworkSpec, lambda section: read_network(section, None, FAMILIES), faults)


def _part(given: Mapping[str, Any], key: str, kind: type[Any], make: Callable[[Any], Any], faults: list[Fault]) -> Any:
    """The object of a section: as it was given, or made; None where that adds to `faults`."""
    section = given.get(key)
    if section is None and key in NEEDED:
        faults.append(Fault((key,), f"is missing; a recipe needs {', '.join(NEEDED[:-1])} and {NEEDED[-1]}"))
        return None
    if isinstance(section, kind):
        return section
    try:
        return make(section)
    except Invalid as error:
        faults += [Fault((key, *fault.key), fault.text) for fault in error.faults]
        return None
