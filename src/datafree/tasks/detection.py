"""Object detection: boxes with classes.

Outputs are `Predictions` of an adapted detector, targets (B, M, 5) as in `datafree.ops.boxes`.

B images, L locations, C classes, M rows of targets, N detections of one image, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Doc

from datafree.config import yaml
from datafree.config.options import Share, Temperature, Weight
from datafree.config.overrides import set_classes
from datafree.data.coco_yolo import coco_text, is_entry, yolo_text
from datafree.data.detection_folder import BoxFolder
from datafree.data.images import to_image
from datafree.data.labelled import place_below, save_image
from datafree.data.visualize import draw_boxes, outline_colours
from datafree.errors import DataError, NetworkError
from datafree.ops import boxes, losses
from datafree.ops.augment import Move
from datafree.ops.detections import Detections, agreement, detect
from datafree.ops.predictions import Predictions, joined
from datafree.storage.atomic import write_pieces, write_whole
from datafree.tasks.average_precision import AveragePrecision
from datafree.tasks.base import Task
from datafree.tasks.head_match import head_difference
from datafree.tasks.numpy_detections import numpy_detections
from datafree.tasks.own_loss import require_loss

_CELL = 8  # pixels of an image to a cell of its layout


@final
@dataclass(kw_only=True)
class Detection(Task[Predictions]):
    """Boxes with classes; rows of `class_probs` are images.

    A student with its teacher's heads and anchors learns the heads (DIODE, Chawla et al., WACV 2021): mean squares of
    the raw tensors. Any other learns the teacher's detections with its own loss, each drawn with the probability that
    the teacher gives it, so that on average a detection weighs what it is sure of; and the teacher's classes there.
    """

    distill: Annotated[
        Literal["auto", "heads", "boxes"], Doc("auto: heads where shapes and anchors are equal, else boxes")
    ] = "auto"
    class_weight: Annotated[
        Weight, Doc("boxes only: of the KL between the classes of a detection and of the student's own there")
    ] = 1.0
    temperature: Annotated[Temperature, Doc("of that KL")] = 2.0
    min_teacher_score: Annotated[Share, Doc("boxes only: score of the teacher's detections that may be drawn")] = 0.1
    score_threshold: Annotated[Share, Doc("of detections that count: in pictures, agreement and hard targets")] = 0.3
    nms_iou: Annotated[Share, Doc("IoU above which only the surer of two detections of a class stays")] = 0.5
    max_boxes: Annotated[int, Doc("rows of targets: boxes an image can show")] = 32
    boxes_per_image: Annotated[tuple[int, int], Doc("sampled targets: least, most (DIODE: 1, 1)")] = (1, 1)
    box_sides: Annotated[
        tuple[Share, Share], Doc("sampled targets: of the image's width and height, least and most")
    ] = (0.2, 0.8)
    class_frequencies: Annotated[
        tuple[float, ...], Doc("sampled targets: a number for each class; empty: all as often")
    ] = ()

    min_classes: ClassVar[int] = 1  # things of one kind are told from where there is none
    reads_files: ClassVar[bool] = True  # COCO's json
    localizes: ClassVar[bool] = True
    exact_ends: ClassVar[bool] = True  # boxes are in pixels, and would be rounded to a 255th of the image
    hub_name: ClassVar[str] = "object-detection"
    noun: ClassVar[str] = "An object detector"

    def __post_init__(self) -> None:
        super().__post_init__()
        least, most = self.boxes_per_image
        if not 1 <= least <= most <= self.max_boxes:
            raise DataError(f"boxes_per_image is {self.boxes_per_image}; give 1 <= least <= most <= {self.max_boxes}")
        small, large = self.box_sides
        if not 0 < small <= large <= 1:
            raise DataError(f"box_sides is {self.box_sides}; give shares of the image, 0 < least <= most <= 1")
        given = self.class_frequencies
        if given and (len(given) != self.num_classes or min(given) < 0 or sum(given) <= 0):
            raise DataError(
                f"class_frequencies has {len(given)} numbers for {self.num_classes} classes: give one for each, none "
                "below 0 and not all 0, or leave it out"
            )

    def check(self, outputs: object, what: str) -> Predictions:
        if not isinstance(outputs, Predictions):
            raise NetworkError(
                f"the {what} answers a {type(outputs).__name__}, not a detector's predictions; adapt it as a "
                "datafree.networks.detectors.Detector and name it as 'package.module:callable'"
            )
        if outputs.scores.shape[-1] != self.num_classes:
            found = outputs.scores.shape[-1]
            raise NetworkError(
                f"the {what} answers {found} classes, but the task has {self.num_classes}; "
                f"{set_classes(found)} or choose another {what}"
            )
        count = outputs.scores.shape[:2]
        for name, last in (("class_logits", self.num_classes), ("boxes", 4), ("centres", 2)):
            shape = tuple(getattr(outputs, name).shape)
            if shape != (*count, last):
                raise NetworkError(f"the {what} answers {name} {shape}, but scores of {tuple(outputs.scores.shape)}")
        for name in ("class_logits", "scores", "boxes"):
            if not torch.isfinite(getattr(outputs, name)).all():
                raise NetworkError(f"the {what} answers {name} that are not finite; its weights may be damaged")
        if outputs.scores.min() < 0 or outputs.scores.max() > 1:
            raise NetworkError(f"the {what} answers scores outside 0 to 1; its adapter must apply sigmoid or softmax")
        return outputs

    @classmethod
    def classes_of(cls, outputs: Any) -> int | None:
        return outputs.scores.shape[-1] if isinstance(outputs, Predictions) else None

    def probe_student(self, outputs: Predictions, what: str) -> None:
        if self.distill == "heads":  # its own loss is not asked
            return
        heads = tuple(head.detach().clone().requires_grad_() for head in outputs.heads)
        why = "it learns boxes by this (task.distill=heads does without, where its heads are its teacher's)"
        require_loss(replace(outputs, heads=heads), heads, self.image_size, f"the {what}", "heads", why)

    def probe_teacher(self, outputs: Predictions, images: Tensor, what: str, why: str) -> None:
        require_loss(outputs, [images], self.image_size, f"the {what}", "images", why)

    def sample_targets(self, n: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
        sampled = boxes.sampled(
            n,
            num_classes=self.num_classes,
            size=self.image_size,
            rows=self.max_boxes,
            count=self.boxes_per_image,
            sides=self.box_sides,
            frequencies=self.class_frequencies,
            generator=generator,
            device=device if generator is None else torch.device("cpu"),
        )
        return sampled.to(device, non_blocking=True)

    def move_targets(self, targets: Tensor, move: Move) -> Tensor:
        return boxes.moved(targets, move, self.image_size)

    def class_maps(self, targets: Tensor) -> Tensor:
        """Class maps in cells of 8 x 8 pixels: 1 where a box of the class reaches; smaller boxes over larger ones."""
        height, width = (-(-side // _CELL) for side in self.image_size)
        down = (torch.arange(height, device=targets.device) + 0.5) * _CELL
        right = (torch.arange(width, device=targets.device) + 0.5) * _CELL
        corners = targets[..., 1:]
        area = (corners[..., 2] - corners[..., 0]) * (corners[..., 3] - corners[..., 1])
        order = area.argsort(1, descending=True)[..., None].expand_as(targets)
        maps = torch.zeros(len(targets), self.num_classes, height, width, device=targets.device)
        for label, *edges in targets.gather(1, order).movedim(0, -1):  # each (B,)
            left, top, far, bottom = (edge[:, None, None] for edge in edges)
            inside = (right > left) & (right < far) & (down[:, None] > top) & (down[:, None] < bottom)  # (B, h, w)
            inside &= (label >= 0)[:, None, None]
            one = F.one_hot(label.clamp_min(0).long(), self.num_classes).float()[:, :, None, None]
            maps = torch.where(inside[:, None], one, maps)
        return maps

    def distill_loss(self, student: Predictions, teacher: Predictions) -> Tensor:
        difference = head_difference(student, teacher)
        if self.distill == "heads" and difference:
            raise NetworkError(f"task.distill=heads needs {difference}")
        if self.distill != "boxes" and not difference:
            return losses.heads_loss(student.heads, teacher.heads)
        found = detect(
            teacher,
            score_threshold=self.min_teacher_score,
            nms_iou=self.nms_iou,
            max_detections=self.max_boxes,
            size=self.image_size,
        )
        drawn = [(torch.rand_like(seen.scores) < seen.scores).nonzero()[:, 0] for seen in found]
        targets = [(seen.labels[keep], seen.boxes[keep]) for seen, keep in zip(found, drawn, strict=True)]
        loss = student.loss(student.heads, targets)
        if self.class_weight:
            loss = loss + self.class_weight * self._class_loss(student, teacher, found)
        return loss

    def _class_loss(self, student: Predictions, teacher: Predictions, found: list[Detections]) -> Tensor:
        """KL between the classes of each of the teacher's detections and of the student's location that fits it best.

        Fits: the highest IoU, above 1/2; a mean over detections, weighted by their scores.
        """
        from torchvision.ops import box_iou  # takes seconds, see datafree.detections

        ours, theirs, weights = [], [], []
        for index, seen in enumerate(found):
            if not len(seen.labels):
                continue
            best, place = box_iou(seen.boxes, student.boxes[index].detach()).max(1)  # (N,) each
            fits = (best > 0.5).nonzero()[:, 0]
            ours.append(student.class_logits[index, place[fits]])
            theirs.append(teacher.class_logits[index, seen.places[fits]])
            weights.append(seen.scores[fits])
        if not sum(map(len, weights)):
            return student.class_logits.sum() * 0
        weight = torch.cat(weights)
        rows = losses.kl_rows(torch.cat(ours), torch.cat(theirs), self.temperature)  # (N,)
        return (weight * rows).sum() / weight.sum()

    def target_loss(self, outputs: Predictions, targets: Tensor) -> Tensor:
        return outputs.own_loss(targets)

    def pseudo_targets(self, outputs: Predictions) -> Tensor:
        return boxes.pack([(seen.labels, seen.boxes) for seen in self.detections(outputs)], self.max_boxes)

    def detections(self, outputs: Predictions) -> list[Detections]:
        """Each image's detections that count."""
        return detect(
            outputs,
            score_threshold=self.score_threshold,
            nms_iou=self.nms_iou,
            max_detections=self.max_boxes,
            size=self.image_size,
        )

    def class_probs(self, outputs: Predictions) -> Tensor:
        """(B, C): the highest score of each class anywhere in an image, brought to sum 1."""
        highest = outputs.scores.amax(1) + 1e-6
        return highest / highest.sum(1, keepdim=True)

    def join(self, parts: list[Predictions]) -> Predictions:
        return joined(parts)

    def disagreement(self, student: Predictions, teacher: Predictions) -> Tensor:
        """Of the raw heads where equal ones mean the same boxes, else of `class_probs`."""
        if head_difference(student, teacher):
            return losses.l1_loss(self.class_probs(student), self.class_probs(teacher))
        pairs = zip(student.heads, teacher.heads, strict=True)
        return torch.stack([losses.l1_loss(ours, theirs) for ours, theirs in pairs]).mean()

    def agreement(self, student: Predictions, teacher: Predictions) -> float | None:
        """F1 of the student's detections against the teacher's; None where neither sees a box."""
        return agreement(self.detections(student), self.detections(teacher))

    def class_agreement(self, student: Predictions, teacher: Predictions) -> list[float | None]:
        """F1 as in `agreement`, of the detections of each class; None where neither network finds any."""
        ours, theirs = self.detections(student), self.detections(teacher)
        return [
            agreement([seen.of(label) for seen in ours], [seen.of(label) for seen in theirs])
            for label in range(self.num_classes)
        ]

    def new_metric(self, class_names: list[str] | None = None) -> AveragePrecision:
        names = class_names or [f"class {c}" for c in range(self.num_classes)]
        return AveragePrecision(class_names=names, image_size=self.image_size, nms_iou=self.nms_iou)

    def open_dataset(self, path: Path) -> BoxFolder:
        return BoxFolder(path, image_size=self.image_size, num_classes=self.num_classes)

    def renumbered(self, targets: Tensor, order: Tensor) -> Tensor:
        return boxes.renumbered(targets, order)

    def write_example(
        self, folder: Path, name: str, image: Tensor, target: Tensor, class_names: list[str]
    ) -> dict[str, Any]:
        """images/SHARD/NUMBER.png and YOLO's labels/SHARD/NUMBER.txt; `write_index` takes the boxes from the answer."""
        height, width = image.shape[-2:]
        rows = target[boxes.present(target[None])[0]].tolist()
        save_image(to_image(image), place_below(folder, f"images/{name}.png"))
        place_below(folder, f"labels/{name}.txt").write_text(yolo_text(rows, width, height), encoding="ascii")
        return {"file_name": f"{name}.png", "width": width, "height": height, "boxes": rows}

    def is_entry(self, entry: Any) -> bool:
        return is_entry(entry) and all(0 <= row[0] < self.num_classes for row in entry["boxes"])

    def write_index(self, folder: Path, listings: Callable[[], Iterable[list[Any]]], class_names: list[str]) -> None:
        """annotations.json as COCO has it, and data.yaml as YOLO has it."""
        write_pieces(folder / "annotations.json", coco_text(listings, class_names))
        listing = {"train": "images", "val": "images", "names": dict(enumerate(class_names))}
        write_whole(folder / "data.yaml", yaml.render(listing).encode())

    def draw_targets(self, images: Tensor, targets: Tensor) -> Tensor:
        """The images with their boxes as outlines."""
        return draw_boxes(images, targets, self.num_classes)

    @classmethod
    def colours(cls, count: int) -> Tensor:
        return outline_colours(count)

    def numpy_decoding(self) -> str:
        return numpy_detections(
            score_threshold=self.score_threshold,
            nms_iou=self.nms_iou,
            max_detections=self.max_boxes,
            size=self.image_size,
        )

    def draw_outputs(self, images: Tensor, outputs: Predictions) -> Tensor:
        """The images with the boxes that are seen, in their classes' colours."""
        return draw_boxes(images, self.pseudo_targets(outputs), self.num_classes)
