"""COCO's json and YOLO's text formats of boxes: written, and read from untrusted files.

A row is one box: class id, x1, y1, x2, y2 in pixels, perhaps a score. A class id below -1 is a crowd of class
-2 - id, as in `datafree.ops.boxes`. COCO has (x, y, width, height) in pixels, YOLO (centre x, centre y, width, height)
as shares of the image.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PureWindowsPath
from typing import Any

from datafree.errors import DataError
from datafree.text import show

BEYOND = 1.0  # pixels that a box may reach over the image's edge, by rounding; it is cut there

_LONGEST = 10**6  # pixels of an image's side

Row = tuple[int, float, float, float, float]  # as it is read


Entry = dict[str, Any]  # of an image: file_name, width, height, boxes as rows of class id, x1, y1, x2, y2


@dataclass(frozen=True, kw_only=True)
class Annotated:
    """An image in a COCO file."""

    file_name: str  # a path below the images' folder: relative, without ".."
    size: tuple[int, int]  # (height, width), pixels
    rows: list[Row]  # boxes inside the image; some may have no area
    keys: list[int | str]  # of each row the annotation's id, or its place from 1 on where it has none


def coco_json(
    images: Sequence[tuple[str, int, int]], boxes: Sequence[Sequence[Sequence[float]]], class_names: Sequence[str]
) -> dict[str, Any]:
    """The content of a COCO file of `images` (file name, width, height) and the rows of each.

    All ids count from 1 in the order given, a category's is its class id + 1. Lengths are rounded to 0.001 pixels. A
    row's score, where it has one, goes along as "score".
    """
    annotations: list[dict[str, Any]] = []
    for image_id, rows in enumerate(boxes, 1):
        for label, x1, y1, x2, y2, *score in rows:
            assert 0 <= label < len(class_names)
            width, height = round(float(x2 - x1), 3), round(float(y2 - y1), 3)
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": int(label) + 1,
                "bbox": [round(float(x1), 3), round(float(y1), 3), width, height],
                "area": round(width * height, 3),
                "iscrowd": 0,
            }
            annotations.append(annotation | ({"score": round(float(score[0]), 6)} if score else {}))
    return {
        "images": [
            {"id": image_id, "file_name": name, "width": width, "height": height}
            for image_id, ((name, width, height), _) in enumerate(zip(images, boxes, strict=True), 1)
        ],
        "annotations": annotations,
        "categories": [{"id": label, "name": name} for label, name in enumerate(class_names, 1)],
    }


def coco_text(listings: Callable[[], Iterable[Sequence[Entry]]], class_names: Sequence[str]) -> Iterator[str]:
    """The text of a COCO file of many images, piece by piece: what `coco_json` answers, with ids that count on.

    `listings` is called twice; it goes through the images, some at a time.
    """
    for key, opening in (("images", '{"images": [\n'), ("annotations", '],\n"annotations": [\n')):
        yield opening
        images = boxes = 0
        between = ""
        for entries in listings():
            sizes = [(entry["file_name"], entry["width"], entry["height"]) for entry in entries]
            content = coco_json(sizes, [entry["boxes"] for entry in entries], class_names)
            for listed in content[key]:
                listed["id"] += images if key == "images" else boxes
                if key == "annotations":
                    listed["image_id"] += images
                yield between + json.dumps(listed)
                between = ",\n"
            images, boxes = images + len(content["images"]), boxes + len(content["annotations"])
    yield f'],\n"categories": {json.dumps(coco_json([], [], class_names)["categories"])}}}\n'


def is_entry(entry: Any) -> bool:
    """Whether a value, read from a file that is not trusted, is an `Entry`."""
    try:
        sizes = [entry["width"], entry["height"]]
        numbers = [number for box in entry["boxes"] for number in box]
        return (
            isinstance(entry["file_name"], str)
            and all(type(size) is int and size > 0 for size in sizes)
            and all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers)
            and all(len(box) == 5 for box in entry["boxes"])
        )
    except (KeyError, TypeError, AttributeError, OverflowError):
        return False


def yolo_line(row: Sequence[float], width: int, height: int) -> str:
    """One box of an image of width x height pixels, as YOLO's text has it; a score is left out."""
    label, x1, y1, x2, y2 = row[:5]
    assert label >= 0
    shares = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
    return " ".join([str(int(label)), *(f"{share:.6f}" for share in shares)])


def yolo_text(rows: Sequence[Sequence[float]], width: int, height: int) -> str:
    """The label file of an image of width x height pixels: a line for each box; empty without boxes."""
    return "".join(f"{yolo_line(row, width, height)}\n" for row in rows)


