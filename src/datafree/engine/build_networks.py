"""Building teacher and student: from a recipe or from given modules, on the device, checked by a first forward pass.

B images, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from datafree.config.overrides import set_classes
from datafree.engine.network_checks import require_apart, require_gradients
from datafree.engine.rehearsal import rehearse
from datafree.engine.student_init import check_start, why_not
from datafree.errors import DatafreeError, NetworkError, WeightsError
from datafree.networks.checks.class_count import classes_of
from datafree.networks.checks.input_form import channels_hint, require_flat_images
from datafree.networks.checks.one_output import settle_one_output
from datafree.networks.checks.preprocessing_doubt import doubt
from datafree.networks.checks.said_task import other_task
from datafree.networks.checks.untrained import untrained
from datafree.networks.exported.program import Program
from datafree.networks.families import AUTO, choose_student
from datafree.networks.foreign.file_teacher import FileTeacher
from datafree.networks.instances import is_live
from datafree.networks.load import NetworkSpec, adapted, build_network, has_weights
from datafree.networks.normalized import Normalized, bare
from datafree.networks.preprocessing import known
from datafree.networks.pretrained import asks_for_all_weights, asks_for_weights
from datafree.ops import modes
from datafree.ops.performance import ALL_ON, Speed
from datafree.recipe.recipe import TASK, Recipe
from datafree.sources.auto import Auto, is_open, settled
from datafree.sources.base import ImageSource
from datafree.tasks.base import Task, synthetic_batch
from datafree.text import first_line


@dataclass(frozen=True, kw_only=True)
class Given:
    """Networks that were given as objects, in place of those that a recipe's names would build."""

    teacher: nn.Module | None = None
    student: nn.Module | None = None  # is trained itself


NOTHING_GIVEN = Given()


@dataclass(frozen=True, kw_only=True)
class Networks:
    """Both networks of a run, ready for images (B, 3, H, W) in [0, 1]."""

    teacher: Normalized
    student: Normalized


