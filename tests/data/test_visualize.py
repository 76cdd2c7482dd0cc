"""Boxes drawn into images: where they are, in the colour of their class, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from datafree.data.visualize import class_colours, draw_boxes, draw_labels, draw_masks
from datafree.engine import validation
from datafree.sources.base import SourceContext
from datafree.sources.inversion import Inversion
from datafree.sources.noise import Noise
from datafree.tasks.classification import Classification
from datafree.tasks.detection import Detection
from datafree.tasks.segmentation import Segmentation

GREY = 0.5


def drawn(*rows: tuple[float, ...], size: tuple[int, int] = (64, 96), classes: int = 12) -> Tensor:
    """(3, H, W): the boxes drawn into a grey image."""
    images = torch.full((1, 3, *size), GREY)
    pictures = draw_boxes(images, torch.tensor([rows], dtype=torch.float32).reshape(1, -1, 5), classes)
    assert pictures.shape == images.shape and pictures.min() >= 0 and pictures.max() <= 1
    return pictures[0]


def changed(picture: Tensor) -> Tensor:
    """(H, W) bool: pixels that are not the grey image's."""
    return (picture - GREY).abs().amax(0) > 0.01


def test_a_box_is_an_outline_in_its_class_colour_with_an_edge_and_the_rest_is_left() -> None:
    picture = drawn((3, 10, 20, 50, 44))
    colour = class_colours(12)[3]
    for y, x in ((20, 45), (43, 45), (35, 10), (35, 49)):  # the outermost pixels inside the box
        torch.testing.assert_close(picture[:, y, x], colour, atol=1 / 255, rtol=0)
    for y, x in ((19, 45), (44, 45), (35, 9), (35, 50)):  # the edge around it
        assert picture[:, y, x].tolist() in ([0, 0, 0], [1, 1, 1])
    touched = changed(picture)
    assert touched.any(0).nonzero().flatten()[[0, -1]].tolist() == [9, 50]
    assert touched.any(1).nonzero().flatten()[[0, -1]].tolist() == [19, 44]
    assert not touched[32:43, 25:49].any()  # inside, right of the id and below it


def test_class_0_is_brighter_than_its_colour_in_masks() -> None:
    assert drawn((0, 10, 20, 50, 44))[:, 35, 10].min() > 0.85 > class_colours(12)[0].max()


def test_ids_are_written_where_there_is_room() -> None:
    small = changed(drawn((3, 10, 20, 22, 32)))
    assert not small[21:31, 11:21].any()
    one, other = drawn((3, 10, 20, 50, 44)), drawn((8, 10, 20, 50, 44))
    assert changed(one)[21:28, 11:16].all()  # a plate
    plates = [(picture[:, 20:29, 10:17] - picture[:, 20:21, 10:11]).abs().amax(0) > 0.2 for picture in (one, other)]
    assert plates[0].any() and not torch.equal(*plates)  # with different ids on it


def test_small_boxes_lie_over_large_ones_whatever_their_order() -> None:
    rows = ((5, 0, 0, 96, 64), (2, 60, 0, 70, 10))
    assert torch.equal(drawn(*rows), drawn(*rows[::-1]))
    torch.testing.assert_close(drawn(*rows)[:, 0, 65], class_colours(12)[2], atol=1 / 255, rtol=0)


