import pytest
import torch
from torch import nn

from datafree.networks.normalized import Normalized
from datafree.ops import modes
from datafree.sources import Dafl
from datafree.sources.base import SourceContext
from datafree.tasks.classification import Classification

C, SIZE = 4, (32, 32)


class ColourTeacher(nn.Module):
    """Names the strongest of red, green and blue over an image, or dark; its features are a ReLU's map."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.body(images)
        colours = images.mean((2, 3))  # (B, 3)
        return torch.cat([12 * (colours - 0.5), 6 * (0.5 - colours.mean(1, keepdim=True))], 1)


def made(**options: float) -> tuple[Dafl, nn.Module]:
    modes.seed_everything(0)
    teacher = Normalized(ColourTeacher()).eval().requires_grad_(False)
    source = Dafl(width=4, latent=8, batch_size=32, lr=5e-3, **options)  # type: ignore[arg-type]
    task = Classification(num_classes=C, image_size=SIZE)
    source.attach(SourceContext(task=task, teacher=teacher, steps=100, batch_size=4))
    return source, teacher


def trained(**options: float) -> tuple[Dafl, nn.Module]:
    source, teacher = made(**options)
    for step in range(15):
        source.update(teacher, step)
    return source, teacher


def probs(source: Dafl, teacher: nn.Module) -> torch.Tensor:
    """(64, C): the teacher's answers to what the generator makes."""
    torch.manual_seed(1)
    return teacher(source.sample(64).images).softmax(1)


def test_defaults_are_the_published_ones_of_cifar_10() -> None:
    source = Dafl()
    assert (source.one_hot_weight, source.balance_weight, source.activation_weight) == (0.05, 5.0, 0.01)
    assert (source.batch_size, source.latent, source.lr) == (1024, 1000, 0.02)
    assert [step for step in range(-3, 3) if source.due(step)] == [0, 1, 2]


def test_each_term_moves_the_generator_its_own_way() -> None:
    off = {"one_hot_weight": 0.0, "balance_weight": 0.0, "activation_weight": 0.0}
    source, teacher = made(**off)
    start = probs(source, teacher)

    sure = probs(*trained(**off | {"one_hot_weight": 1.0}))
    assert sure.max(1).values.mean() > 1.1 * start.max(1).values.mean()

    balanced = probs(*trained(**off | {"balance_weight": 5.0}))

    def entropy(rows: torch.Tensor) -> float:
        q = rows.mean(0)
        return float(-(q * q.log()).sum())

    assert entropy(balanced) > entropy(start)
    assert entropy(balanced) == pytest.approx(torch.tensor(float(C)).log().item(), rel=0.02)

    strong, teacher = trained(**off | {"activation_weight": 1.0})
    body = teacher.network.body
    assert body(strong.sample(64).images).mean() > 1.1 * body(source.sample(64).images).mean()


def test_loss_is_the_published_sum_of_three_terms() -> None:
    source, teacher = made()
    modes.seed_everything(3)
    images = source._trainer.make(source._trainer.draw(32))
    gradients = torch.autograd.grad(published_loss(teacher, images), list(source._trainer.generator.parameters()))
    modes.seed_everything(3)
    logs = source.update(teacher, 0)
    for parameter, gradient in zip(source._trainer.generator.parameters(), gradients, strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, gradient, atol=1e-7, rtol=1e-3)
    total = 0.05 * logs["one_hot"] + 5 * logs["class_information"] + 0.01 * logs["activation"]
    assert total.item() == pytest.approx(published_loss(teacher, images).item(), rel=1e-5)


def published_loss(teacher: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """oh * CE(T, argmax T) + ie * sum_c q_c log10 q_c - a * mean |f_T| at CIFAR-10's weights."""
    answers = teacher(images).softmax(1)
    one_hot = -answers.max(1).values.log().mean()
    q = answers.mean(0)
    pooled = teacher.network.body(images).mean((2, 3))  # the classifier's input
    return 0.05 * one_hot + 5 * (q * torch.log10(q)).sum() - 0.01 * pooled.abs().mean()


def test_teacher_without_feature_maps_turns_the_activation_term_off_and_says_so() -> None:
    said: list[str] = []
    teacher = Normalized(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, C))).eval().requires_grad_(False)
    source = Dafl(width=4, latent=8, batch_size=4)
    task = Classification(num_classes=C, image_size=SIZE)
    source.attach(SourceContext(task=task, teacher=teacher, steps=100, batch_size=4, say=said.append))
    assert set(source.update(teacher, 0)) == {"one_hot", "class_information"}
    assert said == ["note: the teacher has no feature maps; source.activation_weight is off"]


def test_student_is_never_asked() -> None:
    class Silent(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise AssertionError("asked")

    source, _ = made()
    source.update(Silent(), 0)
