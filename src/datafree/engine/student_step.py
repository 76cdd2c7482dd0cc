"""One training step of the student: augmentation, the teacher's answers, the loss, backward, the optimiser's step."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from datafree.distributed import divided
from datafree.engine.nonfinite import Watch
from datafree.engine.recovery import Recovery
from datafree.networks import features
from datafree.networks.normalized import bare
from datafree.ops import augment
from datafree.ops.predictions import answer_tensors
from datafree.recipe.training import Training
from datafree.sources.base import Batch
from datafree.tasks.base import Task


@dataclass(kw_only=True)
class StudentStep:
    """A student that learns from batches, watched."""

    task: Task
    teacher: nn.Module
    student: nn.Module
    training: Training
    optimizer: torch.optim.Optimizer
    pairs: Mapping[str, str]  # teacher's layer -> student's, whose attention maps are compared
    watch: Watch
    recovery: Recovery

    def learn(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """One step on a batch; detached scalars to log. Raises NotFinite, on the CPU before any weight is changed."""
        training, watch = self.training, self.watch
        images, targets, whole = _varied(self.task, batch, training)
        watch.keep(images=images, targets=targets)
        watch.see("the images", [images])
        self.optimizer.zero_grad()
        figures: dict[str, Tensor] = {}
        # One part, unless memory ran out. Then the gradient is the same where the losses are means over images; in
        # train mode BatchNorm takes the statistics of each part.
        for first, last in _edges(len(images), self.recovery.parts):
            part = self._losses(images[first:last], targets, whole, first, len(images))
            torch.autograd.backward(part["loss"])
            for name, value in part.items():
                figures[name] = figures[name] + value.detach() if name in figures else value.detach()
        divided.average_gradients(self.student.parameters())
        watch.see("the loss", [figures["loss"]])
        watch.see("the student's gradients", [p.grad for p in self.student.parameters() if p.grad is not None])
        watch.look()
        for group in self.optimizer.param_groups:
            group["lr"] = training.lr_at(step) * self.recovery.pace
        self.optimizer.step()
        watch.see("the student's weights", self.student.parameters())
        watch.see("the student's running averages", self.student.buffers())
        return figures

    def _losses(self, images: Tensor, targets: Tensor | None, whole: Tensor, first: int, n: int) -> dict[str, Tensor]:
        """This part's share of the batch's losses; `images` are those from `first` on, of `n`."""
        training = self.training
        with torch.no_grad(), features.watched(bare(self.teacher), self.pairs) as taught:
            answers = self.teacher(images)
        self.watch.keep(answers=answer_tensors(answers))
        with features.watched(bare(self.student), self.pairs.values()) as learnt:
            outputs = self.student(images)
        share = len(images) / n
        loss = self.task.distill_loss(outputs, answers)
        found = {}
        if self.pairs:
            attention = features.attention_loss(learnt, taught, self.pairs)
            found["attention"] = attention * share
            loss = loss + training.attention_weight * attention
        loss = loss * share
        if training.label_weight and targets is not None and len(whole):
            here = whole
            if len(images) < n:
                here = whole[(whole >= first) & (whole < first + len(images))]
            if len(here):
                label_loss = self.task.target_loss(outputs[here - first], targets[here])
                loss = loss + training.label_weight * (len(here) / len(whole)) * label_loss
        return {**found, "loss": divided.anchored(loss, outputs)}


def _edges(n: int, parts: int) -> list[tuple[int, int]]:
    """n images in `parts` stretches that are as equal as can be."""
    edges = [n * i // parts for i in range(min(parts, n) + 1)] if parts <= n else list(range(n + 1))
    return list(itertools.pairwise(edges))


def _varied(task: Task, batch: Batch, training: Training) -> tuple[Tensor, Tensor | None, Tensor]:
    """What the student sees of a batch: images, targets moved with them, the indices of images that are no mixture."""
    images, targets = batch.images, batch.targets
    if training.shift:
        padding = task.padding_mode if training.shift_padding == "zeros" else training.shift_padding
        images, move = augment.shift_and_flip(images, training.shift, padding)
        targets = None if targets is None else task.move_targets(targets, move)
        images = images.clamp(0, 1)  # interpolation rounds
    whole = torch.arange(len(images), device=images.device)
    if training.cutmix:
        images, whole = augment.cutmix(images, training.cutmix)
    if training.mixup:
        images, left = augment.blend(images, training.mixup)
        whole = left[torch.isin(left, whole)] if training.cutmix else left
    return images, targets, whole
