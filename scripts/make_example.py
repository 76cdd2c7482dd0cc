"""Make the built-in example, src/datafree/builtin/data/garments, from Fashion-MNIST.

    python scripts/make_example.py all      # or: scenes, teacher

Fashion-MNIST's four gzip files are the Debian package dataset-fashion-mnist; `--data` names another folder.
Scenes are 64 x 64 pixels: a smooth background and two or three tinted garments; a mask has each pixel's class.
A scene is a pure function of (seed, stream, number): the same command makes the same files again.

The evaluation scenes hold garments of the 10,000 test pictures. The teacher learns from scenes of
the 60,000 training pictures, never shipped. The proxy images have no labels; half of their garments
are of the five kinds that the teacher has never seen.
"""

from __future__ import annotations

import argparse
import gzip
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))  # the supervised loop is the benchmarks' own

from datafree.data.visualize import class_colours  # noqa: E402
from datafree.evaluation.scoring import evaluate  # noqa: E402
from datafree.networks.checkpoints.weights import load_weights  # noqa: E402
from datafree.networks.load import NetworkSpec, build_network  # noqa: E402
from datafree.networks.normalized import Normalized  # noqa: E402
from datafree.tasks.segmentation import Segmentation  # noqa: E402
from supervised import train_supervised  # noqa: E402

SIZE: Final = 64  # pixels, height and width of a scene
SEED: Final = 2011
EVAL_SCENES: Final = 120
PROXY_IMAGES: Final = 300
TRAINING_SCENES: Final = 8000
STEPS: Final = 5000  # of the teacher: about five minutes on one core
CLASSES: Final = ["background", "pullover", "trouser", "dress", "sneaker", "bag"]
KNOWN: Final = {2: 1, 1: 2, 3: 3, 7: 4, 8: 5}  # Fashion-MNIST's label -> our class id
TEACHER: Final = NetworkSpec(
    network="datafree/unet",
    args={"width": 16, "depth": 4, "stride": 2},
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
)
OTHER: Final = (0, 4, 5, 6, 9)  # t-shirt, coat, sandal, shirt, ankle boot: in the proxy images only

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Style:
    """What the scenes of one stream look like."""

    stream: int  # keeps the streams' random numbers apart
    labels: tuple[int, ...]  # Fashion-MNIST's labels that appear, each equally often
    sizes: tuple[int, int] = (28, 44)  # pixels, a garment's side: smallest, largest
    saturation: tuple[float, float] = (0.1, 0.8)  # of a garment's tint
    backgrounds: tuple[str, ...] = ("gradient", "stripes", "clouds")


TRAINING: Final = Style(stream=0, labels=tuple(KNOWN))
EVALUATION: Final = Style(stream=1, labels=tuple(KNOWN))
# Every second garment is of another kind, on average; other sizes, tints and backgrounds.
PROXY: Final = Style(
    stream=2,
    labels=OTHER + tuple(KNOWN),
    sizes=(26, 42),
    saturation=(0.3, 1.0),
    backgrounds=("plain", "checks"),
)


@dataclass(frozen=True, kw_only=True)
class Garments:
    """Fashion-MNIST's pictures: (N, 28, 28) uint8, and where in it each label's are."""

    pictures: Pixels
    of_label: dict[int, NDArray[np.int64]]


def read_garments(folder: Path, part: str) -> Garments:
    """The `part` ("train" or "t10k") of Fashion-MNIST in `folder`. Raises OSError when it is not there."""
    images = gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    pictures = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)  # 16, 8: the idx format's headers
    label_of = np.frombuffer(labels, np.uint8, offset=8)
    return Garments(pictures=pictures, of_label={c: np.flatnonzero(label_of == c) for c in range(10)})


