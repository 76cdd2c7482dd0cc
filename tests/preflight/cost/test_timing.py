"""What is timed before a run, on a device that the host runs ahead of: all of the work, and no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datafree.engine.build_networks import build_networks
from datafree.networks.normalized import Normalized
from datafree.ops import modes
from datafree.preflight.cost import estimate, forecast
from datafree.preflight.cost.estimate import timed
from datafree.preflight.cost.forecast import foretold
from datafree.preflight.cost.short_time import answers_alone
from small_runs import recipe_for

CPU = torch.device("cpu")


class Device:
    """Works when it is waited for; asking takes no time."""

    def __init__(self) -> None:
        self.now, self.asked = 0.0, 0.0  # seconds

    def wait_for(self, device: torch.device) -> None:
        self.now, self.asked = self.now + self.asked, 0.0

    def ask(self, seconds: float) -> None:
        self.asked += seconds


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    made = Device()
    monkeypatch.setattr(modes, "wait_for", made.wait_for)
    monkeypatch.setattr(estimate, "clock_of", lambda device: lambda: made.now)
    return made


def test_work_is_timed_from_its_beginning_to_its_end_on_the_device(device: Device) -> None:
    device.ask(5.0)  # by others
    assert timed(lambda: device.ask(2.0), CPU, times=1) == 2.0


def test_a_teachers_answers_take_as_long_as_the_device_works(device: Device) -> None:
    class Slow(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            device.ask(1.5 * len(images))
            return images.mean((2, 3))

    device.ask(5.0)
    assert answers_alone(Normalized(Slow()), (8, 8), 64) == pytest.approx(1.5 * 64)


def test_few_steps_of_a_teacher_that_is_slow_on_the_device_are_foretold(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 steps of 3 images are 24 passes of an image: at a second each less than 30, of 5 steps more."""
    monkeypatch.setattr(forecast, "_lines", lambda *parts: ["foretold"])

    def said(steps: int) -> list[str]:
        recipe: Any = recipe_for(tmp_path, {"method": "noise"}, device="cpu", precision="fp32", steps=steps)
        networks = build_networks(recipe, CPU, torch.float32)
        networks.teacher.register_forward_pre_hook(lambda module, inputs: device.ask(len(inputs[0])))
        device.ask(100.0)  # of what was before
        return foretold(recipe, recipe.training, networks, CPU, torch.float32, None)

    assert said(2) == []
    assert said(5) == ["foretold"]
