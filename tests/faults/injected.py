"""Faults put into a run on purpose, once or for good, at a step; and what must never lie on the disk."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from datafree.engine.student_step import StudentStep
from datafree.sources.base import Batch, ImageSource
from datafree.storage import checkpoint

Spoil = Callable[[StudentStep, ImageSource], Callable[[], None]]  # does it, answers what takes it back after the step


def spoil_weight(network: nn.Module) -> None:
    next(network.parameters()).data.fill_(math.nan)


def spoil_answers(teacher: nn.Module) -> Callable[[], None]:
    """Have the teacher answer what is no number, from within, before anybody sees it; answers what takes it back."""
    return teacher.register_forward_hook(lambda module, given, answer: answer * math.nan, prepend=True).remove


def in_generator(student_step: StudentStep, source: ImageSource) -> Callable[[], None]:
    spoil_weight(source.artefacts()["generator"])
    return lambda: None


def in_student(student_step: StudentStep, source: ImageSource) -> Callable[[], None]:
    spoil_weight(student_step.student)
    return lambda: None


def in_students_average(student_step: StudentStep, source: ImageSource) -> Callable[[], None]:
    norm = next(m for m in student_step.student.modules() if isinstance(m, nn.BatchNorm2d))
    assert norm.running_mean is not None
    norm.running_mean[0] = math.inf
    return lambda: None


def in_generators_average(student_step: StudentStep, source: ImageSource) -> Callable[[], None]:
    norm = next(m for m in source.artefacts()["generator"].modules() if isinstance(m, nn.BatchNorm2d))
    assert norm.running_var is not None
    norm.running_var[0] = math.nan
    return lambda: None


def in_teachers_answer(student_step: StudentStep, source: ImageSource) -> Callable[[], None]:
    return spoil_answers(student_step.teacher)


def in_gradient(student_step: StudentStep, source: ImageSource) -> Callable[[], None]:
    weight = next(student_step.student.parameters())
    return weight.register_hook(lambda gradient: gradient * math.inf).remove


def in_optimizer(student_step: StudentStep, source: ImageSource) -> Callable[[], None]:
    for state in student_step.optimizer.state.values():
        state["exp_avg_sq"].fill_(math.inf)  # a step of zero: no weight shows it
    return lambda: None


def at_step(
    monkeypatch: pytest.MonkeyPatch, source: ImageSource, step: int, spoil: Spoil, *, times: float = math.inf
) -> None:
    """Have `spoil` done before the student learns at `step`, at most so many times."""
    learn, left = StudentStep.learn, [times]

    def spoilt(student_step: StudentStep, batch: Batch, now: int) -> Any:
        if now != step or not left[0]:
            return learn(student_step, batch, now)
        left[0] -= 1
        mend = spoil(student_step, source)
        try:
            return learn(student_step, batch, now)
        finally:
            mend()

    monkeypatch.setattr(StudentStep, "learn", spoilt)


def bad_numbers(run: Path) -> list[str]:
    """Where numbers that are not finite lie in what a run goes on from, ships and shows. There must be none."""
    found = []

    def look(value: Any, where: str) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                look(item, f"{where}/{key}")
        elif isinstance(value, (list, tuple)):
            for index, item in enumerate(value):
                look(item, f"{where}/{index}")
        elif isinstance(value, torch.Tensor):
            if value.is_floating_point() and not torch.isfinite(value).all():
                found.append(where)
        elif isinstance(value, float) and not math.isfinite(value):
            found.append(where)

    for file in (run / "state").glob("*.pt"):
        look(checkpoint.read(file), file.name)
    for file in run.glob("*.safetensors"):
        look(load_file(file), file.name)
    for line in (run / "metrics.jsonl").read_text().splitlines():
        look(json.loads(line), "metrics")
    return found
