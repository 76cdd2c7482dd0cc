"""DeepInversion: what its loss is, that it is lowered, and that images show what they were meant to."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from datafree.errors import DataError, NetworkError
from datafree.networks.batchnorm import StatisticsMatch
from datafree.networks.normalized import Normalized
from datafree.networks.resnet import resnet
from datafree.networks.unet import unet
from datafree.ops import augment, modes
from datafree.sources import Inversion
from datafree.sources.base import SourceContext
from datafree.sources.parts import pixel_optimizer
from datafree.tasks import Task
from datafree.tasks.classification import Classification
from datafree.tasks.segmentation import Segmentation

SIZE, CLASSES = (16, 16), 4


COLOURS = torch.tensor([[0.8, 0.2, 0.2], [0.2, 0.8, 0.2], [0.2, 0.2, 0.8], [0.7, 0.7, 0.2]])


def taught(made: nn.Module, task: Task, steps: int = 40) -> nn.Module:
    """A network that knows four colours, of an image or of its pixels; frozen."""
    teacher = Normalized(made)
    optimizer = torch.optim.Adam(teacher.parameters(), 0.02)
    for _ in range(steps):
        targets = task.sample_targets(16, torch.device("cpu"))
        maps = targets if targets.ndim == 3 else targets[:, None, None].expand(-1, *SIZE)
        images = COLOURS[maps].movedim(-1, 1) + 0.1 * torch.randn(16, 3, *SIZE)
        optimizer.zero_grad()
        task.target_loss(teacher(images), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return teacher.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    modes.seed_everything(0)
    return taught(resnet(CLASSES, depth=8, width=4), Classification(num_classes=CLASSES, image_size=SIZE))


@pytest.fixture(scope="module")
def segmenter() -> nn.Module:
    modes.seed_everything(0)
    return taught(unet(CLASSES, width=4, depth=2), Segmentation(num_classes=CLASSES, image_size=SIZE), 100)


def attached(source: Inversion, teacher: nn.Module, task: Task | None = None) -> Inversion:
    task = task or Classification(num_classes=CLASSES, image_size=SIZE)
    source.attach(SourceContext(task=task, teacher=teacher, steps=100, batch_size=4))
    return source


def images_of(source: Inversion) -> tuple[Tensor, Tensor]:
    """What is in the bank, as it was made."""
    bank = source._pool._bank._train
    images, targets = bank.at(slice(0, bank.count))
    assert targets is not None
    return images, targets


def test_teacher_names_the_sampled_labels_in_images_that_were_noise(classifier: nn.Module) -> None:
    modes.seed_everything(0)
    source = attached(Inversion(batch_size=16, iterations=30, bn_weight=0.1, lr=0.05), classifier)
    source.update(classifier, -1)
    images, targets = images_of(source)
    assert (classifier(images).argmax(1) == targets).float().mean() >= 0.9


def test_more_iterations_bring_the_statistics_nearer_to_the_kept_ones(classifier: nn.Module) -> None:
    distances = []
    for iterations in (1, 30):
        modes.seed_everything(1)
        source = attached(Inversion(batch_size=16, iterations=iterations, lr=0.02, jitter=0), classifier)
        source.update(classifier, -1)
        match = StatisticsMatch(network=classifier)
        with match.watching():
            classifier(images_of(source)[0])
        distances.append(float(match.distance()))
    assert distances[1] < 0.5 * distances[0]


WEIGHTS = {"target": 2.0, "bn": 3.0, "tv_l1": 0.5, "tv_l2": 0.25, "l2": 0.125, "adversarial": 0.75}


def by_hand(images: Tensor, targets: Tensor, teacher: nn.Module, student: nn.Module) -> dict[str, Tensor]:
    """The paper's terms, of images as they are looked at."""
    found: list[Tensor] = []

    def look(layer: nn.BatchNorm2d, inputs: tuple[Tensor], output: Tensor) -> None:
        mean, var = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3), correction=0)
        apart = (mean - layer.running_mean).square().sum().sqrt() + (var - layer.running_var).square().sum().sqrt()
        found.append(apart)

    handles = [m.register_forward_hook(look) for m in teacher.modules() if isinstance(m, nn.BatchNorm2d)]
    logits = teacher(images)
    for handle in handles:
        handle.remove()
    right, down = images[..., 1:] - images[..., :-1], images[..., 1:, :] - images[..., :-1, :]
    falling = images[..., 1:, 1:] - images[..., :-1, :-1]
    rising = images[..., 1:, :-1] - images[..., :-1, 1:]
    variation = (right, down, falling, rising)
    t, s = (logits / 3).softmax(1), (student(images) / 3).softmax(1)
    m = (t + s) / 2
    js = ((t * (t / m).log()).sum(1) + (s * (s / m).log()).sum(1)) / 2  # eq. 8
    return {
        "target": -logits.softmax(1)[range(len(images)), targets].log().mean(),  # eq. 1
        "bn": torch.stack(found).sum() + 9 * found[0],  # eq. 4; the first layer ten times, as the code for ImageNet
        "tv_l1": torch.stack([d.abs().mean() for d in variation]).sum(),
        "tv_l2": torch.stack([d.square().sum().sqrt() for d in variation]).sum(),  # eq. 2, and the next
        "l2": (images - 0.5).square().sum().sqrt(),
        "adversarial": 1 - js.mean(),  # eq. 7
    }


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("step", [-1, 0])
def test_pixels_follow_the_papers_loss(monkeypatch: pytest.MonkeyPatch, classifier: nn.Module, step: int) -> None:
    """Each iteration's loss and its gradient; a student that has learnt nothing says nothing."""
    modes.seed_everything(0)
    teacher, student = copy.deepcopy(classifier).double(), Normalized(resnet(CLASSES, depth=8, width=4))
    options: dict[str, Any] = {f"{name}_weight": weight for name, weight in WEIGHTS.items()}
    options |= {"first_bn_weight": 9.0, "iterations": 2, "batch_size": 8, "update_every": 1}
    source = attached(Inversion(**options), teacher)
    weights = {name: weight for name, weight in WEIGHTS.items() if name != "adversarial" or step >= 0}
    looks: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    optimise = pixel_optimizer.optimise

    def watched(start: Tensor, loss: Callable[[Tensor, int], Tensor], **options: Any) -> Tensor:
        def look(images: Tensor, iteration: int) -> Tensor:
            random = torch.get_rng_state()
            value = loss(images, iteration)
            (gradient,) = torch.autograd.grad(value, images, retain_graph=True)
            looks.append((random, images.detach().clone(), value.detach(), gradient))
            return value

        return optimise(start, look, **options)

    monkeypatch.setattr(pixel_optimizer, "optimise", watched)
    logs = source.update(student.train(), step)
    _, targets = images_of(source)
    for random, images, value, gradient in looks:
        torch.set_rng_state(random)
        moved, _ = augment.roll_and_flip(images.requires_grad_(), 2)
        terms = by_hand(moved, targets, teacher, student.eval())
        expected = torch.stack([weight * terms[name] for name, weight in weights.items()]).sum()
        torch.testing.assert_close(value, expected.detach())
        torch.testing.assert_close(gradient, torch.autograd.grad(expected, images)[0], rtol=1e-6, atol=1e-9)
    assert len(looks) == 2
    torch.testing.assert_close(logs, {name: terms[name].detach() for name in weights})


