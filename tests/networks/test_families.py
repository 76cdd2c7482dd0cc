"""networks/siblings.py: a student of a wanted size out of its teacher's family."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

from datafree.config.overrides import student_overrides
from datafree.engine.student_init import check_start
from datafree.errors import NetworkError, RecipeError
from datafree.networks.families import alike, choose_student
from datafree.networks.load import NetworkSpec, build_network
from datafree.ops.performance import ALL_ON
from datafree.run import run_recipe
from datafree.tasks import Classification, Detection, Segmentation, Task
from recipes import load, write_teacher

SMALL = Classification(num_classes=10, image_size=(32, 32))


def chosen(teacher: str, task: Task = SMALL, auto: str = "auto", **of_auto: Any) -> tuple[NetworkSpec, str]:
    return choose_student(NetworkSpec(network=auto, **of_auto), NetworkSpec(network=teacher), task, None)


def parameters(spec: NetworkSpec, task: Task = SMALL) -> int:
    network = build_network(spec, num_classes=task.num_classes)
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("teacher", "task", "wanted"),
    [
        ("datafree/resnet?depth=8&width=16", SMALL, 4.0),
        ("datafree/unet?width=16&depth=2", Segmentation(num_classes=3, image_size=(32, 32)), 3.0),
        ("datafree/yolov3?width=0.25", Detection(num_classes=3, image_size=(64, 64)), 2.0),
        pytest.param("torchvision/mobilenet_v2", SMALL, 4.0, marks=pytest.mark.thorough),
    ],
)
def test_a_network_with_a_width_comes_near_the_wanted_size(teacher: str, task: Task, wanted: float) -> None:
    spec, line = chosen(teacher, task, f"auto?compress={wanted}x")
    before = NetworkSpec(network=teacher)
    assert spec.network == before.network
    assert {key: value for key, value in spec.args.items() if "width" not in key} == {
        key: value for key, value in before.args.items() if "width" not in key
    }
    ratio = parameters(before, task) / parameters(spec, task)
    assert wanted / 1.3 < ratio < wanted * 1.3
    assert f"{ratio:.3g} times fewer parameters" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("teacher", "task", "student"),
    [
        pytest.param("torchvision/densenet201", SMALL, "torchvision/densenet121", marks=pytest.mark.thorough),
        ("timm/test_resnet.r160_in1k", SMALL, None),
        ("smp/fpn?encoder=resnet34", Segmentation(num_classes=3, image_size=(32, 32)), "smp/fpn"),
    ],
)
def test_a_network_of_a_library_gets_a_member_of_its_family(teacher: str, task: Task, student: str | None) -> None:
    if student is None:
        with pytest.raises(NetworkError, match="finds nothing smaller in the family of timm/test_resnet"):
            chosen(teacher, task)
        return
    spec, line = chosen(teacher, task)
    assert spec.network == student
    assert spec.args == ({"encoder": "resnet18"} if student.startswith("smp") else {})
    assert "times fewer parameters than the teacher" in line


def test_multiplications_are_those_of_the_tasks_images() -> None:
    spec, line = chosen("datafree/resnet?depth=8&width=16", auto="auto?compress=4x&by=macs")
    counts = []
    for one in (NetworkSpec(network="datafree/resnet?depth=8&width=16"), spec):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            build_network(one, num_classes=10).eval()(torch.rand(1, 3, 32, 32))
        counts.append(counter.get_total_flops())
    assert f"{counts[0] / counts[1]:.3g} times fewer MACs" in line


@pytest.mark.thorough
def test_the_student_sees_images_as_it_says_and_begins_without_weights() -> None:
    auto = NetworkSpec(network="auto", mean=(0.5, 0.4, 0.3), channel_order="bgr")
    teacher = NetworkSpec(network="timm/resnet18?pretrained=true", licence="MIT", input_size=(64, 64))
    spec, _ = choose_student(auto, teacher, SMALL, None)
    assert spec == NetworkSpec(
        network="datafree/imagenet_resnet",
        args={"depth": 18, "width": 32},
        mean=(0.5, 0.4, 0.3),
        channel_order="bgr",
    )


@pytest.mark.thorough
@pytest.mark.parametrize("teacher", ["torchvision/resnet18", "timm/resnet50"])
def test_a_plain_resnet_gets_a_narrower_one_that_starts_from_it(teacher: str) -> None:
    """Half the width is a fourth of the parameters; laid out as in a run, where pooling restrides maps."""
    spec, _ = chosen(teacher)
    depth = int(teacher.removeprefix("timm/").removeprefix("torchvision/").removeprefix("resnet"))
    assert (spec.network, spec.args) == ("datafree/imagenet_resnet", {"depth": depth, "width": 32})
    networks = [one.wrap(build_network(one, num_classes=10)) for one in (NetworkSpec(network=teacher), spec)]
    for network in networks:
        ALL_ON.laid_out(network)
    check_start(replace(spec, init="teacher"), networks[0], networks[1], SMALL)


@pytest.mark.parametrize(
    ("name", "known", "found"),
    [
        ("resnet50", torchvision.models.list_models(), ["resnet101", "resnet152", "resnet18", "resnet34"]),
        ("swin_b", torchvision.models.list_models(), ["swin_s", "swin_t"]),
        ("regnet_y_8gf", ["regnet_y_400mf", "regnet_x_400mf", "regnet_y_8gf"], ["regnet_y_400mf"]),
        ("convnext_base", ["convnext_tiny", "convnextv2_tiny", "convnext_base"], ["convnext_tiny"]),
        ("vit_base_patch16_224", ["vit_tiny_patch16_224", "vit_tiny_patch8_224"], ["vit_tiny_patch16_224"]),
        ("efficientnet_b3", ["efficientnet_b0", "efficientnet_lite0"], ["efficientnet_b0"]),
        ("a.b(c3", ["a.b(c2", "aXb(c2"], ["a.b(c2"]),
        ("alexnet", torchvision.models.list_models(), []),
    ],
)
def test_names_alike(name: str, known: list[str], found: list[str]) -> None:
    assert alike(name, known) == found


def test_a_family_of_timms_is_found_by_size() -> None:
    assert "vit_small_patch16_224" in alike("vit_base_patch16_224", timm.list_models())


@pytest.mark.parametrize(
    ("auto", "teacher", "said"),
    [
        ("auto?compress=0.5x", "datafree/resnet", "say how many times smaller"),
        ("auto?compress=small", "datafree/resnet", "say how many times smaller"),
        ("auto?by=size", "datafree/resnet", "give parameters or macs"),
        ("auto?width=2", "datafree/resnet", "does not take 'width'"),
        ("auto", "mypkg:make", "not of mypkg:make"),
        ("auto", "live/mypkg.Net@0123", "not of live"),
        ("auto", "teacher.pt2", "not of teacher.pt2"),
        ("auto", "torchvision/alexnet", "finds nothing smaller"),
        ("auto", "timm/no_such_net", "cannot tell the size"),
    ],
)
def test_a_wish_that_cannot_be_met_is_one_line(auto: str, teacher: str, said: str) -> None:
    with pytest.raises(NetworkError) as caught:
        chosen(teacher, auto=auto)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_says_and_records_what_was_chosen(tmp_path: Path) -> None:
    content = {
        "task": {"kind": "segmentation", "num_classes": 3, "image_size": [32, 32]},
        "teacher": {"network": "datafree/unet", "args": {"width": 8}, "weights": str(write_teacher(tmp_path, width=8))},
        "student": {"network": "auto", "args": {"compress": "4x"}},
        "source": {"method": "noise"},
        "training": {"steps": 2, "batch_size": 2},
    }
    said: list[str] = []
    run = run_recipe(load(tmp_path, content), tmp_path / "run", say=said.append).run
    assert any(line.startswith("student: auto chose datafree/unet?width=4") for line in said)
    assert "auto" not in (run / "student.json").read_text()
    assert run_recipe(load(tmp_path, content), tmp_path / "run").already_finished  # the same choice again


def test_the_commands_options_are_a_students_section() -> None:
    assert student_overrides(None, None) == []
    assert student_overrides("auto", "4x") == ['student={"network": "auto", "args": {"compress": "4x"}}']
    assert student_overrides(None, "3x") == ['student={"network": "auto", "args": {"compress": "3x"}}']
    assert student_overrides("timm/resnet18", None) == ['student={"network": "timm/resnet18", "args": {}}']
    with pytest.raises(RecipeError, match="belongs to --student auto"):
        student_overrides("timm/resnet18", "4x")
