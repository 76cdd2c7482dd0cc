"""Labelled boxes, COCO's and YOLO's: written and read back, read exactly, or refused with one line."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datafree.data import detection_folder
from datafree.data.coco_yolo import coco_json, read_coco, read_yolo, yolo_line, yolo_text
from datafree.data.detection_folder import BoxFolder
from datafree.data.labelled import NothingToScore
from datafree.errors import DataError

NAMES = ["cell", "dog", "owl"]
Boxes = dict[str, list[tuple[float, ...]]]

# Two images of 40 x 20 pixels; the second has no boxes.
BOXES: Boxes = {"a.png": [(2, 4, 2, 12, 10), (0, 20, 0, 40, 20)], "b.png": []}


def put_image(file: Path, value: int = 0, size: tuple[int, int] = (20, 40)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(file)


def content(boxes: Boxes = BOXES, names: list[str] = NAMES) -> dict[str, Any]:
    return coco_json([(name, 40, 20) for name in boxes], list(boxes.values()), names)


def put_coco(
    root: Path, made: Any = None, *, file: str = "annotations.json", images: str = "images", boxes: Boxes = BOXES
) -> Path:
    """A COCO file and its images; the file's path."""
    for value, name in enumerate(boxes):
        put_image(root / images / name, value)
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(content(boxes) if made is None else made))
    return root / file


def put_yolo(root: Path, split: str = "", boxes: Boxes = BOXES) -> Path:
    """YOLO's folders images/ and labels/; an image without boxes has no label file."""
    for value, (name, rows) in enumerate(boxes.items()):
        put_image(root / "images" / split / name, value)
        if rows:
            label = (root / "labels" / split / name).with_suffix(".txt")
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text(yolo_text(rows, 40, 20))
    return root


def opened(path: Path, classes: int = 3, size: tuple[int, int] = (20, 40)) -> BoxFolder:
    return BoxFolder(path, image_size=size, num_classes=classes)


def refusal(path: Path, classes: int = 3) -> str:
    with pytest.raises(DataError) as caught:
        opened(path, classes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def seen(folder: BoxFolder, batch_size: int = 4) -> dict[int, list[list[float]]]:
    """Grey value -> rows of every image, without empty ones."""
    found = {}
    for images, targets in folder.batches(batch_size):
        assert images.dtype == targets.dtype == torch.float32
        for image, rows in zip(images, targets, strict=True):
            found[int((image[0, 0, 0] * 255).round())] = rows[rows[:, 0] != -1].tolist()
    return found


WANTED = {0: [[2, 4, 2, 12, 10], [0, 20, 0, 40, 20]], 1: []}


# Files alone: what is written is read back.


@st.composite
def images_with_rows(draw: st.DrawFn) -> tuple[int, int, list[tuple[float, ...]]]:
    width, height = draw(st.integers(1, 700)), draw(st.integers(1, 700))
    shares = st.floats(0, 1, width=32)
    rows = []
    for _ in range(draw(st.integers(0, 4))):
        xs, ys = (sorted(draw(st.tuples(shares, shares))) for _ in range(2))
        rows.append((draw(st.integers(0, 2)), xs[0] * width, ys[0] * height, xs[1] * width, ys[1] * height))
    return width, height, rows


@settings(max_examples=60, deadline=None)
@given(images_with_rows())
def test_yolo_text_is_read_back_within_its_six_decimals(image: tuple[int, int, list[tuple[float, ...]]]) -> None:
    width, height, rows = image
    found = read_yolo(yolo_text(rows, width, height), width=width, height=height, num_classes=3, where="a.txt")
    assert [row[0] for row in found] == [row[0] for row in rows]
    error = 1.1e-6 * max(width, height)
    np.testing.assert_allclose(np.reshape(found, (-1, 5)), np.reshape(rows, (-1, 5)), atol=error)
    for _, x1, y1, x2, y2 in found:
        assert 0 <= x1 <= x2 <= width and 0 <= y1 <= y2 <= height


@settings(max_examples=60, deadline=None)
@given(images_with_rows())
def test_coco_json_is_read_back_within_a_thousandth_of_a_pixel(image: tuple[int, int, list[tuple[float, ...]]]) -> None:
    width, height, rows = image
    made = json.loads(json.dumps(coco_json([("x/a.png", width, height)], [rows], NAMES)))
    names, (read,) = read_coco(made, "a.json")
    assert names == NAMES and read.file_name == "x/a.png" and read.size == (height, width)
    assert [row[0] for row in read.rows] == [row[0] for row in rows]
    np.testing.assert_allclose(np.reshape(read.rows, (-1, 5)), np.reshape(rows, (-1, 5)), atol=1.1e-3)
    for _, x1, y1, x2, y2 in read.rows:
        assert 0 <= x1 <= x2 <= width and 0 <= y1 <= y2 <= height


def test_a_coco_file_as_it_should_be() -> None:
    made = coco_json([("a.png", 40, 20), ("b.png", 8, 9)], [[(2, 4, 2, 12, 10.5)], [(0, 1, 1, 2, 2, 0.25)]], NAMES)
    assert made == {
        "images": [
            {"id": 1, "file_name": "a.png", "width": 40, "height": 20},
            {"id": 2, "file_name": "b.png", "width": 8, "height": 9},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "bbox": [4, 2, 8, 8.5], "area": 68, "iscrowd": 0},
            {"id": 2, "image_id": 2, "category_id": 1, "bbox": [1, 1, 1, 1], "area": 1, "iscrowd": 0, "score": 0.25},
        ],
        "categories": [{"id": 1, "name": "cell"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "owl"}],
    }


