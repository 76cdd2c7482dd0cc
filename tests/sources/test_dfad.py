import copy
import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from datafree.networks.generators import Generator, ResizeGenerator
from datafree.networks.normalized import Normalized
from datafree.networks.resnet import resnet
from datafree.networks.unet import unet
from datafree.ops import modes
from datafree.sources import Dfad
from datafree.sources.base import SourceContext
from datafree.tasks.classification import Classification
from datafree.tasks.segmentation import Segmentation

SIZE = (32, 32)


@pytest.mark.thorough
def test_generator_climbs_the_disagreement_of_student_and_teacher() -> None:
    modes.seed_everything(0)
    teacher, student = (Normalized(unet(4, width=4, depth=2)) for _ in range(2))
    for _ in range(5):
        images = torch.rand(8, 3, *SIZE)
        teacher(images), student(images)
    teacher.eval().requires_grad_(False)
    source = Dfad(width=4, latent=8, batch_size=8, lr=3e-3)
    task = Segmentation(num_classes=4, image_size=SIZE)
    source.attach(SourceContext(task=task, teacher=teacher, steps=100, batch_size=4))
    first = source.update(student, 0)
    for _ in range(80):
        last = source.update(student, 0)
    assert last["disagreement"] > 1.1 * first["disagreement"]
    assert last["generator"].item() == pytest.approx(-torch.log1p(last["disagreement"]).item(), rel=1e-5)


def test_rate_falls_to_a_tenth_at_each_third_of_the_run() -> None:
    teacher = Normalized(unet(4, width=4, depth=2)).eval().requires_grad_(False)
    source = Dfad(width=4, latent=8, batch_size=2, lr=1e-3)
    task = Segmentation(num_classes=4, image_size=SIZE)
    source.attach(SourceContext(task=task, teacher=teacher, steps=90, batch_size=4))
    rates = []
    for step in (0, 29, 30, 60, 89):
        source.update(unet(4, width=4, depth=2), step)
        rates.append(source._trainer.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-5, 1e-5])


def test_five_student_steps_to_one_generator_step_from_the_start() -> None:
    assert [step for step in range(-3, 12) if Dfad().due(step)] == [0, 5, 10]


def test_defaults_are_those_of_the_published_camvid_script() -> None:
    assert {field.name: field.default for field in dataclasses.fields(Dfad)} == {
        "warmup": 0, "update_every": 5, "network": "dcgan", "objective": "log", "latent": 256, "width": 64,
        "batch_size": 64, "lr": 1e-3, "decay_at": (1 / 3, 2 / 3), "student_mode": "train", "on_collapse": "restart",
        "restarts": 3, "adversarial_weight": 1.0, "bn_weight": 0.0, "balance_weight": 0.0, "generator_ema": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), [("resize", ResizeGenerator), ("dcgan", Generator)])
def test_cifar_objective_is_minus_the_mean_distance_of_logits(name: str, kind: type) -> None:
    modes.seed_everything(0)
    teacher, student = (Normalized(resnet(3, depth=8, width=4)) for _ in range(2))
    teacher.eval().requires_grad_(False)
    source = Dfad(width=4, latent=8, batch_size=4, network=name, objective="l1")  # type: ignore[arg-type]
    task = Classification(num_classes=3, image_size=SIZE)
    source.attach(SourceContext(task=task, teacher=teacher, steps=100, batch_size=4))
    assert type(source.artefacts()["generator"]) is kind
    modes.seed_everything(3)
    images = source._trainer.make(source._trainer.draw(4))
    with modes.looked_through(student, "train"):
        total = sum(abs(s - t) for s, t in zip(
            student(images).flatten().tolist(), teacher(images).flatten().tolist(), strict=True
        ))  # fmt: skip
    modes.seed_everything(3)
    logs = source.update(student, 0)
    assert logs["generator"].item() == pytest.approx(-total / 12, rel=1e-4)
    assert logs["disagreement"].item() == pytest.approx(total / 12, rel=1e-4)


