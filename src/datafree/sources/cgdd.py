"""CGDD: a class-conditional generator, trained adversarially against the student it feeds.

Xinyi Yu et al., "Conditional Generative Data-Free Knowledge Distillation", arXiv 2112.15358 (2021-2022). Only its
abstracts are public. They state: a generator conditioned on preset labels, which are the ground truth of its training;
an adversarial framework of several losses that lets the student explore; a student that learns by distillation, by
cross-entropy with the preset labels and from the teacher's attention maps (training.label_weight and attention_weight).
Inferred from its named relatives, all weights included: the generator's BatchNorm, balance and activation terms (GDFQ,
DAFL, CPSC-DFKD), the form and the guard of the adversarial term (Fast-DFKD), warm-up, rhythm and bank (CMI, Fast-DFKD).

B images, C classes, N rows (an image or a pixel each).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, final

import torch
from torch import Tensor, nn
from typing_extensions import Doc

from datafree.config.options import Count, Momentum, Positive, PositiveInt, Share, Weight
from datafree.networks import features
from datafree.networks.batchnorm import StatisticsMatch
from datafree.networks.generators import ResizeGenerator
from datafree.networks.normalized import bare
from datafree.ops import losses, modes
from datafree.ops.whole_batch import part_of
from datafree.sources.base import Batch, Paper, SourceContext
from datafree.sources.parts.generator_source import GeneratorSource
from datafree.sources.parts.memory_bank import Bank, default_capacity
from datafree.tasks.base import synthetic_batch

MOST_BANKED = 20_000  # images in a bank whose size is not stated, where these are small


@final
@dataclass(kw_only=True)
class Cgdd(GeneratorSource):
    """A generator makes images of preset labels that the teacher recognises and the student does not know yet.

    One update is one generator step. The student draws a share of each batch from a bank of past updates' images, so
    that it does not forget. Works for every task that can lay its targets out as class maps.

    The weights' defaults are those of our Fashion-MNIST benchmark, since the paper's are not known: there only the
    BatchNorm term made a difference beyond the spread over seeds (docs/results.md).
    """

    paper: ClassVar[Paper | None] = Paper("Yu et al.", "2112.15358", "its abstracts; the rest is inferred")
    uses_batchnorm: ClassVar[bool] = True
    passes: ClassVar[Mapping[str, int]] = {"generator": 1, "teacher": 1, "student": 1}

    target_weight: Annotated[Weight, Doc("of the teacher's loss on the preset targets (cross-entropy)")] = 0.5
    bn_weight: Annotated[Weight, Doc("of the distance to the teacher's BatchNorm statistics, if it has any")] = 20.0
    bn_momentum: Annotated[Momentum, Doc("of an average of past batches' statistics, as Fast-DFKD's")] = 0.9
    balance_weight: Annotated[Weight, Doc("of the average answer's negative entropy, as DAFL's")] = 1.0
    activation_weight: Annotated[Weight, Doc("of the teacher's deepest activations, to be large, as DAFL's")] = 0.01
    adversarial_weight: Annotated[Weight, Doc("of the disagreement of student and teacher, to be large")] = 5.0
    latent: Annotated[PositiveInt, Doc("Z")] = 256
    width: Annotated[PositiveInt, Doc("channels of the generator at full size")] = 64
    batch_size: Annotated[PositiveInt, Doc("images per update")] = 128
    lr: Annotated[Positive, Doc("Adam's, falling to 0 over the run along a cosine")] = 1e-3
    beta1: Annotated[Momentum, Doc("Adam's")] = 0.5
    replay: Annotated[Share, Doc("share of the student's batch that comes from the bank")] = 0.75
    bank_size: Annotated[PositiveInt | None, Doc("images; unset: 20,000, of large images as many as 2 GB hold")] = None
    student_mode: Annotated[
        Literal["train", "eval"], Doc("of the student's BatchNorm while the generator looks through it")
    ] = "train"
    warmup: Annotated[Count, Doc("updates without the adversarial term")] = 100
    update_every: Annotated[Count, Doc("student steps per update")] = 5

    def bank_images(self) -> int:
        return MOST_BANKED if self.bank_size is None else self.bank_size

    def size_bank(self, image_size: tuple[int, int]) -> None:
        if self.bank_size is None:
            self.bank_size = default_capacity(MOST_BANKED, image_size)

    def attach(self, context: SourceContext) -> None:
        task, teacher = context.task, context.teacher
        generator = ResizeGenerator(task.image_size, self.latent, self.width, task.num_classes)
        self.attach_generator(context, generator, self.beta1)
        self.size_bank(task.image_size)
        self._bank = Bank(capacity=part_of(self.bank_images()))
        fused = context.speed.fused_statistics
        self._match = StatisticsMatch(network=teacher, momentum=self.bn_momentum, fused=fused)
        self._trainer.guard.parts = {**self._trainer.guard.parts, "match": self._match}
        self._deepest: list[str] = []  # the layer whose activations shall be strong
        if self.activation_weight:
            look = synthetic_batch(task.image_size, context.device)
            self._deepest = list(features.last_layers(teacher, look).values())[-1:]
            if not self._deepest:
                context.say("note: the teacher has no feature maps; source.activation_weight is off")
        if self.bn_weight and not self._match.layers:
            context.say("note: the teacher has no BatchNorm statistics; source.bn_weight is off")

    def update(self, student: nn.Module, step: int) -> dict[str, Tensor]:
        task, guard = self._context.task, self._trainer.guard
        adversarial = self.adversarial_weight > 0 and step >= 0
        guard.what = "source.adversarial_weight" if adversarial else "source.lr"
        targets = task.sample_targets(self.batch_size, self._context.device)
        images = self._trainer.make(*self._drawn(targets))

        # What the teacher sees: the preset labels, familiar statistics, every class, strong activations.
        with self._match.watching(), features.watched(bare(self._context.teacher), self._deepest) as maps:
            outputs = self._context.teacher(images)
        probs = task.class_probs(outputs)  # (N, C)
        terms = {"target": task.target_loss(outputs, targets), "balance": losses.diversity_loss(probs)}
        loss = self.target_weight * terms["target"] + self.balance_weight * terms["balance"]
        if self.bn_weight and self._match.layers:
            terms["bn"] = self._match.distance()
            loss = loss + self.bn_weight * terms["bn"]
        if maps:
            terms["activation"] = -maps[self._deepest[0]].float().abs().mean()
            loss = loss + self.activation_weight * terms["activation"]

        # What the student does not know yet. Bounded and masked, so that it cannot run away.
        if adversarial:
            with modes.looked_through(student, self.student_mode):
                student_probs = task.class_probs(student(images))
            terms["adversarial"] = losses.decision_adversarial_loss(student_probs, probs)
            loss = loss + self.adversarial_weight * guard.caution * terms["adversarial"]

        lr = self.lr * (1 + math.cos(math.pi * max(step, 0) / self._context.steps)) / 2
        self._trainer.step(loss, lr if adversarial else lr * guard.caution)
        self._match.remember()
        if step >= 0 and guard.healthy:  # the warm-up's images are not worth remembering, nor a collapse's
            self._bank.add(images, targets)
        logs = {name: value.detach() for name, value in terms.items()}
        return logs | guard.after(step, task, images, outputs)

    @torch.no_grad()
    def sample(self, n: int) -> Batch:
        old = round(n * self.replay) if len(self._bank) else 0
        targets = self._context.task.sample_targets(n - old, self._context.device)
        images = self._trainer.make_for_student(*self._drawn(targets)) if n > old else torch.empty(0)
        if not old:
            return Batch(images=images, targets=targets)
        old_images, old_targets = self._bank.sample(old)
        assert old_targets is not None
        if old == n:
            return Batch(images=old_images, targets=old_targets)
        return Batch(images=torch.cat([images, old_images]), targets=torch.cat([targets, old_targets]))

    @torch.no_grad()
    def validation_images(self, n: int) -> Tensor:
        task, fixed = self._context.task, torch.Generator().manual_seed(self._context.seed + 1)
        return self._trainer.validation_images(n, task.class_maps(task.sample_targets(n, self._context.device, fixed)))

    def _drawn(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """What the generator makes images of targets from: fresh latents, and class maps."""
        return self._trainer.draw(len(targets)), self._context.task.class_maps(targets)

    def state_dict(self) -> dict[str, Any]:
        return {**self._trainer.state_dict(), "bank": self._bank.state_dict(), "match": self._match.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._trainer.load_state_dict(state)
        self._bank.load_state_dict(state["bank"], self._context.device)
        self._match.load_state_dict(state["match"])
