"""A segmentation network of segmentation-models-pytorch, with photos of a related kind that nobody has labelled.

    python examples/smp_segmenter.py teacher.safetensors photos

Half of the images are crops of the photos, half come from a GAN that the teacher steers (DeGAN, arXiv 2011.00809).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp

import datafree
from datafree.networks.checkpoints.weights import load_weights
from datafree.sources import Degan, Folder, Mixed


def main(
    weights: Path,
    photos: Path,
    out: Path = Path("runs/smp"),
    encoders: tuple[str, str] = ("resnet50", "mobilenet_v2"),
    classes: int = 12,
    size: tuple[int, int] = (128, 128),
    updates: int = 2000,
    **training: Any,
) -> datafree.Result:
    """Distil; `encoders` are the teacher's and the student's, `updates` the GAN's before the student begins.

    `training` overrides the options below.
    """
    teacher, student = (smp.Unet(encoder, encoder_weights=None, classes=classes) for encoder in encoders)
    load_weights(teacher, weights)
    return datafree.distill(
        teacher={"network": teacher, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
        student=student,
        task=datafree.Segmentation(num_classes=classes, image_size=size),
        source=Mixed(parts=[_crops(photos), Degan(proxy=_crops(photos), warmup=updates)]),
        training={"steps": 3000, "lr": 1e-3, **training},
        out=out,
    )


def _crops(photos: Path) -> Folder:
    return Folder(path=photos, crop="random", flip=True)


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), Path(sys.argv[2])))
