"""Average precision: pycocotools' numbers, and one case worked out by hand."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from datafree.errors import DataError
from datafree.ops import boxes
from datafree.ops.detections import detect
from datafree.ops.predictions import Predictions
from datafree.tasks.average_precision import AveragePrecision

SIZE = (64, 96)
C = 5
OVERLAP = 0.6


def predictions(scores: Tensor, corners: Tensor) -> Predictions:
    """A detector's answer with these scores (B, L, C) and boxes (B, L, 4)."""
    centres = (corners[..., :2] + corners[..., 2:]) / 2
    return Predictions(
        class_logits=scores.logit(1e-6),
        scores=scores,
        boxes=corners,
        centres=centres,
        heads=(scores,),
        loss=lambda heads, targets: heads[0].sum() * 0,
    )


def metric(**options: Any) -> AveragePrecision:
    names = [f"class {c}" for c in range(C)]
    return AveragePrecision(class_names=names, image_size=SIZE, nms_iou=OVERLAP, **options)


def random_case(images: int, seed: int) -> tuple[Predictions, Tensor]:
    """Labelled boxes with crowds among them, some images without any, none of class 4; detections near and far."""
    generator = torch.Generator().manual_seed(seed)
    targets = boxes.sampled(images, num_classes=4, size=SIZE, rows=8, count=(1, 6), generator=generator)
    crowd = (torch.rand(images, 8, generator=generator) < 0.2) & (targets[..., 0] >= 0)
    targets[..., 0] = torch.where(crowd, -2 - targets[..., 0], targets[..., 0])
    targets = boxes.emptied(targets, torch.arange(images)[:, None].expand(-1, 8) % 7 == 3)
    shift = 4 * torch.randn(images, 8, 4, generator=generator)
    near = targets[..., 1:] + shift
    far = boxes.sampled(images, num_classes=4, size=SIZE, rows=8, count=(8, 8), generator=generator)[..., 1:]
    corners = torch.cat([near, far], 1)  # (B, L = 16, 4)
    label = torch.where(targets[..., 0] < -1, -2 - targets[..., 0], targets[..., 0]).clamp_min(0).long()
    scores = torch.rand(images, 16, C, generator=generator) ** 4
    scores[:, :8].scatter_add_(2, label[..., None], torch.rand(images, 8, 1, generator=generator))
    return predictions(scores.clamp_max(1), corners), targets


def reference(outputs: Predictions, targets: Tensor, *, least: float, most: int) -> COCOeval:
    """pycocotools on the same detections and targets."""
    annotations, results = [], []
    found = detect(outputs, score_threshold=least, nms_iou=OVERLAP, max_detections=most, size=SIZE)
    for image, (seen, rows) in enumerate(zip(found, targets.tolist(), strict=True), 1):
        for label, x1, y1, x2, y2 in rows:
            if label != -1:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image,
                        "category_id": int(label if label >= 0 else -2 - label) + 1,
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": (x2 - x1) * (y2 - y1),
                        "iscrowd": int(label < 0),
                    }
                )
        for label, (x1, y1, x2, y2), score in zip(
            seen.labels.tolist(), seen.boxes.tolist(), seen.scores.tolist(), strict=True
        ):
            row = {"image_id": image, "category_id": label + 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
            results.append(row)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": image, "height": SIZE[0], "width": SIZE[1]} for image in range(1, len(targets) + 1)],
            "annotations": annotations,
            "categories": [{"id": c + 1, "name": f"class {c}"} for c in range(C)],
        }
        truth.createIndex()
        scoring = COCOeval(truth, truth.loadRes(results), "bbox")
        scoring.params.maxDets = [1, 10, most]
        scoring.evaluate()
        scoring.accumulate()
    return scoring


@pytest.mark.parametrize(("seed", "most"), [(0, 100), (1, 100), (2, 12)])
def test_scores_equal_pycocotools(seed: int, most: int, capfd: pytest.CaptureFixture[str]) -> None:
    outputs, targets = random_case(20, seed)
    ours = metric(max_detections=most)
    for start in range(0, 20, 6):
        ours.update(outputs[start : start + 6], targets[start : start + 6])
    scores = ours.compute()
    assert capfd.readouterr() == ("", "")
    precision = reference(outputs, targets, least=0.001, most=most).eval["precision"][..., 0, -1]  # (T, R, C)
    for name, wanted in (("ap50", precision[0]), ("ap75", precision[5]), ("ap", precision)):
        assert scores.values[name] == pytest.approx(wanted[wanted > -1].mean(), abs=1e-6)
    assert list(scores.values) == ["ap50", "ap", "ap75"]
    assert 0.05 < scores.values["ap"] < scores.values["ap50"] < 0.95  # a case that says something
    assert (precision[..., 4] == -1).all() and set(scores.per_class["ap"]) == {f"class {c}" for c in range(4)}
    for c in range(4):
        assert scores.per_class["ap50"][f"class {c}"] == pytest.approx(precision[0, :, c].mean(), abs=1e-6)
        assert scores.per_class["ap"][f"class {c}"] == pytest.approx(precision[:, :, c].mean(), abs=1e-6)


