"""What `datafree calibrate TEACHER` names: as for `distill`, or a recipe's teacher, or a run's student."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from datafree.config import schema
from datafree.config.overrides import apply_override
from datafree.config.schema import Invalid
from datafree.deploy.calibration.folder import Wanted
from datafree.deploy.calibration.made_images import WARMUP
from datafree.engine.artifacts import class_names
from datafree.engine.build_networks import prepare
from datafree.errors import RecipeError
from datafree.evaluation.finished_run import load_student
from datafree.ops import modes
from datafree.preflight.alike import require_known
from datafree.preflight.draft import draft
from datafree.preflight.option_values import pixels
from datafree.preflight.teacher_file import kind_of
from datafree.preflight.wishes import NEEDS_PHOTOS, Wishes, recipe_overrides, source_section
from datafree.recipe.recipe import FAMILIES, SOURCE, load_recipe, make_task_and_teacher
from datafree.sources.auto import Auto
from datafree.sources.base import ImageSource
from datafree.storage.places import is_run
from datafree.text import show

_OF_IMAGES = ("source", "photos", "data", "time", "device", "seed")  # wishes that say nothing of the network


def calibration_subject(
    teacher: str, wishes: Wishes, overrides: Sequence[str] = (), given: nn.Module | None = None
) -> Wanted:
    """The network, its task and the source of images. `given`: where the network is an object; `teacher` is its name.

    Photos count where the source itself needs them; beside the images of another they are the caller's. Raises
    DatafreeError.
    """
    asked = wishes if wishes.source in NEEDS_PHOTOS else replace(wishes, photos=None)
    path = Path(teacher).expanduser()
    if given is None and is_run(path):
        return _of_run(path, asked, overrides)
    if asked.student is not None:
        raise RecipeError([f"--student is the code of a run's student, and {show(teacher)} is no run: leave it out"])
    if given is None and kind_of(teacher) == "recipe":
        return _of_recipe(teacher, asked, overrides)
    made = draft(teacher, asked, overrides, given, chooses_student=False)
    try:
        task, spec = make_task_and_teacher(made.sections)
        source = _source(made.sections["source"])
    except Invalid as error:
        raise RecipeError([str(fault) for fault in error.faults]) from error
    source.size_bank(task.image_size)
    network = None
    if given is not None:
        network = prepare(spec, task, "teacher", modes.choose_device(wishes.device or "auto"), torch.float32, given)
    lines = [line for line in made.lines if not line.startswith("source: ")]
    names = [] if given is not None else class_names(spec, task) or []
    return Wanted(
        name=made.sections["name"],
        task=task,
        spec=spec,
        source=source,
        network=network,
        class_names=names,
        lines=lines,
    )


def _of_recipe(name: str, wishes: Wishes, overrides: Sequence[str]) -> Wanted:
    """A recipe's teacher. Its source is made for a student, and counts only where the options name it."""
    require_known(name)
    size = None if wishes.size is None else pixels(wishes.size)
    changes = recipe_overrides(replace(wishes, time=None, data=None), size)
    recipe = load_recipe(name, [*changes, *overrides])
    asked = wishes.source is not None or any(override.startswith("source") for override in overrides)
    source = recipe.source if asked else Auto(warmup=WARMUP)
    source.size_bank(recipe.task.image_size)
    return Wanted(
        name=recipe.name,
        task=recipe.task,
        spec=recipe.teacher,
        source=source,
        class_names=class_names(recipe.teacher, recipe.task) or [],
    )


def _of_run(run: Path, wishes: Wishes, overrides: Sequence[str]) -> Wanted:
    """A finished run's student, which says itself what it is. Raises RecipeError for options that would say more."""
    for option in dataclasses.fields(wishes):
        value = getattr(wishes, option.name)
        names_code = option.name == "student" or (option.name == "task" and ":" in str(value))
        if option.name not in _OF_IMAGES and value not in (None, ()) and not names_code:
            raise RecipeError(
                [f"--{option.name.replace('_', '-')}: {run} is a run and says itself what its student is"]
            )
    student = load_student(run, student=wishes.student, task=wishes.task)
    sections: dict[str, Any] = {"source": source_section(wishes.source or "auto", wishes.photos)}
    try:
        for override in overrides:
            apply_override(sections, override)
        if strange := sorted(sections.keys() - {"source"}):
            raise RecipeError([f"{strange[0]}: {run} is a run, of which source.KEY=VALUE alone can be set"])
        source = _source(sections["source"])
    except Invalid as error:
        raise RecipeError([str(fault) for fault in error.faults]) from error
    except ValueError as error:
        raise RecipeError(str(error).splitlines()) from error
    source.size_bank(student.task.image_size)
    return Wanted(
        name=run.resolve().name,
        task=student.task,
        spec=student.spec,
        source=source,
        network=student.network,
        class_names=student.class_names,
        lines=[f"network: {student.spec.network}, the student of {run}"],
    )


def _source(section: Any) -> ImageSource:
    if isinstance(section, dict) and section.get("method") == "auto":
        section = {"warmup": WARMUP, **section}
    made: ImageSource = schema.choose(SOURCE, section, FAMILIES)
    return made
