"""inspection.py and its parts: what is said of a teacher, how it is known, and what a run would cost."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from datafree.cli.inspect_text import inspection_text
from datafree.config import schema
from datafree.errors import DatafreeError, NetworkError
from datafree.networks.checkpoints.weights import save_weights
from datafree.networks.checks.class_count import classes_of
from datafree.networks.load import NetworkSpec, build_network
from datafree.networks.normalized import Normalized
from datafree.networks.resnet import resnet
from datafree.preflight.cost import estimate
from datafree.preflight.cost.activation_memory import watched_memory
from datafree.preflight.cost.estimate import RunCost, TeacherCost, calibration, run_cost
from datafree.preflight.inspection import Inspection, inspect_teacher
from datafree.preflight.recommendation import recommended, seconds_of
from datafree.preflight.suitability import BatchNorm, applies, count_batchnorm
from datafree.recipe.recipe import FAMILIES, SOURCE
from datafree.recipe.training import Training
from datafree.sources import SOURCES, Mixed, Noise
from datafree.sources.auto import Auto
from datafree.sources.base import Batch, ImageSource, SourceContext, UpdateSize
from datafree.sources.fast import Fast
from datafree.sources.procedural.source import Procedural
from datafree.tasks.base import Task
from datafree.tasks.classification import Classification
from datafree.tasks.detection import Detection
from datafree.text import size, time
from recipes import VALID, small, sources, write
from thorough import some

OWN = '''
import torch
from torch import nn


def body(*more):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16, momentum=None), *more)


def trained(network, mean, std, order):
    """BatchNorm statistics of photographs: grey levels that hardly change over a filter, redder than blue."""
    photos = 0.265 * torch.randn(256, 1, 1, 1) + torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    images = (photos.expand(-1, -1, 8, 8) - mean) / std
    network.train()(images.flip(1) if order == "bgr" else images)
    return network


def classifier(classes=5, mean=0.0, std=1.0, channel_order="rgb"):
    torch.manual_seed(0)  # the same each time, as one that loads its weights
    return trained(body(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes)), mean, std, channel_order)


def probabilities():
    return nn.Sequential(classifier(), nn.Softmax(1))


class Chance(nn.Module):
    """Two logits, the mean of an image and a half, which sum to 1 for one image of two."""

    def __init__(self):
        super().__init__()
        self.level = nn.Parameter(torch.tensor(0.5))

    def forward(self, images):
        mean = images.mean((1, 2, 3))
        return torch.stack((mean, self.level.expand(len(mean))), 1)


def picky():
    return body(nn.Flatten(), nn.Linear(16 * 32 * 32, 5))


def tokens():
    return body(nn.Flatten(2))


def coarse():
    return body(nn.MaxPool2d(4))


def four():
    return nn.Sequential(nn.Conv2d(4, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def volume():
    return nn.Sequential(nn.Conv3d(1, 8, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 5))


class Unit(nn.Module):
    def forward(self, x):
        return nn.functional.normalize(x, dim=1)


def embedding():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 16), Unit())


def plain():
    """No BatchNorm, as after folding."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with networks of one's own in df_seen.py."""
    (tmp_path / "df_seen.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timings that take one pass of one image, for tests that are about something else."""
    monkeypatch.setattr(estimate, "PASS", 0.0)


def teacher_file(folder: Path, classes: int = 7, **args: int) -> Path:
    torch.manual_seed(0)
    file = folder / "resnet.safetensors"
    save_weights(resnet(classes, depth=8, width=4, **args), file)
    return file


def recipe_file(folder: Path, **sections: Any) -> str:
    given = {
        **VALID,
        "task": {"kind": "classification", "num_classes": 5, "image_size": [32, 32]},
        "teacher": {"network": "df_seen:classifier"},
        "student": {"network": "datafree/resnet", "args": {"depth": 8, "width": 2}},
        "training": {"steps": 6, "batch_size": 4, "device": "cpu", "precision": "fp32"},
        **sections,
    }
    return write(folder, given, "plan.yaml")


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(DatafreeError) as caught:
        call()
    line = str(caught.value)
    assert caught.value.exit_code == 2
    assert "\n" not in line
    return line


# --- what is found out ---


def test_a_network_of_ones_own_is_looked_at(own: Path) -> None:
    found = inspect_teacher("df_seen:classifier", size="24x16")
    assert (found.task.value, found.task.provenance, found.problem) == ("classification", "suggested", None)
    assert (found.classes.value, found.classes.provenance) == (5, "known")
    assert (found.input_size.value, found.input_size.provenance) == ((24, 16), "stated")
    assert found.output == "one tensor (B, 5)"
    assert found.parameters == 16 * 27 + 2 * 16 + 16 * 5 + 5
    assert found.bytes == 4 * (found.parameters + 2 * 16) + 8  # running statistics, and the counter of int64
    assert found.macs == 24 * 16 * 16 * 27 + 16 * 5
    assert found.batchnorm == BatchNorm(live=1, frozen=0, without_statistics=0, as_new=0, attention=0, note="")
    assert (found.mean.value, found.mean.provenance) == ((0.0, 0.0, 0.0), "suggested")
    assert (found.channel_order.value, found.channel_order.provenance) == ("rgb", "suggested")
    assert found.cost.forward > 0
    assert found.run is None
    json.dumps(dataclasses.asdict(found), allow_nan=False)


class Layers(nn.Module):
    """A grouped and a transposed convolution, and a linear layer on each place."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(3, 12, 3, stride=2, groups=3)  # 32 -> 15
        self.transposed = nn.ConvTranspose2d(12, 8, 4, stride=2, groups=2)  # 15 -> 32
        self.linear = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.transposed(self.grouped(images))
        answer: Tensor = self.linear(x.movedim(1, -1)).movedim(-1, 1)
        return answer


def make_layers() -> nn.Module:
    return Layers()


def test_multiplications_are_counted_in_every_kind_of_layer(untimed: None) -> None:
    found = inspect_teacher(f"{__name__}:make_layers", size="32")
    grouped = 15 * 15 * 12 * (3 // 3) * 9  # each output: the channels of its group, 3 x 3 places
    transposed = 15 * 15 * 12 * (8 // 2) * 16  # each input: the outputs of its group, 4 x 4 places
    linear = 32 * 32 * 8 * 5
    assert found.macs == grouped + transposed + linear
    assert found.task.value == "segmentation"


def test_batchnorm_is_told_apart_by_kind() -> None:
    live, fixed, batch = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False)
    fixed.requires_grad_(False)
    live.running_mean.add_(1)  # type: ignore[union-attr]
    found = count_batchnorm(nn.Sequential(live, fixed, batch, FrozenBatchNorm2d(4), nn.InstanceNorm2d(4)))
    assert (found.live, found.frozen, found.without_statistics, found.as_new) == (1, 2, 1, 2)
    assert "folded" in count_batchnorm(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())).note
    assert count_batchnorm(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False))).note == "none"
    assert "2 LayerNorm" in count_batchnorm(nn.Sequential(nn.LayerNorm(4), nn.LayerNorm(4))).note


@pytest.mark.parametrize("method", sorted(SOURCES))
def test_what_is_said_of_a_method_is_what_it_does(method: str, photos: Callable[..., Path]) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).eval()
    task = Classification(num_classes=5, image_size=(32, 32))
    said = applies(method, task, count_batchnorm(network), True, None)
    folder = photos(4, (32, 32))
    given = small(sources(folder)[method]) if method != "dataset" else {}
    if method in ("dataset", "diode"):  # one needs a data set, the other is refused with the recipe
        assert said.applies == (method == "dataset")
        return
    source = schema.choose(SOURCE, given, FAMILIES)
    context = SourceContext(task=task, teacher=Normalized(network), steps=4, batch_size=2)
    if said.applies:
        source.attach(context)
    else:
        assert "BatchNorm" in said.note
        with pytest.raises(NetworkError, match="BatchNorm"):
            source.attach(context)


def test_a_method_says_what_it_lacks_and_what_will_be_off() -> None:
    task = Classification(num_classes=5, image_size=(16, 16))
    none, some = count_batchnorm(nn.Linear(2, 2)), count_batchnorm(nn.BatchNorm2d(2))
    assert "bn_weight is off" in applies("cgdd", task, none, True, None).note
    assert "as new" in applies("cgdd", task, some, True, None).note
    assert applies("cgdd", task, some, False, None).note == ""
    assert applies("degan", task, none, True, None).note == "needs source.proxy"
    assert applies("diode", task, some, True, None).note == "makes images for detection only"
    assert not applies("noise", task, some, True, "it answers probabilities").applies


# --- classes ---


@pytest.mark.parametrize(
    ("network", "classes"),
    [
        ("datafree/resnet?depth=8&width=2", 7),
        ("datafree/unet?width=2&depth=1", 4),
        ("datafree/yolov3?variant=tiny&width=0.0625", 6),
        ("torchvision/squeezenet1_1", 12),
    ],
)
def test_classes_are_told_by_the_shapes_in_a_weights_file(network: str, classes: int, tmp_path: Path) -> None:
    spec = NetworkSpec(network=network, weights=tmp_path / "w.safetensors")
    built = build_network(dataclasses.replace(spec, weights=None), num_classes=classes)
    save_weights(getattr(built, "network", built), tmp_path / "w.safetensors")
    assert classes_of(spec) == classes


def test_a_file_that_does_not_fit_tells_no_classes(tmp_path: Path) -> None:
    save_weights(nn.Linear(3, 4), tmp_path / "w.safetensors")
    spec = NetworkSpec(network="datafree/resnet", weights=tmp_path / "w.safetensors")
    assert classes_of(spec) is None


def test_classes_and_normalisation_say_how_they_are_known(tmp_path: Path, untimed: None) -> None:
    file = teacher_file(tmp_path)
    found = inspect_teacher("datafree/resnet", args=["depth=8", "width=4"], weights=file, size="16")
    assert (found.classes.value, found.classes.provenance) == (7, "suggested")
    assert "resnet.safetensors" in found.classes.why
    assert (found.mean.value, found.mean.provenance) == (None, "unknown")
    stated = inspect_teacher("datafree/resnet?depth=8&width=4", weights=file, size="16", classes=7)
    assert (stated.classes.value, stated.classes.provenance) == (7, "stated")
    library = inspect_teacher("torchvision/squeezenet1_1", size="64")
    assert (library.classes.value, library.classes.provenance) == (1000, "known")
    assert (library.mean.value, library.mean.provenance) == ((0.485, 0.456, 0.406), "known")
    assert not library.trained


def test_a_librarys_numbers_are_but_suggested_for_a_file_of_ones_own(tmp_path: Path, untimed: None) -> None:
    spec = NetworkSpec(network="torchvision/squeezenet1_1")
    save_weights(build_network(spec, num_classes=3), tmp_path / "w.safetensors")
    found = inspect_teacher("torchvision/squeezenet1_1", weights=tmp_path / "w.safetensors", size="64")
    assert (found.mean.value, found.mean.provenance) == ((0.485, 0.456, 0.406), "suggested")
    assert found.trained


def test_a_mean_of_pixels_up_to_255_is_told_how_to_give_it(tmp_path: Path) -> None:
    line = refusal(lambda: inspect_teacher("datafree/unet", classes=3, mean="123.675,116.28,103.53"))
    assert "--mean 0.485,0.456,0.406" in line and "pixel_range: 255" in line


def test_a_model_directory_is_known_without_its_prefix(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert refusal(lambda: inspect_teacher(str(tmp_path))).startswith(f"hf/{tmp_path} holds a None")


def test_what_options_say_of_the_images_is_stated_and_compared(own: Path, untimed: None) -> None:
    found = inspect_teacher("df_seen:classifier", size="32", mean="0.4,0.5,0.6", std="2")
    assert (found.mean.value, found.mean.provenance, found.mean.why) == ((0.4, 0.5, 0.6), "stated", "--mean")
    assert (found.std.value, found.std.why) == ((2.0, 2.0, 2.0), "--std")
    assert any("if the stated mean and std are right" in note for note in found.notes)
    grey = inspect_teacher("timm/resnet18", size="32", channels=1, mean="0.5", classes=3)
    assert grey.macs < inspect_teacher("timm/resnet18", size="32", classes=3).macs  # one channel into the first layer
    assert any("what was given not" in note for note in grey.notes)


# --- what to take ---


@pytest.mark.parametrize(
    ("teacher", "methods"),
    [
        ("df_seen:classifier", ["auto", "cgdd", "folder"]),  # fast, by its BatchNorm
        ("df_seen:plain", ["auto", "dafl", "folder"]),  # procedural
        ("df_seen:coarse", []),  # its answers are too small for a task
    ],
)
def test_methods_are_recommended_in_the_order_of_the_page(
    teacher: str, methods: list[str], own: Path, untimed: None
) -> None:
    found = inspect_teacher(teacher, size="32")
    assert [each.method for each in found.recommended] == methods
    if methods:
        assert found.recommended[0].why == Auto().choose(
            Classification(num_classes=5, image_size=(32, 32)),
            Normalized(build_network(NetworkSpec(network=teacher), num_classes=5)),
            torch.device("cpu"),
        )[1].removeprefix("source.method=auto: ")
        assert "source.method=auto" in inspection_text(found)


class Cut(nn.Module):
    """Only answers."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.network(images)
        return answer.detach()


def test_a_teacher_that_only_answers_is_recommended_what_asks_for_answers_alone() -> None:
    task, teacher = Classification(num_classes=5, image_size=(32, 32)), Normalized(Cut())
    cost = TeacherCost(images=1, forward=0.01, backward=0.03, kept=0)
    suits = {name: applies(name, task, count_batchnorm(teacher), True, None) for name in SOURCES}
    found = recommended(task, teacher, torch.device("cpu"), cost, suits)
    assert [each.method for each in found] == ["auto", "folder"]
    assert found[0].why.startswith("procedural, ")


def test_a_network_without_weights_is_recommended_nothing(untimed: None) -> None:
    assert inspect_teacher("timm/test_resnet", size="32", classes=3).recommended == []


def test_the_time_of_a_method_is_the_teachers_passes() -> None:
    cost = TeacherCost(images=1, forward=0.01, backward=0.03, kept=0)
    steps = 1000 * 32 * 0.01
    assert seconds_of(Noise(), cost) == pytest.approx(steps)
    pool = Fast(batch_size=20, iterations=5, warmup=10, update_every=100)
    assert seconds_of(pool, cost) == pytest.approx(steps + (10 + 10) * 20 * 5 * 0.03)
    looks = Procedural(batch_size=50, warmup=4, update_every=0)  # which asks for answers alone
    assert seconds_of(looks, cost) == pytest.approx(steps + 4 * 50 * 0.01)


# --- recipes ---


def test_a_recipe_states_its_teachers_images_and_is_estimated(own: Path) -> None:
    recipe = recipe_file(own, source={"method": "cgdd", "width": 2, "latent": 4, "batch_size": 4, "warmup": 3})
    found = inspect_teacher(recipe)
    assert found.network == "df_seen:classifier"
    for fact, value in ((found.channel_order, "rgb"), (found.input_size, (32, 32))):
        assert (fact.value, fact.provenance) == (value, "stated")
    assert (found.mean.value, found.mean.provenance) == ((0.0, 0.0, 0.0), "default")  # nobody has stated it
    assert (found.std.value, found.std.provenance) == ((1.0, 1.0, 1.0), "default")
    assert (found.task.provenance, found.classes.provenance, found.recipe) == ("stated", "stated", "plan")
    assert found.run is not None
    assert (found.run.updates, found.run.steps) == (3 + 2, 6)  # the warm-up, then steps 0 and 5
    assert found.run.seconds > 0
    assert not any("no estimate" in note for note in found.notes)


def test_another_teacher_can_be_put_into_a_recipe(own: Path, untimed: None) -> None:
    found = inspect_teacher("df_seen:plain", recipe=recipe_file(own))
    assert found.network == "df_seen:plain"
    assert found.mean.provenance == "unknown"
    assert found.input_size.value == (32, 32)
    assert found.run is not None


def test_a_method_that_refuses_the_teacher_costs_the_estimate_only(own: Path, untimed: None) -> None:
    recipe = recipe_file(own, source={"method": "inversion"}, teacher={"network": "df_seen:plain"})
    found = inspect_teacher(recipe)
    assert found.run is None
    assert any("no estimate of the run" in note and "BatchNorm" in note for note in found.notes)
    assert not found.sources["inversion"].applies


@pytest.mark.parametrize(
    ("args", "section", "doubt"),
    [
        ({}, {}, None),
        ({"mean": 0.5, "std": 0.5}, {"mean": [0.5] * 3, "std": [0.5] * 3}, None),
        ({"mean": 0.5, "std": 0.5}, {}, "which no images in [0, 1] have"),
        ({}, {"mean": [0.4] * 3, "std": [0.5] * 3}, "unlike photographs"),
        ({"channel_order": "bgr"}, {"channel_order": "bgr"}, None),
        ({"channel_order": "bgr"}, {}, "stated as rgb, but its first BatchNorm suggests bgr"),
    ],
)
def test_what_a_recipe_states_is_compared_with_the_first_batchnorm(
    args: dict[str, Any], section: dict[str, Any], doubt: str | None, own: Path, untimed: None
) -> None:
    found = inspect_teacher(recipe_file(own, teacher={"network": "df_seen:classifier", "args": args, **section}))
    doubts = found.notes[1:]  # the first says what was seen
    assert len(doubts) == (0 if doubt is None else 1), doubts
    assert doubt is None or doubt in doubts[0]


# --- what a user can mend ---


@pytest.mark.parametrize(
    ("teacher", "given", "words"),
    [
        ("datafree/resnett", {}, "did you mean datafree/resnet"),
        ("resnet18", {}, "did you mean torchvision/resnet18 or timm/resnet18?"),
        ("fashion-dmo", {}, "did you mean fashion-demo?"),
        ("nosuch.yaml", {}, "no file nosuch.yaml"),
        ("datafree/resnet", {}, "give --classes N"),
        ("datafree/resnet", {"classes": 0}, "--classes is 0"),
        ("datafree/resnet", {"classes": 2, "args": ["depth"]}, "KEY=VALUE"),
        ("datafree/resnet", {"classes": 2, "args": ["dept=8"]}, "dept"),
        ("datafree/resnet", {"classes": 2, "size": "big"}, "HEIGHTxWIDTH"),
        ("datafree/resnet", {"classes": 2, "size": "0x8"}, "HEIGHTxWIDTH"),
        ("datafree/resnet", {"classes": 2, "mean": "0.5,0.5"}, "three numbers"),
        ("datafree/resnet", {"classes": 2, "std": "0"}, "a standard deviation is above 0"),
        ("datafree/resnet", {"classes": 2, "channels": 4}, "--channels is 4"),
        ("datafree/resnet", {"classes": 2, "device": "gpu9"}, "no device 'gpu9'"),
        ("datafree/resnet", {"classes": 2, "task": "segmentaton"}, "did you mean segmentation?"),
        ("datafree/resnet", {"classes": 2, "task": "segmentation", "size": "8"}, "the task needs logits (B, 2, 8, 8)"),
        ("datafree/resnet", {"weights": Path("nosuch.pt")}, "no such file"),
        ("df_seen:picky", {"size": "8x12"}, "cannot take images of 8 x 12 pixels"),
        ("df_seen:tokens", {"size": "8"}, "the form of no task"),
        ("df_seen:four", {"size": "8"}, "takes 4 channels, but images here have 3 (RGB), or 1 (grey)"),
        ("df_seen:volume", {"size": "8"}, "has 3-D convolutions"),
        (
            "timm/vit_tiny_patch16_224",
            {"size": "64", "classes": 3},
            "it was made for 224 x 224: leave --size out, or have images brought to that",
        ),
        ("timm/test_resnet?in_chans=1", {"size": "32", "classes": 3}, "grey images: set channels to 1"),
        ("df_seen:embedding", {"size": "8", "task": "classification"}, "length 1, an embedding"),
        ("df_seen:nosuch", {}, "no name in df_seen 'nosuch'"),
        ("fashion-demo", {"recipe": "fashion-demo"}, "leave --recipe out"),
        ("df_seen:classifier", {"recipe": "fashion-demo", "task": "detection"}, "leave --task out"),
    ],
)
def test_a_mistake_is_one_line(teacher: str, given: dict[str, Any], words: str, own: Path, untimed: None) -> None:
    assert words in refusal(lambda: inspect_teacher(teacher, **given))


def test_answers_that_do_not_fit_their_task_are_a_finding(own: Path, untimed: None) -> None:
    found = inspect_teacher("df_seen:probabilities", size="16")
    assert found.task.value == "classification"
    assert found.problem is not None
    assert "take its last softmax off" in found.problem
    assert not any(method.applies for method in found.sources.values())
    coarse = inspect_teacher("df_seen:coarse", size="16")
    assert coarse.task.value == "segmentation"
    assert "4 x 4 pixels for images of 16 x 16" in str(coarse.problem)
    assert "probabilities" in refusal(
        lambda: inspect_teacher("df_seen:probabilities", size="16", task="classification")
    )


def test_logits_that_look_like_probabilities_for_one_image_are_logits(own: Path, untimed: None) -> None:
    assert inspect_teacher("df_seen:Chance", size="16").problem is None


def test_sizes_are_tried_where_nobody_says_one(own: Path, untimed: None) -> None:
    found = inspect_teacher("df_seen:picky")
    assert (found.input_size.value, found.input_size.provenance) == ((32, 32), "unknown")


# --- cost ---


def test_memory_is_what_backward_passes_keep() -> None:
    x = torch.rand(10, 100, requires_grad=True)
    with watched_memory([]) as memory:
        y = x.exp()  # keeps its result, 4000 bytes
        z = y * y  # keeps y twice, which is there already
        assert memory.now == memory.peak == 4000
        z = z.exp()
        assert memory.now == 8000
        z.sum().backward()
        del y, z
    assert (memory.now, memory.peak) == (0, 8000)


def test_the_networks_own_values_are_no_memory_of_a_pass() -> None:
    network = nn.Linear(50, 20)
    with watched_memory([network]) as memory:
        network(torch.rand(8, 50)).sum().backward()  # keeps its input for the weights' gradient
    assert memory.peak == 4 * 8 * 50


@dataclass(kw_only=True)
class Clocked(ImageSource):
    """Takes a tenth of a second for each image of an update and a hundredth for each image and iteration.

    Its options have names of its own: what they stand for is known by what it declares.
    """

    now: ClassVar[float] = 0.0

    made_at_once: int = 32
    rounds: int = 50
    remembered: int = 100
    warmup: int = 3
    update_every: int = 4

    def update_size(self) -> UpdateSize:
        return UpdateSize(images=self.made_at_once, iterations=(self.rounds,))

    def resize_updates(self, size: UpdateSize) -> None:
        self.made_at_once, (self.rounds,) = size.images, size.iterations

    def bank_images(self) -> int:
        return self.remembered

    def attach(self, context: SourceContext) -> None:
        self._size = context.task.image_size

    def update(self, student: nn.Module, step: int) -> dict[str, Tensor]:
        Clocked.now += 0.1 * self.made_at_once + 0.01 * self.made_at_once * self.rounds
        return {}

    def sample(self, n: int) -> Batch:
        Clocked.now += 0.02 * n
        return Batch(images=torch.rand(n, 3, *self._size))

    def validation_images(self, n: int) -> Tensor:
        return torch.empty(0)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def costed(source: ImageSource) -> RunCost:
    """What ten steps of a student beside `source` are said to cost, by Clocked's own clock."""
    with calibration(
        task=Classification(num_classes=5, image_size=(16, 16)),
        teacher=Normalized(resnet(5, depth=8, width=2)),
        student=Normalized(resnet(5, depth=8, width=2)),
        source=source,
        training=Training(steps=10, batch_size=64, device="cpu", optimizer="sgd"),
        known=TeacherCost(images=4, forward=0.0, backward=0.0, kept=0),
        dtype=torch.float32,
    ) as calibrated:
        calibrated.clock = lambda: Clocked.now
        return run_cost(calibrated)


def test_a_users_own_source_is_estimated_by_what_it_declares() -> None:
    source = Clocked()
    found = costed(source)
    assert found.updates == 3 + 3  # the warm-up; steps 0, 4 and 8
    assert found.update == pytest.approx(0.1 * 32 + 0.01 * 32 * 50)
    assert found.step == pytest.approx(0.02 * 64)
    assert found.seconds == pytest.approx(6 * found.update + 10 * found.step)
    assert source == Clocked()  # the run's own is as it was
    no_bank = costed(Clocked(remembered=0))
    assert found.memory - no_bank.memory == 100 * 3 * 16 * 16  # bytes: a bank is full in the end


def test_sources_in_a_mixture_in_a_mixture_are_estimated_each_by_its_own_numbers() -> None:
    inner = Mixed(parts=[Noise(), Clocked(made_at_once=8, rounds=20, remembered=40)])
    found = costed(Mixed(parts=[inner, Clocked()]))
    small, large = 0.1 * 8 + 0.01 * 8 * 20, 0.1 * 32 + 0.01 * 32 * 50
    assert [(work.what, work.often) for work in found.work[:-1]] == [
        ("clocked, before the student", 3),
        ("clocked, updates", 3),
    ] * 2
    assert [work.each.seconds for work in found.work[:-1]] == pytest.approx([small, small, large, large])
    plain = costed(Mixed(parts=[Mixed(parts=[Noise(), Noise()]), Noise()]))
    assert plain.updates == 0
    held = found.memory - plain.memory
    assert held == (40 + 100) * 3 * 16 * 16  # both banks; updates that ask no network keep nothing else


@pytest.mark.parametrize("method", some(["cmi", "degan", "diode", "mixed", "zskt"], "degan"))
def test_methods_of_every_kind_can_be_estimated(method: str, photos: Callable[..., Path]) -> None:
    task: Task = Classification(num_classes=5, image_size=(32, 32))
    network, given = resnet(5, depth=8, width=2), small(sources(photos(8, (32, 32)))[method])
    if method == "diode":
        task = Detection(num_classes=2, image_size=(64, 64))
        network = build_network(NetworkSpec(network="datafree/yolov3?variant=tiny&width=0.0625"), num_classes=2)
        given |= {"stages": [{"scale": 0.5, "iterations": 2}, {"iterations": 3}], "bn_weight": 0.0}
    with calibration(
        task=task,
        teacher=Normalized(network),
        student=Normalized(copy.deepcopy(network)),
        source=schema.choose(SOURCE, given, FAMILIES),
        training=Training(steps=6, batch_size=2, device="cpu"),
        known=TeacherCost(images=2, forward=0.0, backward=0.0, kept=0),
        dtype=torch.float32,
    ) as calibrated:
        found = run_cost(calibrated)
    assert found.seconds > 0
    assert math.isfinite(found.seconds)
    assert found.updates == {"cmi": 6, "degan": 4, "diode": 4, "mixed": 0, "zskt": 2}[method]


# --- text ---


def test_the_text_says_all_of_it_in_aligned_lines(own: Path) -> None:
    text = inspection_text(inspect_teacher(recipe_file(own)))
    lines = text.splitlines()
    assert lines[0] == "df_seen:classifier"
    for title in (
        "teacher",
        "its images",
        "methods",
        "on this machine (cpu, float32)",
        "the recipe plan on this machine",
    ):
        assert title in lines
    assert any(line.split() == ["cmi", "yes"] for line in lines)
    assert any(line.strip().startswith("mean") and "[0, 0, 0]" in line and "default: " in line for line in lines)
    starts = {line.index(": the recipe") for line in lines if line.lstrip().startswith(("mean", "std"))}
    assert len(starts) == 1
    assert not any(line != line.rstrip() for line in lines)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0012, "1.2 ms"),
        (0.25, "250 ms"),
        (3.14, "3.1 s"),
        (75, "75 s"),
        (600, "10 min"),
        (9e4, "25 h"),
        (1e6, "12 days"),
    ],
)
def test_times_have_a_unit_that_people_use(seconds: float, text: str) -> None:
    assert time(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (47e6, "47 MB"), (2.5e9, "2.5 GB")]
)
def test_sizes_have_a_unit(count: float, text: str) -> None:
    assert size(int(count)) == text


# --- real networks ---


def test_a_real_teacher_is_described_rightly(shared_data: Path, untimed: None) -> None:
    file = shared_data / "cifar10" / "teachers" / "resnet20.safetensors"
    if not file.is_file():
        pytest.skip(f"no {file}")
    found: Inspection = inspect_teacher("datafree/resnet?depth=20", weights=file, size="32")
    assert (found.parameters, found.classes.value, found.batchnorm.live) == (269_722, 10, 19)
    assert found.macs == 40_551_040
    assert (found.mean.value, found.mean.provenance) == ((0.485, 0.456, 0.406), "suggested")
    assert found.channel_order.value is None
