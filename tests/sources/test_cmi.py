"""CMI: images told apart from each other and from all that were made before."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from datafree.errors import DataError, NetworkError
from datafree.networks.generators import ResizeGenerator
from datafree.networks.normalized import Normalized
from datafree.networks.resnet import resnet
from datafree.ops import augment, modes
from datafree.sources import Cmi
from datafree.sources import cmi as module
from datafree.sources.base import SourceContext
from datafree.tasks.classification import Classification
from sources.test_fast import require_unmoved

SIZE, CLASSES, B = (32, 32), 4, 8


def classifier(seed: int) -> nn.Module:
    """Frozen, its BatchNorm statistics those of smooth images."""
    torch.manual_seed(seed)
    network = Normalized(resnet(CLASSES, depth=8, width=4))
    for _ in range(5):
        network(nn.functional.interpolate(torch.rand(16, 3, 4, 4), size=SIZE, mode="bilinear"))
    return network.eval().requires_grad_(False)


def attached(teacher: nn.Module, **options: object) -> Cmi:
    modes.seed_everything(0)
    source = Cmi(**({"width": 4, "latent": 8, "batch_size": B, "iterations": 2} | options))  # type: ignore[arg-type]
    task = Classification(num_classes=CLASSES, image_size=SIZE)
    source.attach(SourceContext(task=task, teacher=teacher, steps=100, batch_size=4))
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


def looked_at(teacher: nn.Module, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The teacher's logits; R_BN; the channel means of its three stages (B, D)."""
    distances: list[Tensor] = []
    means: list[Tensor] = []

    def compare(layer: nn.BatchNorm2d, inputs: tuple[Tensor], output: Tensor) -> None:
        mean, var = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3), correction=0)
        distances.append((mean - layer.running_mean).square().sum().sqrt())
        distances.append((var - layer.running_var).square().sum().sqrt())

    handles = [m.register_forward_hook(compare) for m in teacher.modules() if isinstance(m, nn.BatchNorm2d)]
    for stage in (teacher.network.layer1, teacher.network.layer2, teacher.network.layer3):
        handles.append(stage.register_forward_hook(lambda layer, inputs, output: means.append(output.mean((2, 3)))))
    logits = teacher(images)
    for handle in handles:
        handle.remove()
    return logits, torch.stack(distances).sum(), torch.cat(means, 1)


def told_apart(parts: Tensor, wholes: Tensor, tau: float) -> Tensor:
    """(N,) -log of how likely a part is to find its own whole among all, by cosines over tau."""
    cosines = (parts @ wholes.T) / parts.norm(dim=1)[:, None] / wholes.norm(dim=1)
    near = (cosines / tau).exp()
    return -(near.diag() / near.sum(1)).log()


class ByHand:
    """One update of two iterations, on the numbers that a source is going to draw."""

    def __init__(self, source: Cmi, student: nn.Module, weights: dict[str, float], tau: float) -> None:
        task, teacher = source._context.task, source._context.teacher
        self.head = copy.deepcopy(source._head)
        self.generator = copy.deepcopy(source._generator).train()
        student = copy.deepcopy(student).eval()
        targets = task.sample_targets(B, torch.device("cpu"))
        module.reinitialise(self.generator)
        self.z = torch.randn(B, 8).requires_grad_()
        optimizer = torch.optim.Adam([*self.generator.parameters(), self.z], 1e-3, (0.5, 0.999))
        head_optimizer = torch.optim.Adam(self.head.parameters(), 1e-3)
        for _ in range(2):
            images = self.generator(self.z)
            moved, _ = augment.shift_and_flip(images, 4)
            logits, bn, whole = looked_at(teacher, moved)
            t, s = logits.softmax(1), student(moved).softmax(1)
            agree = t.argmax(1) == s.argmax(1)
            assert 0 < agree.sum() < B  # so that the mask tells
            _, _, part = looked_at(teacher, augment.resized_crop(images))
            old_part, old_whole = source._remembered[torch.randperm(12)[:5]].chunk(2, 1)
            parts = self.head(torch.cat([part, old_part]))
            wholes = self.head(torch.cat([whole, old_whole])).detach()
            rows = told_apart(parts, wholes, tau)
            self.terms = {
                "target": -t[range(B), targets].log().mean(),
                "bn": bn,
                "adversarial": -((t * (t / s).log()).sum(1) * agree).mean(),
                "contrastive": rows[:B].mean() + rows[B:].mean(),
            }
            loss = torch.stack([weight * self.terms[name] for name, weight in weights.items()]).sum()
            optimizer.zero_grad()
            head_optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            head_optimizer.step()

    def learnt(self) -> list[Tensor]:
        return [*self.generator.parameters(), *self.head.parameters(), self.z]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("step", [-1, 0])