def read_yolo(text: str, *, width: int, height: int, num_classes: int, where: str) -> list[Row]:
    """The rows of a label file, for an image of width x height pixels; `where` names the file in errors.

    Boxes are cut to the image; some may have no area. Raises DataError for lines that are no boxes in it.
    """
    rows: list[Row] = []
    for number, line in enumerate(text.splitlines(), 1):
        columns = line.split()
        if not columns:
            continue
        what = f"{where}, line {number}"
        if len(columns) != 5:
            raise DataError(
                f"{what}: {len(columns)} columns; a box is a line of 5: class x y width height{_hint(len(columns))}"
            )
        try:
            label, *shares = map(float, columns)
        except ValueError as error:
            raise DataError(f"{what}: {show(line)} is not five numbers: class x y width height") from error
        if not (label.is_integer() and 0 <= label < num_classes):
            raise DataError(
                f"{what}: the class {show(columns[0])} is none of 0 to {num_classes - 1}; mend it, or set "
                "task.num_classes"
            )
        x, y, w, h = (share * side for share, side in zip(shares, (width, height) * 2, strict=True))
        corners = _corners(x - w / 2, y - h / 2, w, h, (height, width), f"{what}: the box {show(line)}")
        rows.append((int(label), *corners))
    return rows


def _hint(columns: int) -> str:
    """What a line of more columns than a box's mostly is, and what to do with it."""
    if columns == 6:
        return "; a sixth, as predictions have it, is a score: leave it out"
    if columns >= 7 and columns % 2:
        return "; class x1 y1 x2 y2 ... is a polygon (or, of 9, a turned box): write the least upright box around it"
    return "; the rest may be key points: leave them out" if columns > 6 else ""


def box_lines(text: str) -> list[int]:
    """The line, from 1 on, of each row that `read_yolo` makes of a label file."""
    return [number for number, line in enumerate(text.splitlines(), 1) if line.split()]


def read_data_yaml(content: object, where: str) -> tuple[list[str] | None, list[str]]:
    """The classes' names of YOLO's data.yaml (None: it has none) and the folder of images it names for scoring.

    That is val's, else test's, else train's; as two paths where "path" is given: with it and without. `where` names the
    file in errors. Raises DataError for values that cannot be meant; whether the folder is there is not looked at.
    """
    if not isinstance(content, dict):
        raise DataError(f"{where} is no data.yaml of YOLO's: it needs val, a folder of images, and names")
    names = content.get("names")
    if isinstance(names, dict):
        if set(names) != {str(label) for label in range(len(names))}:
            raise DataError(f"{where}: names are numbered {show(list(names))}; number them from 0 on")
        names = [names[str(label)] for label in range(len(names))]
    if names is not None:
        if not isinstance(names, list) or not all(isinstance(n, (str, int, float)) for n in names):
            raise DataError(f"{where}: names is {show(names)}; give a list of the classes' names")
        names = [str(name) for name in names]
        if len(set(names)) != len(names) or not all(name.strip() and name.isprintable() for name in names):
            raise DataError(f"{where}: names has one that is empty, given twice or not printable; mend it")
    split = next((key for key in ("val", "test", "train") if content.get(key)), "val")
    folder, base = content.get(split), content.get("path") or ""
    if not isinstance(folder, str) or not isinstance(base, str):
        raise DataError(f"{where}: {split} is {show(folder)}; give one folder of images, and path as a text")
    return names, [f"{base}/{folder}", folder] if base else [folder]


def read_coco(content: object, where: str) -> tuple[list[str], list[Annotated]]:
    """The names of the categories, in the order of their ids, and the images of a COCO file's json.

    The first category is class 0, whatever its id. `where` names the file in errors. Boxes are cut to their images;
    some may have no area. Raises DataError for a json that is something else, and for values that cannot be meant.
    """
    lists = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in lists):
        raise DataError(f"{where} is no COCO file: it needs the lists {', '.join(lists)}; export it as COCO json")
    names = _categories(content["categories"], where)
    images = _images(content["images"], where)
    _add_boxes(content["annotations"], images, {key: label for label, key in enumerate(names)}, where)
    return list(names.values()), list(images.values())


def _categories(entries: list[object], where: str) -> dict[int, str]:
    """Category id -> name, sorted by the ids."""
    names: dict[int, str] = {}
    for place, entry in enumerate(entries, 1):
        what = f"{where}, category {place}"
        key, name = _value(entry, "id", int, what), _value(entry, "name", str, what)
        if key in names:
            raise DataError(f"{what}: the id {show(key)} is given twice; give each category its own")
        if name in names.values() or not name.strip() or not name.isprintable():
            raise DataError(f"{what}: the name {show(name)} is empty, given twice or not printable; mend it")
        names[key] = name
    return dict(sorted(names.items()))


