"""Segmentation scores against torchmetrics; forms of answers."""

import math
from typing import Any

import pytest
import torch
import torchmetrics.classification as tm

from datafree.errors import DataError, NetworkError
from datafree.ops import augment, modes
from datafree.ops.augment import Move
from datafree.tasks.segmentation import Segmentation

C = 6


def make_task(**options: Any) -> Segmentation:
    return Segmentation(num_classes=C, image_size=(16, 24), **options)


@pytest.mark.parametrize("ignore_index", [255, 2, C, -1, -100])
@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_torchmetrics(ignore_index: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    metric = make_task(ignore_index=ignore_index).new_metric()
    iou_macro = tm.MulticlassJaccardIndex(C, ignore_index=ignore_index)
    iou_each = tm.MulticlassJaccardIndex(C, average="none", ignore_index=ignore_index)
    accuracy = tm.MulticlassAccuracy(C, average="micro", ignore_index=ignore_index)
    for _ in range(3):
        outputs = torch.randn(2, C, 16, 24, generator=generator)
        targets = torch.randint(0, C, (2, 16, 24), generator=generator)
        targets[torch.rand(2, 16, 24, generator=generator) < 0.2] = ignore_index
        metric.update(outputs, targets)
        for reference in (iou_macro, iou_each, accuracy):
            reference.update(outputs, targets)
    scores = metric.compute()
    each = iou_each.compute()
    assert scores.values["miou"] == pytest.approx(iou_macro.compute().item(), rel=1e-5)
    assert f"class {ignore_index}" not in scores.per_class["iou"]
    for c in range(C):
        if c != ignore_index:
            assert scores.per_class["iou"][f"class {c}"] == pytest.approx(each[c].item(), rel=1e-5)
    assert scores.values["pixel_accuracy"] == pytest.approx(accuracy.compute().item(), rel=1e-5)


def test_class_absent_from_targets_and_outputs_is_left_out_as_torchmetrics_does() -> None:
    outputs = torch.zeros(1, C, 2, 2)
    outputs[0, 0] = 1.0
    outputs[0, 1, 0, 0] = 2.0
    targets = torch.tensor([[[1, 0], [0, 1]]])
    metric = make_task().new_metric(["sky", "road", "c", "d", "e", "f"])
    metric.update(outputs, targets)
    scores = metric.compute()
    assert scores.per_class["iou"] == {"sky": pytest.approx(2 / 3), "road": pytest.approx(1 / 2)}
    reference = tm.MulticlassJaccardIndex(C)
    reference.update(outputs, targets)
    assert scores.values["miou"] == pytest.approx(reference.compute().item())


@pytest.mark.parametrize("ignore_index", [-1, -2, -100])
def test_an_ignored_id_below_0_is_that_of_no_class(ignore_index: int) -> None:
    outputs = torch.eye(2)[torch.tensor([[[0, 1, 1, 1]]])].movedim(-1, 1)  # four pixels are called 0, 1, 1, 1
    metric = Segmentation(num_classes=2, image_size=(1, 4), ignore_index=ignore_index).new_metric(["sky", "road"])
    metric.update(outputs, torch.tensor([[[0, 0, 1, ignore_index]]]))
    scores = metric.compute()
    assert scores.per_class == {"iou": {"sky": 0.5, "road": 0.5}}
    assert scores.values == {"miou": 0.5, "pixel_accuracy": pytest.approx(2 / 3)}
    unseen = Segmentation(num_classes=2, image_size=(1, 4), ignore_index=ignore_index).new_metric(["sky", "road"])
    unseen.update(outputs, torch.tensor([[[0, 0, 0, 0]]]))
    assert unseen.compute().remarks == ["the class 'road' counts as 0: predicted, but no labelled pixel is of it"]


def test_a_class_that_is_only_predicted_is_said_to_count_as_0_and_another_not_to_be_scored() -> None:
    targets = torch.tensor([[[0, 0, 1, 1]]])
    for named, said in (
        ([0, 0, 1, 2], ["the class 'c' counts as 0: predicted, but no labelled pixel is of it"]),
        ([0, 3, 1, 2], ["2 classes count as 0: predicted, but no labelled pixel is of them: 'c', 'd'"]),
    ):
        metric = make_task().new_metric(list("abcdef"))
        metric.update(torch.eye(C)[torch.tensor([[named]])].movedim(-1, 1), targets)
        scores = metric.compute()
        assert scores.per_class["iou"]["c"] == 0
        assert scores.remarks[1:] == said
        assert scores.remarks[0].startswith(f"{6 - len(set(named))} of 6 classes are not scored, no labelled pixel")


def test_an_ignored_class_that_is_predicted_is_not_said_to_count() -> None:
    metric = Segmentation(num_classes=3, image_size=(1, 4), ignore_index=2).new_metric()
    metric.update(torch.eye(3)[torch.tensor([[[0, 1, 2, 2]]])].movedim(-1, 1), torch.tensor([[[0, 1, 1, 2]]]))
    assert metric.compute().remarks == []


def test_zscore_of_two_classes_is_refused() -> None:
    with pytest.raises(DataError, match=r"^distill is \S*zscore\S* with num_classes 2: .*; set distill=kl$"):
        Segmentation(num_classes=2, image_size=(16, 24), distill="zscore")


def test_form_is_checked_apart_from_what_numbers_look_like() -> None:
    outputs = torch.randn(1, C, 16, 24).softmax(1)
    assert make_task().check_form(outputs, "network") is outputs
    with pytest.raises(NetworkError, match="8 x 12 pixels for images of 16 x 24"):
        make_task().check_form(outputs[..., :8, :12], "network")


def test_nothing_scored_is_an_error() -> None:
    metric = make_task().new_metric()
    metric.update(torch.zeros(1, C, 2, 2), torch.full((1, 2, 2), 255))
    with pytest.raises(DataError, match="255"):
        metric.compute()


def test_class_probs_are_pixels_whose_rows_sum_to_one() -> None:
    outputs = torch.randn(2, C, 3, 4)
    probs = make_task().class_probs(outputs)
    assert probs.shape == (2 * 3 * 4, C)
    assert torch.allclose(probs.sum(1), torch.ones(24))
    assert torch.allclose(probs[4 * 2 + 3], torch.softmax(outputs[0, :, 2, 3], 0))


def test_target_loss_ignores_the_ignored_class() -> None:
    outputs = torch.randn(1, C, 1, 2)
    targets = torch.tensor([[[3, 255]]])
    expected = -math.log(torch.softmax(outputs[0, :, 0, 0], 0)[3].item())
    assert make_task().target_loss(outputs, targets).item() == pytest.approx(expected, rel=1e-5)


def test_agreement_counts_pixels_of_the_same_class() -> None:
    a, b = torch.zeros(1, C, 2, 2), torch.zeros(1, C, 2, 2)
    a[0, 1], b[0, 1] = 1, 1
    b[0, 2, 0, 0] = 5
    assert make_task().agreement(a, b) == 0.75


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        ((torch.zeros(1, C, 16, 24),), "tuple"),
        (torch.zeros(2, C), r"\(2, 6\)"),
        (torch.zeros(2, C + 1, 16, 24), "task.num_classes=7"),
        (torch.zeros(2, C, 4, 6), "4 x 6"),
        (torch.full((2, C, 16, 24), math.nan), "not finite"),
        (torch.randn(2, C, 16, 24).softmax(1), "probabilities"),
    ],
)
def test_wrong_form_of_answers_is_named(outputs: object, said: str) -> None:
    with pytest.raises(NetworkError, match=said):
        make_task().check(outputs, "teacher")


