"""The recipe that `datafree distill TEACHER` chooses where the user has written none, and why each part is as it is.

Whatever nobody says and nothing shows is asked for; what is likely is taken, and said to be uncertain.

C classes, H x W pixels.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from datafree.config import paths, yaml
from datafree.config.duration import seconds_of
from datafree.config.overrides import apply_override
from datafree.errors import NetworkError, RecipeError, WeightsError
from datafree.networks.instances import is_live
from datafree.networks.load import NetworkSpec
from datafree.ops import modes
from datafree.preflight.cost.short_time import ENOUGH, FEW, answers_alone, too_few
from datafree.preflight.draft_lines import comments_of, lines_of
from datafree.preflight.draft_text import Comments, recipe_text
from datafree.preflight.examination import Examined, examine
from datafree.preflight.first_student import FirstStudent, first_student
from datafree.preflight.identify import identify
from datafree.preflight.option_values import require_one_file
from datafree.preflight.subject import find_subject
from datafree.preflight.teacher_file import Kind, kind_of
from datafree.preflight.wishes import TIME, Wishes, source_section
from datafree.recipe.sections import no_network
from datafree.sources import SOURCES
from datafree.tasks import TASKS
from datafree.text import did_you_mean, show

# As benchmarks/budget.py has it: chosen on images of Fashion-MNIST, CIFAR-10 and CamVid that score nothing
# (docs/choose.md), then held for other teachers.
LEARNING: dict[str, Any] = {"batch_size": 64, "lr": 1e-2, "weight_decay": 0.0, "lr_warmup": 50, "mixup": 0.5}
TEMPERATURE = 4.0
SHIFT = 8  # the share of an image's side that it is shifted by at most, as a divisor
_FORM = ("input_size", "upsample")  # of the teacher's section
LARGE, LARGE_BATCH = 128, 16  # pixels of a side, from which batches and with them steps are a fourth as large


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A recipe as YAML with comments, and a few lines that say what was chosen, why, and what is uncertain."""

    sections: dict[str, Any]
    comments: Comments
    lines: list[str]

    @property
    def text(self) -> str:
        """The whole file."""
        return recipe_text(self.sections, self.lines, self.comments)


def draft(
    teacher: str,
    wishes: Wishes,
    overrides: Sequence[str] = (),
    given: nn.Module | None = None,
    *,
    chooses_student: bool = True,
) -> Draft:
    """A recipe for `teacher`: a network's name or a file, or the name of `given`, a network that is an object.

    Without a section `student` where another is to be taken (`chooses_student`).
    `overrides` (`key.sub=value`) have the last word. Raises NetworkError, RecipeError: a line with the option to give.
    """
    if wishes.task is not None and wishes.task not in TASKS:
        raise NetworkError(
            f"there is no task {show(wishes.task)}{did_you_mean(wishes.task, TASKS)}; known: {', '.join(TASKS)}"
        )
    modes.choose_device(wishes.device or "auto")  # what is wrong is said before the network is built
    _require_names(wishes)
    spec, origin, doubts = _named(teacher, wishes)
    seen = _look(spec, wishes, given, _form_said(overrides))
    _ask(seen, spec)
    taught = _as_drafted(seen)
    student = None
    if chooses_student:
        student = first_student(wishes.student, wishes.compress, taught, seen.network, seen.task)
    sections = _sections(_name(teacher, spec), seen, taught, student, wishes)
    for override in overrides:
        try:
            apply_override(sections, override)
        except ValueError as error:
            raise RecipeError(str(error).splitlines()) from error
    strange = [key for key in ("task", "teacher", "source", "training") if not isinstance(sections[key], dict)]
    if strange:
        raise RecipeError(
            [f"{key}: {show(sections[key])} is not a section of `option: value` lines" for key in strange]
        )
    if student is not None and sections["student"] != _network(student.spec, like=taught):
        student = None  # another than was looked at, of which nothing is known
    lines = [*lines_of(seen, spec, origin, student, sections, doubts), *_short(seen, sections["training"])]
    return Draft(sections=sections, comments=comments_of(seen, student), lines=lines)


