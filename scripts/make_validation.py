"""Make validation sets for the built-in examples, on which the settings of the demos are chosen; never shipped.

    python scripts/make_validation.py work/validation

    datafree distill garments-demo data=work/validation/garments
    datafree distill boxes-demo data=work/validation/garments/annotations.json
    datafree distill fashion-demo data=work/validation/fashion

All of it comes from Fashion-MNIST's 60,000 training pictures; the packaged evaluation folders come from the 10,000 test
pictures, and are scored once, at the end. `scenes` holds images like those that the garments' teachers learnt from,
without labels: with `source.path` set to it, the same student learns from the true kind of images (the upper line).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Final

from PIL import Image

from datafree.data.coco_yolo import coco_json
from make_example import CLASSES, SIZE, TRAINING, Garments, Style, read_garments, scene
from make_fashion_example import first_of_each
from supervised import LabelledImages, load_fashion

VALIDATION: Final = dataclasses.replace(TRAINING, stream=3)  # as the teachers' own scenes, others of them
TRUE: Final = dataclasses.replace(TRAINING, stream=4)
SCENES: Final = 300  # labelled
TRUE_SCENES: Final = 3000
EACH: Final = 250  # pictures of a class


def write_labelled(garments: Garments, style: Style, count: int, out: Path) -> None:
    """Write images, masks, classes.txt and annotations.json of `count` scenes under `out`."""
    for folder in ("images", "masks"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        image, mask, found = scene(garments, style, number)
        Image.fromarray(image).save(out / f"images/{number:03d}.png")
        Image.fromarray(mask).save(out / f"masks/{number:03d}.png")
        rows.append([(label - 1, *box) for label, *box in found])
    (out / "classes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    content = coco_json([(f"{number:03d}.png", SIZE, SIZE) for number in range(count)], rows, CLASSES[1:])
    (out / "annotations.json").write_text(json.dumps(content) + "\n", encoding="utf-8")


def write_plain(garments: Garments, style: Style, count: int, out: Path) -> None:
    """Write `count` scenes without labels."""
    out.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(scene(garments, style, number)[0]).save(out / f"{number:04d}.png")


def write_pictures(train: LabelledImages, out: Path) -> None:
    """Write the first pictures of each class as CLASS/NNNNN.png, and classes.txt."""
    for name, places in zip(train.class_names, first_of_each(train, EACH), strict=True):
        (out / name).mkdir(parents=True, exist_ok=True)
        for place in places:
            Image.fromarray(train.images[place, 0].numpy()).save(out / name / f"{place:05d}.png")
    (out / "classes.txt").write_text("\n".join(train.class_names) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make validation sets for the built-in examples.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"), help="its .gz files")
    args = parser.parse_args()
    garments = read_garments(args.data, "train")
    write_labelled(garments, VALIDATION, SCENES, args.out / "garments")
    write_plain(garments, TRUE, TRUE_SCENES, args.out / "scenes")
    write_pictures(load_fashion(args.data, "train"), args.out / "fashion")


if __name__ == "__main__":
    main()
