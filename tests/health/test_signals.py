"""Signals on cases where the truth is known: made by hand, or worked out in another way."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datafree.health import signals as module
from datafree.health.signals import (
    Inside,
    Moments,
    calibration_gap,
    corrupted,
    diversity,
    health_metrics,
    rows,
    statistics_distance,
)
from datafree.health.verdict import SIGNALS
from datafree.tasks.classification import Classification
from datafree.tasks.segmentation import Segmentation

TASK = Classification(num_classes=3, image_size=(16, 16))


class Net(nn.Module):
    """Two feature maps, then a class for an image by its mean colour."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 5, 3, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return 20 * x.mean((2, 3)) + 0 * self.features(x).mean()


def coloured(count: int = 12) -> Tensor:
    """(count, 3, 16, 16): red, green and blue in turn, and a little of everything."""
    torch.manual_seed(0)
    images = 0.2 * torch.rand(count, 3, 16, 16)
    for index in range(count):
        images[index, index % 3] += 0.7
    return images


def test_diversity_is_the_mean_distance_of_all_pairs() -> None:
    features = torch.randn(7, 5)
    pairs = [1 - F.cosine_similarity(a, b, dim=0) for a, b in itertools.combinations(features, 2)]
    assert diversity(features).item() == pytest.approx(torch.stack(pairs).mean().item(), abs=1e-6)


def test_diversity_of_images_that_are_all_alike_is_nothing_and_of_opposites_more_than_one() -> None:
    assert diversity(torch.rand(1, 9).expand(6, 9)).item() == pytest.approx(0, abs=1e-6)
    assert diversity(torch.eye(4)).item() == pytest.approx(1)
    assert diversity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).item() == pytest.approx(2)


def test_the_calibration_gap_is_confidence_minus_agreement() -> None:
    student = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]])
    teacher = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.9, 0.1], [0.4, 0.6]])
    assert calibration_gap(rows(student), rows(teacher)) == pytest.approx((0.9 + 0.8 + 0.7 + 0.6) / 4 - 0.5)
    assert calibration_gap(rows(teacher), rows(teacher)) < 0


def test_moments_of_several_passes_are_those_of_all_images_together() -> None:
    inputs = torch.randn(11, 3, 4, 5) * torch.tensor([1.0, 2.0, 3.0])[:, None, None] + 2
    seen = Moments()
    for part in torch.split(inputs, 4):
        seen.add(part)
    torch.testing.assert_close(seen.mean, inputs.mean((0, 2, 3)))
    torch.testing.assert_close(seen.square - seen.mean.square(), inputs.var((0, 2, 3), correction=0), rtol=1e-4, atol=0)


def test_the_statistics_distance_counts_deviations_of_the_training_data() -> None:
    norm = nn.BatchNorm2d(3)
    norm.running_mean, norm.running_var = torch.zeros(3), torch.full((3,), 4.0)  # a deviation of 2
    seen = Moments(count=1, mean=torch.tensor([0.0, 2.0, 6.0]), square=torch.tensor([4.0, 4.0 + 4.0, 4.0 + 36.0]))
    assert statistics_distance(norm, {"": seen}) == pytest.approx(1.0, abs=1e-4)  # the median of 0, 1 and 3
    wide = Moments(count=1, mean=torch.zeros(3), square=torch.full((3,), 36.0))  # a deviation of 6 against 2
    assert statistics_distance(norm, {"": wide}) == pytest.approx(2.0, abs=1e-4)


def test_a_teacher_finds_its_own_data_near_and_other_data_far() -> None:
    teacher, student = Net(), Net()
    near = coloured(64)
    teacher.train()
    teacher.features[0].momentum = None  # the plain average
    teacher(near)
    teacher.eval()
    ours = health_metrics(TASK, teacher, student, near)
    theirs = health_metrics(TASK, teacher, student, 1 - near)
    assert ours["statistics_distance"] < 0.01 < 0.5 < theirs["statistics_distance"]


def test_a_student_that_is_the_teacher_agrees_everywhere_and_another_does_not() -> None:
    teacher = Net()
    same = health_metrics(TASK, teacher, teacher, coloured())
    assert same["agreement"] == same["agreement_corrupted"] == same["agreement_noise"] == 1
    assert same["held_out_class_balance"] == pytest.approx(1)

    class Turned(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).roll(1, 1)

    other = health_metrics(TASK, teacher, Turned(), coloured())
    assert other["agreement"] == other["agreement_corrupted"] == 0
    assert other["calibration_gap"] == pytest.approx(other["held_out_confidence"], abs=1e-5)


