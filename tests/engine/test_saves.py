"""When the training state is saved."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import nn

from datafree.engine import train_state
from datafree.engine.nonfinite import Watch
from datafree.engine.recovery import Recovery
from datafree.engine.train_state import TrainState
from datafree.sources import Noise


class Clock:
    """A clock, and a run directory whose saves take `each` seconds of it."""

    def __init__(self, each: float) -> None:
        self.now, self.each = 1000.0, each

    def monotonic(self) -> float:
        return self.now

    def save_state(self, state: dict[str, Any], *, must: bool) -> bool:
        self.now += self.each
        return True


def saves(monkeypatch: pytest.MonkeyPatch, each: float, *, every: int, step: float, steps: int) -> list[int]:
    """After which of `steps` of `step` seconds a state is saved whose save takes `each`."""
    clock, student = Clock(each), nn.Linear(2, 2)
    monkeypatch.setattr(train_state, "time", clock)
    state = TrainState(
        run=cast("Any", clock),
        student=student,
        optimizer=torch.optim.SGD(student.parameters(), 0.1),
        source=Noise(),
        recovery=Recovery(),
        watch=Watch(torch.device("cpu")),
    )
    found = []
    for number in range(1, steps + 1):
        clock.now += step
        if state.due(planned=number % every == 0):
            state.save()
            found.append(number)
    return found


def test_quick_saves_come_as_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    assert saves(monkeypatch, 0.9, every=3, step=0.1, steps=12) == [3, 6, 9, 12]


def test_long_saves_take_a_twentieth_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 10 s: 190 s of steps lie between two."""
    assert saves(monkeypatch, 10.0, every=20, step=1.0, steps=800) == [20, 220, 420, 620]


def test_a_save_comes_within_ten_minutes_however_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert saves(monkeypatch, 60.0, every=10, step=100.0, steps=20) == [7, 14]
