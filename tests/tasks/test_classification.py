"""Forms of answers, targets and pictures of classification; scores against torchmetrics."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torchmetrics.classification as tm
from torch import Tensor

from datafree.data.visualize import class_colours
from datafree.errors import DataError, NetworkError
from datafree.ops import augment, losses
from datafree.tasks.base import synthetic_batch
from datafree.tasks.classification import Classification

C = 7
CPU = torch.device("cpu")


def make_task(num_classes: int = C, size: tuple[int, int] = (32, 40), **options: Any) -> Classification:
    return Classification(num_classes=num_classes, image_size=size, **options)


# Targets.


@pytest.mark.parametrize("n", [1, 3, C, C + 1, 50, 128])
def test_targets_hold_every_class_as_often_as_any_other(n: int) -> None:
    targets = make_task().sample_targets(n, CPU)
    assert (targets.shape, targets.dtype) == ((n,), torch.int64)
    counts = torch.bincount(targets, minlength=C)
    assert len(counts) == C
    assert counts.max() - counts.min() <= 1


def test_small_batches_favour_no_class() -> None:
    torch.manual_seed(0)
    counts = torch.bincount(torch.cat([make_task().sample_targets(3, CPU) for _ in range(1400)]), minlength=C)
    assert ((counts - 600).abs() < 120).all()  # 600 +- 5 deviations


def test_targets_from_a_generator_are_fixed_and_leave_the_global_state_alone() -> None:
    before = torch.get_rng_state()
    first, again = (make_task().sample_targets(20, CPU, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(first, make_task().sample_targets(20, CPU, torch.Generator().manual_seed(4)))


def test_no_targets_are_no_targets() -> None:
    assert make_task().sample_targets(0, CPU).shape == (0,)


def test_layout_is_a_single_cell_with_a_one_at_the_class() -> None:
    layout = make_task().class_maps(torch.tensor([2, 0]))
    assert layout.shape == (2, C, 1, 1)
    assert layout.dtype == torch.float32
    assert layout.flatten(1).tolist() == [[0, 0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0]]


def test_labels_stay_as_they_are_however_pixels_move() -> None:
    labels = torch.tensor([2, 0, 1])
    for change in (augment.roll_and_flip, augment.shift_and_flip):
        _, move = change(torch.rand(3, 3, 32, 40), 5)
        assert make_task().move_targets(labels, move) is labels


# Losses.


def test_losses_are_hintons_kl_the_mean_difference_and_cross_entropy() -> None:
    torch.manual_seed(0)
    student, teacher, targets = torch.randn(5, C), torch.randn(5, C), torch.tensor([0, 1, 2, 3, 6])
    p, q = (torch.softmax(x / 4, 1) for x in (teacher, student))
    kl = 16 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(make_task(temperature=4.0).distill_loss(student, teacher), kl)
    torch.testing.assert_close(make_task(distill="l1").distill_loss(student, teacher), (student - teacher).abs().mean())
    expected = -torch.softmax(student, 1)[range(5), targets].log().mean()
    torch.testing.assert_close(make_task().target_loss(student, targets), expected)


def test_zscore_of_two_classes_is_refused_since_its_gradient_is_zero() -> None:
    student = torch.tensor([[0.3, -2.0], [4.0, 1.0]], dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(losses.standardised(student)[0].abs(), torch.full((2,), 0.5).sqrt())  # whatever it says
    losses.zscore_kl_loss(student, torch.tensor([[9.0, 1.0], [1.0, 9.0]])).backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None and student.grad.abs().max() < 1e-6
    with pytest.raises(DataError, match=r"^distill is \S*zscore\S* with num_classes 2: .*; set distill=kl$") as caught:
        make_task(2, distill="zscore")
    assert caught.value.exit_code == 2
    assert make_task(2).distill == "kl" and make_task(3, distill="zscore").num_classes == 3


# What a network may answer.


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        ((torch.zeros(2, C),), "answers with a tuple"),
        ({"logits": torch.zeros(2, C)}, "answers with a dict"),
        (None, "answers with a NoneType"),
        (torch.randn(2, C + 1), rf"{C + 1} classes, but the task has {C}; set task\.num_classes={C + 1}"),
        (torch.randn(2, C - 1), f"{C - 1} classes"),
        (torch.randn(C), r"\(7,\)"),
        (torch.randn(2, C, 8, 8), r"\(2, 7, 8, 8\)"),
        (torch.randn(2, C, 1, 1), r"\(2, 7, 1, 1\); flatten it"),
        (torch.randn(2, C).softmax(1), "probabilities .* take its last softmax off"),
        (torch.randn(2, C).softmax(1).bfloat16().float(), "probabilities"),
        (torch.eye(C)[:2], "probabilities"),
        (torch.tensor([[0.0] * (C - 1) + [math.nan]]), "not finite"),
        (torch.tensor([[0.0] * (C - 1) + [math.inf]]), "not finite"),
    ],
)
def test_an_answer_of_another_form_is_named_on_one_line(outputs: object, said: str) -> None:
    with pytest.raises(NetworkError, match=said) as caught:
        make_task().check(outputs, "teacher some/net")
    assert str(caught.value).startswith("the teacher some/net answers ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "outputs",
    [
        torch.randn(2, C, generator=torch.Generator().manual_seed(0)),
        torch.randn(2, C, generator=torch.Generator().manual_seed(0)).log_softmax(1),
        torch.rand(2, C, generator=torch.Generator().manual_seed(0)),  # none below 0, but the sums are not 1
        torch.zeros(2, C),
    ],
    ids=["logits", "log-probabilities", "positive", "zero"],
)
def test_logits_and_logarithms_of_probabilities_pass(outputs: Tensor) -> None:
    assert make_task().check(outputs, "teacher") is outputs


@pytest.mark.parametrize(
    "outputs", [torch.tensor([[0.3, 0.701, 0.0]]), torch.tensor([[0.6, -0.8, 0.0]])], ids=["sum 1", "length 1"]
)
def test_the_form_of_a_row_is_right_whatever_its_numbers_look_like(outputs: Tensor) -> None:
    task = make_task(3)
    with pytest.raises(NetworkError, match=r"probabilities|length 1"):
        task.check(outputs, "network")
    assert task.check_form(outputs, "network") is outputs


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        (torch.eye(3), "3 classes"),
        (torch.tensor([[0.5, math.nan]]), "not finite"),
        (torch.zeros(1, 2, 1, 1), "flatten it"),
        ((torch.zeros(1, 2),), "tuple"),
    ],
)
def test_another_form_or_what_is_not_finite_is_refused_as_by_check(outputs: Any, said: str) -> None:
    for look in (make_task(2).check, make_task(2).check_form):
        with pytest.raises(NetworkError, match=said):
            look(outputs, "network")


@pytest.mark.parametrize("size", [(8, 8), (1, 1), (6, 9)])
def test_a_first_look_is_at_two_images_that_are_not_alike(size: tuple[int, int]) -> None:
    first, second = synthetic_batch(size, CPU)
    assert first.shape == second.shape == (3, *size)
    assert min(first.min(), second.min()) >= 0 and max(first.max(), second.max()) <= 1
    assert (first.mean() - second.mean()).abs() > 0.2  # a network that averages sees two images, too


def test_logits_that_look_like_probabilities_on_one_image_are_told_from_such_by_the_other() -> None:
    def answer(images: Tensor) -> Tensor:  # (0.3, 0.701) where the mean is 0.5, as of the first
        level = images.mean((1, 2, 3))
        return torch.stack([level - 0.2, 0.201 + level], 1)

    outputs = answer(synthetic_batch((8, 8), CPU))
    torch.testing.assert_close(outputs[0], torch.tensor([0.3, 0.701]))
    assert make_task(2).check(outputs, "teacher") is outputs
    with pytest.raises(NetworkError, match="probabilities"):
        make_task(2).check(outputs.softmax(1), "teacher")


# Scores.


def test_scores_equal_torchmetrics() -> None:
    torch.manual_seed(0)
    metric = make_task().new_metric()
    top1 = tm.MulticlassAccuracy(C, average="micro")
    top5 = tm.MulticlassAccuracy(C, average="micro", top_k=5)
    each = tm.MulticlassAccuracy(C, average="none")
    for count in (32, 5, 1):
        outputs, targets = torch.randn(count, C), torch.randint(0, C, (count,))
        outputs[torch.arange(count), targets] += 1
        metric.update(outputs, targets)
        for reference in (top1, top5, each):
            reference.update(outputs, targets)
    scores = metric.compute()
    assert list(scores.values) == ["top1", "top5"]
    assert scores.values["top1"] == pytest.approx(top1.compute().item())
    assert scores.values["top5"] == pytest.approx(top5.compute().item())
    expected = {f"class {c}": pytest.approx(value.item()) for c, value in enumerate(each.compute())}
    assert scores.per_class == {"accuracy": expected}


@pytest.mark.parametrize(("classes", "figures"), [(5, ["top1"]), (6, ["top1", "top5"])])
def test_top5_is_given_where_it_says_something(classes: int, figures: list[str]) -> None:
    metric = make_task(classes).new_metric()
    metric.update(torch.eye(classes), torch.arange(classes))
    assert list(metric.compute().values) == figures


def test_a_class_of_which_nothing_was_seen_has_no_accuracy_of_its_own() -> None:
    metric = make_task(3).new_metric(["cat", "dog", "owl"])
    metric.update(torch.eye(3)[[0, 1, 0]], torch.tensor([0, 0, 0]))
    scores = metric.compute()
    assert scores.values == {"top1": pytest.approx(2 / 3)}
    assert scores.per_class == {"accuracy": {"cat": pytest.approx(2 / 3)}}


def test_nothing_scored_is_an_error() -> None:
    with pytest.raises(DataError, match="no labelled image was scored"):
        make_task().new_metric().compute()


def test_agreement_counts_images_of_the_same_class() -> None:
    assert make_task(3).agreement(torch.eye(3)[[0, 1, 2, 0]], 9 * torch.eye(3)[[0, 1, 0, 0]]) == 0.75


# Pictures.


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (32, 40), (96, 64)])
@pytest.mark.parametrize("classes", [2, 1000])
def test_tiles_are_pictures_of_the_images_size_in_the_classes_colours(size: tuple[int, int], classes: int) -> None:
    labels = [0, 1, classes - 1]
    outputs = 20 * torch.nn.functional.one_hot(torch.tensor(labels), classes).float()
    tiles = make_task(classes, size).draw_outputs(torch.rand(3, 3, *size), outputs)
    assert tiles.shape == (3, 3, *size)
    assert tiles.min() >= 0
    assert tiles.max() <= 1
    for tile, label in zip(tiles, labels, strict=True):
        corner = tile[:, -1, -1]  # no ink there
        assert (corner - class_colours(classes)[label]).abs().max() < 1 / 255
        assert not torch.equal(tile, corner[:, None, None].expand_as(tile))  # and ink somewhere


def test_a_tile_shows_how_sure_the_answer_is() -> None:
    sure, unsure = make_task(3).draw_outputs(torch.rand(2, 3, 32, 40), torch.tensor([[9.0, 0, 0], [1.0, 0, 0]]))
    assert not torch.equal(sure, unsure)
