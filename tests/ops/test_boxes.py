"""Boxes against torchvision, against pictures of themselves that move, and against loops over images."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_iou, generalized_box_iou_loss

from datafree.ops import augment, boxes, detections, modes
from datafree.ops.augment import Move
from datafree.ops.boxes import NONE
from datafree.ops.detections import Detections

EMPTY = [NONE, 0, 0, 0, 0]


def rows(*images: list[list[float]]) -> Tensor:
    return torch.tensor(images, dtype=torch.float32)


def at_random(count: int, number: int, size: tuple[int, int], seed: int, *, classes: int = 3) -> Tensor:
    """(B, M, 5) with boxes anywhere, a quarter of the rows empty."""
    torch.manual_seed(seed)
    height, width = size
    ends = torch.rand(count, number, 2, 2) * torch.tensor([width, height])
    low, high = ends.amin(2), ends.amax(2)
    targets = torch.cat([torch.randint(classes, (count, number, 1)), low, high], -1)
    return boxes.emptied(targets, torch.rand(count, number) < 0.25)


def found_at_random(count: int, most: int, size: tuple[int, int], seed: int) -> list[Detections]:
    torch.manual_seed(seed)
    found = []
    for _ in range(count):
        n = int(torch.randint(most + 1, ()))
        ends = torch.rand(n, 2, 2) * torch.tensor([size[1], size[0]])
        scores = torch.rand(n).sort(descending=True).values
        found.append(
            Detections(
                labels=torch.randint(3, (n,)),
                boxes=torch.cat([ends.amin(1), ends.amax(1)], 1),
                scores=scores,
                places=torch.zeros(n, dtype=torch.int64),
            )
        )
    return found


# One tensor for all.


def test_what_is_packed_comes_out_again_and_what_is_too_much_does_not() -> None:
    images = [
        (torch.tensor([4, 0]), torch.tensor([[1.0, 2, 5, 9], [0, 0, 3, 3]])),
        (torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4)),
        (torch.tensor([1, 2, 3, 1]), torch.tensor([[0.0, 0, 4, 4]] * 4)),
    ]
    packed = boxes.pack(images, 3)
    assert packed.shape == (3, 3, 5)
    assert packed.dtype == torch.float32
    assert packed[0].tolist() == [[4, 1, 2, 5, 9], [0, 0, 0, 3, 3], EMPTY]
    assert packed[1].tolist() == [EMPTY] * 3
    for (labels, held), (first_labels, first) in zip(boxes.unpack(packed), images, strict=True):
        assert labels.dtype == torch.int64
        assert torch.equal(labels, first_labels[:3])
        assert torch.equal(held, first[:3])
    assert boxes.pack([], 3).shape == (0, 3, 5)
    assert boxes.unpack(boxes.pack([], 3)) == []


def test_only_boxes_that_a_detector_can_learn_from_are_unpacked_in_their_order() -> None:
    targets = rows(
        [
            EMPTY,
            [2, 0, 0, 9, 9],
            [-2, 0, 0, 9, 9],  # a crowd
            [1, 3, 3, 3.5, 9],  # narrow
            [1, 9, 3, 5, 9],  # the wrong way round
            [0, 1, 1, 2, 2],
            [1, 0, math.nan, 9, 9],
            [1, 0, 0, math.inf, 9],
        ]
    )
    ((labels, held),) = boxes.unpack(targets)
    assert labels.tolist() == [2, 0]
    assert held.tolist() == [[0, 0, 9, 9], [1, 1, 2, 2]]


def test_boxes_are_cut_to_the_image_and_what_is_nothing_then_is_dropped() -> None:
    targets = rows(
        [
            [1, -5, -5, 100, 100],
            [1, 3, 4, 8, 9],
            [1, 29.5, 0, 40, 9],  # half a pixel of it is left
            [1, -9, 0, -2, 9],
            [1, math.nan, 0, 5, 9],
            [-3, 10, 5, 99, 9],  # a crowd stays one
            [NONE, 7, 7, 9, 9],
        ]
    )
    cut = boxes.clip(targets, (20, 30))
    assert cut[0].tolist() == [
        [1, 0, 0, 30, 20],
        [1, 3, 4, 8, 9],
        EMPTY,
        EMPTY,
        EMPTY,
        [-3, 10, 5, 30, 9],
        EMPTY,
    ]


@pytest.mark.parametrize("seed", range(3))
def test_overlaps_are_those_of_torchvision_and_none_with_empty_rows(seed: int) -> None:
    ours, theirs = at_random(4, 6, (40, 60), seed), at_random(4, 5, (40, 60), seed + 10)
    found = boxes.overlaps(ours, theirs)
    assert found.shape == (4, 6, 5)
    for image in range(4):
        expected = box_iou(ours[image, :, 1:], theirs[image, :, 1:]).nan_to_num()
        expected[~boxes.present(ours)[image]] = 0
        expected[:, ~boxes.present(theirs)[image]] = 0
        torch.testing.assert_close(found[image], expected)


# Moves.

Change = Callable[[Tensor], tuple[Tensor, Move]]


def extent(picture: Tensor) -> list[int] | None:
    """(left, top, right, bottom) of what is lit."""
    y, x = (picture > 0.5).nonzero(as_tuple=True)
    return [int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1] if len(x) else None


@pytest.mark.parametrize(
    ("change", "margin", "tolerance"),
    [
        (lambda images: augment.roll_and_flip(images, 4), 4, 1e-3),
        (lambda images: augment.shift_and_flip(images, 9), 0, 1e-3),
        (lambda images: augment.scale_crop(images, 0.5, 2.0), 0, 1.0),
    ],
    ids=["roll_and_flip", "shift_and_flip", "scale_crop"],
)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_box_covers_just_what_the_moved_picture_of_it_covers(
    change: Change, margin: int, tolerance: float, data: st.DataObject
) -> None:
    height, width = data.draw(st.integers(20, 40)), data.draw(st.integers(20, 40))
    edges = []
    for length in (width, height):
        low = data.draw(st.integers(margin, length - margin - 4))
        edges.append((low, data.draw(st.integers(low + 4, length - margin))))
    (left, right), (top, bottom) = edges
    picture = torch.zeros(2, 1, height, width)
    picture[:, :, top:bottom, left:right] = 1
    modes.seed_everything(data.draw(st.integers(0, 10_000)))
    pictures, move = change(picture)
    target = rows([[7, left, top, right, bottom]], [[7, left, top, right, bottom]])
    for moved, ((label, *box),) in zip(pictures, boxes.moved(target, move, (height, width)).tolist(), strict=True):
        seen = extent(moved[0])
        if seen is None or label == NONE:  # gone, or so thin that it falls between pixels
            assert seen is None or min(seen[2] - seen[0], seen[3] - seen[1]) <= 1 + tolerance
            assert label == NONE or min(box[2] - box[0], box[3] - box[1]) <= 1 + tolerance
        else:
            assert label == 7
            assert box == pytest.approx(seen, abs=tolerance)


def test_boxes_leave_with_a_roll_and_do_not_come_in_on_the_other_side() -> None:
    targets = rows([[1, 0, 0, 6, 6], [2, 20, 10, 30, 20], [3, 27, 0, 30, 5], EMPTY])
    moved = boxes.moved(targets, Move(right=5, down=-4), (20, 30))
    assert moved[0].tolist() == [[1, 5, 0, 11, 2], [2, 25, 6, 30, 16], EMPTY, EMPTY]


def test_what_has_left_by_a_roll_stays_away_when_the_picture_shrinks() -> None:
    move = Move(right=10, scale=torch.full((1, 2), 2.0), offset=torch.zeros(1, 2))  # to half, in the middle
    moved = boxes.moved(rows([[0, 0, 0, 30, 20]]), move, (20, 30))
    assert moved[0, 0].tolist() == pytest.approx([0, 7.5 + 5, 5, 22.5, 15])


def test_a_mirror_keeps_left_left_of_right() -> None:
    move = Move(scale=torch.tensor([[-1.0, 1.0]]), offset=torch.zeros(1, 2))
    moved = boxes.moved(rows([[0, 3, 4, 10, 12], EMPTY]), move, (20, 30))
    assert moved[0, 0].tolist() == pytest.approx([0, 20, 4, 27, 12], abs=1e-4)
    assert moved[0, 1].tolist() == EMPTY


def test_no_move_turns_a_broken_box_into_a_box() -> None:
    broken = rows([[0, 10, 4, 3, 12], [1, 3, 12, 10, 4], [2, float("nan"), 0, 9, 9], [-3, 0, 0, 9, 9]])
    mirror = Move(scale=torch.tensor([[-1.0, -1.0]]), offset=torch.zeros(1, 2))
    for move in (Move(), Move(right=2, down=1), mirror):
        moved = boxes.moved(broken, move, (20, 30))
        assert moved[0, :3].tolist() == [EMPTY] * 3
        assert moved[0, 3, 0] == -3  # a crowd is none to learn, and stays known as one


# Mosaics.


@pytest.mark.parametrize("size", [(32, 48), (33, 45)])
def test_boxes_of_a_mosaic_cover_what_its_pictures_cover(size: tuple[int, int]) -> None:
    height, width = size
    places = [(4, 8, 20, 28), (0, 2, width, 12), (10, 0, 40, height), (24, 16, 44, 30)]
    pictures = torch.zeros(4, 1, height, width)
    for image, (left, top, right, bottom) in enumerate(places):
        pictures[image, :, top:bottom, left:right] = 1
    targets = rows(*([[image, *place]] for image, place in enumerate(places)))
    targets = torch.cat([targets, boxes.emptied(targets, torch.ones(4, 1, dtype=torch.bool)).expand(-1, 4, -1)], 1)
    order = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]])
    made, held = augment.mosaic(pictures, order), boxes.mosaic(targets, order, size)
    assert held.shape == (2, 5, 5)
    middle = (height + 1) // 2, (width + 1) // 2
    for four, picture, (labels, found) in zip(order.tolist(), made, boxes.unpack(held), strict=True):
        assert sorted(labels.tolist()) == [0, 1, 2, 3]
        for tile, image in enumerate(four):
            alone = torch.zeros(height, width)
            down, across = (
                slice(at) if first else slice(at, None)
                for at, first in zip(middle, (tile < 2, tile % 2 == 0), strict=True)
            )
            alone[down, across] = picture[0, down, across]
            assert found[labels.tolist().index(image)].tolist() == pytest.approx(extent(alone), abs=1)


def test_where_boxes_of_a_mosaic_are_too_many_the_largest_stay() -> None:
    sides = torch.tensor([[9.0, 3], [5, 7], [11, 20], [1.5, 13]])  # in pixels of whole images; 1.5 is nothing in half
    corner = torch.zeros(4, 2, 2)
    targets = torch.cat([torch.arange(8.0).view(4, 2, 1), corner, sides[..., None].expand(-1, -1, 2)], -1)
    held = boxes.mosaic(targets, torch.tensor([[0, 1, 2, 3]]), (40, 40))
    assert held[0].tolist() == [[5, 0, 20, 10, 30], [7, 20, 20, 26.5, 26.5]]
    few = boxes.mosaic(boxes.emptied(targets, targets[..., 0] > 1), torch.tensor([[2, 3, 1, 0]]), (40, 40))
    assert few[0].tolist() == [[0, 20, 20, 24.5, 24.5], [1, 20, 20, 21.5, 21.5]]


# Sampling.


def one_box(n: int, **options: object) -> Tensor:
    torch.manual_seed(0)
    return boxes.sampled(n, **({"num_classes": 4, "size": (80, 120), "rows": 3} | options))  # type: ignore[arg-type]


def test_one_box_sets_have_the_published_distribution() -> None:
    targets = one_box(6000)
    assert targets.shape == (6000, 3, 5)
    assert (targets[:, 1:] == torch.tensor(EMPTY)).all()
    low, high = (targets[:, 0, i : i + 2] / torch.tensor([120, 80]) for i in (1, 3))
    side, centre = high - low, (low + high) / 2
    # w, h ~ U(0.2, 0.8), on their own
    assert side.min() >= 0.2 - 1e-6
    assert side.max() <= 0.8 + 1e-6
    torch.testing.assert_close(side.mean(0), torch.full((2,), 0.5), rtol=0, atol=0.01)
    torch.testing.assert_close(side.var(0), torch.full((2,), 0.6**2 / 12), rtol=0, atol=0.0015)
    assert torch.corrcoef(side.T)[0, 1].abs() < 0.05
    # centre = 0.5 + (0.5 - w / 2) * U(0, 1) * (+1 or -1)
    way = (centre - 0.5) / (0.5 - side / 2)
    assert way.abs().max() <= 1 + 1e-4
    torch.testing.assert_close(way.abs().mean(0), torch.full((2,), 0.5), rtol=0, atol=0.015)
    torch.testing.assert_close(way.abs().var(0), torch.full((2,), 1 / 12), rtol=0, atol=0.004)
    torch.testing.assert_close((way > 0).float().mean(0), torch.full((2,), 0.5), rtol=0, atol=0.03)
    torch.testing.assert_close(centre.var(0), torch.full((2,), 0.28 / 12), rtol=0, atol=0.001)
    assert torch.corrcoef(torch.cat([way, side], 1).T).fill_diagonal_(0).abs().max() < 0.05


def test_sampled_boxes_lie_inside_the_image_also_when_they_fill_it() -> None:
    for sides in ((0.2, 0.8), (1.0, 1.0), (0.9, 1.0)):
        targets = one_box(500, sides=sides)
        assert boxes.present(targets[:, :1]).all()
        assert targets[:, 0, 1:].min() >= 0
        assert (targets[:, 0, 3:] <= torch.tensor([120, 80])).all()


@pytest.mark.parametrize("n", [1, 4, 7, 50])
def test_classes_of_one_box_sets_come_as_often_as_each_other(n: int) -> None:
    counts = torch.bincount(one_box(n)[:, 0, 0].long(), minlength=4)
    assert len(counts) == 4
    assert counts.max() - counts.min() <= 1


def test_classes_come_by_their_frequencies_where_these_are_given() -> None:
    labels = one_box(4000, frequencies=(1, 0, 2, 5), count=(2, 2), sides=(0.1, 0.2))[..., 0].long()
    shares = torch.bincount(labels[labels >= 0], minlength=4) / (labels >= 0).sum()
    torch.testing.assert_close(shares, torch.tensor([1 / 8, 0, 1 / 4, 5 / 8]), rtol=0, atol=0.02)
    assert shares[1] == 0


def test_of_boxes_that_overlap_too_much_the_later_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = one_box(200, count=(2, 4), rows=6)
    with monkeypatch.context() as patch:
        patch.setattr(boxes, "overlaps", lambda ours, theirs: torch.zeros(len(ours), ours.shape[1], theirs.shape[1]))
        drawn = one_box(200, count=(2, 4), rows=6)
    numbers = boxes.present(drawn).sum(1)
    assert [(numbers == number).sum().item() for number in (2, 3, 4)] == pytest.approx([67, 67, 67], abs=25)
    dropped = 0
    for image in range(200):
        kept: list[int] = []
        for row in range(int(numbers[image])):
            near = box_iou(drawn[image, row : row + 1, 1:], drawn[image, kept, 1:])
            if not kept or near.max() <= 0.3:
                kept.append(row)
                assert torch.equal(targets[image, row], drawn[image, row])
            else:
                assert targets[image, row].tolist() == EMPTY
                dropped += 1
        assert boxes.present(targets[image]).sum() == len(kept)
    assert dropped > 20


def test_boxes_from_a_generator_are_fixed_and_leave_the_global_state_alone() -> None:
    before = torch.get_rng_state()
    options = {"num_classes": 5, "size": (64, 64), "rows": 4, "count": (1, 3)}
    first, again = (
        boxes.sampled(9, generator=torch.Generator().manual_seed(3), **options)  # type: ignore[arg-type]
        for _ in range(2)
    )
    assert torch.equal(first, again)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("frequencies", [(), (1, 1, 1, 1)])
def test_no_images_have_no_boxes(frequencies: tuple[int, ...]) -> None:
    assert one_box(0, frequencies=frequencies, count=(1, 3)).shape == (0, 3, 5)


# What a detector finds.


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), number=st.integers(1, 6), most=st.integers(0, 8))
def test_false_positives_become_boxes_as_in_a_loop_over_them(seed: int, number: int, most: int) -> None:
    size = (40, 60)
    targets, found = at_random(3, number, size, seed), found_at_random(3, most, size, seed + 1)
    grown = detections.with_seen(targets, found, size=size)
    for before, after, one in zip(targets, grown, found, strict=True):
        expected = before.clone()
        held = before[before[:, 0] >= 0]
        held = held[((held[:, 3:] - held[:, 1:3]) >= 1).all(1)]
        for label, box, score in zip(one.labels, one.boxes, one.scores, strict=True):
            across, down = box[2] - box[0], box[3] - box[1]
            near = box_iou(box[None], held[:, 1:]).max() if len(held) else 0
            free = (expected[:, 0] == NONE).nonzero()
            if (score > 0.2 and near < 0.35 and 0.01 < across * down / 2400 < 0.85 and min(across, down) >= 1) and len(
                free
            ):
                expected[free[0, 0]] = torch.cat([label[None].float(), box])
        assert torch.equal(after, expected)


def test_each_limit_of_false_positive_sampling_can_be_set() -> None:
    targets = rows([[0, 0, 0, 20, 20], EMPTY, EMPTY])
    one = Detections(
        labels=torch.tensor([1, 2]),
        boxes=torch.tensor([[10.0, 0, 30, 20], [40, 0, 45, 4]]),  # IoU 1/3 with the box, 400 and 20 square pixels
        scores=torch.tensor([0.6, 0.4]),
        places=torch.zeros(2, dtype=torch.int64),
    )
    added = {
        "": [1],
        "score_threshold": [],
        "max_iou": [],
        "area": [1, 2],
    }
    changed = {"score_threshold": 0.6, "max_iou": 1 / 3, "area": (0.005, 1.0)}
    for name in added:
        options = {name: changed[name]} if name else {}
        grown = detections.with_seen(targets, [one], size=(50, 50), **options)  # type: ignore[arg-type]
        assert [int(row[0]) for row in grown[0, 1:] if row[0] != NONE] == added[name], name


def test_the_surest_go_first_where_rows_are_few_and_no_box_is_overwritten() -> None:
    targets = rows([[0, 0, 0, 9, 9], EMPTY, [-2, 0, 0, 30, 30]])
    one = Detections(
        labels=torch.tensor([3, 4, 5]),
        boxes=torch.tensor([[20.0, 20, 30, 30], [20, 20, 30, 30], [20, 20, 30, 30]]),  # not compared with each other
        scores=torch.tensor([0.5, 0.9, 0.7]),
        places=torch.zeros(3, dtype=torch.int64),
    )
    grown = detections.with_seen(targets, [one], size=(40, 40))
    assert grown[0].tolist() == [[0, 0, 0, 9, 9], [4, 20, 20, 30, 30], [-2, 0, 0, 30, 30]]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), number=st.integers(1, 6), most=st.integers(0, 8), keep=st.integers(0, 3))
def test_boxes_that_nothing_confirms_are_dropped_as_in_a_loop_over_them(
    seed: int, number: int, most: int, keep: int
) -> None:
    size = (40, 60)
    targets, found = at_random(3, number, size, seed), found_at_random(3, most, size, seed + 1)
    left = detections.confirmed(targets, found, keep=keep)
    for before, after, one in zip(targets, left, found, strict=True):
        good = ((one.boxes[:, 2:] - one.boxes[:, :2]) >= 1).all(1)
        best = {}
        for row in range(number):
            if boxes.present(before)[row] and good.any():
                best[row] = float(box_iou(before[row : row + 1, 1:], one.boxes[good]).max())
        nearest = sorted(best, key=lambda row: -best[row])[:keep]
        expected = before.clone()
        for row, near in best.items():
            if near < 0.35 and row not in nearest:
                expected[row] = torch.tensor(EMPTY)
        assert torch.equal(after, expected)


def test_a_box_is_confirmed_by_any_class_and_the_nearest_stays_where_none_is() -> None:
    targets = rows([[0, 0, 0, 10, 10], [1, 20, 0, 30, 10], [2, 0, 20, 10, 30]])

    def seen(*found: list[float]) -> list[int]:
        one = Detections(
            labels=torch.full((len(found),), 9),
            boxes=torch.tensor(found).reshape(-1, 4),
            scores=torch.ones(len(found)),
            places=torch.zeros(len(found), dtype=torch.int64),
        )
        return [int(row[0]) for row in detections.confirmed(targets, [one])[0] if row[0] != NONE]

    assert seen([0, 0, 10, 9], [0, 21, 10, 30]) == [0, 2]
    assert seen([25, 0, 45, 10]) == [1]  # IoU 1/5
    assert seen([40, 40, 50, 50]) == [0]  # none is near: the first
    assert seen() == [0, 1, 2]  # nothing was found


def test_boxes_lie_in_an_enlarged_image_where_they_lay_before() -> None:
    targets = rows([[1, 2, 4, 10, 12], EMPTY, [-3, 0, 0, 30, 20]])  # of a class, none, a crowd
    larger = boxes.at_size(targets, (20, 30), (40, 90))
    assert larger.tolist() == [[[1, 6, 8, 30, 24], EMPTY, [-3, 0, 0, 90, 40]]]
    assert torch.equal(boxes.at_size(larger, (40, 90), (20, 30)), targets)
    assert boxes.at_size(targets, (20, 30), (20, 30)) is targets


def test_the_giou_loss_and_its_gradient_are_those_of_torchvision() -> None:
    torch.manual_seed(0)
    corner, sides = 20 * torch.rand(2, 64, 2), 1 + 9 * torch.rand(2, 64, 2)  # some overlap, most do not
    ours, theirs = torch.cat([corner, corner + sides], 2)
    ours[0] = theirs[0]
    ours.requires_grad_()
    wanted, found = generalized_box_iou_loss(ours, theirs), boxes.giou_loss(ours, theirs)
    torch.testing.assert_close(found, wanted)
    gradients = [torch.autograd.grad(loss.sum(), ours, retain_graph=True)[0] for loss in (found, wanted)]
    torch.testing.assert_close(gradients[0][1:], gradients[1][1:])  # at equal boxes either side of a maximum will do
