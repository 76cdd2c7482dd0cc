"""Fast-DFKD: what the meta-generator learns from the copies that are adapted to each batch."""

import copy

import pytest
import torch
from torch import Tensor, nn

from datafree import modes
from datafree.errors import DataError, NetworkError, TrainingError
from datafree.networks.generators import ResizeGenerator
from datafree.networks.normalized import Normalized
from datafree.networks.resnet import resnet
from datafree.sources import Fast
from datafree.sources import fast as module
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


def attached(source: Fast, teacher: nn.Module, steps: int = 100) -> Fast:
    modes.seed_everything(0)
    task = Classification(num_classes=CLASSES, image_size=SIZE)
    source.attach(Setting(task=task, teacher=teacher, steps=steps, batch_size=4))
    return source


def small(**options: object) -> Fast:
    return Fast(**({"width": 4, "latent": 8, "batch_size": 8} | options))  # type: ignore[arg-type]


def weights_of(generator: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in generator.parameters()]


def test_a_batch_from_the_learnt_start_costs_less_than_one_from_the_first_start() -> None:
    teacher = classifier(0)
    source = attached(small(adversarial_weight=0.0, iterations=3, bn_momentum=0.0), teacher)
    first = [source.update(teacher, -1)["bn"] for _ in range(3)]
    for _ in range(12):
        source.update(teacher, -1)
    last = [source.update(teacher, -1)["bn"] for _ in range(3)]
    assert sum(last) < 0.7 * sum(first)


@pytest.mark.parametrize("meta", ["fomaml", "reptile"])
def test_the_meta_gradient_is_the_copys_summed_gradients_or_the_way_it_went(meta: str) -> None:
    source = attached(small(meta=meta, iterations=3), classifier(0))
    start = weights_of(source._generator)
    expected = torch.optim.Adam(source._generator.parameters(), 3 * 2e-3, (0.5, 0.999)).param_groups[0]
    assert [source._optimizer.param_groups[0][name] for name in ("lr", "betas")] == [
        expected["lr"],
        expected["betas"],
    ]
    copied = copy.deepcopy(source._generator)
    gradients = [torch.randn_like(p) for p in copied.parameters()]
    with torch.no_grad():
        for p in copied.parameters():
            p.add_(0.1 * torch.randn_like(p))
    wanted = gradients if meta == "fomaml" else [a - b for a, b in zip(start, copied.parameters(), strict=True)]
    source._learn(copied, gradients)
    for before, after, gradient in zip(start, source._generator.parameters(), wanted, strict=True):
        moved = (after - before).detach()  # Adam's first step: the rate, by the gradient's sign
        assert torch.allclose(moved, -3 * 2e-3 * gradient.sign(), rtol=1e-3, atol=1e-6)


def test_copies_share_nothing_with_the_meta_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    source = attached(small(iterations=4), classifier(0))
    monkeypatch.setattr(Fast, "_learn", lambda *args: None)
    start = weights_of(source._generator)
    source.update(classifier(1), 0)
    assert all(torch.equal(a, b) for a, b in zip(start, source._generator.parameters(), strict=True))
    assert all(p.grad is None for p in source._generator.parameters())


def test_the_adversarial_term_waits_for_the_students_first_step() -> None:
    source = attached(small(iterations=1), classifier(0))
    student = classifier(1)
    assert "adversarial" not in source.update(student, -1)
    logs = source.update(student, 0)
    assert logs["adversarial"] <= 0


def test_past_batches_weigh_in_the_statistics_as_much_as_the_momentum_says() -> None:
    teacher = classifier(0)
    for momentum in (0.0, 0.9):
        source = attached(small(iterations=1, bn_momentum=momentum), teacher)
        source.update(teacher, -1)
        before = {name: (m.clone(), v.clone()) for name, (m, v) in source._match.state_dict().items()}
        assert bool(before) == (momentum > 0)
        images = torch.rand(8, 3, *SIZE)
        with source._match.watching():
            teacher(images)
        name, (mean, var) = next(iter(source._match._now.items()))
        layer = source._match.layers[name]
        if momentum:
            mean, var = (0.1 * now + 0.9 * past for now, past in zip((mean, var), before[name], strict=True))
        expected = (mean - layer.running_mean).norm() + (var - layer.running_var).norm()
        assert torch.allclose(source._match.terms()[name], expected)


def test_first_layers_start_anew_once_at_the_asked_fraction(monkeypatch: pytest.MonkeyPatch) -> None:
    source = attached(small(iterations=1, warmup=2, update_every=30, reset_at=0.6), classifier(0))
    reset = []
    monkeypatch.setattr(module, "reset_first_layers", reset.append)
    done = []
    for step in range(-2, 100):
        if source.due(step):
            source.update(classifier(0), step)
            done.append((step, len(reset)))
    assert [step for step, count in done if count == 1] == [60, 90]
    assert reset == [source._generator]


def test_reset_draws_the_linear_layer_and_the_batchnorm_after_it_only() -> None:
    modes.seed_everything(0)
    generator = ResizeGenerator(SIZE, latent=32, width=8)
    before = generator.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    module.reset_first_layers(generator)
    changed = {name for name, value in generator.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"project.weight", "project.bias", "norms.0.norm.weight"}
    assert generator.project.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not generator.project.bias.any()


def test_the_best_of_the_steps_is_what_the_bank_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    source = attached(small(iterations=6, shift=0, latent_lr=0.5, generator_lr=0.2), classifier(0))
    losses_seen, kept = [], []
    backward = torch.autograd.backward

    def spy(loss: Tensor) -> None:
        losses_seen.append(float(loss.detach()))
        backward(loss)

    monkeypatch.setattr(torch.autograd, "backward", spy)
    monkeypatch.setattr(source._guard, "after", lambda step, task, images, outputs: kept.append(images) or {})
    teacher = source._setting.teacher
    source.update(teacher, -1)
    images = source._stock._bank._kept.images
    assert torch.equal(images[: len(kept[0])], (kept[0] * 255).round().to(torch.uint8))
    assert min(losses_seen) <= losses_seen[-1]


def test_a_collapse_stops_the_run_and_names_the_weight_to_lower() -> None:
    teacher = classifier(0)
    source = attached(small(iterations=1, on_collapse="stop"), teacher)
    source._guard.least_diversity = 0.0
    source._guard.least_balance = 0.0
    source.update(teacher, -1), source.update(teacher, -1)  # one healthy look
    source._guard.least_diversity = 2.0  # nothing passes
    with pytest.raises(TrainingError, match=r"lower source\.adversarial_weight"):
        for step in range(20):
            source.update(teacher, step)


def test_a_teacher_without_batchnorm_is_refused_in_a_line_that_names_other_methods() -> None:
    bare = nn.Sequential(nn.Conv2d(3, CLASSES, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(NetworkError, match=r"no BatchNorm.*source\.method=fast.*dfad"):
        attached(small(), Normalized(bare))


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(DataError, match="both 0"):
        Fast(warmup=0, update_every=0)
    with pytest.raises(DataError, match="bn_momentum is 1"):
        Fast(bn_momentum=1.0)
    with pytest.raises(DataError, match="iterations is 0"):
        Fast(iterations=0)