def test_what_is_written_may_come_from_tensors() -> None:
    rows = torch.tensor([[2.0, 4.1, 2.0, 12.3, 10.0]])
    assert yolo_text(rows.tolist(), 40, 20) == "2 0.205000 0.300000 0.205000 0.400000\n"
    assert yolo_line((2, 4, 2, 12, 10, 0.9), 40, 20) == "2 0.200000 0.300000 0.200000 0.400000"
    made = coco_json([("a.png", 40, 20)], [list(rows)], NAMES)["annotations"][0]
    assert json.loads(json.dumps(made))["bbox"] == [4.1, 2, 8.2, 8]


# Places: the layouts that are read.


@pytest.mark.parametrize(
    ("file", "images"),
    [
        ("annotations.json", "images"),
        ("annotations.json", "."),
        ("_annotations.coco.json", "."),
        ("instances_val.json", "images"),
        ("instances_val.json", "val"),
        ("annotations/instances_val.json", "images/val"),
        ("annotations/instances_val.json", "val"),
        ("annotations/instances_val.json", "images"),
        ("annotations/instances_val.json", "."),
    ],
)
def test_coco_layouts_are_read_from_the_folder_and_from_the_file(tmp_path: Path, file: str, images: str) -> None:
    named = put_coco(tmp_path, file=file, images=images)
    for path in (tmp_path, named):
        folder = opened(path)
        assert folder.class_names == NAMES and len(folder) == 2 and folder.skipped == []
        assert seen(folder) == WANTED


def test_a_file_of_any_name_finds_the_images_beside_it(tmp_path: Path) -> None:
    assert seen(opened(put_coco(tmp_path, file="mine.json"))) == WANTED
    assert seen(opened(put_coco(tmp_path / "b", file="mine.json", images="mine"))) == WANTED


def test_each_split_has_its_own_images(tmp_path: Path) -> None:
    first = put_coco(tmp_path, file="annotations/instances_train.json", images="images/train", boxes={"a.png": []})
    put_coco(tmp_path, file="annotations/instances_val.json", images="images/val")
    put_image(tmp_path / "images" / "train" / "b.png", 77)
    line = refusal(tmp_path)
    assert "several COCO files (annotations/instances_train.json, annotations/instances_val.json)" in line
    assert "has no box in any of its 1 images" in refusal(first)
    assert seen(opened(tmp_path / "annotations" / "instances_val.json")) == WANTED


def test_yolo_layouts_are_read(tmp_path: Path) -> None:
    bare = opened(put_yolo(tmp_path / "bare"))
    assert seen(bare) == WANTED and bare.class_names == ["class 0", "class 1", "class 2"]
    (tmp_path / "bare" / "classes.txt").write_text("\n".join(NAMES))
    assert opened(tmp_path / "bare").class_names == NAMES
    root = put_yolo(tmp_path / "splits", "val")
    put_yolo(root, "train", {"t.png": [(0, 1, 1, 3, 3)]})
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnc: 3\nnames: [cell, dog, owl]\n")
    for path in (root, root / "data.yaml"):
        assert seen(opened(path)) == WANTED and opened(path).class_names == NAMES
    (root / "data.yaml").write_text("train: images/train\nnames: {0: cell, 1: dog, 2: owl}\n")
    assert seen(opened(root)) == {0: [[0, 1, 1, 3, 3]]}