def test_crops_become_smaller_along_a_cosine_and_the_last_iterate_is_kept(
    monkeypatch: pytest.MonkeyPatch, segmenter: nn.Module
) -> None:
    """CDA: iteration i of T sees crops of an area from e + (1 - e) (1 + cos(pi i / T)) / 2 on, and their targets."""
    task = Segmentation(num_classes=CLASSES, image_size=SIZE)
    options = {"bn_weight": 0.0, "tv_l2_weight": 0.0, "jitter": 0, "flip_probability": 0.0}
    source = attached(Inversion(batch_size=4, iterations=4, least_crop=0.1, **options), segmenter, task)
    crops: list[tuple[float, augment.Move]] = []
    area_crop, optimise = augment.area_crop, pixel_optimizer.optimise
    walked: list[Tensor] = []
    values: list[tuple[Tensor, Tensor]] = []

    def cropped(images: Tensor, least: float) -> tuple[Tensor, augment.Move]:
        moved, move = area_crop(images, least)
        crops.append((least, move))
        return moved, move

    def watched(start: Tensor, loss: Callable[[Tensor, int], Tensor], **options: Any) -> Tensor:
        def look(images: Tensor, iteration: int) -> Tensor:
            value = loss(images, iteration)
            values.append((images.detach().clone(), value.detach()))
            return value

        made = optimise(start, look, **options)
        walked.append(made)
        return made

    monkeypatch.setattr(augment, "area_crop", cropped)
    monkeypatch.setattr(pixel_optimizer, "optimise", watched)
    modes.seed_everything(0)
    source.update(segmenter, -1)
    _, targets = images_of(source)
    expected = [0.1 + 0.9 * (1 + math.cos(math.pi * i / 4)) / 2 for i in range(4)]
    assert [least for least, _ in crops] == pytest.approx(expected)
    for (_, move), (images, value) in zip(crops, values, strict=True):
        assert move.scale is not None
        assert move.offset is not None
        part = augment.resampled(images, move.scale, move.offset, "border")
        shown = augment.resampled(targets[:, None].float(), move.scale, move.offset, "border", "nearest")[:, 0].long()
        torch.testing.assert_close(value, nn.functional.cross_entropy(segmenter(part), shown))
    assert all(not torch.equal(walked[0], images) for images, _ in values)  # after the last step


