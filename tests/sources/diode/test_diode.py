"""DIODE: what its objective is, where boxes go in it, the published numbers; and that images show their boxes."""

import copy
import gc
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datafree.errors import DataError, NetworkError
from datafree.networks.checkpoints.weights import save_weights
from datafree.networks.darknet.yolov3 import yolov3
from datafree.networks.detectors import Detector
from datafree.networks.load import NetworkSpec
from datafree.networks.normalized import Normalized
from datafree.ops import augment, boxes, modes
from datafree.ops.boxes import Labelled
from datafree.ops.predictions import Heads, Predictions
from datafree.recipe.recipe import load_recipe
from datafree.sources import Diode, Mixed
from datafree.sources.base import Batch, SourceContext
from datafree.sources.diode.stages import Stage
from datafree.sources.parts import pixel_optimizer
from datafree.tasks.detection import Detection
from datafree.tasks.segmentation import Segmentation
from recipes import changed, fault, load, to_yaml, write

SIZE, CLASSES, CELL = (32, 64), 3, 8
CPU = torch.device("cpu")
COLOURS = torch.eye(CLASSES) * 0.8 + 0.1  # red, green, blue
PLAIN: dict[str, Any] = {"brightness": 0.0, "contrast": 0.0, "erase_probability": 0.0}  # no augmentation but the flip


class Cells(Detector):
    """Cells of 8 x 8 pixels, each with a class, whether there is a box, and the box; notes what its loss is given."""

    backbone = "body"

    def __init__(self, network: nn.Module, classes: int = CLASSES) -> None:
        super().__init__(network)
        self.classes = classes
        self.images: list[Tensor] = []  # of each pass
        self.targets: list[list[Labelled]] = []  # of each call of the loss

    def forward(self, images: Tensor) -> Predictions:
        self.images.append(images.detach().clone())
        return self.decoded(self.network(images))

    def decoded(self, raw: Tensor) -> Predictions:
        """Raw cells (B, C + 1 + 4, h, w): classes, there, x, y, width, height."""
        h, w = raw.shape[-2:]
        rows = raw.flatten(2).mT  # (B, L, C + 5)
        classes, there, place = rows.split([self.classes, 1, 4], 2)
        y, x = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
        centres = (torch.stack([x.flatten(), y.flatten()], 1) * CELL).expand(len(raw), -1, -1)
        middle, half = centres + CELL * place[..., :2].tanh(), CELL * place[..., 2:].clamp(-4, 4).exp()
        return Predictions(
            class_logits=classes,
            scores=classes.softmax(2) * there.sigmoid(),
            boxes=torch.cat([middle - half, middle + half], 2),
            centres=centres,
            heads=(raw,),
            loss=self.loss,
        )

    def loss(self, heads: Heads, targets: list[Labelled]) -> Tensor:
        self.targets.append(targets)
        said, (_, _, h, w) = self.decoded(heads[0]), heads[0].shape
        image = torch.repeat_interleave(torch.arange(len(targets)), torch.tensor([len(t[0]) for t in targets]))
        labels, found = torch.cat([t[0] for t in targets]), torch.cat([t[1] for t in targets])
        x, y = ((found[:, :2] + found[:, 2:]) / 2 / CELL).long().unbind(1)
        place = y.clamp(0, h - 1) * w + x.clamp(0, w - 1)
        there = heads[0].flatten(2).mT[..., self.classes]
        loss = F.binary_cross_entropy_with_logits(
            there, torch.zeros_like(there).index_put((image, place), torch.ones(()))
        )
        if len(labels):
            loss = loss + 0.1 * F.cross_entropy(said.class_logits[image, place], labels)
            loss = loss + (said.boxes[image, place] - found).abs().mean() / 32
        return loss