def test_yolo_exports_with_a_folder_for_each_split_are_read(tmp_path: Path) -> None:
    put_yolo(tmp_path / "valid")
    (tmp_path / "data.yaml").write_text(f"path: {tmp_path}\nval: ../valid/images\nnames: [cell, dog, owl]\n")
    assert seen(opened(tmp_path)) == WANTED
    assert seen(opened(tmp_path / "valid")) == WANTED and opened(tmp_path / "valid").class_names == NAMES
    for val in (tmp_path / "valid" / "images", "valid/images"):
        (tmp_path / "data.yaml").write_text(f"path: ../datasets/mine\nval: {val}\n")
        assert seen(opened(tmp_path)) == WANTED


def test_yolo_labels_may_lie_beside_their_images(tmp_path: Path) -> None:
    for value, (name, rows) in enumerate(BOXES.items()):
        put_image(tmp_path / "val" / name, value)
        (tmp_path / "val" / name).with_suffix(".txt").write_text(yolo_text(rows, 40, 20))
    (tmp_path / "val" / "notes.txt").write_text("no label")
    (tmp_path / "data.yaml").write_text("val: val\n")
    assert seen(opened(tmp_path)) == WANTED


def test_hidden_label_files_are_left_out_as_hidden_images_are(tmp_path: Path) -> None:
    put_yolo(tmp_path)
    for name in ("images/._a.jpg", "labels/._a.txt", "labels/.trash/b.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\5\26\7")
    assert len(opened(tmp_path)) == len(BOXES)


def test_a_written_data_set_is_read_alike_from_both_forms(tmp_path: Path) -> None:
    put_yolo(tmp_path)
    yolo = opened(tmp_path)
    put_coco(tmp_path)
    assert seen(opened(tmp_path)) == seen(yolo) == WANTED


# What is answered.


def test_images_are_stretched_and_boxes_with_them(tmp_path: Path) -> None:
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[2:10, 4:12] = 200
    for root in (put_coco(tmp_path / "coco").parent, put_yolo(tmp_path / "yolo")):
        Image.fromarray(pixels).save(root / "images" / "a.png")
        image, targets = opened(root, size=(40, 20))[0]
        assert image.shape == (3, 40, 20)
        torch.testing.assert_close(targets, torch.tensor([[2.0, 2, 4, 6, 20], [0, 10, 0, 20, 40]]))
        assert (image[:, 6:18, 3:5] * 255).round().eq(200).all()  # well inside the box
        assert image[:, :, 8:].eq(0).all() and image[:, 23:].eq(0).all()