def test_without_crops_no_number_is_drawn_for_them_and_the_best_iterate_is_kept(
    monkeypatch: pytest.MonkeyPatch, classifier: nn.Module
) -> None:
    monkeypatch.setattr(augment, "area_crop", None)  # is not asked
    kept: list[str] = []
    optimise = pixel_optimizer.optimise

    def watched(*given: Any, keep: str, **options: Any) -> Tensor:
        kept.append(keep)
        return optimise(*given, keep=keep, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(pixel_optimizer, "optimise", watched)
    source = attached(Inversion(batch_size=2, iterations=2), classifier)
    source.update(classifier, -1)
    source.sample(3)
    assert kept == ["best"]


def test_the_student_draws_crops_of_the_asked_area(monkeypatch: pytest.MonkeyPatch, classifier: nn.Module) -> None:
    source = attached(Inversion(batch_size=2, iterations=1, drawn_crop=0.25), classifier)
    source.update(classifier, -1)
    asked: list[float] = []
    monkeypatch.setattr(augment, "area_crop", lambda images, least: (asked.append(least), images, augment.Move())[1:])
    assert source.sample(3).images.shape == (3, 3, *SIZE)
    assert asked == [0.25]
    with pytest.raises(DataError, match="least_crop is 0"):
        Inversion(least_crop=0.0)


def test_the_first_layer_weighs_more_by_what_is_added_to_its_share_of_one(classifier: nn.Module) -> None:
    images = torch.rand(8, 3, *SIZE)
    found = {}
    for added in (0.0, 9.0):
        source = attached(Inversion(batch_size=2, iterations=1, first_bn_weight=added), classifier)
        with source._match.watching():
            classifier(images)
        found[added] = source._match.distance()
        first = source._match.terms()["bn1"]
    assert torch.allclose(found[9.0], found[0.0] + 9 * first)


@pytest.mark.thorough
def test_masks_are_shown_where_they_were_asked_for_though_pixels_move(segmenter: nn.Module) -> None:
    modes.seed_everything(0)
    task = Segmentation(num_classes=CLASSES, image_size=SIZE)
    source = attached(Inversion(batch_size=8, iterations=30, bn_weight=0.0, lr=0.05, jitter=6), segmenter, task)
    source.update(segmenter, -1)
    images, targets = images_of(source)
    right = (segmenter(images).argmax(1) == targets).float().mean()
    assert right > 0.85


def test_images_stay_in_0_1_and_the_best_iterate_is_kept() -> None:
    start = torch.full((1, 3, 2, 2), 0.5)
    walked = []

    def loss(images: Tensor, iteration: int) -> Tensor:
        walked.append(images.detach().clone())
        return (images - 2).square().sum() * (-1 if iteration == 1 else 1)  # the second is the lowest, by its sign

    options = {"iterations": 5, "rate": lambda iteration: 0.2}
    best = pixel_optimizer.optimise(start, loss, **options)  # type: ignore[arg-type]
    assert torch.equal(best, walked[1])
    assert torch.equal(start, torch.full((1, 3, 2, 2), 0.5))
    last = pixel_optimizer.optimise(start, loss, keep="last", **options)  # type: ignore[arg-type]
    assert last.max() <= 1
    assert last.min() >= 0
    assert not torch.equal(best, last)


def test_zero_betas_step_by_the_sign_of_the_gradient() -> None:
    start = torch.tensor([[0.25, 0.75]])
    end = pixel_optimizer.optimise(
        start,
        lambda x, i: (x * torch.tensor([[1000.0, -0.001]])).sum(),
        iterations=1,
        rate=lambda i: 0.125,
        betas=(0.0, 0.0),
        keep="last",
    )
    assert end.tolist() == [[pytest.approx(0.125, abs=1e-5), pytest.approx(0.875, abs=1e-5)]]


def test_the_rate_rises_in_a_line_and_falls_along_a_cosine() -> None:
    rates = [pixel_optimizer.cosine(i, 10, 1.0, 0.2, warmup=2) for i in range(10)]
    assert rates[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert rates[6] == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi / 2)) / 2)
    assert [pixel_optimizer.cosine(i, 10, 0.3, 0.3) for i in range(10)] == pytest.approx([0.3] * 10)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_a_batch_is_mirrored_with_the_probability_that_is_stated(
    monkeypatch: pytest.MonkeyPatch, classifier: nn.Module, probability: float
) -> None:
    source = attached(Inversion(batch_size=2, iterations=8, jitter=0, flip_probability=probability), classifier)
    roll, mirrored = augment.roll_and_flip, []

    def watched(images: Tensor, *options: Any) -> tuple[Tensor, augment.Move]:
        moved, move = roll(images, *options)
        mirrored.append(torch.equal(moved, images.flip(-1)))
        assert mirrored[-1] or torch.equal(moved, images)
        return moved, move

    monkeypatch.setattr(augment, "roll_and_flip", watched)
    source.update(classifier, -1)
    assert mirrored == [probability == 1] * 8


