"""Evaluation of a network on labelled data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datafree.data.images import list_images
from datafree.data.labelled import LabelledData, Remarked
from datafree.data.unlabelled import in_batches, read_fitted, unread, unscored
from datafree.engine import out_of_memory
from datafree.engine.build_networks import prepare, require_weights
from datafree.engine.out_of_memory import OutOfMemory
from datafree.engine.progress import Progress, Work
from datafree.errors import Interrupted, TrainingError
from datafree.evaluation.finished_run import load_onnx, load_student, read_class_names
from datafree.ops import modes
from datafree.recipe.recipe import Recipe
from datafree.storage import made_set
from datafree.tasks.base import Scores, Task
from datafree.tasks.labelled import open_labelled

_PIXELS = 1 << 21  # of all images that are answered at once: 32 of 256 x 256


@torch.no_grad()
def evaluate(
    network: nn.Module,
    task: Task,
    data: LabelledData,
    *,
    device: torch.device,
    batch_size: int | None = None,
    stop: Callable[[], str | None] = lambda: None,
    log: Callable[[Progress], None] = lambda progress: None,
) -> Scores:
    """Score `network` (images in [0, 1] -> outputs) on labelled data. The network is left as it was.

    `batch_size`: by default as many as `at_once` says.

    Where memory runs out, smaller batches are answered: in eval mode that changes nothing. `stop` is asked before each
    batch: a reason to stop raises Interrupted.
    """
    metric, work, done = task.new_metric(data.class_names), Work("scores", len(data), log), 0
    with modes.frozen(network):
        for images, targets in data.batches(batch_size or at_once(task)):
            if reason := stop():
                raise Interrupted(f"stopped while scoring ({reason}); run the same command to score again")
            outputs = task.check_form(_answered(network, task, images.to(device)), "network")
            metric.update(outputs, targets.to(device))
            done += len(images)
            work.at(done)
    scores = metric.compute()
    if isinstance(data, Remarked):
        scores.remarks += data.remarks
    if data.skipped:
        scores.remarks.append(unscored(data.skipped))
    return scores


def at_once(task: Task) -> int:
    """Images that are answered at once: 32, fewer where they are large."""
    height, width = task.image_size
    return max(1, min(32, _PIXELS // (height * width)))


def _answered(network: nn.Module, task: Task, images: Tensor) -> Any:
    """What the network answers; half by half where memory runs out. Raises TrainingError when one image is too much."""
    try:
        with out_of_memory.noticed("scoring"):
            return network(images)
    except OutOfMemory:
        if len(images) == 1:
            raise TrainingError("out of memory in scoring, one image at a time; free some memory") from None
    return task.join([_answered(network, task, half) for half in images.chunk(2)])


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How often two networks give the same answer on a folder of images."""

    share: float | None  # mean of `Task.agreement` over the images that were compared; None: nothing to compare
    compared: int  # images in which at least one of them finds something
    empty: int  # images in which neither does
    skipped: list[str]  # images that cannot be read, each with its reason

    @property
    def remarks(self) -> list[str]:
        """What the share says nothing about, a line each."""
        found = [f"{self.empty:,} images are not compared: neither network finds anything there"] if self.empty else []
        return [*found, unread(self.skipped)] if self.skipped else found


@torch.no_grad()
def agreement(
    student: nn.Module,
    teacher: nn.Module,
    task: Task,
    folder: Path,
    *,
    device: torch.device,
    batch_size: int | None = None,
    log: Callable[[Progress], None] = lambda progress: None,
) -> Agreement:
    """How often two networks give the same answer on images of any kind: all below `folder`, which nobody has labelled.

    Images are scaled to cover the task's size and cut to it; those that cannot be read are skipped and counted. Raises
    DataError where there are none, or none can be read.
    """
    skipped: list[str] = []
    found: list[float] = []
    folder, empty = made_set.data_of(folder.absolute()), 0
    files = list_images(folder)
    work = Work("scores", len(files), log)
    with modes.frozen(student, teacher):
        for images in in_batches(read_fitted(files, task.image_size, skipped, folder), batch_size or at_once(task)):
            ours, theirs = (_answered(network, task, images.to(device)) for network in (student, teacher))
            shares = [task.agreement(ours[i : i + 1], theirs[i : i + 1]) for i in range(len(images))]
            found += [share for share in shares if share is not None]
            empty += sum(share is None for share in shares)
            work.at(len(found) + empty)
    share = sum(found) / len(found) if found else None
    return Agreement(share=share, compared=len(found), empty=empty, skipped=skipped)


def agreement_of_run(
    run: Path,
    folder: Path,
    recipe: Recipe,
    *,
    device: str = "auto",
    student: str | nn.Module | None = None,
    task: str | None = None,
    log: Callable[[Progress], None] = lambda progress: None,
) -> Agreement:
    """`agreement` of the student of a run directory, or of an exported ONNX file, with the teacher of `recipe`.

    The recipe is the user's, not the run's own, which may not name files. `student` and `task` as in `load_student`.
    Raises RunError, NetworkError, WeightsError, DataError.
    """
    where = modes.choose_device(device)
    made, network, _ = _student(run, where, student, task)
    require_weights(recipe.teacher, made)
    teacher = prepare(recipe.teacher, made, "teacher", where, torch.float32)
    return agreement(network, teacher, made, folder, device=where, log=log)


def evaluate_run(
    run: Path,
    data: Path,
    *,
    device: str = "auto",
    student: str | nn.Module | None = None,
    task: str | None = None,
    log: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, Scores]:
    """Score the student of a run directory, or of an ONNX file that was exported from one: {"student": Scores}.

    `student` and `task` as in `load_student`. Raises RunError, NetworkError, WeightsError, DataError.
    """
    where = modes.choose_device(device)
    made, network, names = _student(run, where, student, task)
    labelled = open_labelled(made, data, names)
    return {"student": evaluate(network, made, labelled, device=where, log=log)}


def _student(
    run: Path, device: torch.device, student: str | nn.Module | None, task: str | None
) -> tuple[Task, nn.Module, list[str]]:
    """The task, the network and its classes' names; of an ONNX file, computed on the CPU whatever the device."""
    if run.suffix == ".onnx":
        made, network = load_onnx(run, task=task)
        return made, network, read_class_names(network.description.get("class_names"), made)
    loaded = load_student(run, student=student, task=task)
    return loaded.task, loaded.network.to(device), loaded.class_names