def test_shrinking_is_antialiased(tmp_path: Path) -> None:
    root = put_yolo(tmp_path)
    stripes = np.zeros((20, 40, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(root / "images" / "a.png")
    image, _ = opened(root, size=(10, 10))[0]
    assert (image[:, :, 2:-2] - 0.5).abs().max() < 0.02


def test_all_batches_have_the_rows_of_the_fullest_image(tmp_path: Path) -> None:
    boxes: Boxes = {f"{i}.png": [(1, 0, 0, 5, 5)] * (i % 3) for i in range(5)}
    folder = opened(put_coco(tmp_path, boxes=boxes))
    batches = list(folder.batches(2))
    assert folder.rows == 2
    assert [images.shape for images, _ in batches] == [(2, 3, 20, 40), (2, 3, 20, 40), (1, 3, 20, 40)]
    assert [targets.shape for _, targets in batches] == [(2, 2, 5), (2, 2, 5), (1, 2, 5)]
    assert batches[0][1][0].tolist() == [[-1, 0, 0, 0, 0]] * 2
    assert batches[0][1][1].tolist() == [[1, 0, 0, 5, 5], [-1, 0, 0, 0, 0]]


def test_crowds_keep_their_class(tmp_path: Path) -> None:
    made = content()
    made["annotations"][0]["iscrowd"] = 1  # of class 2
    assert seen(opened(put_coco(tmp_path, made)))[0][0] == [-4, 4, 2, 12, 10]
    (tmp_path / "classes.txt").write_text("owl\ndog\ncell\n")
    assert seen(opened(tmp_path))[0] == [[-2, 4, 2, 12, 10], [2, 20, 0, 40, 20]]


def test_class_ids_follow_the_order_of_the_category_ids(tmp_path: Path) -> None:
    made = content()
    made["categories"] = [{"id": 90, "name": "owl"}, {"id": 7, "name": "dog"}, {"id": 3, "name": "cell"}]
    made["annotations"][0]["category_id"], made["annotations"][1]["category_id"] = 90, 3
    folder = opened(put_coco(tmp_path, made))
    assert folder.class_names == NAMES and seen(folder) == WANTED


def test_classes_txt_orders_categories_and_leaves_unused_ones_out(tmp_path: Path) -> None:
    made = content(names=["cells", *NAMES])  # an exporter's heading that no box has
    for annotation in made["annotations"]:
        annotation["category_id"] += 1
    put_coco(tmp_path, made)
    assert "names 4 classes (cells, cell, dog, owl), but the task has num_classes 3" in refusal(tmp_path)
    (tmp_path / "classes.txt").write_text("owl\nant\ncell\n")
    folder = opened(tmp_path)
    assert folder.class_names == ["owl", "ant", "cell"]
    assert seen(folder)[0] == [[0, 4, 2, 12, 10], [2, 20, 0, 40, 20]]
    (tmp_path / "classes.txt").write_text("owl\nant\ndog\n")
    assert "'a.png' has a box of the category 'cell', which" in refusal(tmp_path)


def test_boxes_over_the_edge_by_a_pixel_are_cut_and_those_without_area_left_out(tmp_path: Path) -> None:
    boxes: Boxes = {"a.png": [(0, -1, -0.5, 41, 21), (1, 5, 5, 5, 9), (2, 40, 3, 40.8, 9)], "b.png": [(1, 3, 3, 9, 3)]}
    for root in (put_coco(tmp_path / "coco", boxes=boxes).parent, put_yolo(tmp_path / "yolo", boxes=boxes)):
        folder = opened(root)
        assert folder.skipped == ["3 boxes without area, the first in a.png"] and folder.rows == 1
        assert seen(folder) == {0: [[0, 0, 0, 40, 20]], 1: []}


def test_an_unreadable_image_is_skipped_and_named(tmp_path: Path) -> None:
    boxes: Boxes = {"sub/a.png": BOXES["a.png"], "b.png": []}
    for root in (put_coco(tmp_path / "coco", boxes=boxes).parent, put_yolo(tmp_path / "yolo", boxes=boxes)):
        (root / "images" / "b.png").write_bytes(b"no image")
        folder = opened(root)
        assert seen(folder) == {0: WANTED[0]}
        assert [line.removeprefix("images/") for line in folder.skipped] == ["b.png: not an image of a known kind"]


def test_images_of_other_sizes_than_their_boxes_are_refused_when_they_are_opened(tmp_path: Path) -> None:
    put_coco(tmp_path)
    put_image(tmp_path / "images" / "b.png", size=(40, 20))  # height and width confused
    line = refusal(tmp_path)
    assert line.endswith("b.png has 20 x 40 pixels, but its boxes are of one of 40 x 20; make them equal")
    put_image(tmp_path / "images" / "a.png", size=(10, 20))
    line = refusal(tmp_path)
    assert (
        "a.png has 20 x 10 pixels, but its boxes are of one of 40 x 20 (by their headers, 1 others differ, too); make"
        in line
    )


def test_an_image_that_is_changed_after_opening_is_refused_when_it_is_read(tmp_path: Path) -> None:
    folder = opened(put_coco(tmp_path))
    put_image(tmp_path / "images" / "a.png", size=(10, 20))
    with pytest.raises(DataError, match=r"a\.png has 20 x 10 pixels, but its boxes are of one of 40 x 20; make"):
        list(folder.batches(2))


def test_sound_images_are_opened_without_being_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes: Boxes = {f"{index}.png": [(0, 1, 1, 5, 5)] for index in range(50)}  # for more than one thread
    put_coco(tmp_path, boxes=boxes)
    monkeypatch.setattr(detection_folder.images, "read_image", lambda path: pytest.fail(f"{path} is decoded"))
    assert len(opened(tmp_path)) == 50


def test_sizes_are_those_of_the_upright_image(tmp_path: Path) -> None:
    """A camera's JPEG and a PNG that lie on their side; the PNG says so behind its pixels, in no header."""
    boxes: Boxes = {"a.jpg": BOXES["a.png"], "b.png": []}
    made = content(boxes)
    for name in boxes:
        put_image(tmp_path / name, size=(40, 20))
    exif = Image.Exif()
    exif[274] = 6
    Image.open(tmp_path / "a.jpg").save(tmp_path / "a.jpg", exif=exif)
    assert "b.png has 20 x 40" in refusal(put_coco(tmp_path, made, boxes={}))
    png = (tmp_path / "b.png").read_bytes()
    body = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    (tmp_path / "b.png").write_bytes(png[:-12] + chunk + png[-12:])  # before IEND
    folder = opened(tmp_path)
    assert [tuple(folder[index][0].shape) for index in range(2)] == [(3, 20, 40)] * 2
    made["images"][0] |= {"width": 20, "height": 40}  # as it is stored
    made["annotations"] = made["annotations"][:1]
    assert "a.jpg has 40 x 20 pixels, but its boxes are of one of 20 x 40" in refusal(
        put_coco(tmp_path, made, boxes={})
    )


# Without a box there is nothing to score; the images are there all the same.


@pytest.mark.parametrize("form", ["coco", "yolo"])
def test_data_without_boxes_are_refused_but_can_be_had(tmp_path: Path, form: str) -> None:
    boxes: Boxes = {"a.png": [], "b.png": []}
    if form == "coco":
        put_coco(tmp_path, boxes=boxes)
    else:
        put_yolo(tmp_path, boxes=boxes)
        for name in "ab":
            (tmp_path / "labels").mkdir(exist_ok=True)
            (tmp_path / "labels" / f"{name}.txt").write_text("")
    with pytest.raises(NothingToScore, match="has no box in any of its 2 images; give data with boxes") as caught:
        opened(tmp_path)
    data = caught.value.data
    assert len(data) == 2 and data.class_names[2] in ("owl", "class 2") and data.skipped == []
    image, targets = data[1]
    assert image.shape == (3, 20, 40) and targets.tolist() == [[-1, 0, 0, 0, 0]]


def test_boxes_that_are_all_without_area_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    boxes: Boxes = {"a.png": [], "b.png": [(0, 5, 5, 5, 9), (1, 3, 3, 9, 3)], "c.png": [(1, 40, 3, 40.8, 9)]}
    coco = put_coco(tmp_path / "coco", boxes=boxes)
    wanted = (
        f"has no box to score: all 3 boxes are without area, the first {coco}, annotation 1 (of 'b.png'); give data"
    )
    assert f"{coco.parent} {wanted}" in refusal(coco.parent)
    yolo = put_yolo(tmp_path / "yolo", boxes=boxes)
    label = yolo / "labels" / "b.txt"
    label.write_text("\n\n" + label.read_text())
    assert f"all 3 boxes are without area, the first {label}, line 3; give data" in refusal(yolo)
    made = content(boxes)
    made["annotations"][0] |= {"bbox": [5, 5, 3, 4], "iscrowd": 1}
    made["annotations"][1] |= {"id": "second"}
    line = refusal(put_coco(tmp_path / "coco", made, boxes=boxes))
    assert (
        "2 of its boxes are without area, the first" in line
        and "annotation 'second' (of 'b.png'), and the others" in line
    )
    for annotation in made["annotations"]:
        annotation.pop("id")
    assert "annotation 2 (of 'b.png')" in refusal(put_coco(tmp_path / "coco", made, boxes=boxes))


# What is refused, each as one line.


def changed(**changes: Any) -> dict[str, Any]:
    """The file's content with the first annotation changed; None takes a key out."""
    made = content()
    first = made["annotations"][0] | changes
    made["annotations"][0] = {key: value for key, value in first.items() if value is not None}
    return made


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"bbox": [4, 2, -8, 8]}, r"annotation 1: the bbox [4, 2, -8, 8] of 'a.png' (40 x 20 pixels) has a negative"),
        ({"bbox": [34, 2, 8, 8]}, "reaches out of the image"),
        ({"bbox": [400, 2, 8, 8]}, "reaches out of the image"),
        ({"bbox": [-1.5, 2, 8, 8]}, "reaches out of the image"),
        ({"bbox": [4, 2, float("nan"), 8]}, "is not of finite numbers"),
        ({"bbox": [4, 2, 8, float("inf")]}, "is not of finite numbers"),
        ({"bbox": [4, 2, 8, 10**400]}, "is not of finite numbers"),
        ({"bbox": [1e300, 2, 1e308, 3]}, "is not of finite numbers"),
        ({"bbox": [4, 2, 8]}, "is not four numbers: x, y, width, height"),
        ({"bbox": [4, 2, 8, "8"]}, "is not four numbers"),
        ({"bbox": [4, 2, 8, True]}, "is not four numbers"),
        ({"bbox": None}, "bbox is missing in {"),
        ({"bbox": "4 2 8 8"}, "bbox is '4 2 8 8'; it has to be a list"),
        ({"category_id": 9}, "annotation 1: the category_id 9 is none of the 3 known (1, 2, 3)"),
        ({"category_id": "1"}, "category_id is '1'; it has to be a whole number"),
        ({"category_id": True}, "category_id is True; it has to be a whole number"),
        ({"image_id": 77}, "annotation 1: the image_id 77 is that of no image"),
        ({"image_id": [1]}, "image_id is [1]; it has to be a whole number or a text"),
        ({"image_id": None}, "image_id is missing"),
        ({"iscrowd": 2}, "iscrowd is 2; it is 0 or 1"),
        ({"id": 2}, "annotation 2: the id is given twice"),
        ({"id": {}}, "id is {}; it has to be a whole number or a text"),
    ],
)
def test_wrong_annotations_are_refused_with_their_values(tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    found = refusal(put_coco(tmp_path, changed(**changes)))
    assert found.startswith(f"{tmp_path / 'annotations.json'}, annotation ") and line in found
    assert len(found.replace(str(tmp_path), "")) < 400  # the folder may be as long as it likes


def test_annotations_need_no_ids(tmp_path: Path) -> None:
    assert seen(opened(put_coco(tmp_path, changed(id=None)))) == WANTED
    assert "annotation 1: the bbox" in refusal(put_coco(tmp_path / "b", changed(id=None, bbox=[4, 2, -8, 8])))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(["id", "bbox", "name"]), inner),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["images", "annotations", "categories"]), st.data())
