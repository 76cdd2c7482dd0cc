"""CMI: images told apart from each other and from all that were made before."""

import math

import pytest
import torch
from torch import Tensor, nn

from datafree import modes
from datafree.errors import DataError, NetworkError
from datafree.networks.generators import ResizeGenerator
from datafree.networks.normalized import Normalized
from datafree.networks.resnet import resnet
from datafree.sources import Cmi
from datafree.sources import cmi as module
from datafree.sources.base import Setting
from datafree.tasks.classification import Classification

SIZE, CLASSES = (32, 32), 4


def classifier(seed: int) -> nn.Module:
    """Frozen, its BatchNorm statistics those of smooth images."""
    torch.manual_seed(seed)
    network = Normalized(resnet(CLASSES, depth=8, width=4))
    for _ in range(5):
        network(nn.functional.interpolate(torch.rand(16, 3, 4, 4), size=SIZE, mode="bilinear"))
    return network.eval().requires_grad_(False)


def attached(teacher: nn.Module, **options: object) -> Cmi:
    modes.seed_everything(0)
    source = Cmi(**({"width": 4, "latent": 8, "batch_size": 8, "iterations": 2} | options))  # type: ignore[arg-type]
    task = Classification(num_classes=CLASSES, image_size=SIZE)
    source.attach(Setting(task=task, teacher=teacher, steps=100, batch_size=4))
    return source


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


@pytest.mark.parametrize("new", [2, 5])
def test_contrastive_loss_is_each_view_finding_its_own_among_all(new: int) -> None:
    generator = torch.Generator().manual_seed(0)
    parts, wholes = (torch.randn(5, 3, generator=generator) for _ in range(2))
    rows = []
    for i, part in enumerate(parts.tolist()):
        near = [math.exp(cosine(part, whole) / 0.2) for whole in wholes.tolist()]
        rows.append(-math.log(near[i] / sum(near)))
    expected = sum(rows[:new]) / new + (sum(rows[new:]) / (5 - new) if new < 5 else 0)
    assert module.contrastive_loss(parts, wholes, new, 0.2).item() == pytest.approx(expected, rel=1e-5)


def test_contrastive_loss_falls_as_an_image_is_told_from_the_others() -> None:
    alike = torch.ones(4, 3) + 0.01 * torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    apart = torch.eye(4)
    assert module.contrastive_loss(alike, alike, 4, 0.1).item() == pytest.approx(math.log(4), rel=0.01)
    assert module.contrastive_loss(apart, apart, 4, 0.1).item() < 0.01


def test_a_batch_is_fitted_to_the_teachers_statistics() -> None:
    teacher = classifier(0)
    first = attached(teacher, iterations=1).update(teacher, -1)
    last = attached(teacher, iterations=25, lr=1e-2).update(teacher, -1)
    assert last["bn"] < 0.7 * first["bn"]


def test_the_adversarial_term_waits_for_the_students_first_step() -> None:
    teacher, student = classifier(0), classifier(1)
    source = attached(teacher)
    assert "adversarial" not in source.update(student, -1)
    assert source.update(student, 0)["adversarial"] <= 0


def test_the_generator_is_drawn_anew_for_each_batch() -> None:
    modes.seed_everything(0)
    generator = ResizeGenerator(SIZE, latent=32, width=8)
    with torch.no_grad():
        for p in generator.parameters():
            p.fill_(7.0)
    module.reinitialise(generator)
    for layer in generator.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.2)
            assert abs(layer.weight.mean().item()) < 0.005
        elif isinstance(layer, nn.BatchNorm2d):
            assert layer.weight.mean().item() == pytest.approx(1.0, abs=0.02)
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.BatchNorm2d) and layer.bias is not None:
            assert not layer.bias.any()


def test_the_memory_holds_the_latest_and_gives_them_out_without_repetition() -> None:
    source = attached(classifier(0), memory=5, negatives=3)
    width = source._remembered.shape[1]

    def remember(*values: float) -> list[float]:
        source._remember(torch.tensor(values, dtype=torch.float32)[:, None].expand(-1, width))
        return source._remembered[:, 0].tolist()

    assert remember(1, 2, 3) == [1, 2, 3]
    assert sorted(source._drawn().tolist()) == [0, 1, 2]
    assert remember(4, 5, 6) == [6, 2, 3, 4, 5]
    assert remember(7, 8) == [6, 7, 8, 4, 5]
    assert sorted(remember(*range(10, 17))) == [12, 13, 14, 15, 16]
    drawn = source._drawn().tolist()
    assert len(set(drawn)) == 3


def test_features_are_channel_means_of_the_teachers_stages() -> None:
    teacher = classifier(0)
    source = attached(teacher)
    assert source._layers == ["layer1", "layer2", "layer3"]
    source.update(teacher, -1)
    assert source._remembered.shape == (8, 2 * (4 + 8 + 16))
    maps = {"a": torch.rand(2, 3, 4, 4), "b": torch.rand(2, 5, 2, 2)}
    expected: list[Tensor] = [maps["a"].mean((2, 3)), maps["b"].mean((2, 3))]
    assert torch.allclose(module._described(maps), torch.cat(expected, 1))


def test_the_head_learns_with_each_batch() -> None:
    teacher = classifier(0)
    source = attached(teacher)
    before = [p.clone() for p in source._head.parameters()]
    source.update(teacher, -1)
    assert not any(torch.equal(a, b) for a, b in zip(before, source._head.parameters(), strict=True))


def test_a_teacher_without_batchnorm_is_refused_in_a_line_that_names_other_methods() -> None:
    bare = nn.Sequential(nn.Conv2d(3, CLASSES, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(NetworkError, match=r"no BatchNorm.*source\.method=cmi.*dfad"):
        attached(Normalized(bare))


def test_options_that_make_no_sense_are_refused() -> None:
    for options, text in (
        ({"warmup": 0, "update_every": 0}, "both 0"),
        ({"memory": 0}, "memory is 0"),
        ({"negatives": -1}, "negatives is -1"),
        ({"iterations": 0}, "iterations is 0"),
    ):
        with pytest.raises(DataError, match=text):
            Cmi(**options)
