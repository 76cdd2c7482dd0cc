"""CMI, contrastive model inversion: batches that the teacher recognises, each image told apart from all made before.

Gongfan Fang et al., "Contrastive Model Inversion for Data-Free Knowledge Distillation", IJCAI 2021, arXiv 2105.08584.
Defaults are its CIFAR-10 script's; for CIFAR-100 target_weight is 0.5. The published first batches, inverted without
a student, are the warm-up here.

B images, C classes, N rows (an image or a pixel each), Z latent dimensions, D features of an image, M remembered ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Doc

from datafree.config.options import Count, Momentum, Positive, PositiveInt, Temperature, Weight
from datafree.distributed import divided, replicas
from datafree.networks import features
from datafree.networks.batchnorm import StatisticsMatch, require_batchnorm
from datafree.networks.generators import ResizeGenerator
from datafree.networks.normalized import bare
from datafree.ops import augment, losses, modes
from datafree.ops.whole_batch import scale_own_gradients
from datafree.sources.base import Paper, SourceContext
from datafree.sources.parts.pixel_optimizer import BestSoFar
from datafree.sources.parts.pool_source import PoolSource
from datafree.tasks.base import synthetic_batch

HEAD = 256  # dimensions in which images are told apart


@final
@dataclass(kw_only=True)
class Cmi(PoolSource):
    """A fresh generator and its latents are fitted to each batch, by the teacher and against all images made before.

    One update makes one batch and adds it to a bank that the student draws from. Two views of an image must be closer,
    in a small head's projection of the teacher's features, than views of any two; thus no image repeats another.
    Published rhythm: a batch of 256 images, then 400 student steps.
    """

    paper: ClassVar[Paper | None] = Paper("Fang et al.", "2105.08584")
    needs_batchnorm: ClassVar[bool] = True
    uses_batchnorm: ClassVar[bool] = True
    passes: ClassVar[Mapping[str, int]] = {"generator": 1, "teacher": 2, "student": 1}

    target_weight: Annotated[Weight, Doc("oh: of the teacher's loss on the preset targets (cross-entropy)")] = 1.0
    bn_weight: Annotated[Weight, Doc("bn: of the distance to the teacher's BatchNorm statistics")] = 1.0
    adversarial_weight: Annotated[Weight, Doc("adv: of -KL(teacher || student) where both agree, from step 0 on")] = 0.5
    contrastive_weight: Annotated[Weight, Doc("cr: of telling images apart")] = 0.8
    temperature: Annotated[Temperature, Doc("tau of that term; published 0.1 to 0.2")] = 0.1
    iterations: Annotated[PositiveInt, Doc("for each batch")] = 200
    lr: Annotated[Positive, Doc("Adam's, of generator, latents and head")] = 1e-3
    beta1: Annotated[Momentum, Doc("Adam's, of generator and latents")] = 0.5
    negatives: Annotated[Count, Doc("remembered images, drawn for each iteration")] = 4096
    memory: Annotated[PositiveInt, Doc("images whose features are remembered")] = 40_960
    latent: Annotated[PositiveInt, Doc("Z")] = 256
    width: Annotated[PositiveInt, Doc("channels of the generator at full size")] = 64
    batch_size: Annotated[PositiveInt, Doc("images per update")] = 256
    shift: Annotated[Count, Doc("pixels: images are shifted by up to this, and mirrored, at each look; 0 = not")] = 4
    bank_size: Annotated[PositiveInt | None, Doc("images; unset: 60,000, of large images as many as 2 GB hold")] = None
    warmup: Annotated[Count, Doc("batches without the adversarial term")] = 20
    update_every: Annotated[Count, Doc("student steps per batch")] = 400

    def attach(self, context: SourceContext) -> None:
        require_batchnorm(context.teacher, "cmi")
        self.attach_pool(context)
        self._match = StatisticsMatch(network=context.teacher, fused=context.speed.fused_statistics)
        self._generator = ResizeGenerator(context.task.image_size, self.latent, self.width)
        replicas.share(context.speed.laid_out(self._generator.to(context.device)))
        # The ends of the teacher's stages, as published for ResNet-34; for others its code takes every BatchNorm's
        # input, which for a deep network is some thousands of features an image.
        look = synthetic_batch(context.task.image_size, context.device)
        self._layers = list(features.last_layers(context.teacher, look).values())
        with torch.no_grad(), features.watched(bare(context.teacher), self._layers) as maps:
            context.teacher(look)
        dims = _described(maps).shape[1]
        self._head = nn.Sequential(nn.Linear(dims, dims), nn.ReLU(inplace=True), nn.Linear(dims, HEAD))
        self._head.to(context.device)
        self._head_optimizer = context.speed.adam(self._head.parameters(), self.lr)
        self._remembered = torch.empty(0, 2 * dims, device=context.device)  # (M, 2 D): local and global view
        self._cursor = 0

    def update(self, student: nn.Module, step: int) -> dict[str, Tensor]:
        task, teacher, device = self._context.task, self._context.teacher, self._context.device
        targets = task.sample_targets(self.batch_size, device)
        reinitialise(self._generator)
        divided.take_the_first(self._generator)
        z = self._generator.draw_latents(self.batch_size, device).requires_grad_()
        lr = self.lr * self._context.lr_scale()
        self._head_optimizer.param_groups[0]["lr"] = lr
        optimizer = self._context.speed.adam([*self._generator.parameters(), z], lr, (self.beta1, 0.999))
        best, terms = BestSoFar(), {}
        self._generator.train()
        for _ in range(self.iterations):
            with self._context.autocast():
                images = self._generator(z)

            # What the teacher sees in the whole image; what the student does not know yet.
            moved, move = augment.shift_and_flip(images, self.shift, task.padding_mode)
            moved_targets = task.move_targets(targets, move)
            with self._match.watching(), features.watched(bare(teacher), self._layers) as maps:
                outputs = teacher(moved)
            whole = _described(maps)  # (B, D)
            terms = {"target": task.target_loss(outputs, moved_targets), "bn": self._match.distance()}
            loss = self.target_weight * terms["target"] + self.bn_weight * terms["bn"]
            if self.adversarial_weight and step >= 0:
                with modes.looked_through(student, "eval"):
                    student_probs = task.class_probs(student(moved))
                terms["adversarial"] = losses.decision_kl_loss(student_probs, task.class_probs(outputs))
                loss = loss + self.adversarial_weight * terms["adversarial"]

            # A part of the image must be known again as its own, among this batch's and the remembered images.
            with features.watched(bare(teacher), self._layers) as maps:
                teacher(augment.resized_crop(images))
            part = _described(maps)  # (B, D)
            old_part, old_whole = self._remembered[self._drawn()].chunk(2, 1)
            parts, wholes = self._head(torch.cat([part, old_part, whole, old_whole])).chunk(2)
            terms["contrastive"] = contrastive_loss(parts, wholes.detach(), self.batch_size, self.temperature)
            loss = loss + self.contrastive_weight * terms["contrastive"]

            best.offer(loss, images, torch.cat([part, whole], 1))
            optimizer.zero_grad()
            self._head_optimizer.zero_grad()
            torch.autograd.backward(loss)
            divided.average_gradients([*self._generator.parameters(), *self._head.parameters()])
            scale_own_gradients([z])
            optimizer.step()
            self._head_optimizer.step()
        images, described = best.values
        self._pool.add(images, targets)
        self._remember(described)
        return {name: value.detach() for name, value in terms.items()}  # of the last iteration

    def _drawn(self) -> Tensor:
        """Indices of the remembered images that this iteration's are told from, drawn without repetition."""
        return torch.randperm(len(self._remembered), device=self._remembered.device)[: self.negatives]

    def _remember(self, rows: Tensor) -> None:
        """Add features (B, 2 D); once the memory is full, the oldest make room."""
        rows = rows[-self.memory :]
        free = self.memory - len(self._remembered)
        self._remembered = torch.cat([self._remembered, rows[:free]])
        over = rows[free:]
        places = (torch.arange(len(over), device=over.device) + self._cursor) % self.memory
        self._remembered[places] = over
        self._cursor = (self._cursor + len(over)) % self.memory

    def state_dict(self) -> dict[str, Any]:
        return {  # the generator is drawn anew for each batch
            "head": self._head.state_dict(),
            "head_optimizer": self._head_optimizer.state_dict(),
            "remembered": self._remembered,
            "cursor": self._cursor,
            "stock": self._pool.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._head.load_state_dict(state["head"])
        self._head_optimizer.load_state_dict(state["head_optimizer"])
        self._remembered = state["remembered"].to(self._context.device).clone()
        self._cursor = state["cursor"]
        self._pool.load_state_dict(state["stock"])


def contrastive_loss(parts: Tensor, wholes: Tensor, new: int, temperature: float) -> Tensor:
    """How badly each image's two views find each other among all: cross-entropy of their cosines over tau.

    `parts`, `wholes`: projections (N, K) of N images, the first `new` of them this batch's; the means over these and
    over the remembered rest are added, so that many remembered images do not thin this batch's gradients out (as in
    the public code).
    """
    ours = F.normalize(parts.float(), dim=1) / temperature  # here, not N x N times
    logits = ours @ F.normalize(wholes.float(), dim=1).T  # (N, N)
    rows = F.cross_entropy(logits, torch.arange(len(logits), device=logits.device), reduction="none")
    return rows[:new].mean() + (rows[new:].mean() if len(rows) > new else 0)


@torch.no_grad()
def reinitialise(generator: nn.Module) -> None:
    """Draw every weight anew: convolutions and linear layers N(0, 0.02), BatchNorm's gain N(1, 0.02), no bias."""
    for layer in generator.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            drawn = torch.empty(layer.weight.shape, device=layer.weight.device)  # the same in whichever layout
            mean = 1.0 if isinstance(layer, nn.BatchNorm2d) else 0.0
            layer.weight.copy_(nn.init.normal_(drawn, mean, 0.02))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _described(maps: Mapping[str, Tensor]) -> Tensor:
    """(B, D): the mean of each channel of each layer."""
    return torch.cat([m.float().mean((2, 3)) for m in maps.values()], 1)