def test_generator_latents_and_head_follow_the_papers_loss(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """oh CE + bn R_BN - adv KL(teacher || student) where both agree + cr L_cr; adv from the student's first step on."""
    weights = {"target": 0.7, "bn": 0.3, "adversarial": 0.5, "contrastive": 0.8}
    options = {f"{name}_weight": weight for name, weight in weights.items()}
    source = attached(classifier(0), temperature=0.2, negatives=5, **options)
    source._remember(torch.rand(12, source._remembered.shape[1]))
    student = classifier(6).train()  # of one mind with the teacher on some images
    drawn: list[Tensor] = []
    draw = ResizeGenerator.draw_latents
    monkeypatch.setattr(ResizeGenerator, "draw_latents", lambda *args: drawn.append(draw(*args)) or drawn[-1])
    if step < 0:
        del weights["adversarial"]
    random = torch.get_rng_state()
    by_hand = ByHand(source, student, weights, tau=0.2)
    torch.set_rng_state(random)
    logs = source.update(student, step)
    assert set(logs) == set(weights)
    for name, value in logs.items():
        torch.testing.assert_close(value, by_hand.terms[name].detach())
    learnt = [*source._generator.parameters(), *source._head.parameters(), drawn[0]]
    for ours, theirs in zip(learnt, by_hand.learnt(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_defaults_are_those_of_the_cifar_10_script() -> None:
    source = Cmi()
    assert (source.target_weight, source.bn_weight, source.adversarial_weight) == (1.0, 1.0, 0.5)
    assert (source.contrastive_weight, source.temperature, source.iterations, source.lr) == (0.8, 0.1, 200, 1e-3)


def test_the_student_is_not_asked_before_its_first_step() -> None:
    class Unasked(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise AssertionError("asked")

    source = attached(classifier(0), iterations=1)
    source.update(Unasked(), -1)
    with pytest.raises(AssertionError, match="asked"):
        source.update(Unasked(), 0)


def test_the_best_of_the_iterations_is_kept_and_its_features_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    off = {"bn_weight": 0.0, "adversarial_weight": 0.0, "contrastive_weight": 0.0}
    teacher = classifier(0)
    source = attached(teacher, iterations=4, **off)
    made: list[Tensor] = []
    described: list[Tensor] = []
    height = iter([3.0, 2.0, 1.0, 4.0])  # the third is the lowest

    def loss(task: object, outputs: Tensor, targets: Tensor) -> Tensor:
        return next(height) + outputs.sum() - outputs.sum().detach()

    forward, describe = ResizeGenerator.forward, module._described
    monkeypatch.setattr(ResizeGenerator, "forward", lambda *args: made.append(forward(*args)) or made[-1])
    monkeypatch.setattr(module, "_described", lambda maps: described.append(describe(maps)) or described[-1])
    monkeypatch.setattr(Classification, "target_loss", loss)
    source.update(teacher, -1)
    in_bytes = [(images.detach() * 255).round().byte() for images in made]
    assert torch.equal(source._pool._bank._train.images[:B], in_bytes[2])
    assert not torch.equal(in_bytes[2], in_bytes[3])
    whole, part = described[4:6]  # two looks an iteration
    assert torch.equal(source._remembered, torch.cat([part, whole], 1))


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


def test_without_a_shift_the_teacher_sees_images_as_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = classifier(0)
    source = attached(teacher, iterations=4, shift=0)
    require_unmoved(source, teacher, monkeypatch)


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
