from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from datafree.errors import WeightsError
from datafree.networks.checkpoints.weights import save_weights
from datafree.networks.normalized import Normalized
from datafree.ops import modes
from datafree.sources import Degan, Folder
from datafree.sources.base import SourceContext
from datafree.tasks.segmentation import Segmentation

C, SIZE = 4, (32, 32)


def colour_teacher() -> nn.Module:
    """Names the strongest of red, green and blue at a pixel, or dark: what it sees can be checked by eye."""
    conv = nn.Conv2d(3, C, 1)
    with torch.no_grad():
        conv.weight.copy_(torch.cat([torch.eye(3) * 8, -torch.ones(1, 3) * 4])[:, :, None, None])
        conv.bias.copy_(torch.tensor([-3.0, -3.0, -3.0, 4.0]))
    return Normalized(conv).eval().requires_grad_(False)


def trained(photos: Path, updates: int, seed: int = 0, **options: Any) -> tuple[Degan, nn.Module]:
    teacher = colour_teacher()
    modes.seed_everything(seed)
    source = Degan(proxy=Folder(path=photos), width=4, latent=8, batch_size=8, warmup=updates, **options)
    task = Segmentation(num_classes=C, image_size=SIZE)
    source.attach(SourceContext(task=task, teacher=teacher, steps=1, batch_size=4))
    for step in range(-updates, 0):
        source.update(teacher, step)
    return source, teacher


def frequencies(source: Degan, teacher: nn.Module) -> torch.Tensor:
    """(C,) mean probability of each class over what the generator makes."""
    return teacher(source.validation_images(32)).softmax(1).mean((0, 2, 3))


@pytest.mark.thorough
def test_weighted_diversity_brings_every_class_into_the_images(photos: Callable[..., Path]) -> None:
    folder = photos()
    plain, teacher = trained(folder, 60, diversity_weight=0.0, lr=2e-3)
    steered, _ = trained(folder, 60, diversity_weight=10.0, lr=2e-3)
    assert frequencies(steered, teacher).min() > 1.2 * frequencies(plain, teacher).min()


@pytest.mark.thorough
def test_entropy_term_makes_the_teacher_surer(photos: Callable[..., Path]) -> None:
    folder = photos()

    def entropy(source: Degan, teacher: nn.Module) -> float:
        probs = teacher(source.validation_images(32)).softmax(1)
        return float(-(probs * probs.log()).sum(1).mean())

    plain, teacher = trained(folder, 45, diversity_weight=0.0, lr=2e-3)
    sure, _ = trained(folder, 45, diversity_weight=0.0, entropy_weight=10.0, lr=2e-3)
    assert entropy(sure, teacher) < 0.8 * entropy(plain, teacher)


def test_plain_dcgan_never_asks_the_teacher(photos: Callable[..., Path]) -> None:
    class Silent(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise AssertionError("asked")

    source = Degan(proxy=Folder(path=photos()), width=4, diversity_weight=0.0)
    task = Segmentation(num_classes=C, image_size=SIZE)
    source.attach(SourceContext(task=task, teacher=Silent(), steps=1, batch_size=4))
    assert set(source.update(Silent(), -1)) == {"discriminator", "adversarial"}


def test_logged_losses_are_the_four_terms_of_equation_6(photos: Callable[..., Path]) -> None:
    source, teacher = trained(photos(), 0, entropy_weight=5.0)
    logs = source.update(teacher, -1)
    assert set(logs) == {"discriminator", "adversarial", "entropy", "diversity", "weighted_diversity"}
    assert -1.3863 <= logs["diversity"] <= 0  # -log C .. 0
    assert 0 <= logs["entropy"] <= 1.3863


def test_trained_generator_is_used_again_without_a_warmup(photos: Callable[..., Path], tmp_path: Path) -> None:
    folder = photos()
    source, teacher = trained(folder, 5)
    save_weights(source.artefacts()["generator"], tmp_path / "generator.safetensors")
    again = Degan(proxy=Folder(path=folder), width=4, latent=8, generator=tmp_path / "generator.safetensors")
    assert (again.warmup, again.due(-1), again.due(0)) == (0, False, False)
    task = Segmentation(num_classes=C, image_size=SIZE)
    again.attach(SourceContext(task=task, teacher=teacher, steps=1, batch_size=4))
    assert torch.equal(again.validation_images(4), source.validation_images(4))
    wider = Degan(proxy=Folder(path=folder), width=8, latent=8, generator=tmp_path / "generator.safetensors")
    with pytest.raises(WeightsError):
        wider.attach(SourceContext(task=task, teacher=teacher, steps=1, batch_size=4))
