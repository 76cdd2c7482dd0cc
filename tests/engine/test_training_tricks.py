"""Options of `training` that are off by default: average of weights, warm-up of the rate, mixtures, borders."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from datafree.engine import validation
from datafree.engine.nonfinite import Watch
from datafree.engine.recovery import Recovery
from datafree.engine.student_step import StudentStep
from datafree.engine.weight_average import WeightAverage
from datafree.errors import Interrupted
from datafree.ops import augment, losses, modes
from datafree.recipe.training import Training
from datafree.run import run_recipe
from datafree.sources.base import Batch
from datafree.tasks.classification import Classification
from datafree.tasks.segmentation import Segmentation
from small_runs import assert_same, everything, recipe_for, stop_after

CPU = torch.device("cpu")
PLAIN = {"device": "cpu", "precision": "fp32"}
ALL = {
    **PLAIN,
    "ema": 0.8,
    "lr_warmup": 4,
    "cutmix": 0.5,
    "mixup": 0.5,
    "shift": 3,
    "shift_padding": "reflection",
    "select": "agreement",
}


def averages(history: list[dict[str, Tensor]], momentum: float) -> list[dict[str, Tensor]]:
    """a_0 = w_0; a_t = m_t a_(t-1) + (1 - m_t) w_t with m_t = min(m, (1 + t) / (10 + t)); counts are the last."""
    found = [{name: value.double() for name, value in history[0].items()}]
    for t, weights in enumerate(history[1:], 1):
        m = min(momentum, (1 + t) / (10 + t))
        found.append(
            {
                name: m * found[-1][name] + (1 - m) * value.double() if value.is_floating_point() else value.double()
                for name, value in weights.items()
            }
        )
    return found


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() <= expected.keys()
    for name, value in found.items():
        assert torch.allclose(value.double(), expected[name], rtol=1e-5, atol=1e-6), name


@pytest.fixture
def history(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """The student's own weights after each step."""
    kept: list[dict[str, Tensor]] = []
    learn = StudentStep.learn

    def noted(step: StudentStep, batch: Batch, number: int) -> dict[str, Tensor]:
        figures = learn(step, batch, number)
        kept.append({name: value.clone() for name, value in step.student.state_dict().items()})
        return figures

    monkeypatch.setattr(StudentStep, "learn", noted)
    return kept


# --- the average of weights ---


def test_the_kept_student_is_the_average_of_all_steps(tmp_path: Path, history: list[dict[str, Tensor]]) -> None:
    run_recipe(recipe_for(tmp_path, {"method": "noise"}, **PLAIN, ema=0.5), tmp_path / "run")
    assert len(history) == 12
    expected = {name.removeprefix("network."): value for name, value in averages(history, 0.5)[-1].items()}
    kept = load_file(tmp_path / "run" / "student.safetensors")
    assert any(name.endswith("running_var") for name in kept)
    assert_close(kept, expected)
    last = {name.removeprefix("network."): value for name, value in history[-1].items()}
    assert any(not torch.equal(value, last[name]) for name, value in kept.items())


