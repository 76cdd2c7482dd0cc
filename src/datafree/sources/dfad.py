"""DFAD: a generator that looks for images on which student and teacher disagree. No proxy images at all.

Gongfan Fang et al., "Data-Free Adversarial Distillation", arXiv 1912.11006 (2019); settings of its public scripts. The
defaults are those for CamVid. For CIFAR: network resize, objective l1, batch_size 256, decay_at [0.2, 0.4].

Not in the paper: the terms of later generators beside the disagreement, as in DLIG's public comparison on NYUv2 (2026).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, final

from torch import Tensor, nn
from typing_extensions import Doc

from datafree.config.options import Count, Positive, PositiveInt, Share, Weight
from datafree.networks.batchnorm import StatisticsMatch
from datafree.networks.generators import Generator, ResizeGenerator
from datafree.ops import losses, modes
from datafree.sources.base import Paper, SourceContext
from datafree.sources.parts.generator_source import GeneratorSource


@final
@dataclass(kw_only=True)
class Dfad(GeneratorSource):
    """The generator climbs the disagreement |s - t| of student and teacher, which the student then learns away.

    One update is one generator step; the published rhythm is five student steps to each. Use it with task.distill=l1,
    the student's published loss. Nothing fixed can be held out: `validation_images` shows what the generator makes now.
    """

    paper: ClassVar[Paper | None] = Paper("Fang et al.", "1912.11006")
    passes: ClassVar[Mapping[str, int]] = {"generator": 1, "teacher": 1, "student": 1}

    network: Annotated[
        Literal["resize", "dcgan"], Doc("resize: resize-convolutions, CIFAR's script; dcgan: near CamVid's")
    ] = "dcgan"
    objective: Annotated[
        Literal["l1", "log"], Doc("to be large; l1: mean |s - t|, CIFAR's; log: log(that + 1), CamVid's")
    ] = "log"
    adversarial_weight: Annotated[Weight, Doc("of that objective")] = 1.0
    bn_weight: Annotated[Weight, Doc("of the distance to the teacher's BatchNorm statistics; published: none")] = 0.0
    balance_weight: Annotated[Weight, Doc("of the average answer's negative entropy; published: none")] = 0.0
    latent: Annotated[PositiveInt, Doc("Z")] = 256
    width: Annotated[PositiveInt, Doc("channels of the generator's widest-resolution layer")] = 64
    batch_size: Annotated[PositiveInt, Doc("images per generator step; CIFAR's script: 256")] = 64
    lr: Annotated[Positive, Doc("Adam's")] = 1e-3
    decay_at: Annotated[
        tuple[Share, ...], Doc("fractions of the run at which lr falls to a tenth; CIFAR: 0.2, 0.4")
    ] = (1 / 3, 2 / 3)
    student_mode: Annotated[
        Literal["train", "eval"], Doc("of the student's BatchNorm while the generator looks through it")
    ] = "train"
    restarts: Annotated[Count, Doc("at most; each halves the rate")] = 3
    update_every: Annotated[Count, Doc("student steps per generator step")] = 5

    def attach(self, context: SourceContext) -> None:
        networks: dict[str, type[Generator | ResizeGenerator]] = {"resize": ResizeGenerator, "dcgan": Generator}
        self.attach_generator(context, networks[self.network](context.task.image_size, self.latent, self.width))
        self._match: StatisticsMatch | None = None
        if self.bn_weight:
            self._match = StatisticsMatch(network=context.teacher, fused=context.speed.fused_statistics)
            if not self._match.layers:
                self._match = None
                context.say("note: the teacher has no BatchNorm statistics; source.bn_weight is off")

    def update(self, student: nn.Module, step: int) -> dict[str, Tensor]:
        task = self._context.task
        images = self._trainer.make(self._trainer.draw(self.batch_size))
        with modes.looked_through(student, self.student_mode):
            answers = student(images)
        with nullcontext() if self._match is None else self._match.watching():
            outputs = self._context.teacher(images)
        disagreement = task.disagreement(answers, outputs)
        objective = losses.dfad_generator_loss(disagreement) if self.objective == "log" else -disagreement
        loss = self.adversarial_weight * objective
        terms = {"disagreement": disagreement}
        if self._match is not None:
            terms["bn"] = self._match.distance()
            loss = loss + self.bn_weight * terms["bn"]
        if self.balance_weight:
            terms["balance"] = losses.diversity_loss(task.class_probs(outputs))
            loss = loss + self.balance_weight * terms["balance"]
        falls = sum(step >= fraction * self._context.steps for fraction in self.decay_at)
        self._trainer.step(loss, self.lr * 0.1**falls * self._trainer.guard.caution)
        signals = self._trainer.guard.after(step, task, images, outputs)
        return {name: value.detach() for name, value in ({"generator": loss} | terms).items()} | signals
