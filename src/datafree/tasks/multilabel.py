"""Multi-label classification: any of the classes in an image, each by a sigmoid of its own.

B images, C classes, H x W pixels. Outputs are logits (B, C), targets (B, C) int64 of 0 and 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Doc

from datafree.config.options import Share, Temperature
from datafree.data.images import to_image
from datafree.data.labelled import save_image
from datafree.data.multilabel_folder import MultiLabelFolder, table
from datafree.data.visualize import class_colours
from datafree.errors import DataError
from datafree.ops import losses
from datafree.ops.augment import Move
from datafree.storage.atomic import write_pieces
from datafree.tasks.base import Scores, Task, check_logits, unseen


@final
@dataclass(kw_only=True)
class MultiLabel(Task[Tensor]):
    """Any of the classes in an image: logits (B, C), labels (B, C); rows of `class_probs` are images."""

    distill: Annotated[
        Literal["bce", "l1", "mse"],
        Doc("bce: KL of each class's yes and no; l1, mse: |s - t|, (s - t)^2 on logits"),
    ] = "bce"
    temperature: Annotated[Temperature, Doc("of the KL")] = 1.0
    threshold: Annotated[Share, Doc("probability above which a class counts as named")] = 0.5

    hub_name: ClassVar[str] = "image-classification"
    noun: ClassVar[str] = "A multi-label image classifier"

    def check(self, outputs: object, what: str) -> Tensor:
        return check_logits(outputs, what, dims=2, wanted=f"(B, {self.num_classes})", num_classes=self.num_classes)

    def sample_targets(self, n: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
        """Labels (n, C): a class in turn, every one as often, and in half of the images another one."""
        where = device if generator is None else torch.device("cpu")
        rounds = [torch.randperm(self.num_classes, generator=generator, device=where)]
        while len(rounds) * self.num_classes < n:
            rounds.append(torch.randperm(self.num_classes, generator=generator, device=where))
        first = F.one_hot(torch.cat(rounds)[:n], self.num_classes)
        second = torch.randint(self.num_classes, (n,), generator=generator, device=where)
        more = torch.randint(2, (n, 1), generator=generator, device=where)
        return (first | (more * F.one_hot(second, self.num_classes))).to(device, non_blocking=True)

    def move_targets(self, targets: Tensor, move: Move) -> Tensor:
        return targets

    def class_maps(self, targets: Tensor) -> Tensor:
        return targets.float()[:, :, None, None]  # (B, C, 1, 1): the whole image

    def distill_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        if self.distill != "bce":
            return losses.logits_loss(self.distill, student, teacher, 1.0)
        return losses.binary_kl_loss(student, teacher, self.temperature)

    def target_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(outputs.float(), targets.float())

    def pseudo_targets(self, outputs: Tensor) -> Tensor:
        return self._named(outputs).long()

    def _named(self, outputs: Tensor) -> Tensor:
        return outputs.float().sigmoid() > self.threshold

    def class_probs(self, outputs: Tensor) -> Tensor:
        """(B, C): the probabilities of the classes, brought to sum 1."""
        scores = outputs.float().sigmoid() + 1e-6
        return scores / scores.sum(1, keepdim=True)

    def disagreement(self, student: Tensor, teacher: Tensor) -> Tensor:
        return losses.l1_loss(student, teacher)

    def agreement(self, student: Tensor, teacher: Tensor) -> float | None:
        """F1 of the student's labels against the teacher's, all classes together; None where neither names any."""
        ours, theirs = self._named(student), self._named(teacher)
        named = int(ours.sum() + theirs.sum())
        return 2 * int((ours & theirs).sum()) / named if named else None

    def class_agreement(self, student: Tensor, teacher: Tensor) -> list[float | None]:
        """`agreement` for each class; None where neither network names it."""
        ours, theirs = self._named(student), self._named(teacher)
        named = (ours.sum(0) + theirs.sum(0)).tolist()
        same = (2 * (ours & theirs).sum(0)).tolist()
        return [hit / count if count else None for hit, count in zip(same, named, strict=True)]

    def new_metric(self, class_names: list[str] | None = None) -> MultiLabelMetric:
        names = class_names or [f"class {c}" for c in range(self.num_classes)]
        return MultiLabelMetric(class_names=names, threshold=self.threshold)

    def open_dataset(self, path: Path) -> MultiLabelFolder:
        return MultiLabelFolder(path, image_size=self.image_size, num_classes=self.num_classes)

    def renumbered(self, targets: Tensor, order: Tensor) -> Tensor:
        return torch.empty_like(targets).index_copy(1, order.to(targets.device), targets)

    def write_example(
        self, folder: Path, name: str, image: Tensor, target: Tensor, class_names: list[str]
    ) -> dict[str, Any]:
        """images/SHARD/NUMBER.png; `write_index` takes the labels from the answer."""
        save_image(to_image(image), folder / "images" / f"{name}.png")
        return {"file": f"images/{name}.png", "labels": [int(value) for value in target]}

    def is_entry(self, entry: Any) -> bool:
        if not isinstance(entry, dict) or entry.keys() != {"file", "labels"} or not isinstance(entry["file"], str):
            return False
        labels = entry["labels"]
        return isinstance(labels, list) and len(labels) == self.num_classes and all(value in (0, 1) for value in labels)

    def write_index(self, folder: Path, listings: Callable[[], Iterable[list[Any]]], class_names: list[str]) -> None:
        """labels.csv."""
        rows = ((entry["file"], entry["labels"]) for listing in listings() for entry in listing)
        write_pieces(folder / "labels.csv", table(rows, class_names))

    def draw_outputs(self, images: Tensor, outputs: Tensor) -> Tensor:
        """A bar for each class in its colour, as long as its probability."""
        height, width = images.shape[-2:]
        colours = class_colours(self.num_classes).to(images.device)  # (C, 3)
        rows = (torch.arange(height, device=images.device) * self.num_classes) // height  # (H,) the class of a row
        right = (torch.arange(width, device=images.device) + 0.5) / width
        filled = outputs.float().sigmoid()[:, rows, None] > right  # (B, H, W)
        return filled[:, None] * colours[rows].T[None, :, :, None]


@dataclass(kw_only=True)
class MultiLabelMetric:
    """mAP, the mean over classes of the area under precision and recall, as scikit-learn's average_precision_score.

    And F1 of all labels together ("OF1") at the threshold. A class that no image shows has no AP. Images are ranked by
    logits: of sure answers, float32 probabilities are all 1.
    """

    class_names: list[str]
    threshold: float
    logits: list[Tensor] = field(default_factory=list, init=False)  # each (B, C)
    truth: list[Tensor] = field(default_factory=list, init=False)

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Keep outputs (B, C) logits, and targets (B, C) of 0 and 1."""
        self.logits.append(outputs.float().cpu())
        self.truth.append(targets.bool().cpu())

    def compute(self) -> Scores:
        if not any(part.any() for part in self.truth):
            raise DataError("no label was scored: no image shows any class")
        logits, labels = torch.cat(self.logits), torch.cat(self.truth)  # (N, C)
        scores, truth, shown = logits.numpy(), labels.numpy(), labels.any(0).tolist()
        each = [
            (name, average_precision(scores[:, c], truth[:, c])) for c, name in enumerate(self.class_names) if shown[c]
        ]
        named = logits.sigmoid() > self.threshold
        f1 = 2 * int((named & labels).sum()) / max(1, int(named.sum() + labels.sum()))
        return Scores(
            values={"map": float(np.mean([value for _, value in each])), "f1": f1},  # not by name: names may be equal
            per_class={"ap": dict(each)},
            remarks=unseen(self.class_names, shown, "image"),
        )


def average_precision(scores: Any, truth: Any) -> float:
    """sum over thresholds of (R_k - R_(k-1)) P_k, images of equal score taken together. Both (N,)."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(truth[order])
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # of each run of equal scores
    precision, recall = hits[last] / (last + 1), hits[last] / hits[-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))
