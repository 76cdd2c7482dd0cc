"""DeepInversion: noise, changed pixel by pixel until the teacher sees a class in it and the statistics it knows.

Hongxu Yin et al., "Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion", CVPR 2020, arXiv 1912.08795.
Defaults are those its authors published for CIFAR-10; for ImageNet they have bn_weight 0.01, first_bn_weight 9,
3,000 iterations at lr 0.25 (0.06 in our units) after 100 of warm-up, beta1 0.5 and beta2 0.9, jitter 30.

A transformer has no such statistics: the patch-similarity entropy of PSAQ-ViT, Li et al., ECCV 2022, arXiv 2203.02250,
takes the place of their term.

Crops that become smaller while an image is made, and that a student then learns from: CDA, Zeyuan Yin and Zhiqiang
Shen, "Dataset Distillation via Curriculum Data Synthesis in Large Data Era", TMLR 2024, arXiv 2311.18838.

B images, C classes, H x W pixels, N rows (an image or a pixel each).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, final

import torch
from torch import Tensor, nn
from typing_extensions import Doc

from datafree.config.options import (
    Count,
    CropArea,
    Momentum,
    NonNegative,
    Positive,
    PositiveInt,
    Share,
    Temperature,
    Weight,
)
from datafree.networks.batchnorm import StatisticsMatch, batchnorm_layers, require_batchnorm
from datafree.networks.patches import PatchEntropy
from datafree.ops import augment, losses, modes
from datafree.ops.whole_batch import whole_norm
from datafree.sources.base import Paper, SourceContext
from datafree.sources.parts import pixel_optimizer
from datafree.sources.parts.pool_source import PoolSource
from datafree.tasks.base import synthetic_batch


@final
@dataclass(kw_only=True)
class Inversion(PoolSource):
    """Pixels are optimised until the teacher recognises preset targets in images with its BatchNorm statistics.

    Of a teacher with attention layers and no BatchNorm: in images whose patches differ as those of photographs do.

    One update makes one batch, with all its iterations, and adds it to a bank that the student draws from. As
    published, a data set is made before the student learns. Adaptive DeepInversion also makes what the student does
    not know yet: adversarial_weight=1, update_every=400 is its form in CMI's comparison (arXiv 2105.08584).
    """

    paper: ClassVar[Paper | None] = Paper("Yin et al.", "1912.08795")
    needs_batchnorm: ClassVar[bool] = True
    uses_batchnorm: ClassVar[bool] = True
    or_attention: ClassVar[bool] = True
    passes: ClassVar[Mapping[str, int]] = {"teacher": 1}

    target_weight: Annotated[Weight, Doc("of the teacher's loss on the preset targets (cross-entropy), eq. 1")] = 1.0
    bn_weight: Annotated[Weight, Doc("alpha_f: of the distance to the teacher's BatchNorm statistics, eq. 4")] = 10.0
    first_bn_weight: Annotated[Weight, Doc("added to the first BatchNorm layer's share of 1; 9 for ImageNet")] = 0.0
    entropy_weight: Annotated[
        Weight, Doc("of the patches' entropy in attention layers, PSAQ-ViT's eq. 7; of a teacher without BatchNorm")
    ] = 1.0
    tv_l1_weight: Annotated[Weight, Doc("of the mean differences of neighbouring pixels")] = 0.0
    tv_l2_weight: Annotated[Weight, Doc("alpha_tv: of their norm, eq. 2; 2.5e-5 in units of their std")] = 1e-4
    l2_weight: Annotated[Weight, Doc("alpha_l2: of the distance to mid-grey, eq. 2")] = 0.0
    adversarial_weight: Annotated[Weight, Doc("alpha_c, eq. 7: of 1 - JS(student, teacher), from step 0 on")] = 0.0
    temperature: Annotated[Temperature, Doc("of that divergence")] = 3.0
    iterations: Annotated[PositiveInt, Doc("for each batch")] = 2000
    batch_size: Annotated[PositiveInt, Doc("images per update")] = 256
    lr: Annotated[Positive, Doc("Adam's, in pixel values; published 0.05 in units of their std, about 0.25")] = 0.0125
    lr_end: Annotated[NonNegative, Doc("of the cosine; equal to lr = a constant rate")] = 0.0
    lr_warmup: Annotated[Count, Doc("iterations in which lr rises")] = 0
    beta1: Annotated[Momentum, Doc("Adam's")] = 0.9
    beta2: Annotated[Momentum, Doc("Adam's")] = 0.999
    jitter: Annotated[Count, Doc("pixels: the batch is rolled by up to this, each iteration")] = 2
    flip_probability: Annotated[Share, Doc("probability that the batch is mirrored, each iteration")] = 0.5
    least_crop: Annotated[
        CropArea, Doc("area of the smallest crops that iterations see, 1 at first, this at last; CDA: 0.08")
    ] = 1.0
    drawn_crop: Annotated[CropArea, Doc("area of the smallest crops that images are drawn as; CDA: 0.08")] = 1.0
    shift: Annotated[Count, Doc("pixels: images drawn are shifted by up to this, and mirrored; 0 = as made")] = 4
    bank_size: Annotated[PositiveInt | None, Doc("images; unset: 60,000, of large images as many as 2 GB hold")] = None
    warmup: Annotated[Count, Doc("batches before the student's first step: 51,200 images")] = 200
    update_every: Annotated[Count, Doc("student steps per batch; 0 = none")] = 0

    def attach(self, context: SourceContext) -> None:
        self._patches = self._look_at_patches(context)
        if self._patches is None:
            require_batchnorm(context.teacher, "inversion")
        self.attach_pool(context, crop=self.drawn_crop)
        fused = context.speed.fused_statistics
        self._match = StatisticsMatch(network=context.teacher, first=self.first_bn_weight, fused=fused)
        if self.adversarial_weight and not self.update_every:
            context.say("note: source.adversarial_weight is off: no image is made once the student learns")

    def _look_at_patches(self, context: SourceContext) -> PatchEntropy | None:
        """The watch over a teacher's attention layers, where these have to stand in for BatchNorm and can."""
        if batchnorm_layers(context.teacher) or not self.entropy_weight:
            return None
        patches = PatchEntropy(network=context.teacher)
        with torch.no_grad(), patches.watching():
            context.teacher(synthetic_batch(context.task.image_size, context.device))
        return patches if patches.count else None

    def update(self, student: nn.Module, step: int) -> dict[str, Tensor]:
        task, teacher, device = self._context.task, self._context.teacher, self._context.device
        targets = task.sample_targets(self.batch_size, device)
        terms: dict[str, Tensor] = {}

        def loss(images: Tensor, iteration: int) -> Tensor:
            moved, move = augment.roll_and_flip(images, self.jitter, self.flip_probability)
            moved_targets = task.move_targets(targets, move)
            if self.least_crop < 1:
                least = pixel_optimizer.cosine(iteration, self.iterations, 1.0, self.least_crop)
                moved, move = augment.area_crop(moved, least)
                moved_targets = task.move_targets(moved_targets, move)
            with (self._patches or self._match).watching():
                outputs = teacher(moved)
            terms["target"] = task.target_loss(outputs, moved_targets)
            if self._patches is None:
                terms["bn"] = self._match.distance()
                total = self.target_weight * terms["target"] + self.bn_weight * terms["bn"]
            else:
                terms["entropy"] = self._patches.entropy()
                total = self.target_weight * terms["target"] - self.entropy_weight * terms["entropy"]
            if self.tv_l1_weight:
                terms["tv_l1"] = losses.total_variation_l1(moved)
                total = total + self.tv_l1_weight * terms["tv_l1"]
            if self.tv_l2_weight:
                terms["tv_l2"] = losses.total_variation_l2(moved)
                total = total + self.tv_l2_weight * terms["tv_l2"]
            if self.l2_weight:
                terms["l2"] = whole_norm(torch.linalg.vector_norm(moved - 0.5))
                total = total + self.l2_weight * terms["l2"]
            if self.adversarial_weight and step >= 0:
                with modes.looked_through(student, "eval"):
                    student_probs = task.class_probs(student(moved))
                probs = task.class_probs(outputs)
                terms["adversarial"] = losses.competition_loss(student_probs, probs, self.temperature)
                total = total + self.adversarial_weight * terms["adversarial"]
            return total

        # Noise about mid-grey, as wide as photographs are: the published N(0, 1) of normalised pixels.
        noise = (0.5 + 0.25 * torch.randn(self.batch_size, 3, *task.image_size, device=device)).clamp_(0, 1)
        images = pixel_optimizer.optimise(
            noise,
            loss,
            iterations=self.iterations,
            rate=self._rate,
            betas=self._betas,
            speed=self._context.speed,
            # The losses of crops that become smaller do not compare.
            keep="best" if self.least_crop == 1 else "last",
        )
        self._pool.add(images, targets)
        return {name: value.detach() for name, value in terms.items()}  # of the last iteration

    def _rate(self, iteration: int) -> float:
        rate = pixel_optimizer.cosine(iteration, self.iterations, self.lr, self.lr_end, self.lr_warmup)
        return rate * self._context.lr_scale()

    @property
    def _betas(self) -> tuple[float, float]:
        return self.beta1, self.beta2

    def state_dict(self) -> dict[str, Any]:
        return {"stock": self._pool.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._pool.load_state_dict(state["stock"])
