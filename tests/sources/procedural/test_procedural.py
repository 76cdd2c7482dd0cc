"""Procedural images as a source: balanced by a teacher, kept, bred, drawn; refused where they cannot be made."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datafree.engine.build_networks import prepare
from datafree.errors import DataError
from datafree.ops import modes
from datafree.recipe.recipe import load_recipe
from datafree.sources import Mixed, Noise, Procedural
from datafree.sources.base import Batch, SourceContext
from datafree.sources.procedural import shares
from datafree.sources.procedural.balance import class_shares, entropy, keys_of
from datafree.sources.procedural.mixture import MAKERS
from datafree.sources.procedural.shares import alone, told_apart
from datafree.tasks import Task
from datafree.tasks.classification import Classification
from datafree.tasks.multilabel import MultiLabel
from datafree.tasks.segmentation import Segmentation

SIZE, CLASSES = (16, 16), 4
NOBODY = nn.Identity()  # no student is asked
CPU = torch.device("cpu")


class Brightness(nn.Module):
    """A class for each quarter of the mean brightness; or for each pixel, by its own. Counts the images it is asked."""

    def __init__(self, pixels: bool = False) -> None:
        super().__init__()
        self.pixels, self.asked = pixels, 0

    def forward(self, images: Tensor) -> Tensor:
        self.asked += len(images)
        value = images.mean(1) if self.pixels else images.mean((1, 2, 3))
        centres = (torch.arange(CLASSES) + 0.5) / CLASSES
        return -20 * (value[:, None] - centres.view(1, -1, *[1] * (value.ndim - 1))) ** 2


def attached(
    source: Procedural, teacher: nn.Module | None = None, task: Task | None = None, **setting: Any
) -> Procedural:
    modes.seed_everything(0)
    task = task or Classification(num_classes=CLASSES, image_size=SIZE)
    source.attach(SourceContext(task=task, teacher=teacher or Brightness(), steps=10, batch_size=8, **setting))
    return source


def small(**options: Any) -> Procedural:
    return Procedural(**{"batch_size": 32, "bank_size": 200, "warmup": 2} | options)


def test_before_the_first_update_images_are_drawn_anew_and_some_are_held_out() -> None:
    source = attached(small())
    assert source.sample(5).images.shape == (5, 3, *SIZE)
    before = modes.random_state()
    held = source.validation_images(7)
    assert len(held) == 7 and torch.equal(held, source.validation_images(7))
    assert torch.equal(before["torch"], modes.random_state()["torch"])


def test_the_teacher_is_asked_once_for_every_candidate_and_not_when_images_are_drawn() -> None:
    teacher = Brightness()
    source = attached(small(surplus=3.0), teacher)
    teacher.asked = 0
    source.update(NOBODY, -2)
    source.update(NOBODY, -1)
    assert teacher.asked == 2 * 96
    source.sample(20)
    source.validation_images(4)
    assert teacher.asked == 2 * 96
    unasked = Brightness()
    assert attached(small(balanced=False), unasked).update(NOBODY, -1) == {} and unasked.asked == 0


def test_an_update_keeps_the_rare_classes_of_what_it_drew() -> None:
    source = attached(small(surplus=4.0, bred=0.0))
    logs = source.update(NOBODY, -1)
    assert 0 < logs["drawn_balance"] < logs["kept_balance"] <= 1
    keys = torch.cat([source._bank.keys, source._held.keys])
    assert len(keys) == 32
    assert float(entropy(keys, CLASSES)) == pytest.approx(float(logs["kept_balance"]))


def test_images_drawn_anew_are_handed_out_once_drawn_together_and_kept_in_a_state() -> None:
    source = attached(small(shift=0))
    drawn: list[int] = []
    draw = source._draw
    source._draw = lambda count: drawn.append(count) or draw(count)  # type: ignore[method-assign, func-returns-value]
    first = source.sample(5).images
    other = attached(small(shift=0))
    other.load_state_dict(source.state_dict())
    second = source.sample(7).images
    assert drawn == [2**18 // (SIZE[0] * SIZE[1])]
    assert torch.equal(other.sample(7).images, second)
    assert len({image.numpy().tobytes() for image in (*first, *second)}) == 12
    earlier = {key: value for key, value in source.state_dict().items() if key != "ready"}
    other.load_state_dict(earlier)
    assert len(other._ready) == 0 and len(other.sample(3).images) == 3
    assert len(source.sample(drawn[0]).images) == drawn[0] and len(drawn) == 2


class SeesPlainGround(nn.Module):
    """Two classes: whether the upper corners have one colour, as most grounds behind figures have and few textures."""

    def forward(self, images: Tensor) -> Tensor:
        same = ((images[:, :, 0, 0] - images[:, :, 0, -1]).abs().amax(1) < 0.01).float()
        return 10 * torch.stack([same, 1 - same], 1)


def test_kinds_have_the_shares_that_the_teachers_answers_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "MOST", 512)
    said: list[str] = []
    task = Classification(num_classes=2, image_size=SIZE)
    source = attached(small(), SeesPlainGround(), task, say=said.append)
    told = []
    for name in MAKERS:
        images = replace(source._mixture, shares=alone(name)).draw(2000, SIZE, torch.device("cpu"))
        told.append(told_apart([SeesPlainGround()(images).softmax(1)]))
    expected = [apart**3 / sum(other**3 for other in told) for apart in told]
    assert source._mixture.shares == pytest.approx(expected, abs=0.1)
    assert source._mixture.shares[MAKERS.index("figures")] > 0.5
    assert len(said) == 1 and "what the teacher tells apart in them" in said[0]
    assert attached(small(), SeesPlainGround(), task)._mixture == source._mixture
    modes.seed_everything(0)
    drawn = torch.rand(3)
    attached(small(), SeesPlainGround(), task)
    assert torch.equal(torch.rand(3), drawn)  # no random number of the run's was used
    stated = attached(small(weighed=False, noise_share=2.0), SeesPlainGround(), task)
    assert stated._mixture.shares == (2.0, 1.0, 1.0, 1.0, 1.0)


def test_a_teacher_that_names_one_class_leaves_shares_as_stated() -> None:
    class One(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.zeros(len(images), CLASSES)

    assert attached(small(), One())._mixture.shares == (1.0,) * 5


def test_balance_raises_the_entropy_of_a_real_teachers_answers() -> None:
    recipe = load_recipe("fashion-demo")
    teacher = prepare(recipe.teacher, recipe.task, "teacher", CPU, torch.float32).eval().requires_grad_(False)

    def balance(**options: Any) -> float:
        source = attached(Procedural(batch_size=128, fresh=0.0, **options), teacher, recipe.task)
        for step in range(-4, 0):
            source.update(NOBODY, step)
        with torch.no_grad():
            named = teacher(source.sample(256).images).argmax(1)
        return float(entropy(named, 10))

    plain, balanced = balance(balanced=False), balance()
    assert plain < 0.5 and balanced > plain + 0.25


def test_a_bank_is_bred_from_once_it_holds_images(monkeypatch: pytest.MonkeyPatch) -> None:
    source = attached(small(bred=0.5))
    drawn: list[int] = []
    draw = source._draw
    monkeypatch.setattr(source, "_draw", lambda count: drawn.append(count) or draw(count))
    source.update(NOBODY, -2)
    source.update(NOBODY, -1)
    assert drawn == [64, 32]


class Halves(nn.Module):
    """Two classes, each as often among images of whatever origin: by the parity of a pixel's eighth bit."""

    def forward(self, images: Tensor) -> Tensor:
        odd = (images[:, 0, 3, 5] * 255).round() % 2
        return 10 * torch.stack([odd, 1 - odd], 1)


