"""A network, a task, labelled data -> scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from datafree import modes, options
from datafree.errors import RunError
from datafree.networks.load import PRETRAINED, NetworkSpec, build_network
from datafree.recipe import FAMILIES, TASK
from datafree.tasks import TASKS
from datafree.tasks.base import LabelledData, Scores, Task
from datafree.wording import show


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
    """Score the student of a run directory on labelled data: {"student": Scores}.

    A run directory is not trusted: it can neither name code to import nor have anything downloaded. Where its student
    or its task came from an import path, `student` ("mypkg.nets:make_net") or `task` ("mypkg.tasks:Mine") names it
    again. Raises RunError, NetworkError, WeightsError, DataError.
    """
    file = run / "student.json"
    section, task_section = _read_description(run)
    args = {name: value for name, value in section.get("args", {}).items() if name not in PRETRAINED}
    section = {**section, "network": student or section.get("network"), "args": args}
    section["weights"] = str(run / "student.safetensors")
    task_section = {**task_section, "kind": task or task_section.get("kind")}
    if task is None and task_section["kind"] not in TASKS:
        raise RunError(f"{file} names no task of datafree's ({show(task_section['kind'])}); give yours with --task")
    try:
        spec: NetworkSpec = options.build(NetworkSpec, section)
        made: Task = options.choose(TASK, task_section, FAMILIES)
    except options.Invalid as error:
        raise RunError(f"{file} does not describe a student: {error.faults[0]}") from error
    network = build_network(spec, num_classes=made.num_classes, allow_import=student is not None)
    where = modes.choose_device(device)
    labelled = made.open_labelled(data)
    return {"student": evaluate(spec.wrap(network).to(where), made, labelled, device=where)}


def _read_description(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The network's and the task's sections of a run's student.json. Raises RunError."""
    file = run / "student.json"
    if not run.is_dir():
        raise RunError(f"{run} is not a run directory; `datafree distill` makes one")
    if not file.exists():
        raise RunError(f"{run} holds no finished student; run the same `datafree distill` again to finish it")
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
        network, task = dict(described["network"]), dict(described["task"])
        dict(network.get("args", {}))
    except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        raise RunError(f"{file} is damaged ({type(error).__name__}); take the run from its original place") from error
    return network, task