def test_whatever_stands_in_a_coco_file_it_is_read_or_refused(part: str, data: st.DataObject) -> None:
    made = content()
    entry = made[part][0]
    entry[data.draw(st.sampled_from(sorted(entry)))] = data.draw(JSON | st.lists(st.floats(), min_size=4, max_size=4))
    try:
        _, images = read_coco(made, "a.json")
    except DataError as error:
        assert "\n" not in str(error) and len(str(error)) < 400
    else:
        for image in images:
            for _, x1, y1, x2, y2 in image.rows:
                assert 0 <= x1 <= x2 <= image.size[1] and 0 <= y1 <= y2 <= image.size[0]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"file_name": "../a.png"}, "image 1: the file_name '../a.png' leads out of the images' folder"),
        ({"file_name": "sub/../../a.png"}, "leads out"),
        ({"file_name": "..\\a.png"}, "leads out"),
        ({"file_name": "/etc/a.png"}, "leads out"),
        ({"file_name": "C:\\a.png"}, "leads out"),
        ({"file_name": ""}, "leads out"),
        ({"file_name": 3}, "file_name is 3; it has to be a text"),
        ({"file_name": "b.png"}, "image 2: the id 2 or the file_name 'b.png' is given twice"),
        ({"id": 2}, "image 2: the id 2 or the file_name 'b.png' is given twice"),
        ({"id": 1.0}, "id is 1.0; it has to be a whole number or a text"),
        ({"width": 0}, "'a.png' has (height, width) (20, 0)"),
        ({"width": 10**400}, "'a.png' has (height, width) (20, 1000"),
        ({"height": "20"}, "height is '20'; it has to be a whole number"),
        ({"file_name": "gone.png"}, "names 1 images (of 2) that are not in"),
        ({"file_name": "x" * 5000}, "names 1 images (of 2) that are not in"),
        ({"file_name": "a\0.png"}, "names 1 images (of 2) that are not in"),
        ({"file_name": "\ud800.png"}, "names 1 images (of 2) that are not in"),
    ],
)
def test_wrong_images_are_refused_with_their_values(tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    made = content()
    made["images"][0] |= changes
    found = refusal(put_coco(tmp_path, made))
    assert line in found and len(found.replace(str(tmp_path), "")) < 400 and found.encode()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"id": 2}, "category 2: the id 2 is given twice"),
        ({"id": "1"}, "id is '1'; it has to be a whole number"),
        ({"name": "dog"}, "category 2: the name 'dog' is empty, given twice or not printable"),
        ({"name": " "}, "the name ' ' is empty"),
        ({"name": "\x1b[31m"}, "not printable"),
        ({"name": 4}, "name is 4; it has to be a text"),
    ],
)
def test_wrong_categories_are_refused_with_their_values(tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    made = content()
    made["categories"][0] |= changes
    assert line in refusal(put_coco(tmp_path, made))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "is no COCO file (JSONDecodeError: Expecting value"),
        ("{", "is no COCO file"),
        ("[" * 200_000, "is no COCO file (RecursionError"),
        ("[]", "is no COCO file: it needs the lists images, annotations, categories"),
        ('{"images": [], "annotations": []}', "is no COCO file: it needs the lists"),
        ('{"images": [], "annotations": [], "categories": {}}', "is no COCO file: it needs the lists"),
        ('{"images": [7], "annotations": [], "categories": []}', "image 1: id is missing in 7"),
        ('{"images": [], "annotations": [7], "categories": []}', "annotation 1: image_id is missing in 7"),
        ('{"images": [], "annotations": [], "categories": [7]}', "category 1: id is missing in 7"),
        ('{"images": 1' + "0" * 5000 + "}", "is no COCO file (ValueError"),
    ],
)
def test_what_is_no_coco_file_is_refused(tmp_path: Path, text: str, line: str) -> None:
    put_coco(tmp_path).write_text(text)
    assert line in refusal(tmp_path)


