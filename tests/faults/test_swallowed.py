"""A score over nothing, or over less than it seems: refused, or counted and said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from datafree.data.labelled import NothingToScore
from datafree.deploy.export_record import Int8
from datafree.engine.loop import Chosen
from datafree.errors import DataError
from datafree.evaluation.scoring import agreement, evaluate
from datafree.health.signals import health_metrics
from datafree.networks.normalized import Normalized
from datafree.ops.detections import Detections
from datafree.ops.detections import agreement as f1
from datafree.ops.predictions import Predictions
from datafree.recipe.training import Training
from datafree.run import _how_chosen
from datafree.sources.base import SourceContext
from datafree.sources.dataset import Dataset
from datafree.tasks.base import Scores, Task
from datafree.tasks.classification import Classification
from datafree.tasks.detection import Detection
from datafree.tasks.labelled import open_labelled
from datafree.tasks.segmentation import Segmentation, SegmentationMetric

SIZE = (8, 8)
CPU = torch.device("cpu")


class Says(nn.Module):
    """Answers the same about whatever it sees."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer, self.unused = answer, nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        return self.answer.expand(len(images), *self.answer.shape)


def masks(folder: Path, *values: list[int]) -> Path:
    """Images with masks that hold these ids in equal parts."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for index, ids in enumerate(values):
        Image.new("RGB", SIZE).save(folder / "images" / f"{index}.png")
        pixels = np.resize(np.array(ids, np.uint8), SIZE[0] * SIZE[1]).reshape(SIZE)
        Image.fromarray(pixels).save(folder / "masks" / f"{index}.png")
    return folder


def background(classes: int) -> nn.Module:
    """The student that never sees the object."""
    return Normalized(Says((3 * torch.eye(classes)[0] - 1)[:, None, None].expand(classes, *SIZE)))


def task(classes: int = 2, **options: int) -> Segmentation:
    return Segmentation(num_classes=classes, image_size=SIZE, **options)


def scored(made: Task, data: Path, network: nn.Module) -> Scores:
    return evaluate(network, made, open_labelled(made, data), device=CPU)


@pytest.mark.parametrize(
    ("classes", "values"),
    [(2, [[0, 255]]), (2, [[0], [255]]), (3, [[0, 255], [0]]), (2, [[255], [1, 255]]), (21, [[0, 255]] * 3)],
)
def test_an_object_that_the_ignored_id_swallows_is_refused(
    tmp_path: Path, classes: int, values: list[list[int]]
) -> None:
    data = masks(tmp_path / "data", *values)
    with pytest.raises(NothingToScore, match=r"nothing else: there is nothing to tell apart; if 255 is a class"):
        open_labelled(task(classes), data)


def test_it_is_refused_also_by_a_metric_that_is_given_the_pixels(tmp_path: Path) -> None:
    metric = SegmentationMetric(class_names=["background", "thing"])
    metric.update(
        torch.tensor([9.0, 0]).reshape(1, 2, 1, 1).expand(1, 2, 8, 8), torch.tensor([[0, 255]] * 32).reshape(1, 8, 8)
    )
    with pytest.raises(DataError, match=r"the masks show 'background' and the ignored id 255, nothing else"):
        metric.compute()


@pytest.mark.parametrize(
    ("values", "options", "remarks"),
    [
        ([[0, 1]], {}, []),
        ([[0, 1], [0]], {}, []),
        ([[0, 1, 255]], {}, []),
        ([[0], [0]], {}, ["1 of 2 classes are not scored, no labelled pixel is of them: 'class 1'"]),
        ([[0, 1, *[255] * 6]], {}, ["75% of the labelled pixels are not scored: they have the ignored id 255"]),
        (
            [[0, 1]],
            {"classes": 4},
            ["2 of 4 classes are not scored, no labelled pixel is of them: 'class 2', 'class 3'"],
        ),
        ([[1, 2, 0]], {"classes": 3, "ignore_index": 0}, []),  # asked for
        ([[1, 0]], {"classes": 2, "ignore_index": 0}, []),
    ],
)
def test_what_masks_do_not_show_is_said(
    tmp_path: Path, values: list[list[int]], options: dict[str, int], remarks: list[str]
) -> None:
    made = task(**options)
    assert scored(made, masks(tmp_path / "data", *values), background(made.num_classes)).remarks == remarks


def test_swallowed_masks_can_be_learnt_from_but_it_is_said(tmp_path: Path) -> None:
    source = Dataset(path=masks(tmp_path / "data", *[[0, 255]] * 4))
    source.attach(SourceContext(task=task(), teacher=nn.Identity(), steps=2, batch_size=2))
    assert len(source.sample(3).images) == 3
    assert any("the masks show 'class 0' and the ignored id 255, nothing else" in note for note in source.notes())


def test_classes_without_images_and_skipped_images_are_said(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", SIZE).save(tmp_path / name / "1.png")
    (tmp_path / "cat" / "2.png").write_bytes(b"no image")
    (tmp_path / "classes.txt").write_text("cat\ndog\nowl\n")
    made = Classification(num_classes=3, image_size=SIZE)
    assert scored(made, tmp_path, Normalized(Says(torch.tensor([2.0, -1, -1])))).remarks == [
        "1 of 3 classes are not scored, no labelled image is of them: 'owl'",
        "not scored: cat/2.png: not an image of a known kind",
    ]


# Two detectors that see nothing.


def blind(count: int, scores: float = 0.0) -> Predictions:
    """Nothing above the threshold in `count` images; or one box in each."""
    each = torch.full((count, 1, 2), scores)
    return Predictions(
        class_logits=each,
        scores=each * torch.tensor([1.0, 0.0]),
        boxes=torch.tensor([[[1.0, 1, 7, 7]]]).expand(count, 1, 4),
        centres=torch.full((count, 1, 2), 4.0),
        heads=(),
        loss=lambda heads, targets: torch.zeros(()),
    )


class Sees(nn.Module):
    """A box where the image is bright, and if it is `sharp`."""

    def __init__(self, *, sharp: bool = True) -> None:
        super().__init__()
        self.sharp, self.unused = sharp, nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor) -> Predictions:
        found = blind(len(images), 0.9)
        bright = (images.mean((1, 2, 3)) > 0.5).float() * self.sharp
        found.scores.mul_(bright[:, None, None])
        return found


DETECTION = Detection(num_classes=2, image_size=SIZE)


def test_two_detectors_that_see_nothing_have_nothing_to_agree_on() -> None:
    none = Detections(labels=torch.empty(0), boxes=torch.empty(0, 4), scores=torch.empty(0), places=torch.empty(0))
    assert f1([none], [none]) is None
    assert DETECTION.agreement(blind(3), blind(3)) is None
    assert DETECTION.agreement(blind(3), blind(3, 0.9)) == 0.0
    assert DETECTION.agreement(blind(3, 0.9), blind(3, 0.9)) == 1.0
    assert DETECTION.class_agreement(blind(3, 0.9), blind(3, 0.9)) == [1.0, None]


def test_health_says_nothing_of_an_agreement_on_nothing() -> None:
    dark, bright = torch.zeros(4, 3, *SIZE), torch.ones(4, 3, *SIZE)
    teacher, student = Normalized(Sees()), Normalized(Sees())
    assert "agreement" not in health_metrics(DETECTION, teacher, student, dark)
    assert health_metrics(DETECTION, teacher, student, bright)["agreement"] == 1.0
    assert health_metrics(DETECTION, teacher, Normalized(Sees(sharp=False)), bright)["agreement"] == 0.0


def photos(folder: Path, dark: int, bright: int, broken: int = 0) -> Path:
    folder.mkdir()
    for index in range(dark + bright + broken):
        file = folder / f"{index:02}.png"
        Image.new("RGB", SIZE, "black" if index < dark else "white").save(file)
        if index >= dark + bright:
            file.write_bytes(b"broken")
    return folder


def test_agreement_on_photos_is_of_those_that_show_something(tmp_path: Path) -> None:
    found = agreement(Normalized(Sees()), Normalized(Sees()), DETECTION, photos(tmp_path / "a", 6, 2), device=CPU)
    assert (found.share, found.compared, found.empty) == (1.0, 2, 6)
    assert found.remarks == ["6 images are not compared: neither network finds anything there"]
    none = agreement(Normalized(Sees()), Normalized(Sees()), DETECTION, photos(tmp_path / "b", 6, 0), device=CPU)
    assert (none.share, none.compared) == (None, 0)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_photos_that_cannot_be_read_are_skipped_and_named(tmp_path: Path, batch_size: int) -> None:
    data = photos(tmp_path / "a", 0, 5, broken=2)
    found = agreement(Normalized(Sees()), Normalized(Sees()), DETECTION, data, device=CPU, batch_size=batch_size)
    assert (found.share, found.compared) == (1.0, 5)
    assert found.remarks == [
        "2 images cannot be read and were left out: 05.png (not an image of a known kind), "
        "06.png (not an image of a known kind)"
    ]
    with pytest.raises(DataError, match=r"none of the 2 images of .* can be read, the first: 00\.png"):
        agreement(Normalized(Sees()), Normalized(Sees()), DETECTION, photos(tmp_path / "b", 0, 0, 2), device=CPU)


def test_a_run_says_who_agrees_and_when_there_is_nothing_to_compare() -> None:
    training = Training(steps=5, batch_size=2)
    line = _how_chosen(Chosen(step=5, agreement=0.0), training, 4)
    assert line.endswith("student and teacher agree on 0.0% of the source's validation images")
    line = _how_chosen(Chosen(step=5, agreement=None), training, 4)
    assert line.endswith(
        "nothing to compare: neither student nor teacher finds anything in the source's validation images"
    )
    assert "compare" not in _how_chosen(Chosen(step=5, agreement=None), training, 0)
    assert Int8(images=3, origin="", agreement=None, compared=1).agreement is None


# Boxes.


def yolo(folder: Path, *labels: str | None) -> Path:
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for index, text in enumerate(labels):
        Image.new("RGB", SIZE).save(folder / "images" / f"{index}.png")
        if text is not None:
            (folder / "labels" / f"{index}.txt").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("0 0.1 0.1 0.9 0.1 0.5 0.9", "7 columns; .*is a polygon"),
        ("0 0.1 0.1 0.9 0.1 0.9 0.9 0.1 0.9", r"9 columns; .*polygon \(or, of 9, a turned box\)"),
        ("0 0.5 0.5 0.2 0.2 0.97", "6 columns; .*is a score: leave it out"),
        ("0 0.5 0.5 0.2 0.2 0.4 0.4 2", "8 columns; .*may be key points: leave them out"),
        ("0 0.5 0.5 0.2", "4 columns; a box is a line of 5: class x y width height$"),
    ],
)
def test_a_yolo_line_of_another_form_is_refused_with_what_it_may_be(tmp_path: Path, line: str, hint: str) -> None:
    with pytest.raises(DataError, match=hint):
        DETECTION.open_dataset(yolo(tmp_path / "d", line))


def test_boxes_given_twice_count_once_in_yolo_and_are_said(tmp_path: Path) -> None:
    box = "0 0.5 0.5 0.5 0.5"
    data = DETECTION.open_dataset(yolo(tmp_path / "d", f"{box}\n{box}\n1 0.5 0.5 0.5 0.5\n{box}\n", f"{box}\n"))
    assert [int((data[index][1][:, 0] >= 0).sum()) for index in range(2)] == [2, 1]
    assert data.skipped == ["2 boxes that are given twice, the first in 0.png"] and data.remarks == []


def test_boxes_given_twice_in_coco_are_kept_and_said(tmp_path: Path) -> None:
    Image.new("RGB", SIZE).save(tmp_path / "1.png")
    box = {"image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4]}
    content = {
        "images": [{"id": 1, "file_name": "1.png", "width": 8, "height": 8}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [box, box],
    }
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    data = DETECTION.open_dataset(tmp_path)
    assert data.skipped == [] and (data[0][1][:, 0] >= 0).sum() == 2
    assert data.remarks == ["scored twice: 1 boxes that are given twice, the first in 1.png"]
    scores = evaluate(Normalized(Sees()), DETECTION, data, device=CPU)
    assert data.remarks[0] in scores.remarks
    assert "1 of 2 classes are not scored, no labelled box is of them: 'dog'" in scores.remarks


def test_images_without_a_label_file_are_counted(tmp_path: Path) -> None:
    data = DETECTION.open_dataset(yolo(tmp_path / "d", "0 0.5 0.5 0.5 0.5", "", None, None))
    assert data.remarks == ["2 of 4 images have no label file: they count as without boxes"]
