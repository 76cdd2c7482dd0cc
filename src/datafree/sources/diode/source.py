"""DIODE: images with boxes, optimised out of a pretrained detector.

Akshay Chawla, Hongxu Yin, Pavlo Molchanov, Jose Alvarez, "Data-free Knowledge Distillation for Object Detection", WACV
2021. Weights, rates and sizes are those of its published settings for YOLOv3-SPP and COCO. Ours: the stages of a batch
follow one another at once (published: two passes over files, the second in batches of 96), the rate's cosine begins at
its first value, not one iteration further, and boxes are tiled 2 x 2, which is published by name only.

B images, M rows of targets, H x W pixels of a stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, final

import torch
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import Doc

from datafree.config.options import Count, CropArea, Momentum, NonNegative, PositiveInt, Share, Weight
from datafree.errors import DataError, NetworkError
from datafree.networks.batchnorm import StatisticsMatch, batchnorm_layers
from datafree.networks.load import NetworkSpec
from datafree.networks.normalized import bare, detector_of
from datafree.ops import augment, boxes, losses
from datafree.ops.detections import confirmed, detect, with_seen
from datafree.ops.predictions import Predictions
from datafree.sources.base import Batch, Paper, SourceContext, UpdateSize
from datafree.sources.diode.mosaic import tiled
from datafree.sources.diode.stages import Stage, published_stages, resized
from datafree.sources.diode.verifier import ap50, build_verifier, first_answer, still_noise
from datafree.sources.parts import pixel_optimizer
from datafree.sources.parts.pool_source import PoolSource
from datafree.tasks.detection import Detection


@final
@dataclass(kw_only=True)
class Diode(PoolSource):
    """Pixels are optimised until the detector sees the boxes sampled for them, in images whose statistics it knows.

    One update makes one batch: noise, through all stages, and adds it to a bank that the student draws from. What the
    detector sees on the way beside the boxes can become boxes, too (false-positive sampling). For detection only;
    `inversion` is its kin for other tasks. Boxes and classes are drawn by the task (task.box_sides and the like).
    """

    paper: ClassVar[Paper | None] = Paper("Chawla et al.", remark="WACV 2021")
    most_banked: ClassVar[int] = 120_000
    serves: ClassVar[type[Any]] = Detection
    uses_batchnorm: ClassVar[bool] = True
    passes: ClassVar[Mapping[str, int]] = {"teacher": 1}

    tv_l1_weight: Annotated[Weight, Doc("of neighbouring pixels' differences; 10 to 25 if images turn out dark")] = 75.0
    tv_l2_weight: Annotated[Weight, Doc("of their norm")] = 0.0
    bn_weight: Annotated[Weight, Doc("of the distance to the backbone's BatchNorm statistics")] = 0.1
    bn_norm: Annotated[float, Field(ge=1), Doc("p of that distance")] = 2.0
    bn_clip: Annotated[NonNegative, Doc("a layer counts at most so many times the median; 0 = any (published)")] = 100.0
    bn_momentum: Annotated[Momentum, Doc("share of past iterations' statistics, for batches below 32 (ours)")] = 0.0
    flip_probability: Annotated[Share, Doc("probability that the batch is mirrored, each iteration")] = 0.5
    brightness: Annotated[NonNegative, Doc("std of what is added to an image, each iteration")] = 0.2
    contrast: Annotated[NonNegative, Doc("std of what it is multiplied by, about 1")] = 0.1
    erase_probability: Annotated[Share, Doc("probability that a rectangle of it is blackened")] = 0.5
    cutout: Annotated[Share, Doc("side of a square that is blackened, share of the image's shorter side (ours)")] = 0.0
    zoom: Annotated[tuple[float, float], Doc("least and most enlargement, each image on its own (ours)")] = (1.0, 1.0)
    least_crop: Annotated[CropArea, Doc("area of the smallest crops that iterations see, 1 at first (CDA)")] = 1.0
    fp_sampling_every: Annotated[Count, Doc("first stage's iterations from look to look for boxes; 0 = no look")] = 100
    fp_sampling_from: Annotated[Count, Doc("iteration of the first look")] = 800
    fp_sampling_score: Annotated[Share, Doc("least score of a detection that becomes a box")] = 0.2
    fp_sampling_iou: Annotated[Share, Doc("its IoU with every box of the image is below this")] = 0.35
    fp_sampling_area: Annotated[tuple[Share, Share], Doc("its share of the image, least and most")] = (0.01, 0.85)
    drop_unconfirmed: Annotated[bool, Doc("at each look, drop boxes not confirmed (arXiv 2507.16782)")] = False
    mosaic_share: Annotated[Share, Doc("share of images, drawn or in a data set, made of four, 2 x 2")] = 0.0
    verifier: Annotated[NetworkSpec | None, Doc("a second detector of these classes; its AP50 is logged")] = None
    stages: list[Stage] = field(default_factory=published_stages)
    batch_size: Annotated[PositiveInt, Doc("images per update")] = 128
    shift: Annotated[Count, Doc("pixels: images drawn are shifted by up to this, and mirrored; 0 = as made")] = 0
    bank_size: Annotated[PositiveInt | None, Doc("images; unset: 120,000, of large images as many as 2 GB hold")] = None
    warmup: Annotated[Count, Doc("batches before the student's first step: 120,064 images")] = 938
    update_every: Annotated[Count, Doc("student steps per batch; 0 = none")] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.stages:
            raise DataError("stages is empty; give one or more, such as [{iterations: 2000, lr: 0.1}]")
        if not 0 < self.zoom[0] <= self.zoom[1]:
            raise DataError(f"zoom is {self.zoom}; give 0 < least <= most, 1 = as large as it is")
        if self.fp_sampling_area[0] > self.fp_sampling_area[1]:
            raise DataError(f"fp_sampling_area is {self.fp_sampling_area}; give shares of the image, least <= most")

    def update_size(self) -> UpdateSize:
        return UpdateSize(images=self.batch_size, iterations=tuple(stage.iterations for stage in self.stages))

    def resize_updates(self, size: UpdateSize) -> None:
        self.batch_size = size.images
        self.stages = [replace(stage, iterations=n) for stage, n in zip(self.stages, size.iterations, strict=True)]

    def attach(self, context: SourceContext) -> None:
        if not isinstance(context.task, Detection):  # a recipe sees to this
            raise DataError("source.method=diode makes images for task.kind=detection alone; for others: inversion")
        self.attach_pool(context)
        self._task = context.task
        self._for_set = context.on_finished_batch is not None  # a data set takes the batches, no student
        self._off: list[str] = []  # notes on terms that are off
        self._noise = ""  # the note on images that are still noise
        self._exploding: dict[str, float] = {}  # clipped layer -> how many times the median it was, at most
        for number, stage in enumerate(self.stages):  # faults that would else be seen after hours
            try:
                first_answer(context.teacher, stage.size(self._task.image_size), context.device, "teacher")
            except NetworkError as error:
                at = f"source.stages.{number}.scale={stage.scale:g}"
                raise DataError(f"{at}: {error}; choose it or task.image_size so that it can") from error
            self._statistics_of(stage)
        if not batchnorm_layers(context.teacher) and any(map(self._weighs_statistics, self.stages)):
            self._off.append("source.bn_weight is off: the teacher has no BatchNorm statistics")
            context.say(f"note: {self._off[-1]}")
        self._verifier = None if self.verifier is None else build_verifier(self.verifier, self._task, context)

    def _weighs_statistics(self, stage: Stage) -> bool:
        return self.bn_weight > 0 or stage.first_bn_weight > 0

    def update(self, student: nn.Module, step: int) -> dict[str, Tensor]:
        targets = self._task.sample_targets(self.batch_size, self._context.device)
        size = self.stages[0].size(self._task.image_size)
        images = torch.randn(self.batch_size, 3, *size, device=self._context.device).clamp_(0, 1)  # half of it black
        logs: dict[str, Tensor] = {}
        for index, stage in enumerate(self.stages):
            size = stage.size(self._task.image_size)
            before = images
            images, targets, terms = self._run(resized(images, size), targets, index, size)
            logs |= {name if index == 0 else f"{name}_{index + 1}": value for name, value in terms.items()}
            if index == 0 and not self._noise and (line := still_noise(before, images, self.tv_l1_weight)):
                self._noise = line
                self._context.say(f"note: {line}")
        images = resized(images, self._task.image_size)  # where no stage is of that size
        # In a data set tiles are laid now; else when the student draws, each time anew.
        self._pool.add(*(self._tiled(images, targets) if self._for_set else (images, targets)))
        logs["boxes"] = boxes.present(targets).float().sum(1).mean()
        for who, network in (("teacher", self._context.teacher), ("verifier", self._verifier)):
            if network is not None and logs["boxes"] > 0:
                logs[f"{who}_ap50"] = ap50(network, self._task, images, targets)
        return logs

    def _run(
        self, images: Tensor, targets: Tensor, index: int, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """One stage: images (B, 3, H, W) with a lower loss, their targets at the task's size, the last terms."""
        stage, look = self.stages[index], index == 0
        counts = [one.iterations for one in self.stages]
        task, teacher = replace(self._task, image_size=size), self._context.teacher
        match = self._statistics_of(stage)
        current = boxes.at_size(targets, self._task.image_size, size)
        terms: dict[str, Tensor] = {}  # of the latest iteration; nothing else is kept from one to the next

        def loss(x: Tensor, iteration: int) -> Tensor:
            nonlocal current
            if (
                look
                and self.fp_sampling_every
                and iteration >= self.fp_sampling_from
                and iteration % self.fp_sampling_every == 0
            ):
                current = self._with_seen(x, current, task)
            least = pixel_optimizer.cosine(sum(counts[:index]) + iteration, sum(counts), 1.0, self.least_crop)
            moved, moved_targets = self._augmented(x, current, stage, task, least)
            with nullcontext() if match is None else match.watching():
                outputs: Predictions = teacher(moved)

            # L(X) = w_det L_det + w_tv1 TV1 + w_tv2 TV2 + w_bn sum_l R_l + w_first R_1
            terms["detection"] = task.target_loss(outputs, moved_targets)
            total = stage.detection_weight * terms["detection"]
            if self.tv_l1_weight:
                terms["tv_l1"] = losses.total_variation_l1(moved)
                total = total + self.tv_l1_weight * terms["tv_l1"]
            if self.tv_l2_weight:
                terms["tv_l2"] = losses.total_variation_l2(moved)
                total = total + self.tv_l2_weight * terms["tv_l2"]
            if match is not None:
                distances = torch.stack(list(match.terms().values()))
                terms["bn"], terms["bn_first"] = distances.sum(), distances[0]
                terms["bn_worst"] = distances.max() / distances.median().clamp_min(1e-12)  # tells a layer that explodes
                total = total + self.bn_weight * terms["bn"] + stage.first_bn_weight * terms["bn_first"]
                match.remember()
            return total

        made = pixel_optimizer.optimise(
            images,
            loss,
            iterations=stage.iterations,
            rate=lambda iteration: (
                pixel_optimizer.cosine(iteration, stage.iterations, stage.lr, stage.lr_end) * self._context.lr_scale()
            ),
            betas=(stage.beta1, stage.beta2),
            speed=self._context.speed,
            keep="last",
        )
        for name, ratio in {} if match is None else match.clipped().items():
            self._exploding[name] = max(ratio, self._exploding.get(name, 0.0))
        targets = boxes.at_size(current, size, self._task.image_size)
        return made, targets, {name: value.detach() for name, value in terms.items()}

    def _statistics_of(self, stage: Stage) -> StatisticsMatch | None:
        """What watches the backbone's BatchNorm layers; None where there are none or they weigh nothing."""
        teacher = self._context.teacher
        if not self._weighs_statistics(stage) or not batchnorm_layers(teacher):
            return None
        detector = detector_of(teacher)
        return StatisticsMatch(
            network=bare(teacher),
            p=self.bn_norm,
            momentum=self.bn_momentum,
            within="" if detector is None else detector.backbone,
            count=stage.bn_layers,
            clip=self.bn_clip,
            fused=self._context.speed.fused_statistics,
        )

    def _augmented(
        self, x: Tensor, targets: Tensor, stage: Stage, task: Detection, least: float
    ) -> tuple[Tensor, Tensor]:
        """This iteration's look at the images, and where the boxes are in it. In the published order; no clamp."""
        x, move = augment.roll_and_flip(x, stage.jitter, self.flip_probability)
        targets = task.move_targets(targets, move)
        if self.zoom != (1.0, 1.0):
            x, move = augment.scale_crop(x, *self.zoom)
            targets = task.move_targets(targets, move)
        if self.least_crop < 1:
            x, move = augment.area_crop(x, least)
            targets = task.move_targets(targets, move)
        if self.brightness:
            x = augment.brightness(x, self.brightness)
        if self.contrast:
            x = augment.contrast(x, self.contrast)
        if self.erase_probability:
            x = augment.erase(x, self.erase_probability)
        if self.cutout:
            x = augment.cutout(x, self.cutout)
        return x, targets

    @torch.no_grad()
    def _with_seen(self, x: Tensor, targets: Tensor, task: Detection) -> Tensor:
        """False-positive sampling: what the detector sees where no box is, in the images as they are, becomes a box."""
        found = detect(
            self._context.teacher(x),
            score_threshold=self.fp_sampling_score,
            nms_iou=task.nms_iou,
            max_detections=100,
            size=task.image_size,
        )
        if self.drop_unconfirmed:
            targets = confirmed(targets, found, min_iou=self.fp_sampling_iou)
        return with_seen(
            targets,
            found,
            size=task.image_size,
            score_threshold=self.fp_sampling_score,
            max_iou=self.fp_sampling_iou,
            area=self.fp_sampling_area,
        )

    @torch.no_grad()
    def sample(self, n: int) -> Batch:
        batch = self._pool.sample(n)
        if batch.targets is None:
            return batch
        images, targets = self._tiled(batch.images, batch.targets)
        return Batch(images=images, targets=targets)

    def _tiled(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return tiled(images, targets, round(self.mosaic_share * len(images)), self._task.image_size)

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"stock": self._pool.state_dict()}
        if not self._for_set:  # in a data set a note would look like something to carry on to the next shard
            state |= {"exploding": dict(self._exploding), "noise": self._noise}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._pool.load_state_dict(state["stock"])
        if not self._for_set:
            self._exploding = dict(state["exploding"])
            self._noise = state.get("noise", "")  # older states have none

    def notes(self) -> list[str]:
        """Terms that are off, whether images are still noise, the BatchNorm layers that were clipped."""
        notes = [*self._off, *([self._noise] if self._noise else [])]
        if not self._exploding:
            return notes
        worst = sorted(self._exploding.items(), key=lambda item: -item[1])
        named = ", ".join(f"{name} ({ratio:.1f} times)" for name, ratio in worst[:3])
        clipped = f"BatchNorm layers above source.bn_clip={self.bn_clip:g} times the median, and clipped: {named}"
        return [*notes, clipped]