def test_files_that_are_too_large_or_no_text_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (put_yolo(tmp_path / "yolo") / "labels" / "a.txt").write_bytes(b"\xff\xff\xff")
    assert "a.txt is not UTF-8 text" in refusal(tmp_path / "yolo")
    put_coco(tmp_path)
    monkeypatch.setattr(detection_folder, "_MOST_JSON", 100)
    assert "bytes, more than 100; split it" in refusal(tmp_path)


def test_missing_images_are_counted_and_the_first_three_named(tmp_path: Path) -> None:
    boxes: Boxes = {f"{name}.png": BOXES["a.png"] for name in "abcdef"}
    put_coco(tmp_path, boxes=boxes)
    for name in "bcde":
        (tmp_path / "images" / f"{name}.png").unlink()
    line = refusal(tmp_path)
    assert "names 4 images (of 6) that are not in" in line and "'b.png', 'c.png', 'd.png', ...;" in line
    assert str(tmp_path / "images") in line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("1 0.5 0.5 0.2\n", "line 1: 4 columns; a box is a line of 5: class x y width height"),
        ("1 0.1 0.1 0.2 0.1 0.2 0.3\n", "line 1: 7 columns"),
        ("\n1 0.5 0.5 0.2 x\n", "line 2: '1 0.5 0.5 0.2 x' is not five numbers"),
        ("3 0.5 0.5 0.2 0.2\n", "line 1: the class '3' is none of 0 to 2; mend it, or set task.num_classes"),
        ("-1 0.5 0.5 0.2 0.2\n", "the class '-1' is none of 0 to 2"),
        ("0.5 0.5 0.5 0.2 0.2\n", "the class '0.5' is none of 0 to 2"),
        ("nan 0.5 0.5 0.2 0.2\n", "the class 'nan' is none of 0 to 2"),
        ("1e400 0.5 0.5 0.2 0.2\n", "the class '1e400' is none of 0 to 2"),
        ("1 0.5 0.5 nan 0.2\n", "line 1: the box '1 0.5 0.5 nan 0.2' is not of finite numbers"),
        ("1 0.5 0.5 -0.2 0.2\n", "has a negative width or height"),
        ("1 0.9 0.5 0.3 0.2\n", "reaches out of the image"),
        ("1 20 10 8 8\n", "reaches out of the image"),  # pixels, not shares
    ],
)
def test_wrong_label_lines_are_refused_with_their_values(tmp_path: Path, text: str, line: str) -> None:
    file = put_yolo(tmp_path) / "labels" / "a.txt"
    file.write_text(text)
    found = refusal(tmp_path)
    assert found.startswith(str(file)) and line in found


