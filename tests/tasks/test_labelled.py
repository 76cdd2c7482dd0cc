"""Labelled data in the order of a network's own class names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from datafree.data.labelled import LabelledData, Remarked
from datafree.errors import DataError
from datafree.evaluation.scoring import at_once, evaluate
from datafree.tasks.base import Scores, Task
from datafree.tasks.classification import Classification
from datafree.tasks.detection import Detection
from datafree.tasks.labelled import names_of, numbered, open_labelled
from datafree.tasks.multilabel import MultiLabel
from datafree.tasks.segmentation import Segmentation

GREYS = {"zebra": 250, "mole": 20, "ant": 130}  # what images of each show; in a network's order
SIZE = (16, 16)


class Knows(nn.Module):
    """Logits (B, 3) of the greys in their order, surest of the nearest."""

    def forward(self, images: Tensor) -> Tensor:
        levels = torch.tensor([grey / 255 for grey in GREYS.values()])
        return -100 * (images.mean((1, 2, 3))[:, None] - levels).abs()


class KnowsMaps(nn.Module):
    """The same for each pixel: (B, 3, H, W)."""

    def forward(self, images: Tensor) -> Tensor:
        levels = torch.tensor([grey / 255 for grey in GREYS.values()]).view(1, 3, 1, 1)
        return -100 * (images.mean(1, keepdim=True) - levels).abs()


def picture(name: str) -> Image.Image:
    return Image.new("RGB", SIZE, (GREYS[name],) * 3)


def folders(path: Path) -> Path:
    for name in GREYS:
        (path / name).mkdir(parents=True)
        picture(name).save(path / name / "a.png")
    return path


def masks(path: Path, order: list[str], ignore: int | None = None) -> Path:
    """Images of two halves; ids by `order`."""
    for kind in ("images", "masks"):
        (path / kind).mkdir(parents=True)
    for number, pair in enumerate((("zebra", "mole"), ("ant", "zebra"))):
        grey = np.repeat(np.array([[GREYS[name]] for name in pair], dtype=np.uint8), 8, 0).repeat(16, 1)
        ids = np.repeat(np.array([[order.index(name)] for name in pair], dtype=np.uint8), 8, 0).repeat(16, 1)
        if ignore is not None:
            ids[0] = ignore
        Image.fromarray(np.stack([grey] * 3, -1)).save(path / "images" / f"{number}.png")
        Image.fromarray(ids).save(path / "masks" / f"{number}.png")
    return path


def table(path: Path, order: list[str]) -> Path:
    path.mkdir()
    lines = ["file," + ",".join(order)]
    for name in GREYS:
        picture(name).save(path / f"{name}.png")
        lines.append(f"{name}.png," + ",".join(str(int(name == other)) for other in order))
    (path / "labels.csv").write_text("\n".join(lines) + "\n")
    return path


def scored(network: nn.Module, task: Task, data: LabelledData) -> Scores:
    return evaluate(network, task, data, device=torch.device("cpu"))


CLASSES, MAPS = Classification(num_classes=3, image_size=SIZE), Segmentation(num_classes=3, image_size=SIZE)
LABELS = MultiLabel(num_classes=3, image_size=SIZE)


def test_folders_are_scored_in_the_order_of_the_networks_names_and_it_is_said(tmp_path: Path) -> None:
    path = folders(tmp_path / "data")
    assert scored(Knows(), CLASSES, open_labelled(CLASSES, path)).values["top1"] == pytest.approx(1 / 3)
    data = open_labelled(CLASSES, path, list(GREYS))
    found = scored(Knows(), CLASSES, data)
    assert found.values["top1"] == 1.0 and data.class_names == list(GREYS)
    ours, theirs = "('zebra', 'mole', 'ant')", "('ant', 'mole', 'zebra')"
    assert found.remarks[0] == f"classes are in the network's own order {ours}, not the data's {theirs}"
    image, label = data[0]
    assert int(label) == int(Knows()(image[None]).argmax())


@pytest.mark.parametrize("order", [["zebra", "mole", "ant"], ["mole", "ant", "zebra"], ["Ant", "ZEBRA", "mole"]])
def test_masks_and_tables_are_scored_by_their_names(order: list[str], tmp_path: Path) -> None:
    ids = [name.lower() for name in order]
    path = masks(tmp_path / "masks", ids, ignore=255)
    (path / "classes.txt").write_text("\n".join(order) + "\n")
    data = open_labelled(MAPS, path, list(GREYS))
    assert scored(KnowsMaps(), MAPS, data).values["miou"] == 1.0
    assert 255 in data[0][1]  # ignored pixels stay so
    labels = open_labelled(LABELS, table(tmp_path / "table", ids), list(GREYS))
    assert scored(Knows(), LABELS, labels).values["map"] == 1.0


def test_boxes_and_crowds_take_the_networks_ids(tmp_path: Path) -> None:
    picture("ant").save(tmp_path / "a.png")
    boxes = [(1, [2, 2, 6, 6], 0), (2, [1, 1, 4, 8], 0), (2, [0, 0, 16, 16], 1)]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 16, "height": 16}],
        "categories": [{"id": 1, "name": "mole"}, {"id": 2, "name": "zebra"}],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": kind, "bbox": box, "iscrowd": crowd, "area": 9}
            for n, (kind, box, crowd) in enumerate(boxes, 1)
        ],
    }
    (tmp_path / "all.json").write_text(json.dumps(content))
    task = Detection(num_classes=2, image_size=SIZE)
    before = open_labelled(task, tmp_path / "all.json")[0][1]
    after = open_labelled(task, tmp_path / "all.json", ["zebra", "mole"])[0][1]
    change = {0.0: 1.0, 1.0: 0.0, -3.0: -2.0, -2.0: -3.0, -1.0: -1.0}
    assert after[:, 0].tolist() == [change[label] for label in before[:, 0].tolist()]
    assert torch.equal(after[:, 1:], before[:, 1:])


def test_data_without_names_get_the_networks_and_are_none_themselves(tmp_path: Path) -> None:
    path = masks(tmp_path / "masks", list(GREYS))
    assert names_of(open_labelled(MAPS, path)) == []
    data = open_labelled(MAPS, path, list(GREYS))
    assert names_of(data) == list(GREYS)
    assert not scored(KnowsMaps(), MAPS, data).remarks


@pytest.mark.parametrize("count", [3, 12])
def test_names_that_are_but_numbers_give_way_to_the_networks(count: int, tmp_path: Path) -> None:
    """Also those of a made set, which sort as the ids do: "class 00" of twelve."""
    known = [f"kind {letter}" for letter in "lkjihgfedcba"[:count]]
    for name in numbered(count):
        (tmp_path / name).mkdir()
        Image.new("RGB", SIZE).save(tmp_path / name / "a.png")
    task = Classification(num_classes=count, image_size=SIZE)
    data = open_labelled(task, tmp_path, known)
    assert data.class_names == known and not (data.remarks if isinstance(data, Remarked) else [])
    assert [int(data[index][1]) for index in range(count)] == list(range(count))
    assert names_of(open_labelled(task, tmp_path)) == [] and sorted(numbered(count)) == numbered(count)


def test_other_names_are_taken_in_order_and_both_are_said(tmp_path: Path) -> None:
    found = scored(Knows(), CLASSES, open_labelled(CLASSES, folders(tmp_path / "d"), ["n01", "n02", "n03"]))
    assert found.remarks[0] == (
        "the network's classes have other names ('n01', 'n02', 'n03') than the data's ('ant', 'mole', 'zebra'): "
        "taken in order"
    )


def test_an_ignored_class_that_would_be_another_is_refused(tmp_path: Path) -> None:
    task = Segmentation(num_classes=3, image_size=SIZE, ignore_index=0)
    path = masks(tmp_path / "masks", ["mole", "ant", "zebra"])
    (path / "classes.txt").write_text("mole\nant\nzebra\n")
    with pytest.raises(DataError, match=r"task\.ignore_index 0 is another class to the network than in the masks"):
        _ = open_labelled(task, path, list(GREYS))[0]


def test_what_lies_one_folder_up_is_found_from_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folders(tmp_path / "set" / "val")
    (tmp_path / "set" / "classes.txt").write_text("zebra\nmole\nant\n")
    (path / "ant" / "more").mkdir()
    for place, given in ((path, "."), (path / "ant", ".."), (path / "ant" / "more", "../..")):
        monkeypatch.chdir(place)
        assert open_labelled(CLASSES, Path(given)).class_names == list(GREYS)


def test_large_images_are_answered_a_few_at_once() -> None:
    def count(height: int, width: int) -> int:
        return at_once(Segmentation(num_classes=3, image_size=(height, width)))

    assert [count(32, 32), count(256, 256), count(384, 768), count(1024, 2048), count(4096, 4096)] == [32, 32, 7, 1, 1]
