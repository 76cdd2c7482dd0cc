"""Make the built-in classification example, src/datafree/builtin/data/fashion, from Fashion-MNIST.

    python scripts/make_fashion_example.py all      # or: eval, teacher

Fashion-MNIST's four gzip files are the Debian package dataset-fashion-mnist; `--data` names another folder.
The evaluation images are the first 100 of each class among the 10,000 test images, pixel for pixel. The teacher
learns from the 60,000 training images, never shipped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

import torch
from PIL import Image

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))  # the supervised loop is the benchmarks' own

from datafree.data.labelled import LabelledData  # noqa: E402
from datafree.engine.build_networks import prepare  # noqa: E402
from datafree.evaluation.scoring import evaluate  # noqa: E402
from datafree.networks.checkpoints.weights import load_weights, save_weights  # noqa: E402
from datafree.networks.load import NetworkSpec  # noqa: E402
from datafree.networks.normalized import Normalized  # noqa: E402
from datafree.tasks.classification import Classification  # noqa: E402
from supervised import LabelledImages, load_fashion, train_classifier  # noqa: E402

EACH: Final = 100  # evaluation images of a class
SEED: Final = 0
EPOCHS: Final = 8  # about 7 minutes on one core
BATCH: Final = 128
TEACHER: Final = NetworkSpec(
    network="datafree/resnet",
    args={"depth": 14, "width": 16, "stride": 2},
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    channels=1,
)
TASK: Final = Classification(num_classes=10, image_size=(28, 28))


def first_of_each(test: LabelledImages, each: int = EACH) -> list[list[int]]:
    """Where the first `each` images of every class stand in the file, by class."""
    return [(test.labels == label).nonzero().flatten()[:each].tolist() for label in range(10)]


def write_eval(data: Path, out: Path) -> None:
    """Write eval/CLASS/NNNNN.png, named by their place in the file, and eval/classes.txt under `out`."""
    test = load_fashion(data, "t10k")
    for name, places in zip(test.class_names, first_of_each(test), strict=True):
        folder = out / "eval" / name
        folder.mkdir(parents=True, exist_ok=True)
        for place in places:
            Image.fromarray(test.images[place, 0].numpy()).save(folder / f"{place:05d}.png", optimize=True)
    (out / "eval" / "classes.txt").write_text("\n".join(test.class_names) + "\n", encoding="utf-8")


def train_teacher(data: Path, state_path: Path | None) -> Normalized:
    """The teacher, trained on the 60,000 training images."""
    train = load_fashion(data, "train")
    teacher = new_teacher()
    train_classifier(
        teacher, TASK, train,
        steps=EPOCHS * len(train) // BATCH, batch_size=BATCH, lr=0.1, weight_decay=5e-4, seed=SEED, shift=2,
        state_path=state_path, save_every=250,
    )  # fmt: skip
    return teacher


def new_teacher() -> Normalized:
    """The teacher before it has learnt anything; its first weights depend on SEED alone."""
    torch.manual_seed(SEED)
    return prepare(TEACHER, TASK, "teacher", torch.device("cpu"), torch.float32)


def ship(teacher: Normalized, data: Path, out: Path) -> None:
    """Write teacher.safetensors, in float16; print what the shipped file scores, and on what."""
    file = out / "teacher.safetensors"
    save_weights(teacher.network.half(), file)
    load_weights(teacher.network.float(), file)  # what is scored is what is shipped: the rounded weights
    scored: dict[str, LabelledData] = {
        "all test images": load_fashion(data, "t10k"),
        "eval": TASK.open_dataset(out / "eval"),
    }
    for what, labelled in scored.items():
        scores = evaluate(teacher, TASK, labelled, device=torch.device("cpu"), batch_size=250)
        print(f"{what}: {scores.values['top1']:.4f} of {len(labelled)}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the built-in classification example from Fashion-MNIST.")
    parser.add_argument("stage", choices=["eval", "teacher", "all"], help="teacher: after eval")
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"), help="its .gz files")
    parser.add_argument("--out", type=Path, default=ROOT / "src/datafree/builtin/data/fashion")
    parser.add_argument(
        "--state", type=Path, help="file that keeps an unfinished training, for the same command to go on"
    )
    parser.add_argument("--weights", type=Path, help="ship this trained teacher instead of training one")
    args = parser.parse_args()
    if args.stage in ("eval", "all"):
        write_eval(args.data, args.out)
    if args.stage in ("teacher", "all"):
        if args.weights:
            teacher = new_teacher()
            load_weights(teacher.network, args.weights)
        else:
            teacher = train_teacher(args.data, args.state)
        ship(teacher, args.data, args.out)


if __name__ == "__main__":
    main()