def test_drawn_and_bred_images_of_a_class_are_as_likely_to_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Classification(num_classes=2, image_size=SIZE)
    source = attached(small(bred=0.5, batch_size=128, bank_size=2000), Halves(), task)
    drawn: list[bytes] = []
    kept: list[Tensor] = []
    draw, keep = source._draw, source._keep

    def drawing(count: int) -> Tensor:
        images = draw(count)
        drawn.extend(image.numpy().tobytes() for image in images)
        return images

    monkeypatch.setattr(source, "_draw", drawing)
    monkeypatch.setattr(source, "_keep", lambda images, keys: (kept.append(images), keep(images, keys)))
    source.update(NOBODY, -3)
    kept.clear(), drawn.clear()
    source.update(NOBODY, -2)
    source.update(NOBODY, -1)
    known = set(drawn)
    anew = [image.numpy().tobytes() in known for images in kept for image in images]
    assert len(anew) == 256 and 0.4 < sum(anew) / 256 < 0.6  # four standard deviations are 0.09 of 256 out of 512


def test_the_balance_of_drawn_images_is_of_those_that_are_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    source = attached(small(bred=0.5))
    source.update(NOBODY, -3)
    monkeypatch.setattr(source, "_draw", lambda count: torch.full((count, 3, *SIZE), 0.1))
    logs = source.update(NOBODY, -2)
    assert float(logs["drawn_balance"]) == 0 < float(logs["kept_balance"])
    source.bred = 1.0
    assert "drawn_balance" not in source.update(NOBODY, -1)  # none is