def _require_names(wishes: Wishes) -> None:
    """Raise RecipeError for a method or a student whose name is none, as far as can be said without building it."""
    if wishes.source is not None and wishes.source not in SOURCES and ":" not in wishes.source:
        raise RecipeError(
            [
                f"--source {show(wishes.source)} is not one of: {', '.join(sorted(SOURCES))}"
                f"{did_you_mean(wishes.source, SOURCES)}; or your own as 'package.module:Class'"
            ]
        )
    if wishes.student is not None and (fault := no_network(wishes.student)) is not None:
        raise NetworkError(f"--student: {fault}")


def _short(seen: Examined, training: dict[str, Any]) -> list[str]:
    """A line where the teacher's answers alone would take all of the time after a few steps."""
    seconds = seconds_of(str(training.get("time")))
    if seconds is None or not isinstance(batch := training.get("batch_size"), int):
        return []
    each = answers_alone(seen.network, seen.input_size.value, batch)
    steps = int(seconds / max(each, 1e-9))
    few = too_few(str(training["time"]), steps, each * ENOUGH, at_most=True)
    return [f"warning: {few}"] if steps < FEW else []


# --- what the user has named ---


def _named(teacher: str, wishes: Wishes) -> tuple[NetworkSpec, str, list[str]]:
    """The teacher's section as far as its name tells, how that is known, and what is uncertain of it."""
    if is_live(teacher):
        return NetworkSpec(network=teacher), "given as an object", []
    kind = kind_of(teacher)
    if kind == "weights":
        require_one_file(teacher, wishes.weights)
        found = identify(_absolute(teacher))
        return found.spec, found.why, [] if found.doubt is None else [found.doubt]
    if kind in ("program", "onnx", "directory"):
        return *_of_file(teacher, kind), []
    weights = None if wishes.weights is None else _absolute(str(wishes.weights))
    if weights is not None and not weights.is_file():
        raise WeightsError(f"weights {wishes.weights}: {'not a file' if weights.exists() else 'no such file'}")
    spec = NetworkSpec(network=teacher, weights=weights)
    return spec, "" if weights is None else f"weights {weights.name}", []


def _of_file(teacher: str, kind: Kind) -> tuple[NetworkSpec, str]:
    program = "a program of torch.export" if teacher.lower().endswith(".pt2") else "a TorchScript program"
    what = {"program": program, "onnx": "an ONNX file", "directory": "a Hugging Face directory"}
    network = f"{'hf/' if kind == 'directory' else ''}{_absolute(teacher)}"
    if (fault := no_network(network)) is not None:
        known = "names, weights files and .pt2 programs can be"
        raise NetworkError(f"{teacher} is {what[kind]}, which this version cannot take as a teacher ({known}): {fault}")
    return NetworkSpec(network=network), what[kind]


def _absolute(path: str) -> Path:
    """So that a recipe means the same file wherever it is run."""
    try:
        return paths.expand(path)
    except ValueError as error:
        raise NetworkError(str(error)) from error


def _name(teacher: str, spec: NetworkSpec) -> str:
    """Of the recipe, and so of the run's directory: the file's, else the network's."""
    if is_live(teacher):
        whole = teacher.rpartition(".")[2].partition("@")[0]
    else:
        whole = spec.weights.name if spec.weights is not None else spec.network.rstrip("/").rpartition("/")[2]
        whole = re.sub(r"\.(safetensors|index\.json|pt2?|pth|bin|ckpt|onnx|weights|tar)$", "", whole)
    return re.sub(r"[^\w.-]+", "-", whole, flags=re.ASCII).strip("-._")[:80] or "teacher"


# --- what it is ---


def _form_said(overrides: Sequence[str]) -> dict[str, Any]:
    """What overrides say of the teacher without which its first answer may be none that is wanted."""
    said: dict[str, Any] = {}
    for override in overrides:
        if override.startswith(tuple(f"teacher.{key}=" for key in _FORM)):
            try:
                apply_override(said, override)
            except ValueError as error:
                raise RecipeError(str(error).splitlines()) from error
    form: dict[str, Any] = said.get("teacher", {})
    return {key: tuple(value) if isinstance(value, list) else value for key, value in form.items()}


