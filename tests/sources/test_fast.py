"""Fast-DFKD: what the meta-generator learns from the copies that are adapted to each batch."""

import copy

import pytest
import torch
from torch import Tensor, nn

from datafree.errors import DataError, NetworkError, TrainingError
from datafree.networks.generators import ResizeGenerator
from datafree.networks.normalized import Normalized
from datafree.networks.resnet import resnet
from datafree.ops import augment, modes
from datafree.sources import Fast
from datafree.sources import fast as module
from datafree.sources.base import ImageSource, SourceContext
from datafree.tasks.classification import Classification
from thorough import some

SIZE, CLASSES, B = (32, 32), 4, 8


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
    source.attach(SourceContext(task=task, teacher=teacher, steps=steps, batch_size=4))
    return source


def small(**options: object) -> Fast:
    return Fast(**({"width": 4, "latent": 8, "batch_size": B} | options))  # type: ignore[arg-type]


def weights_of(generator: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in generator.parameters()]


def moments_and_logits(teacher: nn.Module, images: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Mean and biased variance of each BatchNorm layer's input: found, and kept by the layer; the teacher's answer."""
    found: list[Tensor] = []
    kept: list[Tensor] = []

    def look(layer: nn.BatchNorm2d, inputs: tuple[Tensor], output: Tensor) -> None:
        found.extend([inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3), correction=0)])
        kept.extend([layer.running_mean, layer.running_var])

    handles = [m.register_forward_hook(look) for m in teacher.modules() if isinstance(m, nn.BatchNorm2d)]
    logits = teacher(images)
    for handle in handles:
        handle.remove()
    return found, kept, logits


class ByHand:
    """The published updates of ten-step Fast-DFKD, but of two steps, on the numbers that a source is going to draw.

    Weights and rates are written out: they are the defaults.
    """

    def __init__(self, source: Fast, student: nn.Module) -> None:
        self.task, self.teacher = source._context.task, source._context.teacher
        self.student = copy.deepcopy(student).eval()
        self.past: list[Tensor] | None = None

    def update(self, generator: nn.Module, adversarial_weight: float) -> None:
        targets = self.task.sample_targets(B, torch.device("cpu"))
        self.z = torch.randn(B, 8).requires_grad_()
        self.copy = copy.deepcopy(generator).train()
        parameters = list(self.copy.parameters())
        groups = [{"params": parameters, "lr": 2e-3}, {"params": [self.z], "lr": 0.01}]
        optimizer = torch.optim.Adam(groups, betas=(0.5, 0.999))
        self.summed = [torch.zeros_like(p) for p in parameters]
        for _ in range(2):
            moved, _ = augment.shift_and_flip(self.copy(self.z), 4)
            found, kept, logits = moments_and_logits(self.teacher, moved)
            if self.past is not None:
                found = [0.1 * now + 0.9 * then for now, then in zip(found, self.past, strict=True)]
            t, s = logits.softmax(1), self.student(moved).softmax(1)
            agree = t.argmax(1) == s.argmax(1)
            assert 0 < agree.sum() < B  # so that the mask tells
            self.terms = {
                "target": -t[range(B), targets].log().mean(),
                "bn": torch.stack([(a - b).square().sum().sqrt() for a, b in zip(found, kept, strict=True)]).sum(),
                "adversarial": -((t * (t / s).log()).sum(1) * agree).mean(),
            }
            target, bn, adversarial = self.terms.values()
            loss = 0.4 * target + 10.0 * bn + adversarial_weight * adversarial
            optimizer.zero_grad()
            loss.backward()
            for total, parameter in zip(self.summed, parameters, strict=True):
                total += parameter.grad
            optimizer.step()
        self.past = [each.detach() for each in found]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("meta", "step", "caution"),
    some([("fomaml", -1, 1.0), ("fomaml", 0, 1.0), ("fomaml", 0, 0.5), ("reptile", 0, 1.0)], ("fomaml", 0, 0.5)),
)
def test_what_an_update_learns_by_is_the_papers_loss(
    monkeypatch: pytest.MonkeyPatch, meta: str, step: int, caution: float
) -> None:
    """oh CE + bn R_BN - adv KL(teacher || student) where both agree; the last from the student's first step on."""
    student = classifier(6).train()  # of one mind with the teacher on some images
    source = attached(small(meta=meta, iterations=2, reset_at=0.0), classifier(0))
    source._guard.caution = caution
    by_hand = ByHand(source, student)
    learnt: list[Tensor] = []
    source._optimizer.register_step_pre_hook(
        lambda optimizer, *_: learnt.extend(p.grad.clone() for p in optimizer.param_groups[0]["params"])
    )
    drawn: list[Tensor] = []
    draw = ResizeGenerator.draw_latents
    monkeypatch.setattr(ResizeGenerator, "draw_latents", lambda *args: drawn.append(draw(*args)) or drawn[-1])
    for _ in range(2):  # the second one has past statistics
        start, random = weights_of(source._generator), torch.get_rng_state()
        by_hand.update(source._generator, 1.1 * caution if step >= 0 else 0.0)
        torch.set_rng_state(random)
        logs = source.update(student, step)
        went = [a - b.detach() for a, b in zip(start, by_hand.copy.parameters(), strict=True)]
        torch.testing.assert_close(learnt, by_hand.summed if meta == "fomaml" else went, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(drawn[-1].grad, by_hand.z.grad, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(drawn[-1], by_hand.z, rtol=1e-6, atol=1e-9)
        names = ["target", "bn"] if step < 0 else ["target", "bn", "adversarial"]
        assert [name for name in logs if name in by_hand.terms] == names
        for name in names:
            torch.testing.assert_close(logs[name], by_hand.terms[name].detach())
        learnt.clear()


@pytest.mark.thorough
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


def test_the_student_is_not_asked_before_its_first_step() -> None:
    class Unasked(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise AssertionError("asked")

    source = attached(small(iterations=1), classifier(0))
    source.update(Unasked(), -1)
    with pytest.raises(AssertionError, match="asked"):
        source.update(Unasked(), 0)


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
    teacher = classifier(0)
    source = attached(small(iterations=4, target_weight=1.0, bn_weight=0.0, adversarial_weight=0.0), teacher)
    made: list[Tensor] = []
    answers: list[Tensor] = []
    looked_at: list[tuple[Tensor, Tensor]] = []
    height = iter([3.0, 2.0, 1.0, 4.0])  # the third is the lowest

    def loss(task: object, outputs: Tensor, targets: Tensor) -> Tensor:
        answers.append(outputs.detach())
        return next(height) + outputs.sum() - outputs.sum().detach()

    forward = ResizeGenerator.forward
    monkeypatch.setattr(ResizeGenerator, "forward", lambda *args: made.append(forward(*args)) or made[-1])
    monkeypatch.setattr(Classification, "target_loss", loss)
    monkeypatch.setattr(source._guard, "after", lambda step, task, *found: looked_at.append(found) or {})
    source.update(teacher, -1)
    in_bytes = [(images.detach() * 255).round().byte() for images in made]
    assert torch.equal(source._pool._bank._train.images[:B], in_bytes[2])
    assert not torch.equal(in_bytes[2], in_bytes[3])
    (images, outputs) = looked_at[0]
    assert torch.equal(images, made[2])
    assert torch.equal(outputs, answers[2])


def test_a_collapse_stops_the_run_and_names_the_weight_to_lower() -> None:
    teacher = classifier(0)
    source = attached(small(iterations=1, on_collapse="stop"), teacher)
    source._guard.min_diversity = 0.0
    source._guard.min_balance = 0.0
    source.update(teacher, -1), source.update(teacher, -1)  # one healthy look
    source._guard.min_diversity = 2.0  # nothing passes
    with pytest.raises(TrainingError, match=r"lower source\.adversarial_weight"):
        for step in range(20):
            source.update(teacher, step)


def require_unmoved(source: ImageSource, teacher: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """An update of four iterations shows the teacher the images that the generator makes, as they are."""
    made: list[Tensor] = []
    seen: list[Tensor] = []
    forward = ResizeGenerator.forward
    monkeypatch.setattr(ResizeGenerator, "forward", lambda *args: made.append(forward(*args)) or made[-1])
    teacher.register_forward_pre_hook(lambda network, inputs: seen.append(inputs[0]))
    source.update(teacher, -1)
    assert len(made) == 4
    assert all(any(torch.equal(images, look) for look in seen) for images in made)


def test_without_a_shift_the_teacher_sees_images_as_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = classifier(0)
    source = attached(small(iterations=4, shift=0), teacher)
    require_unmoved(source, teacher, monkeypatch)


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


def test_targets_that_are_seen_are_the_teachers_labels_of_the_copys_first_images() -> None:
    teacher, student = classifier(0), classifier(1)
    source = attached(small(targets="seen", iterations=1, shift=0, bank_size=64), teacher)
    generator = copy.deepcopy(source._generator).train()
    state = torch.get_rng_state()
    source.update(student, -1)
    torch.set_rng_state(state)
    source._context.task.sample_targets(B, torch.device("cpu"))  # drawn all the same, so that latents stay the same
    z = generator.draw_latents(B, torch.device("cpu"))
    with torch.no_grad():
        expected = teacher(generator(z)).argmax(1)
    kept = source._pool.state_dict()["kept"]["targets"]
    assert torch.equal(kept.long(), expected)  # of eight images none is set aside