def test_both_objectives_rise_together_and_the_logarithm_flattens_the_slope() -> None:
    gradients = {}
    for objective in ("l1", "log"):
        modes.seed_everything(0)
        teacher, student = (Normalized(resnet(3, depth=8, width=4)) for _ in range(2))
        source = Dfad(width=4, latent=8, batch_size=4, objective=objective)  # type: ignore[arg-type]
        task = Classification(num_classes=3, image_size=SIZE)
        teacher.eval().requires_grad_(False)
        source.attach(SourceContext(task=task, teacher=teacher, steps=100, batch_size=4))
        disagreement = source.update(student, 0)["disagreement"].item()
        generator = source.artefacts()["generator"]
        gradients[objective] = torch.cat([p.grad.flatten() for p in generator.parameters() if p.grad is not None])
    slope = gradients["log"].norm() / gradients["l1"].norm()
    assert slope.item() == pytest.approx(1 / (1 + disagreement), rel=1e-3)  # d log(1 + x) / dx
    cosine = torch.nn.functional.cosine_similarity(gradients["log"], gradients["l1"], dim=0)
    assert math.isclose(cosine.item(), 1, rel_tol=1e-4)


# The terms that the paper has not.


def with_terms(bare: bool = False, **options: float) -> tuple[Dfad, nn.Module, nn.Module, list[str]]:
    """A source that is attached to a teacher, `bare` of BatchNorm or not, the teacher, a student, what was said."""
    modes.seed_everything(0)
    made: nn.Module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)) if bare else unet(4, width=4, depth=2)
    teacher, student = Normalized(made), Normalized(unet(4, width=4, depth=2))
    for _ in range(3):
        images = torch.rand(8, 3, *SIZE)
        teacher(images), student(images)
    teacher.eval().requires_grad_(False)
    source, said = Dfad(width=4, latent=8, batch_size=6, **options), list[str]()  # type: ignore[arg-type]
    task = Segmentation(num_classes=4, image_size=SIZE)
    source.attach(SourceContext(task=task, teacher=teacher, steps=100, batch_size=4, say=said.append))
    return source, teacher, student, said


def test_the_generators_loss_is_the_weighted_sum_of_disagreement_statistics_and_balance() -> None:
    """L_G = -w_adv log(mean |s - t| + 1) + w_bn R_BN + w_b sum_c q_c log q_c, q over all pixels; and its gradient."""
    source, teacher, student, said = with_terms(adversarial_weight=1.33, bn_weight=2.0, balance_weight=0.5)
    generator = copy.deepcopy(source._trainer.generator).train()
    modes.seed_everything(3)
    images = generator(torch.randn(6, 8))
    distances: list[Tensor] = []

    def look(layer: nn.BatchNorm2d, inputs: tuple[Tensor], output: Tensor) -> None:
        var, mean = torch.var_mean(inputs[0], (0, 2, 3), correction=0)
        distances.append((mean - layer.running_mean).norm() + (var - layer.running_var).norm())

    handles = [m.register_forward_hook(look) for m in teacher.modules() if isinstance(m, nn.BatchNorm2d)]
    t = teacher(images)
    for handle in handles:
        handle.remove()
    with modes.looked_through(student, "train"):
        apart = (student(images) - t).abs().mean()
    q = t.softmax(1).mean((0, 2, 3))
    terms = {"disagreement": apart, "bn": torch.stack(distances).sum(), "balance": (q * q.log()).sum()}
    loss = -1.33 * (apart + 1).log() + 2.0 * terms["bn"] + 0.5 * terms["balance"]
    gradients = torch.autograd.grad(loss, list(generator.parameters()))
    modes.seed_everything(3)
    logs = source.update(student, 0)
    assert said == []
    for name, value in (terms | {"generator": loss}).items():
        torch.testing.assert_close(logs[name], value.detach(), rtol=1e-4, atol=1e-6)
    for parameter, gradient in zip(source._trainer.generator.parameters(), gradients, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5)


def test_as_published_neither_statistics_nor_balance_are_looked_at() -> None:
    source, _, student, said = with_terms()
    logs = source.update(student, 0)
    assert {"bn", "balance"} & set(logs) == set()
    assert source._match is None
    assert said == []


def test_a_teacher_without_batchnorm_leaves_the_term_out_and_that_is_said() -> None:
    source, _, student, said = with_terms(bare=True, bn_weight=2.0, balance_weight=0.1)
    assert said == ["note: the teacher has no BatchNorm statistics; source.bn_weight is off"]
    logs = source.update(student, 0)
    assert "bn" not in logs
    assert "balance" in logs
