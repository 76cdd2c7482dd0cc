"""A look at a teacher: built and run once, what it answers, to images of which size, and what these have to be.

C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from datafree.errors import NetworkError
from datafree.networks.checks.input_form import channels_hint, require_flat_images
from datafree.networks.checks.one_output import settle_one_output
from datafree.networks.checks.said_task import said_task
from datafree.networks.checks.untrained import untrained
from datafree.networks.exported.program import Program
from datafree.networks.first_input import Seen, distance, implied, told_order
from datafree.networks.foreign.file_teacher import FileTeacher
from datafree.networks.load import adapted, build_network, has_weights
from datafree.networks.normalized import Normalized, bare
from datafree.networks.preprocessing import Suggestion, known, suggested
from datafree.ops import modes
from datafree.ops.performance import ALL_ON
from datafree.ops.predictions import answer_form
from datafree.preflight.subject import Fact, Subject, input_facts
from datafree.preflight.suitability import BatchNorm, count_batchnorm
from datafree.recipe.recipe import TASK
from datafree.tasks import TASKS
from datafree.tasks.base import Task, synthetic_batch

_SIZES = ((224, 224), (256, 256), (320, 320), (32, 32))  # tried in turn where nobody says


@dataclass(frozen=True, kw_only=True)
class Examined:
    """A network that was built and run once, and what is known of it."""

    subject: Subject  # its `spec` as `network` was made
    network: Normalized
    task: Task
    kind: Fact  # of the task
    problem: str | None  # why its answers do not fit the task
    output: str  # the form of its answers
    classes: Fact  # C
    macs: int  # multiplications with an addition, for one image of `input_size`
    input_size: Fact  # (height, width): an image of this size has passed
    mean: Fact
    std: Fact
    channel_order: Fact
    doubts: list[str]  # what speaks against mean, std and order
    trained: bool  # whether it comes with weights, as far as anyone knows
    batchnorm: BatchNorm
    notes: list[str]  # the doubts among them


def examine(
    subject: Subject, task: str | None, where: torch.device, dtype: torch.dtype, given: nn.Module | None = None
) -> Examined:
    """Build a network, or take `given` for it, and look at it; `task`: a kind of TASKS, where it was stated.

    Raises NetworkError for what cannot be built, takes no images of the size, or does not fit what was stated.
    """
    spec, plan, metadata = subject.spec, subject.plan, known(subject.spec)
    images = subject.images

    # The network, and what it answers.
    if metadata is not None and not subject.in_recipe:
        spec = replace(
            spec,
            mean=images.mean or metadata.mean,
            std=images.std or metadata.std,
            channel_order=images.channel_order or metadata.channel_order or "rgb",
        )
    remarks: list[str] = []
    classes = subject.classes.value or 1
    built = build_network(spec, num_classes=classes, say=remarks.append) if given is None else adapted(given)
    network = spec.wrap(built, dtype).to(where)
    require_flat_images(network, spec.network)
    (ALL_ON if plan is None else plan.training.speed).laid_out(network)
    if isinstance(program := network.network, Program | FileTeacher) and program.size and subject.size.value is None:
        subject = replace(subject, size=Fact(value=program.size, provenance="known", why="it was made for this size"))
    outputs, input_size, macs = _look(network, subject, where)
    if line := settle_one_output(network, synthetic_batch(input_size.value, where)[:1]):
        remarks.append(line)
        outputs, *_ = _look(network, subject, where)
        subject = replace(subject, classes=Fact(value=2, provenance="known", why="it has one output"))
    made, kind, problem = _task(outputs, subject, task, input_size.value)
    counted = Fact(value=made.num_classes, provenance="known", why="it answers so many")

    # What its images must be.
    trained = has_weights(spec)
    suggestion = Suggestion(preprocessing=None, seen=None, why="it is not trained")
    if trained:
        look = torch.rand(1, spec.channels, *(spec.input_size or input_size.value), device=where)
        suggestion = suggested(network.network, look)
    middle, spread, order = input_facts(subject, metadata, suggestion)
    notes = [*remarks, suggestion.why] if trained else ["no weights: only the form of the network can be looked at"]
    notes += network.network.notes if isinstance(network.network, FileTeacher) else []
    notes += filter(None, [untrained(spec, network)])
    doubts: list[str] = []
    if suggestion.seen is not None and middle.value is not None:
        doubts = _doubts(suggestion.seen, middle, spread, order)
    notes += doubts
    if metadata is not None and (metadata.mean, metadata.std) != (spec.mean, spec.std):
        who = "the recipe" if subject.in_recipe else "what was given"
        notes.append(f"{metadata.origin} has mean {list(metadata.mean)} and std {list(metadata.std)}, {who} not")
    return Examined(
        subject=replace(subject, spec=spec),
        network=network,
        task=made,
        kind=kind,
        problem=problem,
        output=answer_form(outputs),
        classes=counted if subject.classes.value is None else subject.classes,
        macs=macs,
        input_size=input_size,
        mean=middle,
        std=spread,
        channel_order=order,
        doubts=doubts,
        trained=trained,
        batchnorm=count_batchnorm(bare(network)),
        notes=notes,
    )


def _look(network: Normalized, subject: Subject, device: torch.device) -> tuple[Any, Fact, int]:
    """What it answers to two images, of which size, and the multiplications of one. Raises NetworkError."""
    tried = [subject.size.value] if subject.size.value is not None else list(_SIZES)
    reason = ""
    for height, width in tried:
        try:
            look = synthetic_batch((height, width), device)
            with torch.no_grad(), modes.frozen(network):
                with FlopCounterMode(display=False) as counter:
                    network(look[:1])
                outputs = network(look)
        except NetworkError as error:
            reason = reason or str(error)
        except Exception as error:  # whatever a network of anyone's raises
            lines = str(error).strip().splitlines()
            reason = reason or (lines[0] if lines else type(error).__name__)
        else:
            size = subject.size
            if size.value is None:
                size = Fact(value=(height, width), provenance="unknown", why="nobody says; this one passes")
            return outputs, size, counter.get_total_flops() // 2
    height, width = tried[0]
    hint = channels_hint(network, subject.spec.channels) or _size_hint(subject)
    reason = reason.rstrip(".")
    raise NetworkError(f"{subject.spec.network} cannot take images of {height} x {width} pixels: {reason}{hint}")


def _size_hint(subject: Subject) -> str:
    """The size that the network was made for, as an error about a stated one says it."""
    metadata = known(subject.spec)
    if metadata is None or metadata.input_size in (None, subject.size.value):
        return ""
    height, width = metadata.input_size
    return (
        f"; it was made for {height} x {width}: leave --size out, or have images brought to that by "
        f"teacher.input_size=[{height},{width}]"
    )


def _task(outputs: Any, subject: Subject, stated: str | None, size: tuple[int, int]) -> tuple[Task, Fact, str | None]:
    """The task, how its kind is known, and why the answers do not fit it. Raises NetworkError where it was stated."""
    name, plan = subject.spec.network, subject.plan
    guess, columns = _guess(outputs)
    count = subject.classes.value or (None if plan is None else plan.task.classes_of(outputs)) or columns
    if plan is not None:
        kind = TASK.name_of(type(plan.task))
        if stated not in (None, kind):
            raise NetworkError(f"--task is {stated}, but the recipe's is {kind}: leave --task out")
        made: Task = replace(plan.task, image_size=size, num_classes=count)
        fact = Fact(value=kind, provenance="stated", why=f"the recipe {plan.name}")
    else:
        said = said_task(subject.spec) if guess == "classification" else None
        kind = stated or said or guess or ""
        if not kind:
            raise NetworkError(f"{name} answers {answer_form(outputs)}, which is the form of no task here")
        made = TASKS[kind](num_classes=count, image_size=size)
        fact = Fact(value=kind, provenance="suggested", why="the form of its answers")
        if stated is not None:
            fact = Fact(value=kind, provenance="stated", why="--task")
        elif said is not None:
            fact = Fact(value=kind, provenance="known", why="problem_type in its config.json")
    try:
        made.check(outputs, f"teacher {name}")
    except NetworkError as error:
        if fact.provenance == "stated" or subject.classes.provenance == "stated":
            raise
        return made, fact, str(error)
    return made, fact, None


def _guess(outputs: Any) -> tuple[str | None, int]:
    """The kind of task whose form answers have, and their classes."""
    for kind, task in TASKS.items():
        if (count := task.classes_of(outputs)) is not None:
            return kind, count
    return None, outputs.shape[1] if outputs.ndim > 1 else 1


def _doubts(seen: Seen, mean: Fact, std: Fact, order: Fact) -> list[str]:
    """What speaks against a mean, a std and an order: the images they imply are no images, or no photographs."""
    doubts = []
    if distance(seen, mean.value, std.value) > 1:
        level, spread = implied(seen, mean.value, std.value)
        possible = 0 <= level <= 1 and 0.02 < spread <= 0.5  # values in [0, 1] spread by 0.5 at most
        verdict = "unlike photographs, of 0.45 and 0.27" if possible else "which no images in [0, 1] have"
        doubts.append(
            f"if the {mean.provenance} mean and std are right, it was trained on images in [0, 1] with a mean of "
            f"{level:.2g} and a spread of {spread:.2g}, {verdict}"
        )
    told = told_order(seen) if len(set(mean.value)) == 1 else None
    if told is not None and order.value not in (None, told):
        doubts.append(f"its order is {order.provenance} as {order.value}, but its first BatchNorm suggests {told}")
    return doubts