def test_an_update_goes_on_exactly_from_a_state_though_its_candidates_are_mixed() -> None:
    source, other = attached(small()), attached(small())
    source.update(NOBODY, -3)
    other.load_state_dict(source.state_dict())
    for each in (source, other):
        torch.manual_seed(1)
        each.update(NOBODY, -2)
        each.update(NOBODY, -1)
    assert torch.equal(source._bank.first(200), other._bank.first(200)) and len(source._bank) > 60
    assert torch.equal(source._bank.keys, other._bank.keys)


def test_every_sixteenth_image_is_held_out_however_few_an_update_keeps() -> None:
    source = attached(small(batch_size=6))
    for _ in range(3):
        source.update(NOBODY, -1)
    assert (len(source._bank), len(source._held)) == (17, 1)
    other = attached(small(batch_size=6))
    other.load_state_dict(source.state_dict())
    for _ in range(2):
        other.update(NOBODY, -1)
    assert (len(other._bank), len(other._held)) == (29, 1)  # of 30
    other.update(NOBODY, -1)
    assert (len(other._bank), len(other._held)) == (34, 2)


def test_segmented_images_of_one_class_are_kept_only_where_others_lack() -> None:
    task = Segmentation(num_classes=CLASSES, image_size=SIZE)
    shares = []
    for most in (1.0, 0.6):
        source = attached(small(most_of_one=most, bred=0.0, surplus=4.0), Brightness(pixels=True), task)
        logs = source.update(NOBODY, -1)
        kept = source._bank.first(99)
        found = class_shares(task, Brightness(pixels=True)(kept)).amax(1)
        shares.append(float((found > 0.6).float().mean()))
    assert float(logs["crowded"]) > 0.1
    assert shares[1] < shares[0] / 2


def test_most_samples_are_the_banks_and_the_rest_is_drawn_anew() -> None:
    source = attached(small(fresh=0.25, shift=0))
    source.update(NOBODY, -1)
    known = {image.numpy().tobytes() for image in source._bank.first(99)}
    images = source.sample(40).images
    assert sum(image.numpy().tobytes() in known for image in images) == 30
    held = {image.numpy().tobytes() for image in source.validation_images(9)}
    assert len(held) == 2 and not held & known  # every sixteenth of 32


def test_shifted_images_have_no_black_borders() -> None:
    source = attached(small(fresh=0.0, shift=6))
    source._bank.add(torch.full((10, 3, *SIZE), 0.8), torch.zeros(10, dtype=torch.int64))
    assert float(source.sample(20).images.min()) == pytest.approx(0.8, abs=0.005)


@pytest.mark.parametrize("bred", [0.0, 0.5])
def test_a_set_is_given_every_image_that_an_update_keeps(bred: float) -> None:
    finished: list[Batch] = []
    source = attached(small(bred=bred), on_finished_batch=finished.append)
    source.update(NOBODY, -1)
    source.update(NOBODY, -1)
    assert [len(batch.images) for batch in finished] == [32, 32] and finished[0].targets is None
    assert (len(source._bank) > 0) == (bred > 0)
    assert len({image.numpy().tobytes() for batch in finished for image in batch.images}) == 64