@pytest.mark.thorough
def test_agreement_compares_the_average_and_training_goes_on_from_the_student(
    tmp_path: Path, history: list[dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[dict[str, Tensor]] = []
    signals = validation.signals

    def noted(task: Any, teacher: nn.Module, student: nn.Module, source: Any) -> dict[str, float]:
        compared.append({name: value.clone() for name, value in student.state_dict().items()})
        return signals(task, teacher, student, source)

    monkeypatch.setattr(validation, "signals", noted)
    recipe = recipe_for(tmp_path, {"method": "dafl"}, **PLAIN, ema=0.5, select="agreement")
    outcome = run_recipe(recipe, tmp_path / "run")
    steps = [5, 10, 12]
    for step, found in zip(steps, compared, strict=True):
        assert_close(found, averages(history, 0.5)[step - 1])
    kept = load_file(tmp_path / "run" / "student.safetensors")
    chosen = compared[steps.index(outcome.chosen.step)]
    assert all(torch.equal(value, chosen[f"network.{name}"]) for name, value in kept.items())
    with_average = [dict(weights) for weights in history]
    history.clear()
    run_recipe(recipe_for(tmp_path, {"method": "dafl"}, **PLAIN, select="agreement"), tmp_path / "without")
    assert_same(with_average, history)  # the average changes nothing of what is learnt


def test_looking_at_the_average_leaves_the_student_to_the_bit() -> None:
    student = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    average = WeightAverage(momentum=0.9)
    with average.shown_by(student):  # nothing yet
        pass
    average.update(student, 0)
    nn.init.normal_(student[0].weight)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with average.shown_by(student):
        assert not torch.equal(student[0].weight, before["0.weight"])
    assert_same(dict(student.state_dict()), before)


@pytest.mark.thorough
def test_with_all_of_them_a_resumed_run_is_the_same_to_the_bit(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, {"method": "dafl"}, **ALL)
    run_recipe(recipe, tmp_path / "straight")
    for stop in (5, 6):
        with pytest.raises(Interrupted):
            run_recipe(recipe, tmp_path / "stopped", stop=stop_after(stop))
    run_recipe(recipe, tmp_path / "stopped")
    assert_same(everything(tmp_path / "stopped"), everything(tmp_path / "straight"))
    assert torch.load(tmp_path / "stopped" / "state" / "state.pt", weights_only=True)["average"]


def test_without_an_average_states_are_as_they_were(tmp_path: Path) -> None:
    run_recipe(recipe_for(tmp_path, {"method": "noise"}, **PLAIN, steps=2), tmp_path / "run")
    assert "average" not in torch.load(tmp_path / "run" / "state" / "state.pt", weights_only=True)


# --- the rate ---


@pytest.mark.parametrize("schedule", ["cosine", "step", "none"])
def test_the_rate_rises_in_proportion_to_its_schedules(schedule: Any) -> None:
    plain = Training(steps=30, lr=0.2, lr_schedule=schedule)
    warm = Training(steps=30, lr=0.2, lr_schedule=schedule, lr_warmup=4)
    shares = [0.25, 0.5, 0.75, 1.0, 1.0]
    assert [warm.lr_at(step) for step in range(5)] == pytest.approx(
        [share * plain.lr_at(step) for step, share in enumerate(shares)]
    )
    assert [warm.lr_at(step) for step in range(4, 30)] == [plain.lr_at(step) for step in range(4, 30)]
    if schedule == "cosine":
        assert warm.lr_at(2) == pytest.approx(0.75 * 0.1 * (1 + math.cos(math.pi * 2 / 30)))


# --- mixtures ---


def test_cutmix_puts_a_box_of_another_image_at_its_place() -> None:
    modes.seed_everything(0)
    height, width, count = 20, 30, 400
    place = torch.arange(height * width).reshape(1, 1, height, width) / 1000
    images = torch.arange(count).float().reshape(-1, 1, 1, 1).expand(-1, 3, -1, -1) + place
    mixed, whole = augment.cutmix(images, 0.75)
    assert len(whole) == 100
    assert torch.equal(mixed[whole], images[whole])
    chosen = sorted(set(range(count)) - set(whole.tolist()))
    assert torch.allclose(mixed - mixed.floor(), images - images.floor(), atol=1e-4)  # every pixel from the same place
    partners, shares, cut = [], [], 0
    for index in chosen:
        ids = mixed[index, 0].floor().int()
        assert torch.equal(mixed[index, 1], mixed[index, 0])
        others = set(ids.unique().tolist()) - {index}
        assert len(others) <= 1
        if not others:
            continue
        partners += others
        inside = ids != index
        rows, columns = inside.any(1).nonzero().flatten(), inside.any(0).nonzero().flatten()
        top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
        assert inside[top:bottom, left:right].all() and inside.sum() == (bottom - top) * (right - left)
        if top > 0 and left > 0 and bottom < height and right < width:  # nothing of it is beyond the edge
            assert abs((bottom - top) / height - (right - left) / width) <= 0.5 / height + 0.5 / width + 1e-6
        else:
            cut += 1
        shares.append(float(inside.float().mean()))
    assert len(partners) == len(set(partners)) > 280  # a permutation: none is the partner of two
    assert cut > 100
    # By a count of 100,000 boxes as the paper's equations have them.
    rng = np.random.default_rng(0)
    side, x, y = np.sqrt(rng.random(100_000)), rng.random(100_000), rng.random(100_000)
    area = np.prod([np.minimum(c + side / 2, 1) - np.maximum(c - side / 2, 0) for c in (x, y)], 0)
    assert np.mean(shares) * len(shares) / len(chosen) == pytest.approx(area.mean(), abs=0.03)


class Seen(nn.Module):
    """Answers by a mean of pixels, and keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.images = nn.Linear(3, 2), list[Tensor]()

    def forward(self, images: Tensor) -> Tensor:
        self.images.append(images.clone())
        answers: Tensor = self.layer(images.mean((2, 3)))
        return answers


def learnt(batch: Batch, training: Training) -> tuple[Seen, Seen, Tensor]:
    """Teacher, student and the loss of one step."""
    modes.seed_everything(0)
    teacher, student = Seen(), Seen()
    step = StudentStep(
        task=Classification(num_classes=2, image_size=(8, 8)),
        teacher=teacher,
        student=student,
        training=training,
        optimizer=training.make_optimizer(student),
        pairs={},
        watch=Watch(CPU),
        recovery=Recovery(),
    )
    step.watch.begin(0)
    return teacher, student, step.learn(batch, 0)["loss"]


def test_the_teacher_answers_the_mixture_that_the_student_sees() -> None:
    batch = Batch(images=torch.rand(8, 3, 8, 8))
    teacher, student, _ = learnt(batch, Training(cutmix=1.0, mixup=0.5, batch_size=8))
    (seen,) = student.images
    assert torch.equal(teacher.images[0], seen)
    assert (seen != batch.images).flatten(1).any(1).sum() >= 6


def test_labels_count_for_images_that_are_no_mixture_of_either_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[Tensor] = []
    target_loss = Classification.target_loss

    def noted(task: Classification, outputs: Tensor, targets: Tensor) -> Tensor:
        counted.append(targets)
        return target_loss(task, outputs, targets)

    monkeypatch.setattr(Classification, "target_loss", noted)
    images = torch.arange(1.0, 17.0).reshape(16, 1, 1, 1).expand(16, 3, 8, 8) / 20
    batch = Batch(images=images, targets=torch.arange(16) % 2)
    sizes = set()
    for cut, mix in itertools.product((0.0, 0.25, 0.5), (0.0, 0.5)):
        counted.clear()
        training = Training(cutmix=cut, mixup=mix, label_weight=1.0, batch_size=16)
        _, student, _ = learnt(batch, training)
        same = (student.images[0] == images).flatten(1).all(1)
        assert len(counted[0]) <= int(same.sum())
        sizes.add(len(counted[0]))
        if not (cut and mix):
            assert len(counted[0]) == round(16 * (1 - cut - mix))
    assert max(sizes) == 16 and min(sizes) <= 8


# --- borders ---


def test_a_mirrored_shift_is_a_crop_of_the_image_mirrored_at_its_edges() -> None:
    modes.seed_everything(0)
    images = torch.rand(1, 3, 7, 9).expand(40, -1, -1, -1)
    moved, move = augment.shift_and_flip(images, 3, "reflection")
    padded = np.pad(images[0].numpy(), ((0, 0), (3, 3), (3, 3)), mode="symmetric")
    crops = [torch.tensor(padded[:, y : y + 7, x : x + 9]) for y in range(7) for x in range(7)]
    possible = torch.stack([c for crop in crops for c in (crop, crop.flip(-1))])
    distance = (moved[:, None] - possible[None]).abs().amax((2, 3, 4))
    assert distance.min(1).values.max() < 1e-4
    assert len(set(distance.argmin(1).tolist())) > 15
    # Masks are mirrored with the pixels.
    classes = (images[:, 0] * 5).long()
    task = Segmentation(num_classes=5, image_size=(7, 9))
    of_pixels = (moved[:, 0] * 5 + 1e-4).long()
    assert (task.move_targets(classes, move) != of_pixels).float().mean() < 0.01  # pixels at the edge of two classes


def test_the_student_sees_no_black_border_where_it_is_mirrored() -> None:
    batch = Batch(images=torch.ones(32, 3, 8, 8))
    _, student, _ = learnt(batch, Training(shift=4, shift_padding="reflection", batch_size=32))
    assert student.images[0].min() > 0.999
    _, student, _ = learnt(batch, Training(shift=4, batch_size=32))
    assert student.images[0].min() == 0


# --- losses ---


LOGITS = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]]), torch.tensor([[2.0, 1.0, 0.0], [-1.0, 4.0, 0.0]])


def zscored(row: list[float], temperature: float) -> list[float]:
    """softmax of (z - mean) / deviation / T, the deviation with n - 1."""
    mean = sum(row) / len(row)
    deviation = math.sqrt(sum((z - mean) ** 2 for z in row) / (len(row) - 1))
    exps = [math.exp((z - mean) / deviation / temperature) for z in row]
    return [e / sum(exps) for e in exps]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_zscore_is_the_kl_of_standardised_logits(temperature: float) -> None:
    student, teacher = LOGITS
    rows = [
        sum(p * math.log(p / q) for p, q in zip(zscored(t, temperature), zscored(s, temperature), strict=True))
        for s, t in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    expected = temperature**2 * sum(rows) / 2
    classify = Classification(num_classes=3, image_size=(4, 4), distill="zscore", temperature=temperature)
    assert float(classify.distill_loss(student, teacher)) == pytest.approx(expected, rel=1e-5)
    assert float(classify.distill_loss(7 * student + 3, teacher / 5 - 1)) == pytest.approx(expected, rel=1e-5)
    segment = Segmentation(num_classes=3, image_size=(1, 2), distill="zscore", temperature=temperature)
    pixels = [logits.T[None, :, None] for logits in (student, teacher)]  # (1, 3, 1, 2)
    assert float(segment.distill_loss(*pixels)) == pytest.approx(expected, rel=1e-5)


def test_equal_logits_have_a_finite_gradient() -> None:
    student = torch.zeros(2, 3, requires_grad=True)
    losses.zscore_kl_loss(student, LOGITS[1]).backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None and student.grad.isfinite().all()


def test_mse_is_the_mean_squared_difference_of_logits() -> None:
    student, teacher = LOGITS
    expected = (1 + 1 + 36 + 1 + 16 + 9) / 6
    task = Classification(num_classes=3, image_size=(4, 4), distill="mse")
    assert float(task.distill_loss(student, teacher)) == pytest.approx(expected)
    pixels = [logits.T[None, :, None] for logits in (student, teacher)]
    segment = Segmentation(num_classes=3, image_size=(1, 2), distill="mse")
    assert float(segment.distill_loss(*pixels)) == pytest.approx(expected)