def cells(classes: int = CLASSES, norms: bool = True, width: int = 8) -> Cells:
    """Two BatchNorm layers in its body and one in its head, or none."""

    def block(inputs: int, size: int, stride: int) -> list[nn.Module]:
        norm = [nn.BatchNorm2d(width)] if norms else []
        return [nn.Conv2d(inputs, width, size, stride, size // 2), *norm, nn.ReLU()]

    body = nn.Sequential(*block(3, 5, 4), *block(width, 3, 2))
    head = nn.Sequential(*block(width, 3, 1), nn.Conv2d(width, classes + 5, 1))
    return Cells(nn.Sequential(OrderedDict(body=body, head=head)), classes)


def make_task(**options: Any) -> Detection:
    return Detection(num_classes=CLASSES, image_size=SIZE, **{"max_boxes": 6, "box_sides": (0.3, 0.7), **options})


def frozen(network: nn.Module) -> Normalized:
    return Normalized(network).eval().requires_grad_(False)


def teacher_with_statistics(seed: int = 0, **options: Any) -> Normalized:
    torch.manual_seed(seed)
    network = cells(**options)
    for _ in range(3):
        network(torch.rand(8, 3, *SIZE))
    network.images.clear()
    return frozen(network)


@pytest.fixture
def teacher() -> Normalized:
    return teacher_with_statistics()


@pytest.fixture(scope="module")
def trained() -> Normalized:
    """A detector that knows boxes of three colours on grey."""
    modes.seed_everything(0)
    network, task = cells(), make_task()
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(50):
        targets = task.sample_targets(12, CPU)
        images = 0.5 + 0.1 * torch.randn(12, 3, *SIZE)
        for image, (labels, found) in zip(images, boxes.unpack(targets), strict=True):
            for label, (left, top, right, bottom) in zip(labels, found.round().int().tolist(), strict=True):
                image[:, top:bottom, left:right] = COLOURS[label][:, None, None]
        optimizer.zero_grad()
        network(images).own_loss(targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        network.images.clear()
        network.targets.clear()
    return frozen(network)


def probe(network: nn.Module) -> Cells:
    detector = network.network
    assert isinstance(detector, Cells)
    return detector


def one_stage(**options: Any) -> list[Stage]:
    return [Stage(**{"iterations": 1, "jitter": 0, **options})]


def made(
    teacher: nn.Module, source: Diode, task: Detection | None = None, seed: int = 0
) -> tuple[Batch, dict[str, Tensor]]:
    """The batch of one update, with what it logs."""
    kept: list[Batch] = []
    modes.seed_everything(seed)
    source.attach(
        SourceContext(task=task or make_task(), teacher=teacher, steps=9, batch_size=4, on_finished_batch=kept.append)
    )
    logs = source.update(teacher, -1)
    assert len(kept) == 1
    return kept[0], logs


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """Instead of optimising, the objective is asked at some iterations: start, values and gradients of each stage."""

    def look(*iterations: int, start: Tensor | None = None) -> list[dict[str, Any]]:
        stages: list[dict[str, Any]] = []

        def instead(first: Tensor, loss: Callable[[Tensor, int], Tensor], **options: Any) -> Tensor:
            x = (first if start is None else start).clone().requires_grad_()
            values = []
            for iteration in iterations:
                values.append(loss(x, iteration))
            torch.autograd.backward(values[-1])
            stages.append({"start": first, "values": values, "gradient": x.grad, **options})
            return first

        monkeypatch.setattr(pixel_optimizer, "optimise", instead)
        return stages

    return look


# The objective.


def by_hand(teacher: Normalized, moved: Tensor, targets: list[Labelled], *, p: float, layers: int) -> dict[str, Tensor]:
    """The published terms, from torch's own parts."""
    seen: list[Tensor] = []
    body = probe(teacher).network.body
    norms = [layer for layer in body if isinstance(layer, nn.BatchNorm2d)][:layers]
    handles = [layer.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0])) for layer in norms]
    outputs = teacher(moved)
    for handle in handles:
        handle.remove()
    distances = [
        (x.mean((0, 2, 3)) - layer.running_mean).abs().pow(p).sum().pow(1 / p)
        + (x.var((0, 2, 3), correction=0) - layer.running_var).abs().pow(p).sum().pow(1 / p)
        for x, layer in zip(seen, norms, strict=True)
    ]
    steps = [
        moved[..., 1:] - moved[..., :-1],
        moved[:, :, 1:] - moved[:, :, :-1],
        moved[:, :, 1:, 1:] - moved[:, :, :-1, :-1],
        moved[:, :, 1:, :-1] - moved[:, :, :-1, 1:],
    ]
    return {
        "detection": probe(teacher).loss(outputs.heads, targets),
        "tv_l1": torch.stack([step.abs().mean() for step in steps]).sum(),
        "tv_l2": torch.stack([step.square().sum().sqrt() for step in steps]).sum(),
        "bn": torch.stack(distances).sum(),
        "bn_first": distances[0],
    }


@pytest.mark.parametrize(("p", "layers"), [(2.0, 0), (1.0, 1)])
def test_the_objective_is_the_published_sum_on_what_the_teacher_sees(
    teacher: Normalized, looked: Callable[..., Any], p: float, layers: int
) -> None:
    weights = {"detection": 0.5, "tv_l1": 75.0, "tv_l2": 0.25, "bn": 0.125, "bn_first": 2.0}
    stage = Stage(jitter=6, detection_weight=0.5, first_bn_weight=2.0, bn_layers=layers)
    source = Diode(batch_size=4, stages=[stage], tv_l2_weight=0.25, bn_weight=0.125, bn_norm=p)
    stages = looked(0)
    _, logs = made(teacher, source)
    moved, targets = probe(teacher).images[1].requires_grad_(), probe(teacher).targets[0]  # first: whether it fits
    terms = by_hand(teacher, moved, targets, p=p, layers=layers or 2)
    assert {name: logs[name].item() for name in terms} == pytest.approx(
        {name: term.item() for name, term in terms.items()}, rel=1e-4
    )
    expected = sum(weights[name] * term for name, term in terms.items())
    assert isinstance(expected, Tensor)
    assert stages[0]["values"][0].item() == pytest.approx(expected.item(), rel=1e-5)


def test_zero_betas_step_by_the_sign_of_the_published_sums_gradient(teacher: Normalized) -> None:
    flips = set()
    for seed in range(4):
        probe(teacher).images.clear()
        probe(teacher).targets.clear()
        stages = one_stage(lr=0.05, lr_end=0.0, beta1=0.0, beta2=0.0, first_bn_weight=2.0)
        batch, _ = made(teacher, Diode(batch_size=4, stages=stages, **PLAIN), seed=seed)
        moved, (targets, *_) = probe(teacher).images[1].requires_grad_(), probe(teacher).targets
        terms = by_hand(teacher, moved, targets, p=2.0, layers=2)
        total = terms["detection"] + 75 * terms["tv_l1"] + 0.1 * terms["bn"] + 2 * terms["bn_first"]
        (gradient,) = torch.autograd.grad(total, moved)
        stepped = (moved - 0.05 * gradient.sign()).clamp(0, 1).detach()
        flipped = not torch.allclose(batch.images, stepped, atol=0.2)
        clear = gradient.abs() > 1e-6  # Adam divides by |g| + 1e-8
        assert torch.allclose((batch.images.flip(-1) if flipped else batch.images)[clear], stepped[clear], atol=1e-3)
        assert clear.float().mean() > 0.9
        flips.add(flipped)
    assert flips == {False, True}


def test_a_term_without_weight_is_not_computed(teacher: Normalized) -> None:
    _, logs = made(teacher, Diode(batch_size=2, stages=one_stage(), tv_l1_weight=0.0, bn_weight=0.0))
    assert {name for name in logs if name.startswith(("tv", "bn"))} == set()
    _, logs = made(teacher, Diode(batch_size=2, stages=[*one_stage(), Stage(iterations=1)], bn_weight=0.0))
    assert "bn" not in logs
    first = [*one_stage(first_bn_weight=1.0), *one_stage()]
    _, logs = made(teacher, Diode(batch_size=2, stages=first, bn_weight=0.0))
    assert "bn_first" in logs
    assert "bn_first_2" not in logs