def test_images_that_are_all_alike_have_no_diversity_in_pixels_or_features() -> None:
    found = health_metrics(TASK, Net(), Net(), coloured()[:1].repeat(20, 1, 1, 1))
    assert found["held_out_pixel_diversity"] == found["held_out_class_balance"] == 0
    assert math.copysign(1, found["held_out_class_balance"]) == 1  # shown as 0.00, not -0.00
    assert found["held_out_feature_diversity"] == pytest.approx(0, abs=1e-6)


def test_a_look_touches_no_random_state_and_no_network() -> None:
    teacher, student = Net(), Net().train()
    before, random = {k: v.clone() for k, v in student.state_dict().items()}, torch.get_rng_state()
    first = health_metrics(TASK, teacher, student, coloured())
    torch.set_rng_state(random)
    assert health_metrics(TASK, teacher, student, coloured()) == first
    torch.manual_seed(5)
    random = torch.get_rng_state()
    images = torch.full((2, 3, 16, 16), 0.5)
    health_metrics(TASK, teacher, student, images)
    assert torch.equal(torch.get_rng_state(), random)
    assert student.training and all(torch.equal(v, before[k]) for k, v in student.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for net in (teacher, student) for m in net.modules())


def test_every_signal_has_a_title_and_what_cannot_be_had_is_left_out() -> None:
    assert set(health_metrics(TASK, Net(), Net(), coloured())) == set(SIGNALS)

    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))

    left = set(health_metrics(TASK, Plain(), Net(), coloured()))
    assert set(SIGNALS) - left == {"statistics_distance", "held_out_feature_diversity"}


def test_features_without_maps_are_what_the_last_linear_layer_takes() -> None:
    tokens = nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Flatten(2), nn.Linear(3 * 256, 6), nn.Linear(6, 3), nn.Flatten())
    images = coloured()
    inside = Inside(tokens, images)
    with inside.watched():
        tokens(images)
    tokens(images)  # not watched
    assert [found.shape for found in inside.features] == [(12, 6)]


def test_corruptions_are_mild_and_of_four_kinds() -> None:
    images = coloured(8)
    changed = corrupted(images)
    assert changed.min() >= 0 and changed.max() <= 1
    distances = (changed - images).abs().mean((1, 2, 3))
    assert distances.min() > 0.005 and distances.max() < 0.15
    torch.testing.assert_close(changed[3], (images[3] + 0.1).clamp(0, 1))
    assert changed[1].std() < images[1].std()
    assert torch.equal(changed, corrupted(images))


def test_agreement_by_class_counts_the_classes_that_the_teacher_names() -> None:
    teacher = torch.tensor([[9.0, 0, 0], [9.0, 0, 0], [0, 9.0, 0], [9.0, 0, 0]])
    student = torch.tensor([[9.0, 0, 0], [0, 0, 9.0], [0, 9.0, 0], [9.0, 0, 0]])
    assert TASK.class_agreement(student, teacher) == [pytest.approx(2 / 3), 1.0, None]