def test_boundary_pairs_are_among_what_is_kept_and_lie_at_borders() -> None:
    teacher = Brightness()
    source = attached(small(boundary=1.0, boundary_steps=40, bred=0.0), teacher)
    source.update(NOBODY, -1)
    images = torch.cat([source._bank.first(99), source._held.first(9)])
    best = teacher(images).softmax(1).topk(2).values
    near = (best[:, 0] - best[:, 1]) < 0.05
    plain = attached(small(bred=0.0), teacher)
    plain.update(NOBODY, -1)
    others = teacher(plain._bank.first(99)).softmax(1).topk(2).values
    assert len(images) == 32
    assert float(near.float().mean()) > float(((others[:, 0] - others[:, 1]) < 0.05).float().mean()) + 0.2
    named = keys_of(class_shares(source._context.task, teacher(source._bank.first(99))))
    same = named == source._bank.keys
    assert float(same.float().mean()) > 0.8
    assert near[: len(named)][~same].all()  # at the border 8 bits may lie beyond it


class Deaf(Brightness):
    """No gradient comes back."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.detach())


@pytest.mark.parametrize(
    ("teacher", "task", "why"),
    [
        (Deaf(), Classification(num_classes=CLASSES, image_size=SIZE), "no gradient"),
        (Brightness(pixels=True), Segmentation(num_classes=CLASSES, image_size=SIZE), "one class an image"),
        (Brightness(), MultiLabel(num_classes=CLASSES, image_size=SIZE), "one class an image"),
    ],
)
def test_boundary_pairs_are_off_with_a_note_where_they_cannot_be_made(teacher: nn.Module, task: Task, why: str) -> None:
    said: list[str] = []
    source = attached(small(boundary=0.5), teacher, task, say=said.append)
    source.update(NOBODY, -1)
    (note,) = [line for line in said if line.startswith("note: ")]
    assert why in note and source.notes() == [note.removeprefix("note: ")]
    assert len(source._bank) == 30
    assert attached(small(), teacher, task).notes() == []


def test_a_note_of_another_run_is_not_kept() -> None:
    source = attached(small(boundary=0.5), Deaf())
    assert source.notes()
    assert attached(source, Brightness()).notes() == []


def test_it_mixes_with_other_sources() -> None:
    mixed = Mixed(parts=[small(), Noise()], ratio=(3, 1))
    task = Classification(num_classes=CLASSES, image_size=SIZE)
    mixed.attach(SourceContext(task=task, teacher=Brightness(), steps=10, batch_size=8))
    assert mixed.warmup == 2 and mixed.due(-1)
    assert set(mixed.update(NOBODY, -1)) == {"drawn_balance", "kept_balance", "crowded"}
    assert mixed.sample(8).images.shape == (8, 3, *SIZE) and len(mixed.validation_images(8)) >= 2


def test_small_images_are_refused_with_their_size() -> None:
    with pytest.raises(DataError, match=r"8 x 8 pixels or more, but task.image_size is 7 x 16"):
        attached(small(), task=Classification(num_classes=CLASSES, image_size=(7, 16)))
    attached(small(), task=Classification(num_classes=CLASSES, image_size=(8, 8))).update(NOBODY, -1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cutmix": 1.5}, "cutmix is 1.5"),
        ({"fresh": -0.1}, "fresh is -0.1"),
        ({"boundary": 2.0}, "boundary is 2.0"),
        ({"boundary": 0.1, "balanced": False}, "boundary is 0.1, but the teacher is not asked where balanced is false"),
        ({"rotation": -1.0}, "rotation is -1.0"),
        ({"surplus": 0.5}, "surplus is 0.5"),
        ({"bank_size": 0}, "bank_size is 0"),
        ({"noise_share": -1.0}, "noise_share is -1.0"),
        (
            dict.fromkeys(("noise_share", "leaves_share", "sines_share", "spectrum_share", "figures_share"), 0.0),
            "one must be above 0",
        ),
    ],
)
def test_impossible_options_are_refused_with_their_value(options: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        Procedural(**options)
