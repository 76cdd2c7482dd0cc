"""A method of your own: a source of images in one class, used like any other.

    python examples/own_method.py

`Clouds` draws smooth coloured noise, each image new: no data, no training, and more like photographs than white noise
in one respect: its contrasts fall with the frequency, as 1 / f^slope (Field, JOSA A 4, 1987). In a recipe it is

    source: {method: own_method:Clouds, slope: 1.2}

It teaches the built-in example's classifier little, and that is the point of comparison: whatever a method makes of
its teacher should beat it.

B images, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, final

import torch
from torch import Tensor, nn
from typing_extensions import Doc

import datafree
from datafree.config.options import NonNegative
from datafree.sources.base import Batch, ImageSource, SourceContext


@final
@dataclass(kw_only=True)
class Clouds(ImageSource):
    """Smooth coloured noise, whose amplitudes fall as 1 / f^slope."""

    slope: Annotated[float, Doc("of the amplitude spectrum; photographs have about 1")] = 1.0
    contrast: Annotated[NonNegative, Doc("standard deviation of values in [0, 1], before they are cut off")] = 0.25

    def attach(self, setting: SourceContext) -> None:
        """Keep what is needed to draw."""
        self._size, self._device, self._seed = setting.task.image_size, setting.device, setting.seed

    def update(self, student: nn.Module, step: int) -> dict[str, Tensor]:
        """Never due: there is nothing to train."""
        return {}

    def sample(self, n: int) -> Batch:
        """n new images, from torch's own generator, which a run saves and restores."""
        return Batch(images=self._draw(torch.randn(n, 3, *self._size, device=self._device)))

    def validation_images(self, n: int) -> Tensor:
        """The same n images each time; from a generator of their own, so that looking changes nothing."""
        generator = torch.Generator().manual_seed(self._seed + 1)
        return self._draw(torch.randn(n, 3, *self._size, generator=generator).to(self._device))

    def state_dict(self) -> dict[str, Any]:
        """Nothing: it has no state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to put back."""

    def _draw(self, white: Tensor) -> Tensor:
        """(B, 3, H, W) of N(0, 1) -> images in [0, 1]."""
        height, width = white.shape[-2:]
        down = torch.fft.fftfreq(height, device=white.device)[:, None]
        right = torch.fft.rfftfreq(width, device=white.device)
        frequency = (down.square() + right.square()).sqrt().clamp_min(1 / max(height, width))  # (H, W // 2 + 1)
        smooth = torch.fft.irfft2(torch.fft.rfft2(white) / frequency**self.slope, s=(height, width))
        smooth = smooth / smooth.std(dim=(2, 3), keepdim=True).clamp_min(1e-6)
        images: Tensor = (0.5 + self.contrast * smooth).clamp(0, 1)
        return images


def main(out: Path = Path("runs/clouds"), **training: Any) -> datafree.Result:
    """Distil the built-in example's classifier on clouds; `training` overrides the options below."""
    from datafree.recipe.recipe import load_recipe

    example = load_recipe("fashion-demo")  # its teacher, student, task and labelled images
    return datafree.distill(
        teacher=example.teacher,
        student=example.student,
        task=example.task,
        source=Clouds(slope=1.2),
        training={"steps": 500, "batch_size": 32, "lr": 2e-3, **training},
        data=example.data,
        out=out,
    )


if __name__ == "__main__":
    print({who: scores.values for who, scores in main().scores.items()})