# Augmentations.


def fixed_boxes(monkeypatch: pytest.MonkeyPatch, *rows: list[float]) -> Tensor:
    """Every image is to show these rows."""
    targets = torch.full((4, 6, 5), float(boxes.NONE))
    targets[:, : len(rows)] = torch.tensor(rows)
    monkeypatch.setattr(Detection, "sample_targets", lambda task, n, device: targets[:n].clone())
    return targets


@pytest.mark.parametrize("moves", [{}, {"zoom": (0.7, 1.3)}, {"least_crop": 0.4}])
def test_boxes_follow_their_pixels(
    teacher: Normalized, looked: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, moves: dict[str, Any]
) -> None:
    fixed_boxes(monkeypatch, [1, 24, 8, 40, 20])
    start = torch.zeros(4, 3, *SIZE)
    start[..., 8:20, 24:40] = 1
    looked(*range(12), start=start)
    made(teacher, Diode(batch_size=4, stages=one_stage(jitter=6), fp_sampling_every=0, **moves, **PLAIN))
    places = set()
    for images, targets in zip(probe(teacher).images[1:], probe(teacher).targets, strict=False):
        for image, (labels, found) in zip(images, targets, strict=True):
            y, x = (image[0] > 0.5).nonzero().unbind(1)
            bounds = [x.min().item(), y.min().item(), x.max().item() + 1, y.max().item() + 1]
            assert labels.tolist() == [1]
            assert found[0].tolist() == pytest.approx(bounds, abs=1.0 if moves else 1e-3)
            places.add(tuple(bounds))
    assert len(places) > 6