def by_hand(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor([rows], dtype=torch.float32)


def test_a_case_worked_out_by_hand() -> None:
    # Two boxes of class 0. Found: the first exactly (0.9), nothing (0.8), the second with IoU 0.8 (0.7): 16 of 20 wide.
    targets = by_hand((0, 0, 0, 20, 20), (0, 40, 0, 60, 20), (-1, 0, 0, 0, 0))
    corners = torch.tensor([[[0.0, 0, 20, 20], [70, 30, 90, 50], [40, 0, 56, 20]]])
    scores = torch.zeros(1, 3, C)
    scores[0, :, 0] = torch.tensor([0.9, 0.8, 0.7])
    ours = metric()
    ours.update(predictions(scores, corners), targets)
    # Precision is 1 up to recall 1/2 (0, 0.01, ..., 0.50: 51 of 101 places), then 2/3 where the second counts, else 0.
    both, first = (51 + 50 * 2 / 3) / 101, 51 / 101
    values = ours.compute().values
    assert values["ap50"] == pytest.approx(both) and values["ap75"] == pytest.approx(both)
    assert values["ap"] == pytest.approx((7 * both + 3 * first) / 10)  # it counts at 0.50, ..., 0.80, not at 0.85


def test_a_class_that_is_never_found_counts_as_nothing_and_one_without_boxes_not_at_all() -> None:
    targets = by_hand((0, 0, 0, 20, 20), (2, 40, 0, 60, 20))
    scores = torch.zeros(1, 2, C)
    scores[0, 0, 0], scores[0, 1, 4] = 0.9, 0.9  # class 2 is missed; class 4 is seen where none is labelled
    ours = metric()
    ours.update(predictions(scores, targets[..., 1:]), targets)
    scored = ours.compute()
    assert scored.per_class["ap50"] == {"class 0": pytest.approx(1), "class 2": 0}
    assert scored.values["ap50"] == pytest.approx(0.5)


def test_a_detector_that_finds_nothing_scores_nothing() -> None:
    targets = by_hand((0, 0, 0, 20, 20))
    ours = metric()
    ours.update(predictions(torch.zeros(1, 1, C), targets[..., 1:]), targets)
    assert ours.compute().values == {"ap50": 0, "ap": 0, "ap75": 0}


def test_detections_in_a_crowd_are_neither_right_nor_wrong() -> None:
    box, crowd = (0.0, 0.0, 20.0, 20.0), (40.0, 0.0, 90.0, 60.0)
    corners = torch.tensor([[box, (42, 2, 60, 30), (65, 20, 85, 40)]])
    scores = torch.zeros(1, 3, C)
    scores[0, :, 1] = torch.tensor([0.5, 0.9, 0.8])
    with_crowd, without = metric(), metric()
    with_crowd.update(predictions(scores, corners), by_hand((1, *box), (-3, *crowd)))  # -2 - class 1
    without.update(predictions(scores, corners), by_hand((1, *box)))
    assert with_crowd.compute().values["ap50"] == pytest.approx(1)
    assert without.compute().values["ap50"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("label", [-1, -2])
def test_data_without_labelled_boxes_is_an_error(label: int) -> None:
    ours = metric()
    with pytest.raises(DataError, match="none is labelled in the 0 images"):
        ours.compute()
    targets = by_hand((label, 0, 0, 20, 20))
    ours.update(predictions(torch.full((1, 1, C), 0.5), targets[..., 1:]), targets)
    with pytest.raises(DataError, match="no box was scored: none is labelled in the 1 images"):
        ours.compute()


def test_what_it_keeps_is_small_and_plain() -> None:
    outputs, targets = random_case(3, 0)
    ours = metric(max_detections=5)
    ours.update(outputs, targets)
    assert all(type(rows) is np.ndarray and rows.shape[1] == 6 and len(rows) <= 5 for rows in ours.found)
    assert [len(rows) for rows in ours.truth] == (targets[..., 0] != -1).sum(1).tolist()