def colour(
    rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]
) -> NDArray[np.float64]:
    """A random colour (3,) in [0, 1]: any hue."""
    hue, s, v = rng.uniform(0, 6), rng.uniform(*saturation), rng.uniform(*value)
    ramp = np.clip(np.abs((hue + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0, 1)
    return np.asarray(v * (1 - s + s * ramp))


def background(rng: np.random.Generator, kind: str) -> NDArray[np.float64]:
    """A smooth background (64, 64, 3) in [0, 1]: noise would make the PNG files large."""
    first, second = colour(rng, (0.0, 0.7), (0.05, 0.5)), colour(rng, (0.0, 0.7), (0.05, 0.5))
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    angle, width = rng.uniform(0, np.pi), rng.uniform(0.12, 0.35)  # width: a stripe's, in scenes
    along = x * np.cos(angle) + y * np.sin(angle)
    if kind == "plain":
        mix = np.full_like(x, rng.uniform(0, 1))
    elif kind == "gradient":
        mix = (along - along.min()) / np.ptp(along)
    elif kind == "stripes":
        mix = 0.5 + 0.35 * np.clip(4 * np.sin(2 * np.pi * along / width), -1, 1)
    elif kind == "checks":
        mix = 0.5 + 0.35 * np.sign(np.sin(np.pi * x / width) * np.sin(np.pi * y / width))
    else:  # clouds
        coarse = rng.uniform(0, 255, (4, 4)).astype(np.uint8)
        mix = np.asarray(Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC)) / 255
    return np.asarray(first + (second - first) * mix[:, :, None])


Box = tuple[int, int, int, int, int]  # class id of the mask, x1, y1, x2, y2 in pixels


def scene(garments: Garments, style: Style, number: int) -> tuple[Pixels, Pixels, list[Box]]:
    """Scene `number` of a style: image (64, 64, 3), mask (64, 64), 0 where no known garment is, and its boxes.

    A box holds what of a garment is in the frame, also where a later one lies over it (an eighth of it at most).
    """
    rng = np.random.default_rng([SEED, style.stream, number])
    canvas = background(rng, str(rng.choice(style.backgrounds)))
    mask = np.zeros((SIZE, SIZE), np.uint8)
    taken = np.zeros((SIZE, SIZE), bool)
    found: list[Box] = []
    for _ in range(int(rng.integers(2, 4))):
        label, side = int(rng.choice(style.labels)), int(rng.integers(style.sizes[0], style.sizes[1] + 1))
        picture = garments.pictures[rng.choice(garments.of_label[label])]
        if rng.random() < 0.5:
            picture = picture[:, ::-1]
        solid = Image.fromarray(np.where(picture > 6, 255, 0).astype(np.uint8))
        shape = np.asarray(solid.resize((side, side), Image.Resampling.BILINEAR)) > 127
        shade = np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BILINEAR)) / 255
        for _ in range(10):  # a place where at most an eighth of the garment covers another; else it is left out
            top, left = (int(v) for v in rng.integers(-2, SIZE - side + 3, 2))
            inside = np.s_[max(top, 0) : top + side, max(left, 0) : left + side]
            rows, columns = taken[inside].shape
            part = np.s_[max(-top, 0) : max(-top, 0) + rows, max(-left, 0) : max(-left, 0) + columns]
            piece = shape[part]
            if 8 * (taken[inside] & piece).sum() <= piece.sum():
                tint = colour(rng, style.saturation, (0.65, 1.0))
                canvas[inside][piece] = (0.4 + 0.6 * shade[part][piece])[:, None] * tint
                mask[inside][piece] = KNOWN.get(label, 0)
                taken[inside] |= piece
                if label in KNOWN and piece.any():
                    down, right = np.flatnonzero(piece.any(1)), np.flatnonzero(piece.any(0))
                    above, before = max(top, 0), max(left, 0)
                    corner = (int(before + right[0]), int(above + down[0]))
                    found.append((KNOWN[label], *corner, int(before + right[-1]) + 1, int(above + down[-1]) + 1))
                break
    image = np.round(canvas * 63) * (255 / 63)  # 64 levels a channel: PNG files a quarter smaller
    return image.clip(0, 255).astype(np.uint8), mask, found


