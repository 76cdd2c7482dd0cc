"""Signals worked out by hand; a guard that notices a collapse, and nothing else."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datafree.errors import TrainingError
from datafree.health.guard import Guard
from datafree.health.signals import signals
from datafree.tasks.classification import Classification
from datafree.tasks.segmentation import Segmentation

C = 4
TASK = Classification(num_classes=C, image_size=(8, 8))


def logits(labels: list[int], confidence: float = 0.9) -> Tensor:
    """Answers (B, C) that name `labels` with this probability, the rest shared by the others."""
    probs = torch.full((len(labels), C), (1 - confidence) / (C - 1))
    probs[range(len(labels)), labels] = confidence
    return probs.log()


# Signals.


def test_signals_of_a_case_worked_by_hand() -> None:
    images = torch.zeros(4, 3, 8, 8)
    images[2:, :, :, :4] = 1.0  # two of four are white in their left half: a deviation of 0.5 in half of the pixels
    found = signals(TASK, images, logits([0, 0, 1, 2], confidence=0.7))
    entropy = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
    assert found["class_balance"].item() == pytest.approx(entropy / math.log(C))
    assert found["confidence"].item() == pytest.approx(0.7)
    assert found["pixel_diversity"].item() == pytest.approx(0.25)


def test_signals_are_one_at_best_and_zero_at_worst() -> None:
    images = torch.zeros(4, 3, 8, 8)
    worst = signals(TASK, images, logits([2, 2, 2, 2]))
    assert (worst["class_balance"].item(), worst["pixel_diversity"].item()) == (0, 0)
    images[:2] = 1.0
    best = signals(TASK, images, 100 * logits([0, 1, 2, 3]))
    assert best["class_balance"].item() == pytest.approx(1)
    assert best["confidence"].item() == pytest.approx(1)
    assert best["pixel_diversity"].item() == pytest.approx(0.5)  # as black and white as can be


def test_balance_counts_hard_answers_not_probabilities() -> None:
    unsure = logits([1, 1, 1, 1], confidence=0.26)  # on average nearly uniform, yet always the same class
    assert signals(TASK, torch.rand(4, 3, 8, 8), unsure)["class_balance"].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("named", "balance"),
    [
        (list(range(30)), 1.0),  # thirty images of thirty classes cannot be more even
        ([0, 0, 1, 1], 0.5),  # log 2 over log 4
        ([7, 7, 7], 0.0),
        ([5], 1.0),  # of one image there is nothing to tell
    ],
)
def test_balance_is_of_what_so_few_images_can_show(named: list[int], balance: float) -> None:
    task = Classification(num_classes=1000, image_size=(8, 8))
    outputs = 20 * torch.nn.functional.one_hot(torch.tensor(named), 1000).float()
    found = signals(task, torch.rand(len(named), 3, 8, 8), outputs)
    assert found["class_balance"].item() == pytest.approx(balance, abs=1e-6)


def test_a_dense_tasks_signals_count_pixels() -> None:
    task = Segmentation(num_classes=C, image_size=(2, 2))
    outputs = torch.zeros(1, C, 2, 2)
    outputs[0, 0, 0], outputs[0, 3, 1] = 5.0, 5.0  # the upper half is class 0, the lower class 3
    found = signals(task, torch.rand(1, 3, 2, 2), outputs)
    assert found["class_balance"].item() == pytest.approx(math.log(2) / math.log(C))
    assert found["confidence"].item() == pytest.approx(1 / (1 + 3 * math.exp(-5)), rel=1e-4)
    assert found["pixel_diversity"].item() == 0  # of one image


def test_signals_are_detached_scalars_on_images_with_gradients() -> None:
    images = torch.rand(4, 3, 8, 8, requires_grad=True)
    for value in signals(TASK, images, logits([0, 1, 2, 3]).requires_grad_()).values():
        assert value.shape == ()
        assert not value.requires_grad


# The guard.


class Rig:
    """A guard over a small generator and its optimiser, shown batches by hand."""

    def __init__(self, **options: Any) -> None:
        torch.manual_seed(0)
        self.generator = nn.Linear(2, 2)
        self.optimizer = torch.optim.Adam(self.generator.parameters(), 0.1)
        self.said: list[str] = []
        parts = {"generator": self.generator, "optimizer": self.optimizer}
        self.guard = Guard(parts=parts, what="source.adversarial_weight", say=self.said.append, **options)
        self.step = 0

    def train(self) -> None:
        """Move the generator by a step."""
        self.optimizer.zero_grad()
        self.generator(torch.ones(1, 2)).sum().backward()
        self.optimizer.step()

    def see(self, kind: str, looks: int = 1) -> list[dict[str, Tensor]]:
        """Updates until the guard has looked `looks` times at batches of this kind; what it logged."""
        images, outputs = torch.rand(8, 3, 8, 8), logits([0, 1, 2, 3] * 2)
        if kind == "alike":
            images = images[:1].expand(8, -1, -1, -1)
        elif kind == "one class":
            outputs = logits([1] * 8)
        elif kind == "not finite":
            outputs = outputs * math.nan
        logged = []
        for _ in range(looks * self.guard.every):
            self.train()
            self.step += 1
            logged.append(self.guard.after(self.step, TASK, images, outputs))
        return logged

    def weights(self) -> Tensor:
        return self.generator.weight.detach().clone()


BAD = ["alike", "one class", "not finite"]


def test_it_looks_every_tenth_update_and_logs_only_then() -> None:
    logged = Rig().see("healthy", looks=3)
    assert [bool(values) for values in logged] == [(n + 1) % 10 == 0 for n in range(30)]
    assert set(logged[9]) == {"class_balance", "confidence", "pixel_diversity"}


def test_healthy_batches_raise_no_alarm_however_noisy() -> None:
    rig = Rig(every=1)
    generator = torch.Generator().manual_seed(0)
    for step in range(1000):
        images = (0.5 + 0.03 * torch.randn(16, 3, 4, 4, generator=generator)).clamp(0, 1)  # flat, but not alike
        outputs = torch.randn(16, C, generator=generator) + torch.tensor([1.5, 0, 0, 0])  # one class comes often
        rig.guard.after(step, TASK, images, outputs)
    assert rig.said == []
    assert rig.guard.history == []
    assert rig.guard.caution == 1


@pytest.mark.parametrize("kind", ["alike", "one class"])
def test_fewer_bad_looks_than_its_patience_are_forgiven(kind: str) -> None:
    rig = Rig()
    rig.see("healthy")
    for _ in range(5):
        rig.see(kind, looks=2)
        rig.see("healthy")
    assert rig.said == []


@pytest.mark.parametrize(
    ("kind", "forgiven", "reason"),
    [("alike", 2, "its images are all alike"), ("one class", 2, "one class only"), ("not finite", 0, "not finite")],
)
def test_a_collapse_is_put_back_to_the_last_healthy_state_with_half_the_caution(
    kind: str, forgiven: int, reason: str
) -> None:
    rig = Rig()
    rig.see("healthy", looks=2)
    good, good_optimizer = rig.weights(), rig.optimizer.state_dict()["state"][0]["exp_avg"].clone()
    rig.see(kind, looks=forgiven)
    assert rig.guard.caution == 1
    assert torch.equal(rig.weights(), good) == (forgiven == 0)
    rig.see(kind)
    assert torch.equal(rig.weights(), good)
    assert torch.equal(rig.optimizer.state_dict()["state"][0]["exp_avg"], good_optimizer)
    assert rig.guard.caution == 0.5
    (line,) = rig.said
    assert "\n" not in line
    assert line.startswith("warning: ")
    assert reason in line
    assert f"step {30 + 10 * forgiven}" in line
    assert "source.adversarial_weight now times 0.5 (restart 1 of 3)" in line
    assert rig.guard.history == [line.removeprefix("warning: ")]


def test_the_state_it_went_back_to_is_still_there_the_next_time() -> None:
    rig = Rig()
    rig.see("healthy")
    good = rig.weights()
    for restart in (1, 2, 3):
        rig.see("alike", looks=3)  # trains between the looks: the kept state must not move along
        assert torch.equal(rig.weights(), good)
        assert rig.guard.caution == 0.5**restart


def test_values_that_are_not_finite_are_not_logged() -> None:
    rig = Rig()
    rig.see("healthy")
    for values in rig.see("not finite", looks=3):
        assert all(torch.isfinite(value) for value in values.values())


@pytest.mark.parametrize("restarts", [0, 1, 3])
def test_it_gives_up_when_its_restarts_are_used_up_and_leaves_the_healthy_state(restarts: int) -> None:
    rig = Rig(restarts=restarts)
    rig.see("healthy")
    good = rig.weights()
    rig.see("one class", looks=3 * restarts)
    with pytest.raises(TrainingError, match="has collapsed at step") as caught:
        rig.see("one class", looks=3)
    assert caught.value.exit_code == 3
    line = str(caught.value)
    assert "\n" not in line
    assert "lower source.adversarial_weight" in line
    said = {0: ": ", 1: " after 1 restart: ", 3: " after 3 restarts: "}[restarts]
    assert f"step {rig.step}{said}" in line
    assert torch.equal(rig.weights(), good)


def test_on_collapse_stop_does_not_restart() -> None:
    rig = Rig(on_collapse="stop")
    rig.see("healthy")
    good = rig.weights()
    with pytest.raises(TrainingError, match="all alike"):
        rig.see("alike", looks=3)
    assert torch.equal(rig.weights(), good)
    assert rig.said == []


def test_on_collapse_ignore_never_looks() -> None:
    rig = Rig(on_collapse="ignore")
    rig.see("healthy")
    assert not any(rig.see("one class", looks=30))
    assert rig.said == []


@pytest.mark.parametrize("on_collapse", ["restart", "stop"])
def test_a_start_that_was_never_healthy_is_said_once_and_stops_nothing(on_collapse: str) -> None:
    rig = Rig(on_collapse=on_collapse)
    rig.see("one class", looks=29)
    assert rig.said == []
    rig.see("one class", looks=40)
    (line,) = rig.said
    assert line.startswith("warning: the generator has not begun to work by step 300: ")
    assert rig.guard.caution == 1
    rig.see("healthy")
    rig.see("one class", looks=2)
    assert len(rig.said) == 1


@pytest.mark.parametrize("looks", [0, 1, 2])
def test_a_saved_guard_goes_on_exactly(looks: int) -> None:
    rig, other = Rig(), Rig()
    other.see("healthy")
    other.see("alike", looks=4)  # another past
    rig.see("healthy")
    good = rig.weights()
    rig.see("alike", looks=3)
    rig.see("one class", looks=looks)
    file = io.BytesIO()
    torch.save({"guard": rig.guard.state_dict(), **{n: p.state_dict() for n, p in rig.guard.parts.items()}}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other.guard.load_state_dict(saved["guard"])
    for name, part in other.guard.parts.items():
        part.load_state_dict(saved[name])
    other.step = rig.step
    other.said.clear()
    rig.said.clear()
    for each in (rig, other):
        each.see("one class", looks=3 - looks)
        assert torch.equal(each.weights(), good)
    assert rig.said == other.said
    assert "times 0.25 (restart 2 of 3)" in rig.said[0]
    assert rig.guard.history == other.guard.history
    assert len(rig.guard.history) == 2
