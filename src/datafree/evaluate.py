"""A network, a task, labelled data -> scores."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from datafree import modes
from datafree.student import load_onnx, load_student
from datafree.tasks.base import LabelledData, Scores, Task


@torch.no_grad()
def evaluate(
    network: nn.Module, task: Task, data: LabelledData, *, device: torch.device, batch_size: int = 32
) -> Scores:
    """Score `network` (images in [0, 1] -> outputs) on labelled data. The network is left as it was."""
    metric = task.new_metric(data.class_names)
    with modes.frozen(network):
        for images, targets in data.batches(batch_size):
            outputs = task.check(network(images.to(device)), "network")
            metric.update(outputs, targets.to(device))
    return metric.compute()


def evaluate_run(
    run: Path, data: Path, *, device: str = "auto", student: str | None = None, task: str | None = None
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