def test_labels_and_images_that_do_not_match_are_refused(tmp_path: Path) -> None:
    root = put_yolo(tmp_path)
    for name in ("x", "y", "z", "zz", "classes"):
        (root / "labels" / f"{name}.txt").write_text("")
    assert "4 label files (of 5) in" in refusal(root) and "'x.txt', 'y.txt', 'z.txt', ...; add" in refusal(root)
    for file in (root / "labels").iterdir():
        file.unlink()
    assert "holds no label files for the images in" in refusal(root)
    (root / "labels" / "a.txt").write_text("\n")
    assert "has no box in any of its 2 images" in refusal(root)
    put_image(root / "images" / "a.jpg")
    assert "share the label file" in refusal(root)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("val: images/gone\n", "'images/gone' is no folder below"),
        ("val: /etc\n", "'/etc' is no folder below"),
        ("val: images/../../x\n", "is no folder below"),
        ("val: [images, more]\n", "val is ['images', 'more']; give one folder of images"),
        ("names: [a, b, c]\n", "val is None; give one folder"),
        ("- val\n", "is no data.yaml of YOLO's"),
        ("val: images\nval: images\n", "is given twice"),
        ("val: images\nnames: [a, b]\n", "names 2 classes (a, b), but the task has num_classes 3"),
        ("val: images\nnames: [a, b, a]\n", "names has one that is empty, given twice"),
        ("val: images\nnames: [a, b, [c]]\n", "give a list of the classes' names"),
        ("val: images\nnames: {1: a, 2: b, 3: c}\n", "names are numbered ['1', '2', '3']; number them from 0 on"),
        ("val: !!python/object:os.system images\n", "tags (!) are not allowed"),
    ],
)
def test_wrong_data_yaml_is_refused(tmp_path: Path, text: str, line: str) -> None:
    (put_yolo(tmp_path / "data") / "data.yaml").write_text(text)
    put_image(tmp_path / "x" / "a.png")
    assert line in refusal(tmp_path / "data")


