"""Classification: a class for every image.

B images, C classes, H x W pixels. Outputs are logits (B, C), targets class ids (B,) int64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, final

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor
from typing_extensions import Doc

from datafree.config.options import Temperature
from datafree.data.classification_folder import LabelFolder
from datafree.data.images import to_image, to_tensor
from datafree.data.labelled import place_below, save_image
from datafree.data.visualize import class_colours, draw_labels
from datafree.errors import DataError, NetworkError
from datafree.ops import losses
from datafree.ops.augment import Move
from datafree.tasks.base import NotLogits, Scores, Task, check_logits, require_spread, unseen
from datafree.text import show


@final
@dataclass(kw_only=True)
class Classification(Task[Tensor]):
    """A class for every image: logits (B, C), labels (B,); rows of `class_probs` are images."""

    distill: Annotated[
        Literal["kl", "l1", "mse", "zscore"],
        Doc(
            "kl: arXiv 1503.02531; l1, mse: |s - t|, (s - t)^2 on logits; zscore: KL of standardised logits of three "
            "classes or more, 2403.01427"
        ),
    ] = "kl"
    temperature: Annotated[Temperature, Doc("of the KL")] = 4.0

    hub_name: ClassVar[str] = "image-classification"
    noun: ClassVar[str] = "An image classifier"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_spread(self.distill, self.num_classes)

    def check(self, outputs: object, what: str) -> Tensor:
        wanted = f"(B, {self.num_classes})"
        if isinstance(outputs, Tensor) and outputs.ndim == 4 and outputs.shape[2:] == (1, 1):
            raise NetworkError(f"the {what} answers {tuple(outputs.shape)}; flatten it to logits {wanted}")
        checked = check_logits(outputs, what, dims=2, wanted=wanted, num_classes=self.num_classes)
        lengths = checked.float().norm(dim=1)
        if self.num_classes > 2 and torch.allclose(lengths, torch.ones_like(lengths), atol=1e-4):
            raise NotLogits(
                f"the {what} answers vectors of length 1, an embedding, but logits {wanted} are needed; give it with "
                "its classifier"
            )
        return checked

    @classmethod
    def classes_of(cls, outputs: Any) -> int | None:
        if not isinstance(outputs, Tensor) or not (outputs.ndim == 2 or outputs.shape[2:] == (1, 1)):
            return None
        return outputs.shape[1]

    def sample_targets(self, n: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
        where = device if generator is None else torch.device("cpu")
        rounds = [torch.randperm(self.num_classes, generator=generator, device=where)]
        while len(rounds) * self.num_classes < n:  # whole rounds of classes: counts differ by one at most
            rounds.append(torch.randperm(self.num_classes, generator=generator, device=where))
        return torch.cat(rounds)[:n].to(device, non_blocking=True)

    def move_targets(self, targets: Tensor, move: Move) -> Tensor:
        return targets

    def class_maps(self, targets: Tensor) -> Tensor:
        return F.one_hot(targets, self.num_classes).float()[:, :, None, None]  # (B, C, 1, 1): the whole image

    def distill_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        return losses.logits_loss(self.distill, student, teacher, self.temperature)

    def target_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.float(), targets)

    def pseudo_targets(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(1)

    def class_probs(self, outputs: Tensor) -> Tensor:
        return F.softmax(outputs.float(), 1)

    def disagreement(self, student: Tensor, teacher: Tensor) -> Tensor:
        return losses.l1_loss(student, teacher)

    def new_metric(self, class_names: list[str] | None = None) -> ClassificationMetric:
        return ClassificationMetric(class_names=class_names or [f"class {c}" for c in range(self.num_classes)])

    def open_dataset(self, path: Path) -> LabelFolder:
        return LabelFolder(path, image_size=self.image_size, num_classes=self.num_classes)

    def require_names(self, class_names: Sequence[str]) -> None:
        for name in class_names:
            if name != Path(name).name or name.startswith("."):
                raise DataError(f"the class name {show(name)} cannot name a folder; rename it, or leave `data` out")

    def write_example(self, folder: Path, name: str, image: Tensor, target: Tensor, class_names: list[str]) -> None:
        """CLASS/SHARD-NUMBER.png."""
        label = class_names[int(target)]
        self.require_names([label])
        save_image(to_image(image), place_below(folder, f"{label}/{name.replace('/', '-')}.png"))

    def draw_targets(self, images: Tensor, targets: Tensor) -> Tensor:
        """The images with their class ids in a corner."""
        return draw_labels(images, targets, self.num_classes)

    def draw_outputs(self, images: Tensor, outputs: Tensor) -> Tensor:
        """Tiles in the class's colour with its id and, where there is room, its probability in percent."""
        height, width = images.shape[-2:]
        colours = class_colours(self.num_classes)  # (C, 3)
        tiles = []
        for probability, label in zip(*self.class_probs(outputs).max(1), strict=True):
            red, green, blue = (int(255 * c) for c in colours[int(label)])
            tile = Image.new("RGB", (width, height), (red, green, blue))
            ink = "black" if 3 * red + 6 * green + blue > 1500 else "white"
            lines = [str(int(label))] + ([f"{100 * float(probability):.0f}%"] if min(height, width) >= 24 else [])
            ImageDraw.Draw(tile).multiline_text((2, 0), "\n".join(lines), fill=ink, spacing=1)
            tiles.append(to_tensor(tile))
        return torch.stack(tiles).to(images.device)


@dataclass(kw_only=True)
class ClassificationMetric:
    """Top-1 accuracy, per class too; top-5 where there are more than five classes."""

    class_names: list[str]
    seen: Tensor = field(init=False)  # (C,) images of each class
    hit: Tensor = field(init=False)  # (C,) of these, those named right
    near: int = field(default=0, init=False)  # images whose class is among the five likeliest

    def __post_init__(self) -> None:
        self.seen = torch.zeros(len(self.class_names), dtype=torch.int64)
        self.hit = self.seen.clone()

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Count outputs (B, C) logits against class ids (B,)."""
        count = len(self.class_names)
        right = outputs.argmax(1) == targets
        self.seen += torch.bincount(targets, minlength=count).cpu()
        self.hit += torch.bincount(targets[right], minlength=count).cpu()
        if count > 5:
            self.near += int((outputs.topk(5).indices == targets[:, None]).any(1).sum())

    def compute(self) -> Scores:
        total = int(self.seen.sum())
        if not total:
            raise DataError("no labelled image was scored")
        values = {"top1": int(self.hit.sum()) / total}
        if len(self.class_names) > 5:
            values["top5"] = self.near / total
        per_class = {n: int(h) / int(s) for n, h, s in zip(self.class_names, self.hit, self.seen, strict=True) if s}
        remarks = unseen(self.class_names, (self.seen > 0).tolist(), "image")
        return Scores(values=values, per_class={"accuracy": per_class}, remarks=remarks)
