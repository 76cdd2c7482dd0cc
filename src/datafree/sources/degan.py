"""DeGAN for segmentation: a DCGAN on unlabelled proxy images, steered by the teacher.

Vandana Bhogale, "Data-free Knowledge Distillation for Segmentation using Data-Enriching GAN", arXiv 2011.00809 (2020),
after Addepalli et al., "DeGAN", AAAI 2020. It works for every task whose `class_probs` exist.

B images, C classes, N rows (pixels, for segmentation).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, final

import torch
from torch import Tensor, nn
from typing_extensions import Doc

from datafree.config.options import Count, ExistingFile, Momentum, Positive, PositiveInt, Weight
from datafree.distributed import divided, replicas
from datafree.networks.checkpoints.weights import load_weights
from datafree.networks.generators import Discriminator, Generator
from datafree.ops import losses, modes
from datafree.sources.base import Batch, ImageSource, Paper, SourceContext, UpdateSize
from datafree.sources.folder import Folder


@final
@dataclass(kw_only=True)
class Degan(ImageSource):
    """A GAN on proxy images whose generator also makes the teacher sure (entropy) and name every class (diversity).

    One update is a discriminator step and a generator step. The defaults are the paper's best setting (Table 2):
    weighted diversity at weight 10, no entropy term. Plain DCGAN is both weights at 0; the paper's "DeGAN" row is
    entropy_weight 10, diversity_weight 0.
    """

    paper: ClassVar[Paper | None] = Paper("Bhogale", "2011.00809")
    needs_images: ClassVar[bool] = True
    passes: ClassVar[Mapping[str, int]] = {"generator": 1, "discriminator": 3, "teacher": 1}

    proxy: Annotated[Folder, Doc("unlabelled images; need not hold every class")]
    entropy_weight: Annotated[Weight, Doc("lambda_e, eq. 6")] = 0.0
    diversity_weight: Annotated[Weight, Doc("lambda_d, eq. 6")] = 10.0
    diversity: Annotated[Literal["plain", "weighted"], Doc("eq. 4 or eq. 5")] = "weighted"
    latent: Annotated[PositiveInt, Doc("Z")] = 100
    width: Annotated[PositiveInt, Doc("channels of the widest-resolution layer of both networks")] = 64
    batch_size: Annotated[PositiveInt, Doc("proxy and generated images per update; in the paper 16 beat 32")] = 16
    lr: Annotated[Positive, Doc("Adam's, both networks")] = 2e-4
    beta1: Annotated[Momentum, Doc("Adam's")] = 0.5
    warmup: Annotated[Count, Doc("150,000 images at 16 an update: the paper's '150K iterations'")] = 9400
    generator: Annotated[ExistingFile | None, Doc("an earlier run's generator.safetensors: no training")] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.generator is not None:
            self.warmup = self.update_every = 0

    def update_size(self) -> UpdateSize:
        return UpdateSize(images=self.batch_size)

    def resize_updates(self, size: UpdateSize) -> None:
        self.batch_size = size.images

    def nested_sources(self) -> tuple[ImageSource, ...]:
        return (self.proxy,)

    def attach(self, context: SourceContext) -> None:
        self._context = context
        self.proxy.attach(context)
        size, device = context.task.image_size, context.device
        self._generator = Generator(size, self.latent, self.width).to(device)
        self._discriminator = Discriminator(size, self.width).to(device)
        for network in (self._generator, self._discriminator):
            replicas.share(context.speed.laid_out(network))
        if self.generator is not None:
            load_weights(self._generator, self.generator)
        betas = (self.beta1, 0.999)
        self._g_optimizer = context.speed.adam(self._generator.parameters(), self.lr, betas)
        self._d_optimizer = context.speed.adam(self._discriminator.parameters(), self.lr, betas)

    def update(self, student: nn.Module, step: int) -> dict[str, Tensor]:
        for optimizer in (self._g_optimizer, self._d_optimizer):
            optimizer.param_groups[0]["lr"] = self.lr * self._context.lr_scale()
        real = self.proxy.sample(self.batch_size).images
        self._generator.train()
        with self._context.autocast():
            fake = self._generator(self._generator.draw_latents(self.batch_size, self._context.device))

        # The discriminator tells proxy images from generated ones, eq. 1.
        with self._context.autocast():
            real_logits, fake_logits = self._discriminator(real), self._discriminator(fake.detach())
        d_loss = losses.discriminator_loss(real_logits, fake_logits)
        self._d_optimizer.zero_grad()
        torch.autograd.backward(d_loss)
        divided.average_gradients(self._discriminator.parameters())
        self._d_optimizer.step()

        # The generator deceives it while the teacher is sure of what it sees and sees every class, eq. 6.
        with modes.parameters_fixed(self._discriminator), self._context.autocast():
            adversarial = losses.generator_loss(self._discriminator(fake))  # eq. 2
        logs = {"discriminator": d_loss, "adversarial": adversarial}
        g_loss = adversarial
        if self.entropy_weight > 0 or self.diversity_weight > 0:  # plain DCGAN never asks the teacher
            probs = self._context.task.class_probs(self._context.teacher(fake))  # (N, C)
            entropy = losses.entropy_loss(probs)  # eq. 3
            plain, weighted = (
                losses.diversity_loss(probs),
                losses.weighted_diversity_loss(probs),
            )  # eq. 4, eq. 5
            diversity = weighted if self.diversity == "weighted" else plain
            g_loss = adversarial + self.entropy_weight * entropy + self.diversity_weight * diversity
            logs |= {"entropy": entropy, "diversity": plain, "weighted_diversity": weighted}
        self._g_optimizer.zero_grad()
        torch.autograd.backward(g_loss)
        divided.average_gradients(self._generator.parameters())
        self._g_optimizer.step()
        return {name: value.detach() for name, value in logs.items()}

    @torch.no_grad()
    def sample(self, n: int) -> Batch:
        return Batch(images=self._render(self._generator.draw_latents(n, self._context.device)))

    @torch.no_grad()
    def validation_images(self, n: int) -> Tensor:
        latents = torch.Generator().manual_seed(self._context.seed + 1)
        return self._render(self._generator.draw_latents(n, self._context.device, latents))

    def _render(self, latents: Tensor) -> Tensor:
        self._generator.eval()
        with self._context.autocast():
            images: Tensor = self._generator(latents)
        return images

    def state_dict(self) -> dict[str, Any]:
        return {
            "proxy": self.proxy.state_dict(),
            "generator": self._generator.state_dict(),
            "discriminator": self._discriminator.state_dict(),
            "g_optimizer": self._g_optimizer.state_dict(),
            "d_optimizer": self._d_optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.proxy.load_state_dict(state["proxy"])
        self._generator.load_state_dict(state["generator"])
        self._discriminator.load_state_dict(state["discriminator"])
        self._g_optimizer.load_state_dict(state["g_optimizer"])
        self._d_optimizer.load_state_dict(state["d_optimizer"])

    def artefacts(self) -> dict[str, nn.Module]:
        return {"generator": self._generator}

    def notes(self) -> list[str]:
        return self.proxy.notes()
