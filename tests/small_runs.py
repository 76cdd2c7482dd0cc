"""Runs of small networks, and what they leave behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from datafree.networks.checkpoints.weights import save_weights
from datafree.networks.darknet.yolov3 import yolov3
from datafree.recipe.recipe import Recipe
from datafree.sources import SOURCES
from datafree.tasks.detection import Detection
from recipes import load, small, write_once, write_teacher

SMALL = {"width": 2, "depth": 2}


def recipe_for(tmp_path: Path, source: dict[str, Any], **training: Any) -> Recipe:
    content = {
        "task": {"kind": "segmentation", "num_classes": 3, "image_size": [32, 32]},
        "teacher": {"network": "datafree/unet", "args": SMALL, "weights": str(write_teacher(tmp_path, **SMALL))},
        "student": {"network": "datafree/unet", "args": SMALL},
        "source": small(source),
        "training": {"steps": 12, "batch_size": 3, "log_every": 2, "save_every": 5, "picture_every": 6, **training},
    }
    if SOURCES[source["method"]].serves is Detection:
        networks = {name: {"network": "datafree/yolov3", "args": {"width": 1 / 32}} for name in ("teacher", "student")}
        networks["teacher"]["weights"] = str(write_detector(tmp_path))
        content |= {"task": {"kind": "detection", "num_classes": 3, "image_size": [32, 32]}, **networks}
    return load(tmp_path, content)


def write_detector(folder: Path) -> Path:
    """Weights of a small datafree/yolov3 whose BatchNorm has seen something; always the same ones."""

    def write(file: Path) -> None:
        network = yolov3(3, width=1 / 32)
        for _ in range(5):
            network(torch.rand(8, 3, 32, 32))
        save_weights(network.network, file)

    return write_once("yolov3", folder / "detector.safetensors", write)


def labelled(folder: Path, classes: int = 3) -> Path:
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for index in range(3):
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{index}.png")
        Image.fromarray((pixels[..., 0] % classes).astype(np.uint8)).save(folder / "masks" / f"{index}.png")
    return folder


def stop_after(steps: int) -> Callable[[], str | None]:
    """Stops at the call after `steps` of them."""
    left: Iterator[str | None] = iter([None] * steps)
    return lambda: next(left, "enough")


def everything(run: Path) -> dict[str, Any]:
    """What a run leaves behind, without times and machine."""
    state = torch.load(run / "state" / "state.pt", weights_only=True)
    result = json.loads((run / "result.json").read_text())
    return {
        "student": load_file(run / "student.safetensors"),
        "state": state,
        "metrics": (run / "metrics.jsonl").read_text(),
        "result": {k: v for k, v in result.items() if k not in ("sha256", "seal")},  # of files with times in them
        "samples": {file.name: file.read_bytes() for file in sorted((run / "samples").iterdir())},
    }


def assert_same(first: Any, second: Any, where: str = "") -> None:
    assert type(first) is type(second), where
    if isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_same(first[key], second[key], f"{where}/{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), where
        for index, (one, other) in enumerate(zip(first, second, strict=True)):
            assert_same(one, other, f"{where}/{index}")
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    else:
        assert first == second, where