def _look(spec: NetworkSpec, wishes: Wishes, given: nn.Module | None, form: dict[str, Any]) -> Examined:
    """The network, built and run once on an image; `form`: options of its section."""
    found = find_subject(
        spec.network,
        weights=spec.weights,
        args=[*(f"{key}={yaml.render(value).partition(chr(10))[0]}" for key, value in spec.args.items()), *wishes.args],
        size=wishes.size,
        classes=wishes.classes,
        recipe=None,
        images=replace(wishes, channels=wishes.channels or spec.channels).images(),
    )
    found = replace(found, spec=replace(found.spec, **form))
    return examine(found, wishes.task, modes.choose_device(wishes.device or "auto"), torch.float32, given)


def _ask(seen: Examined, spec: NetworkSpec) -> None:
    """Raise NetworkError for what has to be known and is not: one line with the option to give."""
    name = seen.subject.spec.network
    if not seen.trained:
        raise NetworkError(
            f"{name} has no weights, so it has nothing to teach: give --weights FILE, or "
            f"'{name}?pretrained=true' for its library's own"
        )
    if seen.problem is not None:
        raise NetworkError(seen.problem)
    if seen.input_size.provenance == "unknown":
        raise NetworkError(
            f"nobody says how large the images of {name} are: give --size HEIGHTxWIDTH, pixels, such as --size 224x224"
        )
    if seen.mean.provenance == "suggested" and seen.doubts:
        raise NetworkError(
            f"nobody says how images of {name} are normalised: {seen.mean.why} has mean {list(seen.mean.value)} and "
            f"std {list(seen.std.value)}, but {seen.doubts[0]}: give --mean R,G,B and --std R,G,B"
        )
    if seen.mean.value is None or seen.std.value is None:
        raise NetworkError(
            f"nobody says how images of {name} are normalised ({seen.mean.why}): give --mean R,G,B and --std R,G,B of "
            "images in [0, 1], such as --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225; --mean 0 --std 1 if not at all"
        )


def _as_drafted(seen: Examined) -> NetworkSpec:
    """The teacher's section, its images as they were found to be; an order that is but suggested turns none round."""
    return replace(seen.subject.spec, mean=seen.mean.value, std=seen.std.value)


# --- the recipe ---


def _sections(
    name: str, seen: Examined, teacher: NetworkSpec, student: FirstStudent | None, wishes: Wishes
) -> dict[str, Any]:
    kind, size = seen.kind.value, list(seen.input_size.value)
    task = {"kind": kind, "num_classes": seen.task.num_classes, "image_size": size}
    batch = LARGE_BATCH if max(size) >= LARGE else LEARNING["batch_size"]
    return {
        "name": name,
        "task": {**task, **({"temperature": TEMPERATURE} if kind == "classification" else {})},
        "teacher": _network(teacher),
        **({} if student is None else {"student": _network(student.spec, like=teacher)}),
        "source": source_section(
            wishes.source or "auto", None if wishes.photos is None else _absolute(str(wishes.photos))
        ),
        "training": {
            "time": TIME,
            **LEARNING,
            "batch_size": batch,
            "lr": LEARNING["lr"] * batch / LEARNING["batch_size"],
            "shift": min(size) // SHIFT,
            "device": "auto",
            "seed": 0,
            **wishes.in_training(),
        },
        **({} if wishes.data is None else {"data": str(_absolute(str(wishes.data)))}),
    }


def _network(spec: NetworkSpec, like: NetworkSpec | None = None) -> dict[str, Any]:
    """A section with what is not a default; a student sees images as its teacher does."""
    plain = like or NetworkSpec(network=spec.network)
    shown: dict[str, Any] = {"network": spec.network}
    if spec.args:
        shown["args"] = copy.deepcopy(spec.args)  # overrides change it
    if spec.weights is not None:
        shown["weights"] = paths.shorten(spec.weights)
    for key in ("mean", "std"):
        if like is None or getattr(spec, key) != getattr(plain, key):
            shown[key] = [float(f"{value:.6g}") for value in getattr(spec, key)]
    for key in ("channels", "channel_order"):
        if getattr(spec, key) != getattr(plain, key):
            shown[key] = getattr(spec, key)
    if like is not None:
        shown["init"] = spec.init  # found out already: else the run would try again
    return shown