def scenes(garments: Garments, style: Style, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first `count` scenes: images (N, 3, 64, 64) and masks (N, 64, 64), uint8."""
    pairs = [scene(garments, style, number) for number in range(count)]
    images = torch.from_numpy(np.stack([image for image, _, _ in pairs])).movedim(-1, 1).contiguous()
    return images, torch.from_numpy(np.stack([mask for _, mask, _ in pairs]))


def write_scenes(data: Path, out: Path) -> None:
    """Write eval/{images,masks,classes.txt} and proxy/ under `out`."""
    for folder in ("eval/images", "eval/masks", "proxy"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    test, train = read_garments(data, "t10k"), read_garments(data, "train")
    palette = class_colours(len(CLASSES)).mul(255).byte().flatten().tolist()
    for number in range(EVAL_SCENES):
        image, mask, _ = scene(test, EVALUATION, number)
        Image.fromarray(image).save(out / f"eval/images/{number:03d}.png", optimize=True)
        indexed = Image.fromarray(mask, "P")
        indexed.putpalette(palette)
        indexed.save(out / f"eval/masks/{number:03d}.png", optimize=True)
    (out / "eval/classes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    for number in range(PROXY_IMAGES):
        image, _, _ = scene(train, PROXY, number)
        Image.fromarray(image).save(out / f"proxy/{number:03d}.png", optimize=True)


def train_teacher(data: Path, out: Path, state_path: Path | None) -> None:
    """Train the teacher on new scenes; write teacher.safetensors (float16), print its score on `out`/eval."""
    images, masks = scenes(read_garments(data, "train"), TRAINING, TRAINING_SCENES)
    task = Segmentation(num_classes=len(CLASSES), image_size=(SIZE, SIZE))
    torch.manual_seed(SEED)
    network = build_network(TEACHER, num_classes=len(CLASSES))
    train_supervised(
        Normalized(network, TEACHER.mean, TEACHER.std), task, images, masks,
        steps=STEPS, batch_size=8, lr=3e-3, weight_decay=1e-5, seed=SEED, image_size=(SIZE, SIZE),
        state_path=state_path, save_every=250,
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    file = out / "teacher.safetensors"
    weights = {
        name: value.half() if value.is_floating_point() else value for name, value in network.state_dict().items()
    }
    save_file(weights, file)
    load_weights(network, file)  # what is scored is what is shipped: the rounded weights
    labelled = task.open_dataset(out / "eval")
    scores = evaluate(Normalized(network, TEACHER.mean, TEACHER.std), task, labelled, device=torch.device("cpu"))
    print({name: round(value, 4) for name, value in {**scores.values, **scores.per_class["iou"]}.items()})


Train = Callable[[Path, Path, Path | None], None]  # the originals, where to, a file that keeps an unfinished training


def command(what: str, first: str, write: Callable[[Path, Path], None], train: Train) -> None:
    """The command line of a script that writes files in a stage called `first`, and trains a teacher in another."""
    parser = argparse.ArgumentParser(description=f"Make {what} from Fashion-MNIST.")
    parser.add_argument("stage", choices=[first, "teacher", "all"], help=f"teacher: after {first}")
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"), help="its .gz files")
    parser.add_argument("--out", type=Path, default=ROOT / "src/datafree/builtin/data/garments")
    parser.add_argument(
        "--state", type=Path, help="file that keeps an unfinished training, for the same command to go on"
    )
    args = parser.parse_args()
    if args.stage in (first, "all"):
        write(args.data, args.out)
    if args.stage in ("teacher", "all"):
        train(args.data, args.out, args.state)


if __name__ == "__main__":
    command("the built-in example", "scenes", write_scenes, train_teacher)