def test_each_augmentation_has_its_option(
    teacher: Normalized, looked: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[tuple[str, tuple[Any, ...]]] = []
    for name in ("roll_and_flip", "scale_crop", "area_crop", "brightness", "contrast", "erase", "cutout"):
        act = getattr(augment, name)

        def spy(images: Tensor, *given: Any, name: str = name, act: Any = act) -> Any:
            used.append((name, given))
            return act(images, *given)

        monkeypatch.setattr(augment, name, spy)
    looked(0)
    made(teacher, Diode(batch_size=2, stages=one_stage(jitter=5)))
    assert used == [("roll_and_flip", (5, 0.5)), ("brightness", (0.2,)), ("contrast", (0.1,)), ("erase", (0.5,))]
    used.clear()
    made(teacher, Diode(batch_size=2, stages=one_stage(), flip_probability=0.0, zoom=(0.5, 1.5), cutout=0.25, **PLAIN))
    assert used == [("roll_and_flip", (0, 0.0)), ("scale_crop", (0.5, 1.5)), ("cutout", (0.25,))]


def test_crops_become_smaller_from_the_first_stage_to_the_last(
    teacher: Normalized, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[float] = []
    crop = augment.area_crop
    monkeypatch.setattr(augment, "area_crop", lambda images, least: (used.append(least), crop(images, least))[1])
    stages = [Stage(iterations=count, jitter=0) for count in (3, 1)]
    made(teacher, Diode(batch_size=2, stages=stages, fp_sampling_every=0, least_crop=0.2, **PLAIN))
    assert used == pytest.approx([0.2 + 0.8 * (1 + math.cos(math.pi * i / 4)) / 2 for i in range(4)])


def test_degenerate_boxes_never_reach_the_detectors_loss(
    teacher: Normalized, looked: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    nan = float("nan")
    bad = ([1, 4, 4, 4, 9], [2, 9, 9, 12, 9.5], [0, nan, 1, 9, 9])
    fixed_boxes(monkeypatch, [0, 0, 2, 5, 30], *bad)
    looked(*range(20))
    batch, _ = made(teacher, Diode(batch_size=4, stages=one_stage(jitter=6), fp_sampling_every=0))
    given = [one for targets in probe(teacher).targets for one in targets]
    assert {len(labels) for labels, _ in given} == {0, 1}  # the sound one leaves the image now and then
    found = torch.cat([found for _, found in given])
    assert (found[:, 2:] - found[:, :2] >= 1).all()
    assert found.isfinite().all()
    assert boxes.present(batch.targets if batch.targets is not None else torch.zeros(0, 6, 5)).sum() == 4


# Stages.


def test_the_defaults_are_the_published_settings() -> None:
    source = Diode()
    first, second = source.stages
    assert (first.scale, second.scale) == (160 / 320, 1)
    assert (first.iterations, second.iterations) == (2500, 1500)
    assert (first.jitter, second.jitter) == (20, 40)
    assert (first.bn_layers, second.bn_layers) == (0, 51)  # all 52; 51
    assert (first.first_bn_weight, second.first_bn_weight) == (2.0, 0.0)
    assert (first.detection_weight, second.detection_weight) == (0.5, 1.0)
    assert (first.lr, first.lr_end, second.lr, second.lr_end) == (0.2, 0.0, 0.002, 0.0005)
    assert (first.beta1, first.beta2, second.beta1, second.beta2) == (0.0, 0.0, 0.9, 0.999)
    assert (source.bn_weight, source.bn_norm, source.bn_momentum) == (0.1, 2, 0)
    assert source.bn_clip == 100  # ours: of what explodes only
    assert (source.tv_l1_weight, source.tv_l2_weight) == (75, 0)
    assert (source.brightness, source.contrast, source.erase_probability) == (0.2, 0.1, 0.5)
    assert (source.cutout, source.zoom, source.shift, source.mosaic_share) == (
        0,
        (1, 1),
        0,
        0,
    )  # none of them published
    assert (source.fp_sampling_from, source.fp_sampling_every, source.fp_sampling_score, source.fp_sampling_iou) == (
        800,
        100,
        0.2,
        0.35,
    )
    assert (source.fp_sampling_area, source.drop_unconfirmed) == ((0.01, 0.85), False)
    assert (source.batch_size, source.warmup, source.batch_size * source.warmup) == (128, 938, 120_064)


def test_of_darknet_53s_52_layers_the_second_stage_leaves_out_the_last() -> None:
    torch.manual_seed(0)
    teacher = frozen(yolov3(2, variant="spp", width=1 / 64))
    source = Diode()
    task = Detection(num_classes=2, image_size=(64, 64))
    source.attach(SourceContext(task=task, teacher=teacher, steps=1, batch_size=1))
    watched = [match.layers for match in map(source._statistics_of, source.stages) if match is not None]
    assert [len(layers) for layers in watched] == [52, 51]
    assert [name for name in watched[0] if name not in watched[1]] == ["body.73.norm"]
    assert all(name.startswith("body.") for name in watched[0])


def test_the_rate_falls_along_a_cosine_and_the_last_iterate_is_kept(teacher: Normalized, looked: Any) -> None:
    stages = looked(0)
    stage = Stage(iterations=10, lr=0.2, lr_end=0.1, beta1=0.25, beta2=0.75)
    made(teacher, Diode(batch_size=2, stages=[stage]))
    assert [stages[0]["rate"](i) for i in (0, 5)] == pytest.approx([0.2, 0.15])
    assert (stages[0]["iterations"], stages[0]["betas"], stages[0]["keep"]) == (10, (0.25, 0.75), "last")


def test_the_first_image_is_noise_half_of_it_black(teacher: Normalized, looked: Callable[..., Any]) -> None:
    stages = looked(0)
    made(teacher, Diode(batch_size=32, stages=one_stage()))
    start = stages[0]["start"]
    assert start.shape == (32, 3, *SIZE)
    assert (start == 0).float().mean() == pytest.approx(0.5, abs=0.01)
    assert (start == 1).float().mean() == pytest.approx(0.1587, abs=0.01)  # of a normal number, above 1


def test_a_stage_goes_on_with_the_images_before_enlarged_and_the_same_boxes(
    teacher: Normalized, looked: Callable[..., Any]
) -> None:
    stages = looked(0)
    halves = [Stage(scale=0.5, jitter=0, first_bn_weight=1), Stage(jitter=0)]
    batch, logs = made(teacher, Diode(batch_size=4, stages=halves, **PLAIN))
    assert [tuple(stage["start"].shape[-2:]) for stage in stages] == [(16, 32), (32, 64)]
    enlarged = F.interpolate(stages[0]["start"], size=SIZE, mode="bilinear")
    assert torch.allclose(stages[1]["start"], enlarged, atol=1e-6)
    assert {"detection", "detection_2", "tv_l1", "tv_l1_2", "bn_first", "bn_first_2"} <= logs.keys()
    assert batch.targets is not None
    for scale, targets in zip((0.5, 1.0), probe(teacher).targets, strict=True):
        for (_, found), (_, kept) in zip(targets, boxes.unpack(batch.targets), strict=True):
            left, right = found[:, 0], found[:, 2]
            mirrored = torch.stack([64 * scale - right, found[:, 1], 64 * scale - left, found[:, 3]], 1)
            assert any(torch.allclose(one, scale * kept, atol=1e-4) for one in (found, mirrored))
    assert torch.equal(batch.images, stages[1]["start"])


def test_images_are_of_the_tasks_size_where_no_stage_is(teacher: Normalized, looked: Callable[..., Any]) -> None:
    stages = looked(0)
    batch, _ = made(teacher, Diode(batch_size=2, stages=one_stage(scale=0.5)))
    assert stages[0]["start"].shape == (2, 3, 16, 32)
    assert batch.images.shape == (2, 3, *SIZE)
    assert batch.images.is_contiguous()


# The distance to BatchNorm statistics.


def test_noise_and_layers_that_were_clipped_stand_in_the_notes_once_also_after_resuming(teacher: Normalized) -> None:
    def attached() -> Diode:
        said.clear()
        source = Diode(batch_size=4, stages=one_stage(), bn_clip=1.0)
        source.attach(SourceContext(task=make_task(), teacher=teacher, steps=9, batch_size=4, say=said.append))
        return source

    said: list[str] = []
    source = attached()
    for _ in range(2):
        assert source.update(teacher, -1)["bn_worst"] <= 1.001
    noise, clipped = source.notes()
    assert said == [f"note: {noise}"] and noise.startswith("after the first stage the images are still noise (")
    assert "above source.bn_clip=1 times the median, and clipped: body." in clipped
    again = attached()
    assert again.notes() == []
    again.load_state_dict(source.state_dict())
    assert again.notes() == [noise, clipped]
    again.update(teacher, -1)
    assert said == [] and again.notes()[0] == noise


def test_a_state_from_before_noise_was_noted_is_gone_on_with(teacher: Normalized) -> None:
    source = Diode(batch_size=4, stages=one_stage())
    source.attach(SourceContext(task=make_task(), teacher=teacher, steps=9, batch_size=4))
    source.update(teacher, -1)
    state = source.state_dict()
    del state["noise"]
    source.load_state_dict(state)
    assert source.notes() == []


def test_shards_of_a_data_set_carry_no_note_from_one_to_the_next(teacher: Normalized) -> None:
    source, states = Diode(batch_size=4, stages=one_stage(), bn_clip=1.0), list[Any]()
    source.attach(
        SourceContext(task=make_task(), teacher=teacher, steps=9, batch_size=4, on_finished_batch=lambda batch: None)
    )
    for _ in range(2):
        states.append(source.state_dict())
        source.update(teacher, -1)
        source.load_state_dict(states[0])  # as a shard that does not go on from another begins
    assert [len(note) > 0 for note in source.notes()] == [True, True]
    assert states[0].keys() == states[1].keys() == {"stock"}


def test_a_layer_that_explodes_is_seen_in_the_log_and_by_default_clipped(teacher: Normalized) -> None:
    source = Diode(batch_size=4, stages=one_stage())
    usual = made(teacher, source)[1]["bn_worst"]
    assert usual < 10
    assert not any("clipped" in note for note in source.notes())
    probe(teacher).network.body[4].running_mean += 1e4
    published = Diode(batch_size=4, stages=one_stage(), bn_clip=0.0)
    assert made(teacher, published)[1]["bn_worst"] > 100 * usual
    assert not any("clipped" in note for note in published.notes())
    source = Diode(batch_size=4, stages=one_stage())
    assert made(teacher, source)[1]["bn_worst"] == pytest.approx(100)
    assert "above source.bn_clip=100 times the median, and clipped: body.4 (" in source.notes()[-1]


@pytest.mark.thorough
def test_images_that_stay_noise_are_told_of_once_and_others_not(trained: Normalized) -> None:
    def variation(images: Tensor) -> float:
        """Mean absolute differences to the neighbours right, below and in both diagonals."""
        right, down = images.diff(dim=-1).abs().mean(), images.diff(dim=-2).abs().mean()
        falling = (images[..., 1:, 1:] - images[..., :-1, :-1]).abs().mean()
        rising = (images[..., 1:, :-1] - images[..., :-1, 1:]).abs().mean()
        return float(right + down + falling + rising)

    def told(**stage: Any) -> tuple[Tensor, list[str]]:
        source = Diode(batch_size=4, stages=one_stage(iterations=30, **stage), **PLAIN, tv_l1_weight=1000.0)
        said, kept = list[str](), list[Batch]()
        modes.seed_everything(0)
        context = SourceContext(
            task=make_task(), teacher=trained, steps=9, batch_size=4, on_finished_batch=kept.append, say=said.append
        )
        source.attach(context)
        for _ in range(2):
            source.update(trained, -1)
        return kept[0].images, said

    images, said = told(lr=0.1)
    assert variation(images) < 0.3 and said == []
    images, (line,) = told(lr=0.001)
    assert line.startswith("note: after the first stage the images are still noise (total variation ")
    assert f"variation {variation(images):.2g}; it began at 1.6" in line and "tv_l1_weight=1000 to 10000" in line


def test_a_momentum_mixes_in_the_iterations_before_of_the_same_stage(
    teacher: Normalized, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[Tensor] = []

    def instead(start: Tensor, loss: Callable[[Tensor, int], Tensor], **options: Any) -> Tensor:
        starts.append(start)
        loss(start, 0)
        loss(1 - start, 1)
        return start

    monkeypatch.setattr(pixel_optimizer, "optimise", instead)
    monkeypatch.setattr(augment, "roll_and_flip", lambda images, jitter, mirror: (images, augment.Move()))
    source = Diode(batch_size=4, stages=[*one_stage(bn_layers=1), *one_stage(bn_layers=1)], bn_momentum=0.25, **PLAIN)
    _, logs = made(teacher, source)
    first, norm = probe(teacher).network.body[:2]
    found = [first(images) for images in (starts[0], 1 - starts[0])]
    mean, var = (
        0.25 * before + 0.75 * now
        for before, now in zip(*((x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)) for x in found), strict=True)
    )
    expected = (mean - norm.running_mean).norm() + (var - norm.running_var).norm()
    assert torch.allclose(logs["bn"], expected, rtol=1e-4)
    assert torch.allclose(logs["bn_2"], expected, rtol=1e-4)  # the same images: nothing is left of the stage before


def test_a_teacher_without_batchnorm_goes_without_the_term_and_says_so() -> None:
    said: list[str] = []
    teacher = teacher_with_statistics(norms=False)
    context = SourceContext(task=make_task(), teacher=teacher, steps=9, batch_size=4, say=said.append)
    source = Diode(batch_size=2, stages=one_stage(first_bn_weight=2.0))
    source.attach(context)
    assert said == ["note: source.bn_weight is off: the teacher has no BatchNorm statistics"]
    assert source.notes() == [said[0].removeprefix("note: ")]
    logs = source.update(teacher, -1)
    assert "detection" in logs
    assert not any(name.startswith("bn") for name in logs)
    Diode(batch_size=2, stages=one_stage(), bn_weight=0.0).attach(context)
    assert len(said) == 2 and "still noise" in said[1]  # of one iteration; nothing is off that was not on


# Boxes that the detector sees.


class Seer(Cells):
    """Sees one box of class 2, surely, whatever the image shows."""

    box = (40.0, 8.0, 60.0, 28.0)

    def decoded(self, raw: Tensor) -> Predictions:
        said = super().decoded(raw)
        first = torch.zeros(raw.shape[-2] * raw.shape[-1], 1)
        first[0] = 1
        scores = first * torch.eye(self.classes)[2] * 0.9 + 0 * said.scores
        return Predictions(
            class_logits=said.class_logits,
            scores=scores,
            boxes=torch.tensor(self.box).expand_as(said.boxes) + 0 * said.boxes,
            centres=said.centres,
            heads=said.heads,
            loss=self.loss,
        )


@pytest.fixture
def seer(teacher: Normalized) -> Normalized:
    return frozen(Seer(probe(teacher).network))


def counts(teacher: Normalized) -> list[int]:
    """Boxes of the first image in each call of the loss."""
    return [len(targets[0][0]) for targets in probe(teacher).targets]


def test_boxes_are_looked_for_at_the_published_iterations_of_the_first_stage_only(
    seer: Normalized, looked: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed_boxes(monkeypatch, [1, 4, 4, 20, 20])
    iterations = (0, 100, 700, 799, 800, 801, 850, 900, 2400, 2499)
    stages = looked(*iterations)
    task = make_task()
    made(seer, Diode(batch_size=4, stages=[Stage(jitter=0), Stage(jitter=0)], **PLAIN), task)
    passes = iter(probe(seer).images[2:])  # after the two looks at whether images fit
    for stage in range(2):
        for iteration in iterations:
            looks = stage == 0 and iteration in (800, 900, 2400)
            if looks:
                assert torch.equal(next(passes), stages[0]["start"])  # as the images are, not as they are augmented
            next(passes)
    assert len(list(passes)) == 1  # how well the teacher sees the boxes
    assert counts(seer) == [1, 1, 1, 1, 2, 2, 2, 2, 2, 2] + 10 * [2]


def test_what_is_seen_becomes_a_target_of_the_student(seer: Normalized, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = fixed_boxes(monkeypatch, [1, 4, 4, 20, 20])
    source = Diode(batch_size=4, stages=one_stage(iterations=3), fp_sampling_from=1, fp_sampling_every=2)
    batch, logs = made(seer, source)
    assert batch.targets is not None
    assert torch.equal(batch.targets[:, 0], rows[:, 0])
    assert torch.allclose(batch.targets[:, 1], torch.tensor([2, *Seer.box]).expand(4, 5))
    assert logs["boxes"] == 2
    never = Diode(batch_size=4, stages=one_stage(iterations=3), fp_sampling_from=1, fp_sampling_every=0)
    assert made(seer, never)[1]["boxes"] == 1
    for limit in ({"fp_sampling_score": 0.95}, {"fp_sampling_area": (0.3, 0.85)}, {"fp_sampling_area": (0.01, 0.1)}):
        strict = Diode(batch_size=4, stages=one_stage(iterations=3), fp_sampling_from=1, fp_sampling_every=2, **limit)  # type: ignore[arg-type]
        assert made(seer, strict)[1]["boxes"] == 1


class SeerOfTwo(Seer):
    """Sees two boxes of class 2, and the first of them again a little beside it."""

    seen = torch.tensor([[40.0, 8.0, 60.0, 28.0], [41.0, 8.0, 61.0, 28.0], [22.0, 4.0, 36.0, 18.0]])

    def decoded(self, raw: Tensor) -> Predictions:
        said = super().decoded(raw)
        sure = torch.zeros(said.scores.shape[1], 1)
        sure[:3, 0] = torch.tensor([0.9, 0.8, 0.7])
        places = torch.zeros(said.boxes.shape[1:])
        places[:3] = self.seen
        scores = (sure * torch.eye(self.classes)[2]).expand_as(said.scores)
        return replace(said, scores=scores, boxes=places + said.boxes * 0)


def test_all_boxes_that_are_seen_count_and_each_once(teacher: Normalized, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = fixed_boxes(monkeypatch, [1, 4, 4, 20, 20])
    source = Diode(batch_size=2, stages=one_stage(), fp_sampling_from=0)
    batch, _ = made(frozen(SeerOfTwo(probe(teacher).network)), source)
    assert batch.targets is not None
    for targets in batch.targets:
        labels, found = boxes.unpack(targets[None])[0]
        assert labels.tolist() == [1, 2, 2]
        assert torch.allclose(found, torch.stack([rows[0, 0, 1:], *SeerOfTwo.seen[[0, 2]]]))


def test_seen_boxes_of_a_smaller_stage_are_kept_at_the_tasks_size(
    seer: Normalized, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed_boxes(monkeypatch, [1, 4, 4, 20, 20])
    monkeypatch.setattr(Seer, "box", (20.0, 4.0, 30.0, 14.0))
    batch, _ = made(seer, Diode(batch_size=2, stages=one_stage(scale=0.5), fp_sampling_from=0))
    assert batch.targets is not None
    assert batch.targets[0, :2].tolist() == [[1, 4, 4, 20, 20], [2, 40, 8, 60, 28]]


def test_boxes_that_are_never_seen_are_dropped_where_asked_for(
    seer: Normalized, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed_boxes(monkeypatch, [1, 4, 4, 20, 20], [0, 42, 9, 60, 28])
    for drop, kept in ((False, [1, 0]), (True, [0])):
        source = Diode(batch_size=2, stages=one_stage(), fp_sampling_from=0, drop_unconfirmed=drop)
        batch, _ = made(seer, source)
        assert batch.targets is not None
        assert boxes.unpack(batch.targets)[0][0].tolist() == kept


# What is made of it.


def test_the_teacher_finds_the_boxes_where_its_loss_was_minimised_and_not_elsewhere(trained: Normalized) -> None:
    found = {}
    for weight in (0.0, 1.0):
        stage = Stage(iterations=20, lr=0.1, lr_end=0.0, beta1=0.0, beta2=0.0, jitter=4, detection_weight=weight)
        source = Diode(batch_size=12, stages=[stage], tv_l1_weight=0.5, bn_weight=0.01)
        _, logs = made(trained, source)
        found[weight] = logs["teacher_ap50"].item()
    assert found[0.0] < 0.15
    assert found[1.0] > 0.35


def test_finished_batches_go_to_whoever_keeps_them_and_nothing_stays(teacher: Normalized) -> None:
    source, kept = Diode(batch_size=3, stages=one_stage()), []
    assert source.finishes
    context = SourceContext(task=make_task(), teacher=teacher, steps=9, batch_size=4, on_finished_batch=kept.append)
    source.attach(context)
    sizes = []
    for _ in range(3):
        source.update(teacher, -1)
        sizes.append(len(source.state_dict()["stock"]["kept"]["images"]))
    assert sizes == [0, 0, 0]
    assert [batch.images.shape for batch in kept] == 3 * [(3, 3, *SIZE)]
    assert all(batch.images.min() >= 0 and batch.images.max() <= 1 for batch in kept)


def test_boxes_of_held_out_images_are_those_they_were_made_for(
    teacher: Normalized, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, drawn = Diode(batch_size=20, stages=one_stage()), list[Tensor]()
    sample = Detection.sample_targets

    def noted(*args: Any) -> Tensor:
        drawn.append(sample(*args))
        return drawn[-1]

    monkeypatch.setattr(Detection, "sample_targets", noted)
    source.attach(SourceContext(task=make_task(), teacher=teacher, steps=9, batch_size=4))
    assert source.validation_targets(8) is None  # noise
    for _ in range(2):
        source.update(teacher, -1)
    found = source.validation_targets(8)
    assert len(source.validation_images(8)) == 2
    assert found is not None and torch.equal(found, torch.cat(drawn)[[15, 31]])


@pytest.mark.thorough
def test_nothing_is_kept_from_one_iteration_to_the_next(teacher: Normalized) -> None:
    alive: list[int] = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        probe(teacher).images.clear()
        probe(teacher).targets.clear()
        alive.append(0)
        if len(alive) in (5, 13):  # the first and the third look for further boxes
            gc.collect()
            alive[-1] = sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    source = Diode(
        batch_size=2, stages=one_stage(iterations=12), fp_sampling_from=1, fp_sampling_every=3, bn_momentum=0.9
    )
    handle = teacher.register_forward_pre_hook(count)
    made(teacher, source)
    handle.remove()
    assert 0 < alive[12] == alive[4]


def test_tiles_are_four_images_with_their_boxes(teacher: Normalized) -> None:
    source = Diode(batch_size=2, stages=one_stage(), mosaic_share=0.5)
    source.attach(SourceContext(task=make_task(), teacher=teacher, steps=9, batch_size=8))
    grey = torch.arange(15) / 15  # each image is of one grey, and its box lies at a place of its own
    targets = torch.full((15, 6, 5), float(boxes.NONE))
    targets[:, 0] = torch.stack([torch.arange(15) % CLASSES, *(torch.arange(15) + c for c in (0, 4, 20, 16))], 1)
    source._pool.add(grey[:, None, None, None].expand(-1, 3, *SIZE), targets)
    torch.manual_seed(0)
    batch = source.sample(8)
    assert batch.targets is not None
    tiled, whole = batch.images[:4], batch.images[4:]
    assert all(image.unique().numel() == 1 for image in whole)
    assert boxes.present(batch.targets).sum(1).tolist() == 4 * [4] + 4 * [1]
    for image, (labels, found) in zip(tiled, boxes.unpack(batch.targets), strict=False):
        for label, box in zip(labels.tolist(), found, strict=True):
            right, below = box[0] >= 32, box[1] >= 16
            corner = torch.stack([32.0 * right, 16.0 * below]).repeat(2)
            shown = image[:, 16 * below : 16 * below + 16, 32 * right : 32 * right + 32]
            assert shown.unique().numel() == 1
            index = round(shown.unique().item() * 15)
            assert label == index % CLASSES
            assert (box - corner).tolist() == pytest.approx([index / 2, index / 2 + 2, index / 2 + 10, index / 2 + 8])


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_batch_of_a_data_set_has_its_share_of_tiles_of_itself(teacher: Normalized, share: float) -> None:
    plain, logs = made(teacher, Diode(batch_size=6, stages=one_stage()))
    batch, as_tiled = made(teacher, Diode(batch_size=6, stages=one_stage(), mosaic_share=share))
    assert plain.targets is not None and batch.targets is not None
    count, (height, width) = round(6 * share), SIZE
    assert torch.equal(batch.images[count:], plain.images[count:])
    assert torch.equal(batch.targets[count:], plain.targets[count:])
    assert logs == as_tiled  # how well images show their boxes is asked before
    small = F.avg_pool2d(plain.images, 2)
    for image, (labels, found) in zip(batch.images[:count], boxes.unpack(batch.targets), strict=False):
        shown = []
        for y, x in ((0, 0), (0, width // 2), (height // 2, 0), (height // 2, width // 2)):
            part = image[:, y : y + height // 2, x : x + width // 2]
            (index,) = [i for i in range(6) if torch.equal(small[i], part)]
            shown.append(index)
            box = plain.targets[index, 0, 1:] / 2 + torch.tensor([x, y, x, y])
            (at,) = [i for i in range(4) if torch.allclose(found[i], box, atol=1e-4)]
            assert labels[at] == plain.targets[index, 0, 0]
        assert len(set(shown)) == 4 == len(found)


# The verifier.


def make_verifier(classes: int = CLASSES, least: int = 1) -> Cells:
    torch.manual_seed(5)
    network = cells(classes)
    if least > 1:
        network.register_forward_pre_hook(lambda _, inputs: F.conv2d(inputs[0], torch.ones(1, 3, least, least)).sum())
    return network


def test_a_verifier_scores_the_same_images_that_are_made_without_it(trained: Normalized) -> None:
    options: dict[str, Any] = {"batch_size": 4, "stages": one_stage(iterations=3)}
    without, logs = made(trained, Diode(**options))
    assert "verifier_ap50" not in logs
    source = Diode(**options, verifier=NetworkSpec(network="test_diode:make_verifier"))
    batch, logs = made(trained, source)
    assert 0 <= logs["verifier_ap50"] <= 1
    assert torch.equal(batch.images, without.images)
    assert source._verifier is not None
    assert not any(m.training for m in source._verifier.modules())
    assert not any(p.requires_grad for p in source._verifier.parameters())


def test_a_verifiers_ap50_is_its_own(trained: Normalized, tmp_path: Path) -> None:
    other = copy.deepcopy(probe(trained).network)
    with torch.no_grad():
        other.head[-1].weight += 0.1 * torch.randn(
            other.head[-1].weight.shape, generator=torch.Generator().manual_seed(0)
        )
    save_weights(other, tmp_path / "other.safetensors")
    spec = NetworkSpec(network="test_diode:cells", weights=tmp_path / "other.safetensors")
    stage = Stage(iterations=20, lr=0.1, beta1=0.0, beta2=0.0, jitter=4)
    batch, logs = made(trained, Diode(batch_size=8, stages=[stage], verifier=spec, tv_l1_weight=1.0))
    assert batch.targets is not None
    for who, network in (("teacher", trained), ("verifier", frozen(Cells(other)))):
        metric = make_task().new_metric()
        with torch.no_grad():
            metric.update(network(batch.images), batch.targets)
        assert logs[f"{who}_ap50"].item() == pytest.approx(metric.compute().values["ap50"])
    assert 0 < logs["verifier_ap50"] != logs["teacher_ap50"] > 0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"network": "test_diode:make_verifier", "args": {"classes": 4}},
            r"verifier .* answers 4 classes, but .* has 3",
        ),
        ({"network": "datafree/yolov3"}, r"verifier datafree/yolov3 has no weights.*source.verifier.weights"),
        ({"network": "test_diode:make_verifier", "args": {"least": 40}}, r"verifier .* cannot take images of 32 x 64"),
        (
            {"network": "torch.nn:Identity"},
            r"verifier torch.nn:Identity answers a Tensor, not a detector's predictions",
        ),
    ],
)
def test_a_verifier_that_cannot_verify_is_refused(teacher: Normalized, spec: dict[str, Any], message: str) -> None:
    source = Diode(batch_size=2, stages=one_stage(), verifier=NetworkSpec(**spec))
    with pytest.raises(NetworkError, match=message) as caught:
        made(teacher, source)
    assert "\n" not in str(caught.value)


# Faults, before any work.


def test_a_size_that_the_teacher_cannot_take_is_one_line_at_once() -> None:
    teacher = frozen(yolov3(CLASSES, width=1 / 32))
    task = Detection(num_classes=CLASSES, image_size=(64, 64))
    source = Diode(stages=[Stage(), Stage(scale=0.7)])
    with pytest.raises(
        DataError, match=r"source.stages.1.scale=0.7: the teacher cannot take .*45 x 45.*multiples"
    ) as e:
        source.attach(SourceContext(task=task, teacher=teacher, steps=9, batch_size=4))
    assert "\n" not in str(e.value)


def test_a_backbone_without_batchnorm_in_a_detector_that_has_some_is_told_at_once(teacher: Normalized) -> None:
    class Elsewhere(Cells):
        backbone = "neck"

    context = SourceContext(task=make_task(), teacher=frozen(Elsewhere(probe(teacher).network)), steps=9, batch_size=4)
    with pytest.raises(NetworkError, match="no BatchNorm layer lies in 'neck'"):
        Diode(stages=one_stage()).attach(context)
    Diode(stages=one_stage(), bn_weight=0.0).attach(context)


def test_a_part_of_a_mixture_refuses_other_tasks_too(teacher: Normalized) -> None:
    mixture = Mixed(parts=[Diode(stages=one_stage())], ratio=(1.0,))
    task = Segmentation(num_classes=CLASSES, image_size=SIZE)
    with pytest.raises(DataError, match=r"source.method=diode makes images for task.kind=detection alone"):
        mixture.attach(SourceContext(task=task, teacher=teacher, steps=9, batch_size=4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": []}, "stages is empty; give one or more"),
        ({"warmup": 0}, "warmup and update_every are both 0"),
        ({"zoom": (1.2, 0.9)}, "zoom is"),
        ({"zoom": (0.0, 1.0)}, "zoom is"),
        ({"fp_sampling_area": (0.5, 0.1)}, "fp_sampling_area is"),
        ({"bn_norm": 0.5}, "bn_norm is 0.5"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Diode(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"scale": 0.0}, "scale is"), ({"scale": 1.5}, "scale is"), ({"iterations": 0}, "iterations is")],
)
def test_stages_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Stage(**options)


# In a recipe.

TASK = {"kind": "detection", "num_classes": CLASSES, "image_size": [64, 64]}


def test_stages_and_verifier_of_a_recipe_come_back_from_its_dump(tmp_path: Path) -> None:
    stages = [{"iterations": 7, "lr": 0.125, "scale": 0.5}, {"jitter": 3, "bn_layers": 4}]
    section = {"method": "diode", "stages": stages, "verifier": {"network": "datafree/yolov3"}, "zoom": [0.5, 1]}
    recipe = load(tmp_path, changed(task=TASK, source=section))
    assert recipe.source == Diode(
        stages=[Stage(iterations=7, lr=0.125, scale=0.5), Stage(jitter=3, bn_layers=4)],
        verifier=NetworkSpec(network="datafree/yolov3"),
        zoom=(0.5, 1.0),
        bank_size=120_000,  # 64 x 64 pixels: 1.5 GB
    )
    assert load_recipe(write(tmp_path, to_yaml(recipe), "again.yaml")) == recipe


def test_a_recipes_faults_are_named_down_to_the_stage(tmp_path: Path) -> None:
    def at(**source: Any) -> str:
        return fault(tmp_path, changed(task=TASK, source={"method": "diode", **source}))

    assert at(stages=[]).startswith("source: stages is empty; give one or more")
    assert at(stages=[{}, {"lr": 0}]) == "source.stages.1.lr: 0 is too small; it must be above 0"
    assert "source.stages.0.iteration: no such option (did you mean iterations?)" in at(stages=[{"iteration": 5}])
    assert at(fp_sampling_iou=1.5) == "source.fp_sampling_iou: 1.5 is out of range; it must be from 0 to 1"
    assert at(fp_sampling_every=-1) == "source.fp_sampling_every: -1 is too small; it must be 0 or more"
    assert at(stages=[{"bn_layers": -1}]) == "source.stages.0.bn_layers: -1 is too small; it must be 0 or more"
    assert at(verifier={"network": 3}).startswith("source.verifier.network: 3 is not a text")


def test_other_tasks_are_refused_by_a_line_that_names_other_methods(tmp_path: Path) -> None:
    problem = fault(tmp_path, changed(source={"method": "diode"}))
    assert problem.startswith("source.method: diode makes images for task.kind=detection, not for segmentation")
    assert "inversion" in problem