@pytest.mark.parametrize("kind", ["logits", "log-probabilities", "positive"])
def test_logits_and_logarithms_of_probabilities_pass(kind: str) -> None:
    torch.manual_seed(0)
    outputs = torch.randn(2, C, 16, 24)
    outputs = {"logits": outputs, "log-probabilities": outputs.log_softmax(1), "positive": outputs.abs()}[kind]
    assert make_task().check(outputs, "teacher") is outputs


def test_probabilities_in_one_image_of_two_are_not_taken_for_an_answer_in_probabilities() -> None:
    outputs = torch.randn(2, C, 16, 24)
    outputs[0] = outputs[0].softmax(0)
    assert make_task().check(outputs, "teacher") is outputs


# Targets.


@pytest.mark.parametrize("ignore_index", [255, 2])
def test_sampled_masks_show_every_class_as_often_but_the_ignored_one(ignore_index: int) -> None:
    torch.manual_seed(0)
    masks = make_task(ignore_index=ignore_index).sample_targets(400, torch.device("cpu"))
    assert masks.shape == (400, 16, 24)
    assert masks.dtype == torch.int64
    shares = torch.bincount(masks.flatten(), minlength=C) / masks.numel()
    assert len(shares) == C
    wanted = [c for c in range(C) if c != ignore_index]
    assert shares[wanted].sum() == pytest.approx(1)
    # A class's share of an image has a deviation below 0.3, a mean over 400 one below 0.015.
    assert ((shares[wanted] - 1 / len(wanted)).abs() < 0.06).all()


