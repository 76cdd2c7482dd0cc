"""`auto`: which source it takes for which teacher, that a run's recipe names it, and that it is that source."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from datafree.config import yaml
from datafree.engine.build_networks import with_source
from datafree.networks.batchnorm import batchnorm_layers
from datafree.networks.darknet.yolov3 import yolov3
from datafree.networks.normalized import Normalized
from datafree.networks.resnet import resnet
from datafree.networks.unet import unet
from datafree.ops import modes
from datafree.run import run_recipe
from datafree.sources import Auto, Degan, Fast, Mixed, Noise, Procedural
from datafree.sources.auto import batch_of, count_kernels, is_open, settled
from datafree.tasks.classification import Classification
from datafree.tasks.detection import Detection
from datafree.tasks.segmentation import Segmentation
from small_runs import recipe_for

TASK = Classification(num_classes=4, image_size=(16, 16))
CPU = torch.device("cpu")


def net(*layers: nn.Module) -> Normalized:
    return Normalized(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)))


def seen(network: Normalized) -> Normalized:
    """The same, its BatchNorm statistics moved by images."""
    network.train()
    network(torch.rand(8, 3, 16, 16))
    return network.eval()


class Answers(nn.Module):
    """A teacher that only answers."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            answer: Tensor = self.network(x)
        return answer


def test_a_teacher_with_batchnorm_gets_fast_and_others_procedural_images() -> None:
    whole = seen(Normalized(resnet(4, depth=8, width=4)))
    bare = net(nn.Conv2d(3, 8, 3), nn.ReLU())
    group = net(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8))
    # SegFormer's kind: one BatchNorm layer among many others says little of the images.
    one = net(*(nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1) for i in range(5)), nn.BatchNorm2d(8))
    for teacher, wanted in ((whole, Fast), (bare, Procedural), (group, Procedural), (one, Procedural)):
        source, why = Auto().choose(TASK, teacher, CPU)
        assert type(source) is wanted
        assert why.startswith("source.method=auto: ") and "\n" not in why
    assert type(Auto().choose(TASK, Answers(whole), CPU)[0]) is Procedural


def test_statistics_that_no_image_has_moved_are_no_ground_for_fast() -> None:
    source, why = Auto().choose(TASK, Normalized(resnet(4, depth=8, width=4)).eval(), CPU)
    assert type(source) is Procedural
    assert why == "source.method=auto: procedural, as the statistics of 7 BatchNorm layers are as new: they say nothing"


def test_kernels_are_counted_by_their_weights() -> None:
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1, groups=8), nn.GroupNorm(2, 8))
    assert count_kernels(net(*layers)) == 3  # two convolutions and the last layer


def test_images_of_classes_show_what_the_teacher_sees_in_them_those_of_places_what_was_drawn() -> None:
    """As measured, docs/choose.md."""
    whole, _ = Auto().choose(TASK, seen(Normalized(resnet(4, depth=8, width=4))), CPU)
    street, _ = Auto().choose(
        Segmentation(num_classes=11, image_size=(64, 64)), seen(Normalized(unet(11, width=4, depth=2))), CPU
    )
    assert isinstance(whole, Fast) and isinstance(street, Fast)
    assert (whole.targets, whole.target_weight) == ("seen", 2.0)
    assert (street.targets, street.target_weight) == ("drawn", 0.4)


def test_segmenters_and_detectors_with_batchnorm_get_fast_too() -> None:
    street = Segmentation(num_classes=11, image_size=(64, 64)), seen(Normalized(unet(11, width=4, depth=2)))
    cells = Detection(num_classes=3, image_size=(96, 128)), yolov3(3, width=1 / 32)
    for layer in batchnorm_layers(cells[1]).values():
        layer.running_mean.fill_(0.5)
    cells[1].eval()
    for task, teacher in (street, cells):
        source, _ = Auto().choose(task, teacher, CPU)
        assert isinstance(source, Fast) and source.width == 16


def test_photos_are_half_of_each_batch(tmp_path: Path) -> None:
    source, why = Auto(photos=tmp_path).choose(TASK, Normalized(resnet(4, depth=8, width=4)), CPU)
    assert isinstance(source, Mixed) and source.ratio == (1.0, 1.0)
    assert why.endswith("half of each batch is photos")


def test_a_part_of_a_mixture_and_a_proxy_are_chosen_too() -> None:
    teacher = Normalized(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(4)))
    noise = Noise()
    mixed = Mixed(parts=[Auto(warmup=3), noise], ratio=(3.0, 1.0))
    assert is_open(mixed) and is_open(Degan(proxy=mixed)) and not is_open(noise)
    assert settled(noise, lambda auto: noise) is noise
    found = settled(Degan(proxy=mixed), lambda auto: auto.choose(TASK, teacher, CPU)[0])
    assert isinstance(found, Degan) and isinstance(found.proxy, Mixed)
    assert (found.proxy.ratio, found.proxy.warmup, found.proxy.parts[1]) == ((3.0, 1.0), 3, noise)
    assert type(found.proxy.parts[0]) is Procedural and not is_open(found)
    assert type(mixed.parts[0]) is Auto  # the recipe's own stays as it is


def test_what_plans_a_run_sees_the_sources_that_are_updated(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, {"method": "mixed", "parts": [{"method": "auto"}, {"method": "noise"}]}, steps=2)
    found, lines = with_source(recipe, CPU, torch.float32)
    assert isinstance(found.source, Mixed) and [type(part) for part in found.source.parts] == [Fast, Noise]
    assert [type(part) for part in found.source.updated_sources()] == [Fast, Noise]
    assert lines[0].startswith("source.method=auto: fast")


def test_a_choice_draws_no_random_number() -> None:
    teacher = Normalized(resnet(4, depth=8, width=4)).eval()
    before = modes.random_state()["torch"]
    Auto().choose(TASK, teacher, CPU)
    assert torch.equal(modes.random_state()["torch"], before)


@pytest.mark.thorough
def test_a_runs_recipe_names_the_source_and_the_run_resumes(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, {"method": "auto"}, steps=2)
    recipe.source.warmup = 1
    said: list[str] = []
    run_recipe(recipe, tmp_path / "run", say=said.append)
    named = yaml.parse((tmp_path / "run" / "recipe.yaml").read_text(encoding="utf-8"), "recipe")
    assert named["source"]["method"] == "fast" and named["source"]["warmup"] == recipe.source.warmup
    assert any(line.startswith("source.method=auto: fast") for line in said)
    assert run_recipe(recipe, tmp_path / "run").already_finished


def test_a_program_whose_layers_are_not_seen_gets_procedural_images() -> None:
    class Program(nn.Module):
        """Answers without a layer of its own, as a program of torch.export does."""

        def __init__(self) -> None:
            super().__init__()
            self.t0 = nn.Parameter(torch.rand(4, 3))

        def forward(self, images: Tensor) -> Tensor:
            return images.mean((2, 3)) @ self.t0.T

    source, why = Auto().choose(TASK, Program(), CPU)
    assert isinstance(source, Procedural)
    assert why.endswith("its layers are not told")


@pytest.mark.parametrize(("side", "images"), [(28, 64), (32, 64), (128, 64), (160, 32), (224, 16), (352, 8), (1024, 8)])
def test_updates_are_smaller_of_large_images(side: int, images: int) -> None:
    """As many pixels as 64 images of 128 x 128 have, in powers of two, and 8 images at least."""
    assert batch_of((side, side)) == images
    assert images in (8, 64) or images * side**2 <= 64 * 128**2 < 2 * images * side**2
