"""Semantic segmentation: a class for every pixel.

B images, C classes, H x W pixels. Outputs are logits (B, C, H, W), targets class ids (B, H, W) int64.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, final

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from typing_extensions import Doc

from datafree.config.options import Temperature
from datafree.data.images import to_image
from datafree.data.labelled import place_below, save_image
from datafree.data.segmentation_folder import MaskFolder, one_class
from datafree.data.visualize import class_colours, draw_masks
from datafree.errors import DataError, NetworkError
from datafree.ops import augment, losses
from datafree.ops.augment import Move
from datafree.ops.upload import uploaded
from datafree.tasks.base import Scores, Task, check_logits, require_spread, unseen
from datafree.text import show

_MOST_IGNORED = 0.5  # of the pixels; street scenes have some 0.1


@final
@dataclass(kw_only=True)
class Segmentation(Task[Tensor]):
    """A class for every pixel: logits (B, C, H, W), masks (B, H, W); rows of `class_probs` are pixels."""

    ignore_index: Annotated[int, Doc("this class id in a mask is neither learnt nor scored")] = 255
    distill: Annotated[
        Literal["kl", "l1", "mse", "zscore"],
        Doc(
            "kl: arXiv 2011.00809; l1, mse: |s - t|, (s - t)^2 on logits; zscore: KL of standardised logits of three "
            "classes or more, 2403.01427"
        ),
    ] = "kl"
    temperature: Annotated[Temperature, Doc("of the KL; the paper has 1")] = 1.0

    dense: ClassVar[bool] = True
    localizes: ClassVar[bool] = True
    hub_name: ClassVar[str] = "image-segmentation"
    noun: ClassVar[str] = "A semantic segmentation network"
    padding_mode: ClassVar[str] = "border"  # what is moved in belongs to the class at the edge, so that masks stay true

    def __post_init__(self) -> None:
        super().__post_init__()
        require_spread(self.distill, self.num_classes)

    def check(self, outputs: object, what: str) -> Tensor:
        height, width = self.image_size
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else ()
        if len(shape) == 4 and shape[1] == self.num_classes and shape[2:] != (height, width):
            raise NetworkError(
                f"the {what} answers {shape[2]} x {shape[3]} pixels for images of {height} x {width}; "
                f"set {what.partition(' ')[0]}.upsample=true to have them enlarged, or choose a task.image_size that "
                "it keeps"
            )
        wanted = f"(B, {self.num_classes}, {height}, {width})"
        return check_logits(outputs, what, dims=4, wanted=wanted, num_classes=self.num_classes)

    @classmethod
    def classes_of(cls, outputs: Any) -> int | None:
        return outputs.shape[1] if isinstance(outputs, Tensor) and outputs.ndim == 4 else None

    def sample_targets(self, n: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
        """Masks (n, H, W) of smooth regions: at each place the class whose low-frequency noise is highest."""
        where = device if generator is None else torch.device("cpu")
        classes = uploaded([c for c in range(self.num_classes) if c != self.ignore_index], where)
        coarse = torch.randn(n, len(classes), 4, 4, generator=generator, device=where)
        # A strong constant for each class and image: few classes to an image, and never the same ones.
        coarse += 1.5 * torch.randn(n, len(classes), 1, 1, generator=generator, device=where)
        smooth = F.interpolate(coarse, size=self.image_size, mode="bicubic", align_corners=True)
        return classes[smooth.argmax(1)].to(device, non_blocking=True)

    def move_targets(self, targets: Tensor, move: Move) -> Tensor:
        masks = torch.roll(targets, (move.down, move.right), (-2, -1))
        if move.scale is None or move.offset is None:
            return masks
        moved = augment.resampled(
            masks[:, None].float(), move.scale, move.offset, move.padding or self.padding_mode, "nearest"
        )
        return moved[:, 0].to(targets.dtype)

    def class_maps(self, targets: Tensor) -> Tensor:
        known = targets != self.ignore_index
        maps = F.one_hot(torch.where(known, targets, 0), self.num_classes) * known[..., None]  # (B, H, W, C)
        return maps.movedim(-1, 1).float()

    def distill_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        return losses.logits_loss(self.distill, student, teacher, self.temperature)

    def target_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.float(), targets, ignore_index=self.ignore_index)

    def pseudo_targets(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(1)

    def class_probs(self, outputs: Tensor) -> Tensor:
        probs = F.softmax(outputs.float(), 1)  # (B, C, H, W)
        return probs.movedim(1, -1).flatten(0, -2)  # (B*H*W, C)

    def agreement(self, student: Tensor, teacher: Tensor) -> float:
        return float((student.argmax(1) == teacher.argmax(1)).float().mean())

    def disagreement(self, student: Tensor, teacher: Tensor) -> Tensor:
        return losses.l1_loss(student, teacher)

    def new_metric(self, class_names: list[str] | None = None) -> SegmentationMetric:
        names = class_names or [f"class {c}" for c in range(self.num_classes)]
        return SegmentationMetric(class_names=names, ignore_index=self.ignore_index)

    def open_dataset(self, path: Path) -> MaskFolder:
        return MaskFolder(
            path, image_size=self.image_size, num_classes=self.num_classes, ignore_index=self.ignore_index
        )

    def renumbered(self, targets: Tensor, order: Tensor) -> Tensor:
        """As the base class; ignored pixels stay so. Raises DataError where another class would be the ignored one."""
        ignored = targets == self.ignore_index
        if self.ignore_index in range(self.num_classes) and int(order[self.ignore_index]) != self.ignore_index:
            raise DataError(
                f"task.ignore_index {self.ignore_index} is another class to the network than in the masks: write the "
                "masks' ids in the order of its outputs"
            )
        ids = order.to(targets.device)[targets.masked_fill(ignored, 0)]
        return torch.where(ignored, targets, ids)

    def write_example(self, folder: Path, name: str, image: Tensor, target: Tensor, class_names: list[str]) -> None:
        """images/SHARD/NUMBER.png and masks/SHARD/NUMBER.png, of 16 bits where ids need them."""
        wide = max(self.num_classes - 1, self.ignore_index) > 255
        ids = target.cpu().numpy().astype(np.uint16 if wide else np.uint8)  # (H, W)
        save_image(to_image(image), place_below(folder, f"images/{name}.png"))
        save_image(Image.fromarray(ids), place_below(folder, f"masks/{name}.png"))

    def draw_targets(self, images: Tensor, targets: Tensor) -> Tensor:
        """The masks in their classes' colours, black where they are of no class."""
        return draw_masks(targets, self.num_classes)

    def draw_outputs(self, images: Tensor, outputs: Tensor) -> Tensor:
        colours = class_colours(self.num_classes).to(images.device)  # (C, 3)
        return colours[outputs.argmax(1)].movedim(-1, 1)  # (B, 3, H, W)