def build_networks(
    recipe: Recipe,
    device: torch.device,
    dtype: torch.dtype,
    given: Given = NOTHING_GIVEN,
    *,
    teacher: Normalized | None = None,
    learns: bool = True,
    starts: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Networks:
    """The teacher, then the recipe's seed, then the student: so its first weights depend on the seed alone.

    `teacher`: where it stands ready already. `say` is told of a teacher's answers that may not be what they look like.
    `learns`: whether the student is to learn here; `starts`: whether to try its start, which is not tried later. Raises
    NetworkError for a network that does not serve (`prepare`, `require_gradients`, `check_start`, `require_apart`,
    `rehearse`).
    """
    task, training = recipe.task, recipe.training
    if teacher is None:
        teacher = prepare(recipe.teacher, task, "teacher", device, dtype, given.teacher, training.speed, say)
        require_gradients(recipe.source, teacher, task, device, recipe.teacher.network)
    modes.seed_everything(training.seed)
    spec = with_student(recipe, given.teacher)[0].student
    student = prepare(spec, task, "student", device, dtype, given.student, training.speed)
    if starts:
        check_start(spec, teacher, student, task)
    require_apart(teacher, student)
    if learns:
        rehearse(task, teacher, student, training, spec.network)
    return Networks(teacher=teacher, student=student)


@dataclass(frozen=True, kw_only=True)
class Sourced:
    """A recipe whose source and start are chosen."""

    recipe: Recipe
    lines: list[str]
    teacher: Normalized | None = None  # as it stands ready, where it was looked at


def with_source(
    recipe: Recipe, device: torch.device, dtype: torch.dtype, given: Given = NOTHING_GIVEN
) -> tuple[Recipe, list[str]]:
    """As `sourced`, without the teacher."""
    found = sourced(recipe, device, dtype, given)
    return found.recipe, found.lines


def sourced(recipe: Recipe, device: torch.device, dtype: torch.dtype, given: Given = NOTHING_GIVEN) -> Sourced:
    """The recipe with the source and the start that `auto` stands for, and what is to be said of both.

    Whatever plans or records a run then sees what it is made of. The papers' methods start their students at random.
    Raises NetworkError for networks that do not serve.
    """
    task, speed, spec = recipe.task, recipe.training.speed, recipe.student
    if not is_open(recipe.source):
        started = replace(recipe, student=replace(spec, init="random")) if spec.init == "auto" else recipe
        return Sourced(recipe=started, lines=[])
    require_weights(recipe.teacher, task)
    teacher = prepare(recipe.teacher, task, "teacher", device, dtype, given.teacher, speed)
    lines: list[str] = []

    def choose(auto: Auto) -> ImageSource:
        source, line = auto.choose(task, teacher, device)
        lines.append(line)
        return source

    recipe = replace(recipe, source=settled(recipe.source, choose))
    if spec.init != "auto":
        return Sourced(recipe=recipe, lines=lines, teacher=teacher)
    init: Literal["random", "teacher"] = "random"
    if not has_weights(spec):  # the user's own stay as they come
        student = prepare(spec, task, "student", device, dtype, given.student, speed)
        try:
            check_start(replace(spec, init="teacher"), teacher, student, task)
            init = "teacher"
        except NetworkError as error:
            lines.append(f"the student starts at random: {why_not(error)}")
    return Sourced(recipe=replace(recipe, student=replace(spec, init=init)), lines=lines, teacher=teacher)


def require_weights(spec: NetworkSpec, task: Task) -> None:
    """Raise NetworkError if a teacher would come without weights, or with some of them only.

    Own code, programs and objects are taken at their word.
    """
    if spec.weights is not None or spec.is_own_code or spec.is_program or is_live(spec.network):
        return
    way = "give teacher.weights=FILE (.safetensors, or a tensors-only .pt)"
    library = spec.network.partition("/")[0]
    if spec.is_directory and has_weights(spec):
        return
    if not asks_for_weights(spec.args):
        raise NetworkError(f"the teacher {spec.network} has no weights, so it has nothing to teach; {way}")
    if not asks_for_all_weights(library, spec.args):
        raise NetworkError(f"the teacher {spec.network} has weights for a part of it only, the rest is random; {way}")
    metadata = known(spec)
    if metadata is not None and metadata.classes is not None and metadata.classes != task.num_classes:
        raise NetworkError(
            f"{library}'s weights for {spec.network} tell {metadata.classes} classes apart, but the task has "
            f"{task.num_classes}, so its last layer would be random; {set_classes(metadata.classes)}, or {way}"
        )


def with_student(recipe: Recipe, teacher: nn.Module | None = None) -> tuple[Recipe, list[str]]:
    """The recipe with the student that "auto" stands for, and what is to be said of the choice; else as it is.

    `teacher`: where it was given as an object. Raises NetworkError.
    """
    if recipe.student.network != AUTO:
        return recipe, []
    spec, line = choose_student(recipe.student, recipe.teacher, recipe.task, teacher)
    return replace(recipe, student=spec), [line]


def prepare(
    spec: NetworkSpec,
    task: Task,
    what: str,
    device: torch.device,
    dtype: torch.dtype,
    given: nn.Module | None = None,
    speed: Speed = ALL_ON,
    say: Callable[[str], None] = lambda line: None,
) -> Normalized:
    """The network of a recipe's section `what`, "teacher" or "student", after a look whether it answers as is needed.

    `given`: the network itself, where it was given as an object; it is moved to `device`. `say` is told of answers that
    may not be what they look like. Raises NetworkError if it cannot take the task's image size, answers in another
    form, or is a detector that is to learn boxes by a loss that does not serve.
    """
    built = _built(spec, task, say) if given is None else adapted(given)
    if what == "student" and (spec.is_program or isinstance(bare(built), (Program, FileTeacher))):
        raise NetworkError(f"the student {spec.network} is a program, which can teach but not learn; name a network")
    network = spec.wrap(built, dtype)
    require_flat_images(network, f"the {what} {spec.network}")
    speed.laid_out(network.to(device))
    try:
        look = synthetic_batch(task.image_size, device)
        if task.num_classes == 2 and (line := settle_one_output(network, look)):
            say(f"note: {what} {spec.network}: {line}")
        with torch.no_grad(), modes.frozen(network):
            outputs = network(look)
        if what == "student":  # some networks answer otherwise while they train
            with torch.no_grad(), modes.looked_through(network, "train"):
                learning = network(look)
    except DatafreeError as error:
        raise NetworkError(f"{what} {spec.network}: {error}") from error
    except Exception as error:  # whatever a network of anyone's raises
        height, width = task.image_size
        raise NetworkError(
            f"the {what} {spec.network} cannot take images of {height} x {width} pixels: {first_line(error)}"
            f"{channels_hint(network, spec.channels) or _size_hint(spec, task, what)}"
        ) from error
    task.check(outputs, f"{what} {spec.network}")
    if isinstance(inner := bare(built), FileTeacher):
        for note in inner.notes:
            say(f"note: {spec.network}: {note}")
    if len(outputs) != len(look):
        raise NetworkError(f"the {what} {spec.network} answers {len(outputs)} images, but was asked {len(look)}")
    if what == "teacher":
        size = spec.input_size or task.image_size
        other = other_task(spec, TASK.name_of(type(task)))
        for line in filter(None, (other, doubt(spec, network, size), untrained(spec, network))):
            say(f"note: {what} {spec.network}: {line}")
    if warning := task.warning(outputs, f"{what} {spec.network}"):
        say(f"note: {warning}")
    if what == "student":
        with torch.enable_grad(), modes.looked_through(network, "train"):
            task.probe_student(learning, f"student {spec.network}")
    return network


def _built(spec: NetworkSpec, task: Task, say: Callable[[str], None]) -> nn.Module:
    """By name; with one output for two classes where its weights have one. Raises DatafreeError, with their classes."""

    def build(classes: int) -> nn.Module:
        return build_network(spec, num_classes=classes, say=lambda line: say(f"note: {line}"))

    try:
        return build(task.num_classes)
    except WeightsError as error:
        library = spec.weights is not None and not (spec.is_own_code or spec.is_directory)
        count = classes_of(spec) if library else None
        if count is None or count == task.num_classes:
            raise
        if count == 1 and task.num_classes == 2:
            return build(1)
        raise WeightsError(f"{error}; its last layers are of {count} classes: {set_classes(count)}") from error


def _size_hint(spec: NetworkSpec, task: Task, what: str) -> str:
    """The size that a network was made for, as an error about the task's says it; else how to resize."""
    metadata = None if spec.input_size is not None or is_live(spec.network) else known(spec)
    if metadata is None or metadata.input_size in (None, tuple(task.image_size)):
        return ""
    return f"; {metadata.origin} has {metadata.input_size}: set {what}.input_size={list(metadata.input_size or ())}"