def test_lines_grow_with_the_image() -> None:
    def thickness(side: int) -> int:
        column = drawn((3, 0.25 * side, 0.25 * side, 0.75 * side, 0.75 * side), size=(side, side))[:, :, side * 5 // 8]
        fits = (column - class_colours(12)[3][:, None]).abs().amax(0) < 0.01
        return int(fits[: side // 2].sum())

    assert [thickness(side) for side in (64, 160, 320, 640)] == [1, 1, 2, 4]


@pytest.mark.parametrize(
    "row", [(-1, 0, 0, 0, 0), (-4, 10, 10, 40, 40), (3, 10, 10, 10.2, 40), (3, float("nan"), 0, 9, 9)]
)
def test_what_is_no_box_is_not_drawn(row: tuple[float, ...]) -> None:
    assert not changed(drawn(row)).any()


def test_boxes_may_reach_beyond_the_image_and_be_tiny() -> None:
    picture = drawn((3, -5, -5, 200, 300), (1, 30.4, 30.4, 31.6, 31.6))
    assert changed(picture)[30, 30]


def test_the_images_are_not_touched_and_keep_their_place_in_the_batch() -> None:
    images = torch.rand(3, 3, 64, 64, requires_grad=True)
    before = images.detach().clone()
    targets = torch.zeros(3, 1, 5)
    targets[:, 0, 0] = -1
    targets[1, 0] = torch.tensor([1.0, 8, 8, 40, 40])
    pictures = draw_boxes(images, targets, 3)
    assert torch.equal(images.detach(), before) and not pictures.requires_grad
    assert [bool(((pictures[i] - before[i]).abs() > 0.003).any()) for i in range(3)] == [False, True, False]


# Targets of every task.


def test_every_tasks_targets_are_drawn_in_its_way() -> None:
    images = torch.full((2, 3, 64, 96), GREY)
    boxes = torch.tensor([[[3, 10, 20, 50, 44], [-1, 0, 0, 0, 0]], [[1, 2, 2, 90, 60], [2, 5, 5, 20, 20]]]).float()
    drawn = Detection(num_classes=12, image_size=(64, 96)).draw_targets(images, boxes)
    assert torch.equal(drawn, draw_boxes(images, boxes, 12))
    masks = torch.zeros(2, 64, 96, dtype=torch.int64)
    masks[0, 10:], masks[1, :, 50:] = 4, 255  # 255 is of no class
    drawn = Segmentation(num_classes=12, image_size=(64, 96)).draw_targets(images, masks)
    assert torch.equal(drawn, draw_masks(masks, 12))
    for index, y, x, colour in ((0, 5, 5, class_colours(12)[0]), (0, 30, 5, class_colours(12)[4]), (1, 5, 60, None)):
        assert torch.equal(drawn[index, :, y, x], torch.zeros(3) if colour is None else colour)
    labels = torch.tensor([3, 11])
    drawn = Classification(num_classes=12, image_size=(64, 96)).draw_targets(images, labels)
    assert drawn.shape == images.shape and torch.equal(drawn, draw_labels(images, labels, 12))
    for picture, label in zip(drawn, (3, 11), strict=True):
        torch.testing.assert_close(picture[:, 0, 0], class_colours(12)[label], atol=1 / 255, rtol=0)
        assert (
            changed(picture)[:10, :14].any() and not changed(picture)[14:].any() and not changed(picture)[:, 20:].any()
        )
    assert torch.equal(images, torch.full_like(images, GREY))


def test_held_out_images_stand_over_what_they_were_meant_to_show_where_that_is_known() -> None:
    torch.manual_seed(0)
    task = Classification(num_classes=4, image_size=(24, 32))
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network.eval().requires_grad_(False)
    for source, known in ((Inversion(iterations=1, batch_size=32), True), (Noise(), False)):
        source.attach(SourceContext(task=task, teacher=network, steps=1, batch_size=4))
        source.update(network, -1)
        images, targets = source.validation_images(8), source.validation_targets(8)
        for trained in (False, True):
            before = torch.get_rng_state()
            shown = validation.picture(task, network, network, source, trained=trained)
            assert torch.equal(torch.get_rng_state(), before)
            assert shown is not None and shown.shape[1] == 26 * (2 + known + trained) + 4
            assert torch.equal(shown[:, 2:26, 2:34], images[0].float())
            second = task.draw_outputs(images, network(images)) if targets is None else draw_labels(images, targets, 4)
            assert torch.equal(shown[:, 28:52, 2:34], second[0])