def _images(entries: list[object], where: str) -> dict[int | str, Annotated]:
    """Image id -> image, without boxes yet."""
    images: dict[int | str, Annotated] = {}
    files: set[str] = set()
    for place, entry in enumerate(entries, 1):
        what = f"{where}, image {place}"
        key, name = _value(entry, "id", (int, str), what), _value(entry, "file_name", str, what)
        size = _value(entry, "height", int, what), _value(entry, "width", int, what)
        if not 1 <= min(size) <= max(size) <= _LONGEST:
            raise DataError(f"{what}: {show(name)} has (height, width) {show(size)}; give its pixels, 1 or more")
        path = PureWindowsPath(name)  # knows both kinds of slash
        if path.drive or path.root or ".." in path.parts or not path.parts:
            raise DataError(f"{what}: the file_name {show(name)} leads out of the images' folder; name files below it")
        if key in images or name in files:
            raise DataError(f"{what}: the id {show(key)} or the file_name {show(name)} is given twice; keep one")
        files.add(name)
        images[key] = Annotated(file_name=name, size=size, rows=[], keys=[])
    return images


def _add_boxes(
    entries: list[object], images: Mapping[int | str, Annotated], labels: Mapping[int, int], where: str
) -> None:
    """Give each image its rows. `labels`: category id -> class id."""
    seen: set[int | str] = set()
    for place, entry in enumerate(entries, 1):
        what = f"{where}, annotation {place}"
        image, category = _value(entry, "image_id", (int, str), what), _value(entry, "category_id", int, what)
        assert isinstance(entry, dict)  # or it had no such values
        key: int | str = place
        if "id" in entry:
            key = _value(entry, "id", (int, str), what)
            what = f"{where}, annotation {show(key)}"
            if key in seen:
                raise DataError(f"{what}: the id is given twice; give each annotation its own")
            seen.add(key)
        if image not in images:
            raise DataError(f"{what}: the image_id {show(image)} is that of no image; add the image, or remove the box")
        if category not in labels:
            known = ", ".join([show(known) for known in labels][:5]) + (", ..." if len(labels) > 5 else "")
            raise DataError(f"{what}: the category_id {show(category)} is none of the {len(labels)} known ({known})")
        box, crowd = _value(entry, "bbox", list, what), entry.get("iscrowd", 0)
        if len(box) != 4 or not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in box):
            raise DataError(f"{what}: the bbox {show(box)} is not four numbers: x, y, width, height in pixels")
        if crowd not in (0, 1):
            raise DataError(f"{what}: iscrowd is {show(crowd)}; it is 0 or 1")
        shown = images[image]
        x, y, w, h = (float(v) if abs(v) < 1e12 else math.inf for v in box)  # float() refuses enormous whole numbers
        height, width = shown.size
        which = f"the bbox {show(box)} of {show(shown.file_name)} ({width} x {height} pixels)"
        label = labels[category]
        shown.keys.append(key)
        shown.rows.append((-2 - label if crowd else label, *_corners(x, y, w, h, shown.size, f"{what}: {which}")))


def _value(entry: object, key: str, kind: type | tuple[type, ...], what: str) -> Any:
    """entry[key], if it is of that kind."""
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        words = {int: "a whole number", str: "a text", list: "a list"}
        kinds = " or ".join(words[k] for k in (kind if isinstance(kind, tuple) else (kind,)))
        found = show(value) if isinstance(entry, dict) and key in entry else f"missing in {show(entry)}"
        raise DataError(f"{what}: {key} is {found}; it has to be {kinds}")
    return value


def _corners(
    x: float, y: float, w: float, h: float, size: tuple[int, int], what: str
) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 of a box, cut to an image of `size` (height, width); `what` names the box in errors."""
    height, width = size
    if not all(map(math.isfinite, (x, y, w, h))):
        raise DataError(f"{what} is not of finite numbers; mend or remove it")
    if w < 0 or h < 0:
        raise DataError(f"{what} has a negative width or height; mend or remove it")
    if min(x, y) < -BEYOND or x + w > width + BEYOND or y + h > height + BEYOND:
        raise DataError(f"{what} reaches out of the image; cut or remove it")
    x1, x2 = (min(max(value, 0.0), width) for value in (x, x + w))
    y1, y2 = (min(max(value, 0.0), height) for value in (y, y + h))
    return x1, y1, x2, y2