def test_classes_of_another_number_are_refused_with_the_way_out(tmp_path: Path) -> None:
    line = refusal(put_coco(tmp_path), classes=4)
    assert "annotations.json names 3 classes (cell, dog, owl), but the task has num_classes 4" in line
    assert f"list all 4 in {tmp_path / 'classes.txt'}, in the order of the teacher's outputs" in line
    (tmp_path / "classes.txt").write_text("cell\nowl\n")
    assert "classes.txt names 2 classes (cell, owl), but the task has num_classes 4" in refusal(tmp_path, classes=4)


def test_a_classes_file_of_something_else_does_not_hide_the_categories(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("background\ncell\ndog\nowl\n")  # of masks that are kept there, too
    assert opened(put_coco(tmp_path)).class_names == ["cell", "dog", "owl"]


def test_what_holds_no_labelled_images_is_refused_with_the_layouts(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "gone"):
        assert "images/NAME.png and labels/NAME.txt" in refusal(path)
    put_image(tmp_path / "a.png")
    assert "is no folder, .json or .yaml" in refusal(tmp_path / "a.png")
    empty = {"images": [], "annotations": [], "categories": content()["categories"]}
    assert "lists no images" in refusal(put_coco(tmp_path, empty))


# Real data, as it was published.


def test_bccd_is_read_as_it_is(shared_data: Path) -> None:
    root = shared_data / "bccd"
    if not root.is_dir():
        pytest.skip("no bccd there")
    folder = opened(root / "annotations" / "instances_test.json", size=(120, 160))
    assert folder.class_names == ["RBC", "WBC", "Platelets"] and len(folder) == 72 and folder.skipped == []
    targets = torch.cat([rows for _, rows in folder.batches(16)])
    assert int((targets[..., 0] >= 0).sum()) == 945
    assert targets[0, 0].tolist() == [1, 48.25, 23, 96.75, 47 + 24.25]  # [96.5, 46, 97, 96.5] of 320 x 240
    assert "instances_test.json, annotations/instances_train.json, annotations/instances_val.json" in refusal(root)


def test_coco_is_read_as_it_is(shared_data: Path) -> None:
    root = shared_data / "coco-val128"
    if not root.is_dir():
        pytest.skip("no coco-val128 there")
    folder = opened(root, classes=80, size=(64, 64))
    assert len(folder) == 128 and folder.class_names[0] == "person" and folder.class_names[79] == "toothbrush"
    image, targets = folder[0]
    assert image.shape == (3, 64, 64)
    label, x1, _, x2, _ = targets[0].tolist()
    assert folder.class_names[int(label)] == "pottedplant" and x2 - x1 == pytest.approx(12.35 / 5)
    assert sum(int((folder[i][1][:, 0] >= 0).sum()) for i in range(4)) > 20
