"""A classifier of torchvision distilled into a small one, without an image of ImageNet.

    python examples/torchvision_classifier.py

Needs a network once, for torchvision's weights; or give a file of your own as WEIGHTS. On a GPU: hours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datafree

WEIGHTS: Path | None = None  # a state_dict of your own, as .safetensors or .pt; None: torchvision's


def main(
    out: Path = Path("runs/torchvision"),
    weights: Path | None = WEIGHTS,
    network: str = "torchvision/resnet50",
    task: dict[str, Any] | None = None,
    **training: Any,
) -> datafree.Result:
    """Distil; `training` overrides the options below."""
    teacher: dict[str, Any] = {"network": network, "args": {"pretrained": True}}  # mean and std are torchvision's
    if weights is not None:
        teacher = {"network": network, "weights": weights, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    return datafree.distill(
        teacher={**teacher, "licence": "BSD-3-Clause"},
        student="auto?compress=2x",  # a smaller member of the family; or any network's name
        task=task or {"kind": "classification", "num_classes": 1000, "image_size": (224, 224)},
        source="dfad",
        training={"steps": 100_000, "batch_size": 128, **training},
        out=out,
        say=print,
    )


if __name__ == "__main__":
    print(main())
