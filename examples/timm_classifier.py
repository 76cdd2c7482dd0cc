"""Two networks of timm, as objects: a teacher fine-tuned by its owner, and a student.

    python examples/timm_classifier.py checkpoint.safetensors

What images must be comes from timm's own configuration of the teacher.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import timm

import datafree
from datafree.networks.checkpoints.weights import load_weights


def main(
    weights: Path, out: Path = Path("runs/timm"), name: str = "resnet34", classes: int = 10, **training: Any
) -> datafree.Result:
    """Distil; `training` overrides the options below."""
    teacher = timm.create_model(name, num_classes=classes)
    load_weights(teacher, weights)  # tensors only: nothing in the file is run
    config: dict[str, Any] = timm.data.resolve_model_data_config(teacher)  # type: ignore[attr-defined, no-untyped-call]
    return datafree.distill(
        teacher={"network": teacher, "mean": config["mean"], "std": config["std"]},
        student=timm.create_model("test_resnet", num_classes=classes),
        task={"kind": "classification", "num_classes": classes, "image_size": config["input_size"][1:]},
        source="dfad",
        training={"steps": 20_000, "batch_size": 64, **training},
        out=out,
    )


if __name__ == "__main__":
    print(main(Path(sys.argv[1])))
