"""Run directories written by hand, as a run of each task leaves them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from datafree.config import yaml
from datafree.data.images import to_image
from datafree.data.visualize import class_colours, draw_boxes, grid
from datafree.networks.checkpoints.weights import save_weights
from datafree.networks.resnet import resnet
from datafree.networks.unet import unet

NAMES = ["background", "<script>alert(1)</script>", "a very long name of a class that someone has given " * 2]
SIZE = (32, 40)
NOTES = ["student of step 40, chosen without labelled data: the last step"]


def write_run(folder: Path, kind: str = "segmentation", *, finished: bool = True, scored: bool = True) -> Path:
    """RUN with everything that a run of the task `kind` leaves, but weights of detectors; returns its path."""
    run = folder / f"my-{kind}"
    (run / "samples").mkdir(parents=True)
    network = {
        "network": "datafree/unet" if kind == "segmentation" else "datafree/resnet",
        "args": {"width": 2} if kind == "segmentation" else {"depth": 8, "width": 2},
    }
    task = {"kind": kind, "num_classes": 3, "image_size": list(SIZE)}
    recipe = {
        "name": f"my-{kind}",
        "task": task,
        "teacher": {"network": "timm/resnet18", "weights": "/home/someone/<b>teacher</b>.pt"},
        "student": network,
        "source": {"method": "cgdd", "warmup": 10},
        "training": {"steps": 400, "batch_size": 8, "seed": 3},
    }
    (run / "recipe.yaml").write_text(yaml.render(recipe), encoding="utf-8")
    write_json(
        run / "environment.json",
        {"versions": {"torch": "2.15.0"}, "hardware": {"processor": "one", "accelerator": None}, "began": "2026-11-21"},
    )
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines()), encoding="utf-8")
    torch.manual_seed(0)
    images = torch.rand(8, 3, *SIZE)
    for number in (10, 30, 50):
        rows = [images, *([answers(kind, images)] * (2 if number > 10 else 1))]
        to_image(grid(rows)).save(run / "samples" / f"{number:06d}.png")
    if not finished:
        return run
    bare = unet(3, width=2) if kind == "segmentation" else resnet(3, depth=8, width=2)
    save_weights(bare, run / "student.safetensors")
    write_json(
        run / "student.json",
        {"network": {**network, "weights": None}, "task": task, "class_names": NAMES, "cost": {"seconds": 75.0}},
    )
    one = {"parameters": 1e6, "bytes": 4e6, "multiply_adds": 5e7, "seconds": 0.02}
    other = {"parameters": 1e5, "bytes": 4e5, "multiply_adds": 5e6, "seconds": 0.004}
    write_json(
        run / "measured.json",
        {"networks": {"teacher": one, "student": other}, "class_agreement": [1.0, None, 0.25]},
    )
    values = {"teacher": {"miou": 0.8}, "student": {"miou": 0.6}}
    scores = {
        who: {"values": value, "per_class": {"iou": dict.fromkeys(NAMES, value["miou"])}}
        for who, value in values.items()
    }
    write_json(
        run / "result.json",
        {
            "chosen": {"step": 40, "agreement": 0.8},
            "scored_on": "photos of <i>mine</i>" if scored else None,
            "scores": scores if scored else {},
            "notes": NOTES,
        },
    )
    return run


def lines() -> list[dict[str, Any]]:
    """Of metrics.jsonl: a warm-up of 10 steps, the first 40 of 400 steps, a look every 10."""
    found: list[dict[str, Any]] = []
    for step in range(-10, 41, 2):
        loss = {} if step <= 0 else {"loss": math.exp(-step / 20)}
        found.append({"index": step + 10, "step": step, "adversarial": math.sin(step / 5), **loss})
        if step > 0 and step % 10 == 0:
            looked = {"agreement": 0.5 + step / 100, "held_out_class_balance": 0.9, "held_out_pixel_diversity": 0.25}
            found.append({"index": step + 10, "step": step, **looked, "calibration_gap": 0.1})
    return found


def answers(kind: str, images: torch.Tensor) -> torch.Tensor:
    if kind == "detection":
        boxes = torch.tensor([[[1.0, 4, 4, 20, 24], [2.0, 10, 8, 36, 30]]]).expand(len(images), -1, -1)
        return draw_boxes(images, boxes, 3)
    labels = torch.randint(0, 3, (len(images), 4, 5))
    colours = class_colours(3)[labels].movedim(-1, 1)
    return torch.nn.functional.interpolate(colours, size=SIZE)


def forge(file: Path, content: object) -> None:
    """Write other content than the run did, and nothing that tells: no seal, no digest of the file in its records."""
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(_unsealed(content)).encode())
    for record in (file.parent / name for name in ("student.json", "result.json", "config.json")):
        if record.is_file() and record != file:
            found = _unsealed(json.loads(record.read_text()))
            _forget(found, file.name)
            record.write_text(json.dumps(found))
            forge_digest(record)


def forge_digest(record: Path) -> None:
    """Have result.json say nothing of another record either."""
    result = record.with_name("result.json")
    if record != result and result.is_file():
        found = _unsealed(json.loads(result.read_text()))
        _forget(found, record.name)
        result.write_text(json.dumps(found))


def _forget(record: Any, name: str) -> None:
    digests = record.get("sha256") if isinstance(record, dict) else None
    if isinstance(digests, dict):
        digests.pop(name, None)


def _unsealed(content: Any) -> Any:
    return {key: value for key, value in content.items() if key != "seal"} if isinstance(content, dict) else content


def write_json(file: Path, content: object) -> None:
    file.write_text(json.dumps(content), encoding="utf-8")