@dataclass(kw_only=True)
class SegmentationMetric:
    """Confusion counts, and from them mIoU, per-class IoU and pixel accuracy (torchmetrics' definitions).

    A class that is in neither the targets nor the outputs has no IoU and is left out of the mean, like the ignored one.
    """

    class_names: list[str]
    ignore_index: int = 255
    confusion: Tensor = field(init=False)  # (C, C) int64: rows targets, columns outputs
    ignored: int = field(init=False, default=0)  # pixels of the ignored id

    def __post_init__(self) -> None:
        count = len(self.class_names)
        self.confusion = torch.zeros(count, count, dtype=torch.int64)

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Count outputs (B, C, H, W) logits against targets (B, H, W)."""
        count = len(self.class_names)
        keep = targets != self.ignore_index
        self.ignored += int((~keep).sum())
        predicted, truth = outputs.argmax(1)[keep], targets[keep]
        pairs = torch.bincount(truth * count + predicted, minlength=count * count)
        self.confusion += pairs.reshape(count, count).cpu()

    def compute(self) -> Scores:
        if not self.confusion.any():
            raise DataError(f"no pixel was scored: every mask pixel is the ignored class {self.ignore_index}")
        counts = self.confusion.double()
        hit = counts.diagonal()
        union = counts.sum(0) + counts.sum(1) - hit
        present = union > 0
        if self._ignores_a_class:
            present[self.ignore_index] = False
        iou = hit / union.clamp_min(1)
        per_class = {n: float(v) for n, v, p in zip(self.class_names, iou, present, strict=True) if p}
        values = {"miou": float(iou[present].mean()), "pixel_accuracy": float(hit.sum() / counts.sum())}
        return Scores(values=values, per_class={"iou": per_class}, remarks=self._remarks())

    @property
    def _ignores_a_class(self) -> bool:
        """Whether the ignored id is that of a class; else it is one beside them, perhaps below 0."""
        return self.ignore_index in range(len(self.class_names))

    def _remarks(self) -> list[str]:
        """What the scores say nothing about. Raises DataError where that may be all that matters."""
        seen = self.confusion.sum(1) > 0
        scored = int(self.confusion.sum())
        share = self.ignored / (self.ignored + scored)
        told_apart = len(self.class_names) - self._ignores_a_class
        if seen.sum() == 1 and self.ignored and told_apart > 1:
            raise DataError(one_class(self.class_names[int(seen.int().argmax())], self.ignore_index))
        if self._ignores_a_class:
            seen[self.ignore_index] = True  # that it is not scored was asked for
        named = self.confusion.sum(0) > 0
        remarks = [
            *unseen(self.class_names, (seen | named).tolist(), "pixel"),
            *_wrongly_named([n for n, s, p in zip(self.class_names, seen, named, strict=True) if p and not s]),
        ]
        if share > _MOST_IGNORED:
            remarks.append(
                f"{share:.0%} of the labelled pixels are not scored: they have the ignored id {self.ignore_index}"
            )
        return remarks


def _wrongly_named(names: list[str]) -> list[str]:
    """A line about the classes that the mean IoU is over because the network names them, and nothing else does."""
    if not names:
        return []
    some = ", ".join(map(show, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    if len(names) == 1:
        return [f"the class {some} counts as 0: predicted, but no labelled pixel is of it"]
    return [f"{len(names)} classes count as 0: predicted, but no labelled pixel is of them: {some}"]
