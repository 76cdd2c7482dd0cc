"""A network, a task, labelled data -> scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datafree import memory, modes
from datafree.errors import Interrupted, TrainingError
from datafree.memory import OutOfMemory
from datafree.student import load_onnx, load_student
from datafree.tasks.base import LabelledData, Scores, Task


@torch.no_grad()
def evaluate(
    network: nn.Module,
    task: Task,
    data: LabelledData,
    *,
    device: torch.device,
    batch_size: int = 32,
    stop: Callable[[], str | None] = lambda: None,
) -> Scores:
    """Score `network` (images in [0, 1] -> outputs) on labelled data. The network is left as it was.

    Where memory runs out, smaller batches are answered: in eval mode that changes nothing. `stop` is asked before each
    batch: a reason to stop raises Interrupted.
    """
    metric = task.new_metric(data.class_names)
    with modes.frozen(network):
        for images, targets in data.batches(batch_size):
            if reason := stop():
                raise Interrupted(f"stopped while scoring ({reason}); the same command scores it again")
            outputs = task.check(_answered(network, task, images.to(device)), "network")
            metric.update(outputs, targets.to(device))
    return metric.compute()


def _answered(network: nn.Module, task: Task, images: Tensor) -> Any:
    """What the network answers; half by half where memory runs out. Raises TrainingError when one image is too much."""
    try:
        with memory.noticed("scoring"):
            return network(images)
    except OutOfMemory:
        if len(images) == 1:
            raise TrainingError("out of memory in scoring, one image at a time; free some memory") from None
    return task.join([_answered(network, task, half) for half in images.chunk(2)])


def evaluate_run(
    run: Path, data: Path, *, device: str = "auto", student: str | nn.Module | None = None, task: str | None = None
) -> dict[str, Scores]:
    """Score the student of a run directory, or of an ONNX file that was exported from one: {"student": Scores}.

    `student` and `task` as in `load_student`. Raises RunError, NetworkError, WeightsError, DataError.
    """
    where = modes.choose_device(device)
    network: nn.Module
    if run.suffix == ".onnx":
        made, network = load_onnx(run, task=task)  # computed on the CPU, whatever the device
    else:
        loaded = load_student(run, student=student, task=task)
        made, network = loaded.task, loaded.network.to(where)
    labelled = made.open_labelled(data)
    return {"student": evaluate(network, made, labelled, device=where)}
