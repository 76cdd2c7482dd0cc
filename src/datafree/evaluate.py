"""A network, a task, labelled data -> scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from datafree import modes
from datafree.errors import RunError
from datafree.networks.load import NetworkSpec, build_network
from datafree.networks.normalized import Normalized
from datafree.tasks import TASKS
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


def evaluate_run(run: Path, data: Path, *, device: str = "auto", student: str | None = None) -> dict[str, Scores]:
    """Score the student of a run directory on labelled data: {"student": Scores}.

    A run directory is not trusted to name code: where its student came from an import path, `student` has to name it
    again ("mypkg.nets:make_net"). Raises RunError, WeightsError, DataError.
    """
    described = _read_description(run)
    spec = _checked(NetworkSpec, {**described["network"], "weights": run / "student.safetensors"}, run)
    if student is not None:
        spec.network = student
    kind = described["task"].get("kind")
    if kind not in TASKS:
        raise RunError(f"{run / 'student.json'} names an unknown task {kind!r}; known: {', '.join(TASKS)}")
    task = _checked(TASKS[kind], {k: v for k, v in described["task"].items() if k != "kind"}, run)
    network = build_network(spec, num_classes=task.num_classes, allow_import=student is not None)
    where = modes.choose_device(device)
    labelled = task.open_labelled(data)
    return {"student": evaluate(Normalized(network, spec.mean, spec.std).to(where), task, labelled, device=where)}


def _read_description(run: Path) -> dict[str, Any]:
    file = run / "student.json"
    if not run.is_dir():
        raise RunError(f"{run} is not a run directory; `datafree distill` makes one")
    if not file.exists():
        raise RunError(
            f"{run} holds no finished student (no student.json); run the same `datafree distill` again to finish"
        )
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
        described["network"].items(), described["task"].items()
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise RunError(f"{file} is damaged ({type(error).__name__}); finish the run again from its state") from error
    return dict(described)


def _checked(kind: type[Any], values: dict[str, Any], run: Path) -> Any:
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise RunError(f"{run / 'student.json'} is damaged: {key}: {first['msg']}") from error