def test_sampled_masks_are_smooth_regions_of_a_few_classes_never_twice_the_same() -> None:
    torch.manual_seed(0)
    task = Segmentation(num_classes=12, image_size=(64, 64))
    masks = task.sample_targets(32, torch.device("cpu"))
    seams = (masks[:, :, 1:] != masks[:, :, :-1]).float().mean() + (masks[:, 1:] != masks[:, :-1]).float().mean()
    assert seams < 0.15  # of independent pixels: 2 * 11 / 12
    counts = torch.tensor([len(mask.unique()) for mask in masks]).float()
    assert 2 < counts.mean() < 9
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) == 32


def test_sampled_masks_from_a_generator_are_fixed_and_leave_the_global_state_alone() -> None:
    before = torch.get_rng_state()
    first, again = (
        make_task().sample_targets(3, torch.device("cpu"), torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert torch.equal(first, again)
    assert torch.equal(before, torch.get_rng_state())
    assert make_task().sample_targets(0, torch.device("cpu")).shape == (0, 16, 24)


@pytest.mark.parametrize("size", [(16, 24), (17, 9), (65, 97)])
def test_masks_move_exactly_as_their_images_do(size: tuple[int, int]) -> None:
    modes.seed_everything(0)
    task = Segmentation(num_classes=C, image_size=size)
    masks = torch.randint(0, C, (12, *size))
    masks[:, :3, :3] = 255  # what is ignored moves along
    images = masks[:, None].float() / 255
    for _ in range(6):
        for moved, move in (augment.roll_and_flip(images, 7), augment.shift_and_flip(images, 4, task.padding_mode)):
            found = task.move_targets(masks, move)
            assert found.dtype == torch.int64
            assert torch.equal(found, (moved[:, 0] * 255).round().long())


def test_masks_are_rolled_first_and_resampled_then() -> None:
    mask = torch.arange(6).view(1, 1, 6).repeat(1, 4, 1)
    task = Segmentation(num_classes=C, image_size=(4, 6))
    assert task.move_targets(mask, Move(right=1))[0, 0].tolist() == [5, 0, 1, 2, 3, 4]
    half = Move(right=1, scale=torch.tensor([[0.5, 0.5]]), offset=torch.tensor([[-0.5, 0.0]]))  # the left half, larger
    assert task.move_targets(mask, half)[0, 0].tolist() == [5, 5, 0, 0, 1, 1]


@pytest.mark.parametrize("ignore_index", [255, 1])
def test_layout_is_a_one_in_the_class_of_each_pixel_and_none_where_it_is_ignored(ignore_index: int) -> None:
    mask = torch.tensor([[[0, 5], [ignore_index, 3]]])
    layout = make_task(ignore_index=ignore_index).class_maps(mask)
    assert layout.shape == (1, C, 2, 2)
    assert layout.dtype == torch.float32
    assert layout[0, :, 0, 0].tolist() == [1, 0, 0, 0, 0, 0]
    assert layout[0, :, 0, 1].tolist() == [0, 0, 0, 0, 0, 1]
    assert layout[0, :, 1, 0].tolist() == [0] * C
    assert layout[0, :, 1, 1].tolist() == [0, 0, 0, 1, 0, 0]


def test_drawing_gives_each_class_its_own_colour() -> None:
    outputs = torch.eye(C)[None, :, :, None]  # pixel i is class i
    picture = make_task().draw_outputs(torch.zeros(1, 3, C, 1), outputs)
    assert picture.shape == (1, 3, C, 1)
    assert len({tuple(c.tolist()) for c in picture[0, :, :, 0].T}) == C