def test_features_of_a_network_with_one_activation_for_all_its_layers() -> None:
    """Called several times in a pass, with maps of several widths: the last call is what counts."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 8, 3, 2, 1)
            self.act, self.head = nn.ReLU(), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            answer: Tensor = self.head(self.features(x).mean((2, 3)))
            return answer

        def features(self, x: Tensor) -> Tensor:
            maps: Tensor = self.act(self.second(self.act(self.first(x))))
            return maps

    torch.manual_seed(0)
    teacher, student, images = Shared().eval(), Shared().eval(), torch.rand(20, 3, 16, 16)
    found = health_metrics(Classification(num_classes=3, image_size=(16, 16)), teacher, student, images)
    with torch.no_grad():
        unit = F.normalize(teacher.features(images).mean((2, 3)).double(), dim=1)
    cosines = (unit @ unit.T)[~torch.eye(20, dtype=torch.bool)]
    assert found["held_out_feature_diversity"] == pytest.approx(1 - float(cosines.mean()), abs=1e-6)


# Maps: a pass at a time.

DENSE = Segmentation(num_classes=3, image_size=(8, 8))
TWO_IMAGES = 2 * 3 * 8 * 8  # numbers in their maps


class Maps(nn.Module):
    """A class for every pixel by its colour, `turned` for images that are dark."""

    def __init__(self, turned: int = 0) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, 2, 1))
        self.turned = turned

    def forward(self, x: Tensor) -> Tensor:
        dark = x.mean((1, 2, 3)) < 0.2
        return 20 * torch.where(dark[:, None, None, None], x.roll(self.turned, 1), x) + 0 * self.features(x).mean()


def pictures(count: int, dark: int) -> Tensor:
    """(count, 3, 8, 8): each pixel mostly red, green or blue; those from number `dark` on are dark."""
    draw = torch.Generator().manual_seed(4)
    images = 0.2 * torch.rand(count, 3, 8, 8, generator=draw)
    labels = torch.randint(3, (count, 8, 8), generator=draw)
    images += 0.8 * F.one_hot(labels, 3).movedim(-1, 1)
    images[dark:] *= 0.2
    return images


def test_maps_are_compared_a_pass_at_a_time_whatever_there_is_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest answer that is compared is that of a pass, and one image's where that has more numbers."""
    held: list[int] = []
    whole = Segmentation.class_probs

    def noted(self: Segmentation, outputs: Tensor) -> Tensor:
        held.append(outputs.numel())
        return whole(self, outputs)

    monkeypatch.setattr(Segmentation, "class_probs", noted)
    images = pictures(21, 20)
    for most, least in ((TWO_IMAGES, TWO_IMAGES), (7, 3 * 8 * 8), (2**26, module.AT_ONCE * 3 * 8 * 8)):
        held.clear()
        monkeypatch.setattr(module, "NUMBERS", most)
        health_metrics(DENSE, Maps(), Maps(1), images)
        assert max(held) == least


def test_signals_of_maps_by_parts_are_those_of_all_pixels_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NUMBERS", TWO_IMAGES)
    teacher, student, images = Maps().eval(), Maps(1).eval(), pictures(5, 4)
    found = health_metrics(DENSE, teacher, student, images)
    with torch.no_grad():
        theirs, ours = (network(images).movedim(1, -1).flatten(0, 2).softmax(1) for network in (teacher, student))
        features = teacher.features(images).mean((2, 3))
    shares = torch.bincount(theirs.argmax(1), minlength=3) / len(theirs)
    assert found["agreement"] == pytest.approx(4 / 5)  # all pixels of four images of five; parts are of 2, 2 and 1
    assert found["held_out_class_balance"] == pytest.approx(float(-(shares * shares.log()).sum()) / math.log(3))
    assert found["held_out_confidence"] == pytest.approx(float(theirs.amax(1).mean()))
    assert found["calibration_gap"] == pytest.approx(float(ours.amax(1).mean()) - 4 / 5)
    assert found["held_out_feature_diversity"] == pytest.approx(float(diversity(features)), abs=1e-6)


def test_only_the_teachers_passes_are_watched_also_where_it_is_the_student(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NUMBERS", TWO_IMAGES)
    network, images = Maps().eval(), pictures(5, 5)
    found = health_metrics(DENSE, network, network, images)
    assert found["agreement"] == found["agreement_corrupted"] == found["agreement_noise"] == 1
    with torch.no_grad():
        features = network.features(images).mean((2, 3))
    assert found["held_out_feature_diversity"] == pytest.approx(float(diversity(features)), abs=1e-6)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_answers_of_other_tasks_are_compared_all_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """A share of labels or boxes is no mean over parts, so no limit on maps may divide them."""
    before = health_metrics(TASK, Net(), Net(), coloured(20))
    monkeypatch.setattr(module, "NUMBERS", 1)
    counts: list[int] = []
    monkeypatch.setattr(Classification, "class_probs", lambda self, out: counts.append(len(out)) or out.softmax(1))
    assert health_metrics(TASK, Net(), Net(), coloured(20)).keys() == before.keys()
    assert set(counts) == {20, module.NOISE}


def test_parts_in_which_there_is_nothing_to_compare_do_not_count() -> None:
    assert module._mean([(None, 16), (0.5, 2), (1.0, 6)]) == pytest.approx((0.5 * 2 + 1.0 * 6) / 8)
    assert module._mean([(0.1, 3), (0.1, 5)]) == 0.1
    assert module._mean([(None, 4)]) is None
