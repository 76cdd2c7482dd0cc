"""Detections against a loop that suppresses one box after the other, and against torchvision's own detectors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import ssd
from torchvision.ops import box_iou

from datafree.ops.detections import BEFORE_NMS, Detections, agreement, detect
from datafree.ops.predictions import Predictions

SIZE = (60, 90)
Row = tuple[float, int, int]  # score, class, location


def says(scores: Tensor, boxes: Tensor) -> Predictions:
    """Predictions of these scores (B, L, C) and boxes (B, L, 4), and of nothing else."""
    return Predictions(
        class_logits=scores.logit(),
        scores=scores,
        boxes=boxes,
        centres=(boxes[..., :2] + boxes[..., 2:]) / 2,
        heads=(scores,),
        loss=lambda heads, targets: heads[0].sum(),
    )


def at_random(seed: int, *, images: int = 2, locations: int = 40, classes: int = 3) -> Predictions:
    """Boxes in few places, so that many overlap; some beyond the image or of no size."""
    torch.manual_seed(seed)
    middle = torch.randint(-1, 5, (images, locations, 2)) * 20.0 + 5 * torch.randn(images, locations, 2)
    half = torch.rand(images, locations, 2) * 20
    return says(torch.rand(images, locations, classes), torch.cat([middle - half, middle + half], -1))


def one_by_one(scores: Tensor, boxes: Tensor, least: float, overlap: float, most: int) -> tuple[list[Row], Tensor]:
    """The surest box of all classes stays, then the surest that overlaps none of its class too much, and so on."""
    cut = boxes.clone()
    cut[:, 0::2] = cut[:, 0::2].clamp(0, SIZE[1])
    cut[:, 1::2] = cut[:, 1::2].clamp(0, SIZE[0])
    rows = [(float(s), c, i) for i, row in enumerate(scores) for c, s in enumerate(row) if s > least]
    kept: list[Row] = []
    for score, label, place in sorted(rows, reverse=True):
        if (cut[place, 2:] - cut[place, :2]).min() < 1:
            continue
        same = [cut[i] for _, c, i in kept if c == label]
        if not same or box_iou(cut[place][None], torch.stack(same)).max() <= overlap:
            kept.append((score, label, place))
    return kept[:most], cut


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("least", "overlap", "most"), [(0.3, 0.5, 100), (0.0, 0.3, 100), (0.6, 0.7, 5), (0.99, 0.5, 9)]
)
def test_detections_are_those_of_a_loop_over_all_boxes(seed: int, least: float, overlap: float, most: int) -> None:
    outputs = at_random(seed)
    found = detect(outputs, score_threshold=least, nms_iou=overlap, max_detections=most, size=SIZE)
    for scores, boxes, one in zip(outputs.scores, outputs.boxes, found, strict=True):
        kept, cut = one_by_one(scores, boxes, least, overlap, most)
        assert [(int(label), int(place)) for label, place in zip(one.labels, one.places, strict=True)] == [
            (label, place) for _, label, place in kept
        ]
        assert one.scores.tolist() == [score for score, _, _ in kept]
        assert torch.equal(one.boxes, cut[one.places])
        assert (one.labels.dtype, one.places.dtype) == (torch.int64, torch.int64)


def test_detections_are_those_of_torchvisions_ssd_on_the_same_answers() -> None:
    torch.manual_seed(0)
    images, locations, classes = 2, 30, 4
    logits, offsets = 2 * torch.randn(images, locations, classes + 1), torch.randn(images, locations, 4)
    corners = torch.rand(locations, 2) * torch.tensor([70.0, 40])
    anchors = torch.cat([corners, corners + 10 + 20 * torch.rand(locations, 2)], 1)
    coder = ssd.det_utils.BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))

    class Answers:
        """What `SSD.postprocess_detections` looks at."""

        box_coder, score_thresh, topk_candidates, nms_thresh, detections_per_img = coder, 0.2, 300, 0.45, 20

    theirs = ssd.SSD.postprocess_detections(
        Answers(), {"cls_logits": logits, "bbox_regression": offsets}, 2 * [anchors], 2 * [SIZE]
    )
    boxes = torch.stack([coder.decode_single(rel, anchors) for rel in offsets])
    outputs = says(logits.softmax(-1)[..., 1:], boxes)
    ours = detect(outputs, score_threshold=0.2, nms_iou=0.45, max_detections=20, size=SIZE)
    for one, other in zip(ours, theirs, strict=True):
        assert len(one.labels) > 10
        assert torch.equal(one.labels + 1, other["labels"])
        torch.testing.assert_close(one.scores, other["scores"])
        torch.testing.assert_close(one.boxes, other["boxes"])


def test_a_location_can_be_of_several_classes() -> None:
    outputs = says(torch.tensor([[[0.9, 0.8, 0.1]]]), torch.tensor([[[0.0, 0, 9, 9]]]))
    (one,) = detect(outputs, score_threshold=0.5, nms_iou=0.5, max_detections=9, size=SIZE)
    assert one.labels.tolist() == [0, 1]
    assert one.places.tolist() == [0, 0]


def test_a_score_has_to_be_above_the_least() -> None:
    outputs = says(torch.tensor([[[0.5], [0.75]]]), torch.tensor([[[0.0, 0, 9, 9], [20, 20, 40, 40]]]))
    assert [
        len(detect(outputs, score_threshold=x, nms_iou=0.5, max_detections=9, size=SIZE)[0].labels)
        for x in (0.4, 0.5, 0.75)
    ] == [
        2,
        1,
        0,
    ]


def test_boxes_are_cut_to_the_image_before_they_compete_and_those_of_no_size_are_none() -> None:
    boxes = torch.tensor(
        [
            [-50.0, 0, 10, 20],  # both are the same, once cut
            [-10, 0, 10, 20],
            [85, 50, 200, 300],
            [95, 0, 120, 20],  # outside
            [20, 20, 20.5, 50],  # narrow
            [30, 30, 25, 50],  # the wrong way round
            [40, float("nan"), 60, 50],
        ]
    )
    outputs = says(torch.linspace(0.9, 0.5, len(boxes))[None, :, None], boxes[None])
    (one,) = detect(outputs, score_threshold=0.1, nms_iou=0.5, max_detections=9, size=SIZE)
    assert one.boxes.tolist() == [[0, 0, 10, 20], [85, 50, 90, 60]]
    assert one.places.tolist() == [0, 2]


def test_only_the_surest_of_very_many_compete() -> None:
    count = BEFORE_NMS + 50
    corner = torch.arange(float(count))[:, None] * torch.tensor([2.0, 0])
    boxes = torch.cat([corner, corner + 2], 1)
    outputs = says(torch.linspace(0.9, 0.2, count)[None, :, None], boxes[None])
    (one,) = detect(outputs, score_threshold=0.1, nms_iou=0.5, max_detections=count, size=(60, 4 * count))
    assert one.places.tolist() == list(range(BEFORE_NMS))


def test_detections_carry_no_gradient() -> None:
    outputs = at_random(0)
    outputs = says(outputs.scores.requires_grad_(), outputs.boxes.requires_grad_())
    (one, _) = detect(outputs, score_threshold=0.3, nms_iou=0.5, max_detections=9, size=SIZE)
    assert not one.scores.requires_grad
    assert not one.boxes.requires_grad


# Agreement.


def boxes_of(*rows: tuple[int, float]) -> Detections:
    """Boxes 10 x 10 of these classes, so far to the right, the surest first."""
    return Detections(
        labels=torch.tensor([label for label, _ in rows], dtype=torch.int64),
        boxes=torch.tensor([[x, 0, x + 10, 10] for _, x in rows]).reshape(-1, 4).float(),
        scores=torch.linspace(0.9, 0.5, len(rows)),
        places=torch.arange(len(rows)),
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([], [], None),  # nothing to compare
        ([(0, 0)], [], 0.0),
        ([(0, 0)], [(0, 0)], 1.0),
        ([(0, 0)], [(1, 0)], 0.0),  # another class
        ([(0, 0)], [(0, 3)], 1.0),  # IoU 7/13
        ([(0, 0)], [(0, 4)], 0.0),  # IoU 6/14
        ([(0, 0), (0, 40)], [(0, 0)], 2 / 3),  # precision 1/2, recall 1
        ([(0, 0), (0, 1)], [(0, 0)], 2 / 3),  # one is paired once
        ([(0, 0), (0, 1)], [(0, 0), (0, 1)], 1.0),
        ([(0, 2), (0, 0)], [(0, 1), (0, 40)], 0.5),  # the surer of ours takes it
        ([(0, 0), (1, 0), (2, 50)], [(1, 1), (0, 1), (2, 90)], 2 / 3),
    ],
)
def test_agreement_is_the_f1_of_pairs_of_a_class_that_overlap(
    ours: list[tuple[int, float]], theirs: list[tuple[int, float]], expected: float | None
) -> None:
    assert agreement([boxes_of(*ours)], [boxes_of(*theirs)]) == pytest.approx(expected)
    # Of many images all detections count together.
    whole = boxes_of((0, 0), (1, 20))
    total = len(ours) + len(theirs)
    assert agreement([boxes_of(*ours), whole], [boxes_of(*theirs), whole]) == pytest.approx(
        ((expected or 0) * total + 4) / (total + 4)
    )


def test_each_of_ours_takes_the_nearest_that_is_left() -> None:
    ours, theirs = boxes_of((0, 0), (0, 2)), boxes_of((0, 2), (0, -1))
    assert agreement([ours], [theirs]) == 1.0
    assert agreement([ours], [theirs], overlap=0.9) == 0.5
