"""Make the detection part of the built-in example: boxes for the garments' scenes, and a detector that knows them.

    python scripts/make_boxes_example.py all      # or: boxes, teacher

The scenes are those of scripts/make_example.py, the evaluation ones the very images of example/garments/eval. The
teacher learns from scenes of Fashion-MNIST's 60,000 training pictures, never shipped.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from torch import Tensor

from datafree.data.coco_yolo import coco_json
from datafree.evaluation.scoring import evaluate
from datafree.networks.checkpoints.weights import load_weights
from datafree.networks.load import NetworkSpec, build_network
from datafree.networks.normalized import bare
from datafree.ops import boxes
from datafree.tasks.detection import Detection
from make_example import CLASSES, EVAL_SCENES, EVALUATION, SEED, SIZE, TRAINING, command, read_garments, scene, scenes
from supervised import train_detector

ROOT: Final = Path(__file__).resolve().parent.parent
TRAINING_SCENES: Final = 8000
STEPS: Final = 6000  # about seven minutes on one core
ANCHORS: Final = [[10, 20], [14, 36], [24, 30], [30, 30], [36, 36], [40, 24]]  # pixels: garments' shapes
TEACHER: Final = NetworkSpec(
    network="datafree/yolov3",
    args={"width": 0.25, "anchors": ANCHORS, "loss_gains": [10, 30, 10]},
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
)
TASK: Final = Detection(num_classes=len(CLASSES) - 1, image_size=(SIZE, SIZE))


def targets_of(data: Path, count: int) -> tuple[Tensor, Tensor]:
    """The first `count` training scenes: images (N, 3, 64, 64) uint8 and targets (N, 4, 5)."""
    garments = read_garments(data, "train")
    images, _ = scenes(garments, TRAINING, count)
    rows = [scene(garments, TRAINING, number)[2] for number in range(count)]
    labelled = [(torch.tensor([label - 1 for label, *_ in found], dtype=torch.int64), corners(found)) for found in rows]
    return images, boxes.pack(labelled, 4)


def corners(found: list[tuple[int, int, int, int, int]]) -> Tensor:
    """(N, 4) x1, y1, x2, y2 of a scene's boxes."""
    return torch.tensor([box[1:] for box in found], dtype=torch.float32).reshape(-1, 4)


def write_boxes(data: Path, out: Path) -> None:
    """Write eval/annotations.json under `out`, COCO's json of the images that are there."""
    test = read_garments(data, "t10k")
    found = [scene(test, EVALUATION, number)[2] for number in range(EVAL_SCENES)]
    rows = [[(label - 1, *box) for label, *box in boxes_of] for boxes_of in found]
    names = [(f"{number:03d}.png", SIZE, SIZE) for number in range(EVAL_SCENES)]
    content = coco_json(names, rows, CLASSES[1:])
    (out / "eval" / "annotations.json").write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


def train_teacher(data: Path, out: Path, state_path: Path | None) -> None:
    """Train the detector on new scenes; write detector.safetensors (float16), print its score on `out`/eval."""
    images, targets = targets_of(data, TRAINING_SCENES)
    torch.manual_seed(SEED)
    network = build_network(TEACHER, num_classes=TASK.num_classes)
    train_detector(
        TEACHER.wrap(network), TASK, images, targets,
        steps=STEPS, batch_size=32, lr=2e-3, weight_decay=1e-5, seed=SEED, zoom=(0.8, 1.3), state_path=state_path,
        save_every=500,
    )  # fmt: skip
    file = out / "detector.safetensors"
    state = bare(network).state_dict()
    save_file({name: v.half().contiguous() if v.is_floating_point() else v for name, v in state.items()}, file)
    file.chmod(0o644)
    load_weights(bare(network), file)  # what is scored is what is shipped: the rounded weights
    labelled = TASK.open_dataset(out / "eval" / "annotations.json")
    scores = evaluate(TEACHER.wrap(network), TASK, labelled, device=torch.device("cpu"))
    print({name: round(value, 4) for name, value in {**scores.values, **scores.per_class["ap50"]}.items()})


if __name__ == "__main__":
    command("the detection part of the built-in example", "boxes", write_boxes, train_teacher)