def test_a_teacher_without_batchnorm_is_refused_in_a_line_that_names_other_methods() -> None:
    bare = nn.Sequential(nn.Conv2d(3, CLASSES, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(NetworkError, match=r"no BatchNorm.*source\.method=inversion.*dfad") as caught:
        attached(Inversion(), Normalized(bare))
    assert "\n" not in str(caught.value)


def test_options_that_would_never_make_an_image_are_refused() -> None:
    with pytest.raises(DataError, match="warmup and update_every are both 0"):
        Inversion(warmup=0)
    with pytest.raises(DataError, match="iterations is 0"):
        Inversion(iterations=0)


def test_a_competition_that_could_never_act_is_told(classifier: nn.Module) -> None:
    said: list[str] = []
    task = Classification(num_classes=CLASSES, image_size=SIZE)
    context = SourceContext(task=task, teacher=classifier, steps=10, batch_size=4, say=said.append)
    Inversion(adversarial_weight=1.0, update_every=5).attach(context)
    assert said == []
    Inversion(adversarial_weight=1.0).attach(context)
    assert len(said) == 1
    assert "adversarial_weight is off" in said[0]


# --- a teacher with attention in place of BatchNorm ---


def transformer() -> nn.Module:
    network = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=CLASSES
    )
    return taught(network, Classification(num_classes=CLASSES, image_size=SIZE))


def test_patches_of_a_transformer_become_more_varied_the_more_their_entropy_weighs() -> None:
    modes.seed_everything(0)
    teacher = transformer()
    logged = {}
    for weight in (1e-6, 10.0):
        modes.seed_everything(1)
        source = Inversion(entropy_weight=weight, iterations=25, batch_size=8, lr=0.05, lr_end=0.05, warmup=1)
        logged[weight] = attached(source, teacher).update(nn.Linear(1, 1), -1)
    assert set(logged[10.0]) == {"target", "entropy", "tv_l2"}
    assert logged[10.0]["entropy"] > logged[1e-6]["entropy"] + 0.1


def test_without_batchnorm_or_attention_that_counts_it_is_refused() -> None:
    modes.seed_everything(0)
    teacher = transformer()
    with pytest.raises(NetworkError, match="no BatchNorm statistics"):
        attached(Inversion(entropy_weight=0.0), teacher)
    plain = Normalized(nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES)))
    with pytest.raises(NetworkError, match="no BatchNorm statistics"):
        attached(Inversion(), plain)
