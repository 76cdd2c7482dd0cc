"""Fast-DFKD: a generator that has learnt to be adapted, so that a batch takes a few steps instead of hundreds.

Gongfan Fang et al., "Up to 100x Faster Data-free Knowledge Distillation", AAAI 2022, arXiv 2112.15278. Defaults are the
published ones for ten steps a batch; its other settings are latent_lr 0.015 and generator_lr 5e-3 for two steps, 0.01
and 3e-3 for five; adversarial_weight 1 to 1.33 and target_weight 0.4 to 0.5, by the pair of networks.

B images, C classes, N rows (an image or a pixel each), Z latent dimensions.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, final

import torch
from torch import Tensor, nn
from typing_extensions import Doc

from datafree.config.options import Count, Momentum, Positive, PositiveInt, Share, Weight
from datafree.distributed import divided, replicas
from datafree.health.guard import Guard
from datafree.networks.batchnorm import StatisticsMatch, require_batchnorm
from datafree.networks.generators import ResizeGenerator
from datafree.ops import augment, losses, modes
from datafree.ops.whole_batch import scale_own_gradients
from datafree.sources.base import Paper, SourceContext
from datafree.sources.parts.pixel_optimizer import BestSoFar
from datafree.sources.parts.pool_source import PoolSource


@final
@dataclass(kw_only=True)
class Fast(PoolSource):
    """A copy of the meta-generator is adapted for each batch in a few steps; what all copies need, it then learns.

    One update makes one batch and adds it to a bank that the student draws from. Features that images have in common
    are thus found once, not once for each batch. Published rhythm: 400 student steps of 256 images to a batch of 256,
    20 batches before the first.
    """

    paper: ClassVar[Paper | None] = Paper("Fang et al.", "2112.15278")
    needs_batchnorm: ClassVar[bool] = True
    uses_batchnorm: ClassVar[bool] = True
    passes: ClassVar[Mapping[str, int]] = {"generator": 1, "teacher": 1, "student": 1}

    target_weight: Annotated[Weight, Doc("oh: of the teacher's loss on the preset targets (cross-entropy)")] = 0.4
    targets: Annotated[
        Literal["drawn", "seen"],
        Doc("what a batch is to show: drawn beforehand, or what the teacher sees in it at first"),
    ] = "drawn"
    bn_weight: Annotated[Weight, Doc("bn: of the distance to the teacher's BatchNorm statistics")] = 10.0
    adversarial_weight: Annotated[Weight, Doc("adv: of -KL(teacher || student) where both agree, from step 0 on")] = 1.1
    iterations: Annotated[PositiveInt, Doc("k: steps of a copy and its latents for each batch")] = 10
    latent_lr: Annotated[Positive, Doc("lr_z: Adam's, of the latents")] = 0.01
    generator_lr: Annotated[Positive, Doc("lr_g: Adam's, of the copy; the meta-generator's is k times this")] = 2e-3
    beta1: Annotated[Momentum, Doc("Adam's, both generators")] = 0.5
    meta: Annotated[
        Literal["fomaml", "reptile"], Doc("the copy's gradients, or the way it went; published: is_maml 1 or 0")
    ] = "fomaml"
    bn_momentum: Annotated[Momentum, Doc("bn_mmt: share of past batches in the statistics that are compared")] = 0.9
    reset_at: Annotated[Share, Doc("share of the run after which first layers start anew (reset_l0); 0 = never")] = 0.6
    latent: Annotated[PositiveInt, Doc("Z")] = 256
    width: Annotated[PositiveInt, Doc("channels of the generator at full size")] = 64
    batch_size: Annotated[PositiveInt, Doc("images per update")] = 256
    shift: Annotated[Count, Doc("pixels: images are shifted by up to this, and mirrored, at each look; 0 = not")] = 4
    bank_size: Annotated[PositiveInt | None, Doc("images; unset: 60,000, of large images as many as 2 GB hold")] = None
    on_collapse: Literal["restart", "stop", "ignore"] = "restart"
    restarts: Annotated[Count, Doc("at most")] = 3
    warmup: Annotated[Count, Doc("batches without the adversarial term")] = 20
    update_every: Annotated[Count, Doc("student steps per batch")] = 400

    def attach(self, context: SourceContext) -> None:
        require_batchnorm(context.teacher, "fast")
        self.attach_pool(context)
        fused = context.speed.fused_statistics
        self._match = StatisticsMatch(network=context.teacher, momentum=self.bn_momentum, fused=fused)
        self._generator = ResizeGenerator(context.task.image_size, self.latent, self.width)
        replicas.share(context.speed.laid_out(self._generator.to(context.device)))
        meta_lr = self.generator_lr * self.iterations
        self._optimizer = context.speed.adam(self._generator.parameters(), meta_lr, (self.beta1, 0.999))
        self._guard = Guard(
            parts={"generator": self._generator, "optimizer": self._optimizer},
            what="source.generator_lr",  # see `update`
            say=context.say,
            on_collapse=self.on_collapse,
            restarts=self.restarts,
            every=2,  # an update is a whole batch's work, and a run has some hundreds
        )

    def update(self, student: nn.Module, step: int) -> dict[str, Tensor]:
        task, teacher, device = self._context.task, self._context.teacher, self._context.device
        if self._resets(step):
            reset_first_layers(self._generator)
            divided.take_the_first(self._generator)
        targets = task.sample_targets(self.batch_size, device)
        z = self._generator.draw_latents(self.batch_size, device).requires_grad_()
        copied = copy.deepcopy(self._generator).train()
        if self.targets == "seen":
            targets = self._seen(copied, z)
        adversarial = self.adversarial_weight > 0 and step >= 0
        guard = self._guard
        guard.what = "source.adversarial_weight" if adversarial else "source.generator_lr"
        scale = self._context.lr_scale() * (1.0 if adversarial else guard.caution)
        self._optimizer.param_groups[0]["lr"] = self.generator_lr * self.iterations * scale
        groups: list[dict[str, Any]] = [{"params": copied.parameters()}, {"params": [z], "lr": self.latent_lr * scale}]
        optimizer = self._context.speed.adam(groups, self.generator_lr * scale, (self.beta1, 0.999))
        gradients = [torch.zeros_like(p) for p in copied.parameters()]
        best, terms = BestSoFar(), {}
        for _ in range(self.iterations):
            with self._context.autocast():
                images = copied(z)
            moved, move = augment.shift_and_flip(images, self.shift, task.padding_mode)
            moved_targets = task.move_targets(targets, move)
            assert moved_targets is not None
            with self._match.watching():
                outputs = teacher(moved)
            terms = {"target": task.target_loss(outputs, moved_targets), "bn": self._match.distance()}
            loss = self.target_weight * terms["target"] + self.bn_weight * terms["bn"]
            if adversarial:
                with modes.looked_through(student, "eval"):
                    student_probs = task.class_probs(student(moved))
                terms["adversarial"] = losses.decision_kl_loss(student_probs, task.class_probs(outputs))
                loss = loss + self.adversarial_weight * guard.caution * terms["adversarial"]
            best.offer(loss, images, outputs)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            divided.average_gradients(copied.parameters())
            scale_own_gradients([z])
            for total, parameter in zip(gradients, copied.parameters(), strict=True):
                assert parameter.grad is not None
                total += parameter.grad
            optimizer.step()
        self._match.remember()
        self._learn(copied, gradients)
        images, outputs = best.values
        self._pool.add(images, targets)
        logs = {name: value.detach() for name, value in terms.items()}  # of the last step
        return logs | guard.after(step, task, images, outputs)

    def _seen(self, copied: nn.Module, z: Tensor) -> Tensor:
        """What the teacher sees in a copy's first images, which it is then to see more surely.

        As the one-hot loss of DAFL (Chen et al., ICCV 2019, arXiv 1904.01186, eq. 2). A few iterations cannot turn an
        image into another class: targets drawn beforehand stay unshown, and hold the images where no class is sure.
        """
        with torch.no_grad(), self._context.autocast(), modes.frozen(self._context.teacher):
            return self._context.task.pseudo_targets(self._context.teacher(copied(z)))

    def _learn(self, copied: nn.Module, gradients: list[Tensor]) -> None:
        """The meta-generator's step, as its code has it: by the copy's summed gradients, or towards the copy.

        Adam does not mind how long the gradient is, so that Reptile's published factor of 67 is left out.
        """
        for parameter, theirs, gradient in zip(
            self._generator.parameters(), copied.parameters(), gradients, strict=True
        ):
            parameter.grad = gradient if self.meta == "fomaml" else parameter.detach() - theirs.detach()
        self._optimizer.step()
        self._optimizer.zero_grad()
        for buffer, new in zip(self._generator.buffers(), copied.buffers(), strict=True):
            buffer.copy_(new)  # running statistics, for whoever uses the generator afterwards

    def _resets(self, step: int) -> bool:
        """Whether this is the first update at or after the step of the reset. (Published: update 120 of 200.)"""
        first = math.ceil(self.reset_at * self._context.steps)
        return self.reset_at > 0 and first <= step < first + self.update_every

    def state_dict(self) -> dict[str, Any]:
        return {
            "generator": self._generator.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "match": self._match.state_dict(),
            "stock": self._pool.state_dict(),
            "guard": self._guard.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._generator.load_state_dict(state["generator"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._match.load_state_dict(state["match"])
        self._pool.load_state_dict(state["stock"])
        self._guard.load_state_dict(state["guard"])

    def artefacts(self) -> dict[str, nn.Module]:
        return {"generator": self._generator}

    def notes(self) -> list[str]:
        return list(self._guard.history)


def reset_first_layers(generator: ResizeGenerator) -> None:
    """Draw the linear layer and the BatchNorm after it anew, N(0, 0.02) with no bias: late in a run, new variety."""
    for layer in (generator.project, generator.get_submodule("norms.0.norm")):
        assert isinstance(layer, nn.Linear | nn.BatchNorm2d)
        nn.init.normal_(layer.weight, 0.0, 0.02)
        nn.init.zeros_(layer.bias)
