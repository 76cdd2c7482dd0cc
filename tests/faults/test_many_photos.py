"""Folders of many photos: opening one costs so much a photo and no more, and reads none; a step knows no number."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import nn

from datafree.data import images
from datafree.sources.base import ImageSource, SourceContext
from datafree.sources.dataset import Dataset
from datafree.sources.folder import Folder
from datafree.tasks import TASKS

FEW, MANY = 40, 160
KINDS = {"photos": "classification", "classes": "classification", "masks": "segmentation"} | dict.fromkeys(
    ("yolo", "coco"), "detection"
)


def put(folder: Path, kind: str, count: int) -> Path:
    """`count` labelled photos that are links to one."""
    root = folder / f"{kind}-{count}"
    root.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    Image.fromarray(pixels[..., 0] % 3).save(folder / "mask.png")
    (folder / "boxes.txt").write_text("0 0.5 0.5 0.2 0.2\n1 0.3 0.3 0.2 0.2\n")

    def link(name: str, target: str) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(folder / target, root / name)

    for index in range(count):
        name = f"{index:06}"
        place = {"photos": "", "classes": f"{'abc'[index % 3]}/"}.get(kind, "images/")
        link(f"{place}{name}.png", "photo.png")
        if kind == "masks":
            link(f"masks/{name}.png", "mask.png")
        elif kind == "yolo":
            link(f"labels/{name}.txt", "boxes.txt")
    if kind == "coco":
        shown = [{"id": i, "file_name": f"{i:06}.png", "width": 8, "height": 8} for i in range(count)]
        boxes = [{"id": i + 1, "image_id": i, "category_id": i % 3, "bbox": [1, 1, 4, 4]} for i in range(count)]
        names = [{"id": i, "name": name} for i, name in enumerate("abc")]
        content = {"images": shown, "categories": names, "annotations": boxes}
        (root / "annotations.json").write_text(json.dumps(content))
    return root


def calls(work: Callable[[], object]) -> int:
    """How many functions are called, of Python's and of C's."""
    counted = [0]

    def look(frame: FrameType, event: str, argument: Any) -> None:
        counted[0] += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        work()
    finally:
        sys.setprofile(before)
    return counted[0]


def opened(kind: str, path: Path) -> ImageSource:
    task = TASKS[KINDS[kind]](num_classes=3, image_size=(8, 8))
    source = Folder(path=path) if kind == "photos" else Dataset(path=path)
    source.attach(SourceContext(task=task, teacher=nn.Identity(), steps=10, batch_size=4, seed=0))
    return source


@pytest.mark.parametrize("kind", KINDS)
def test_opening_costs_so_much_a_photo_and_a_step_costs_the_same(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, many = (put(tmp_path, kind, count) for count in (FEW, MANY))
    opened(kind, few)  # what is loaded by the first is not counted
    assert calls(lambda: opened(kind, many)) < 1.1 * MANY / FEW * calls(lambda: opened(kind, few))
    monkeypatch.setattr(images, "_to_rgb", lambda image: pytest.fail("a photo was decoded before any was asked for"))
    sources = [opened(kind, path) for path in (few, many)]
    monkeypatch.undo()
    for source in sources:
        source.sample(4)  # the order of the epoch is drawn
    steps = [calls(lambda source=source: source.sample(4)) for source in sources]
    assert max(steps) < 2 * min(steps)  # readers read ahead, now more, now less
    saved = [calls(source.state_dict) for source in sources]
    assert saved[0] == saved[1]
