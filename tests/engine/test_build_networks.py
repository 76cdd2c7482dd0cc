"""The first look at a run's networks: what answers in another way than is needed is refused before any work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datafree.api import distill
from datafree.engine.build_networks import prepare
from datafree.engine.network_checks import require_gradients
from datafree.errors import NetworkError, WeightsError
from datafree.networks.checkpoints.weights import save_weights
from datafree.networks.detectors import Detector
from datafree.networks.load import NetworkSpec, build_network
from datafree.networks.normalized import Normalized, bare
from datafree.ops import modes
from datafree.ops.boxes import Labelled
from datafree.ops.predictions import Heads, Predictions
from datafree.sources import SOURCES
from datafree.sources.base import ImageSource
from datafree.sources.cgdd import Cgdd
from datafree.sources.mixed import Mixed
from datafree.sources.noise import Noise
from datafree.tasks.base import Task
from datafree.tasks.classification import Classification
from datafree.tasks.detection import Detection

CPU = torch.device("cpu")
TASK = Classification(num_classes=4, image_size=(16, 16))


class Answering(nn.Module):
    """Logits of 4 classes, changed on their way out."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.layers(x))


def prepared(
    change: Callable[[Tensor], Tensor] = lambda y: y, *, what: str = "teacher", task: Classification = TASK, **more: Any
) -> Normalized:
    spec = NetworkSpec(network="mine:net")
    return prepare(spec, task, what, torch.device("cpu"), torch.float32, given=Answering(change), **more)


def test_answers_about_fewer_images_than_were_asked_are_refused() -> None:
    with pytest.raises(NetworkError, match="the teacher mine:net answers 1 images, but was asked 2"):
        prepared(lambda y: y[:1])


def test_an_image_size_beyond_all_memory_is_refused_in_a_line() -> None:
    with pytest.raises(NetworkError, match="cannot take images of 1000000 x 1000000 pixels") as caught:
        prepared(task=Classification(num_classes=4, image_size=(10**6, 10**6)))
    assert "\n" not in str(caught.value)


def test_classes_too_many_are_told_with_a_way_that_helps() -> None:
    wrong = Classification(num_classes=3, image_size=(16, 16))
    with pytest.raises(NetworkError, match=r"answers 4 classes, but .* 3; set task\.num_classes=4 \(--classes 4\), or"):
        prepared(task=wrong)
    with pytest.raises(NetworkError, match=r"the student mine:net answers 4 .* has 3; give its last layer 3$"):
        prepared(what="student", task=wrong)


def test_answers_between_0_and_1_are_taken_for_logits_but_not_silently() -> None:
    said: list[str] = []
    prepared(lambda y: 3 * y - 2, say=said.append)
    prepared(torch.zeros_like, say=said.append)  # an untrained head
    assert said == []
    prepared(torch.sigmoid, say=said.append)
    (line,) = said
    assert line.startswith("note: what the teacher mine:net answers") and "a sigmoid, take it off" in line


class Asking(Noise):
    """A source that asks the teacher and takes no gradient."""

    needs_gradients = False


@pytest.mark.parametrize("cut", [torch.detach, lambda y: (100 * y).round().long()], ids=["detach", "integers"])
def test_a_teacher_that_gives_no_gradient_is_refused_where_one_is_needed(cut: Callable[[Tensor], Tensor]) -> None:
    teacher, name = prepared(cut), "mine:net"
    with modes.frozen(teacher):
        for method in ("cgdd", "dafl", "dfad", "zskt", "inversion", "fast", "cmi"):
            with pytest.raises(NetworkError, match="no gradient comes back through the teacher mine:net") as caught:
                require_gradients(SOURCES[method](), teacher, TASK, CPU, name)
            assert "folder, dataset and noise" in str(caught.value)
        for part in (Cgdd(), Mixed(parts=[Noise(), Cgdd()])):
            with pytest.raises(NetworkError, match="no gradient comes back"):
                require_gradients(Mixed(parts=[Noise(), part]), teacher, TASK, CPU, name)
    unlearned: list[ImageSource] = [Noise(), Asking(warmup=3), Mixed(parts=[Noise(), Asking(warmup=3)])]
    for source in unlearned:
        require_gradients(source, teacher, TASK, CPU, name)
    require_gradients(Cgdd(), prepared(), TASK, CPU, name)
    assert all(parameter.requires_grad for parameter in teacher.parameters())


def test_a_teacher_that_no_gradient_can_go_through_is_one_line() -> None:
    teacher = prepared(lambda y: y.exp().add_(1))  # writes into what the way back needs
    with pytest.raises(
        NetworkError, match=r"cannot go through the teacher mine:net: RuntimeError: .*inplace"
    ) as caught:
        require_gradients(Cgdd(), teacher, TASK, CPU, "mine:net")
    assert "\n" not in str(caught.value)


def weights_of(network: str, classes: int, folder: Path) -> Path:
    save_weights(bare(build_network(NetworkSpec(network=network), num_classes=classes)), folder / "w.safetensors")
    return folder / "w.safetensors"


@pytest.mark.parametrize(
    ("network", "task", "theirs", "way"),
    [
        # 91 columns: torchvision's detectors count background
        pytest.param(
            "torchvision/ssdlite320_mobilenet_v3_large",
            Detection(num_classes=80, image_size=(64, 64)),
            90,
            "=90",
            marks=pytest.mark.thorough,
        ),
        ("timm/test_resnet", Classification(num_classes=3, image_size=(32, 32)), 5, "=5"),
        ("timm/test_resnet", Classification(num_classes=3, image_size=(32, 32)), 1, "=1"),
    ],
)
def test_weights_of_another_number_of_classes_say_which(
    network: str, task: Task, theirs: int, way: str, tmp_path: Path
) -> None:
    spec = NetworkSpec(network=network, weights=weights_of(network, theirs, tmp_path))
    with pytest.raises(WeightsError, match=f"of {theirs} classes: .*{way}") as caught:
        prepare(spec, task, "teacher", torch.device("cpu"), torch.float32)
    assert "\n" not in str(caught.value)


def test_weights_of_one_output_are_those_of_two_classes(tmp_path: Path) -> None:
    file = weights_of("timm/test_resnet", 1, tmp_path)
    said: list[str] = []
    task = Classification(num_classes=2, image_size=(32, 32))
    spec = NetworkSpec(network="timm/test_resnet", weights=file)
    teacher = prepare(spec, task, "teacher", torch.device("cpu"), torch.float32, say=said.append).eval()
    logit = build_network(spec, num_classes=1).eval()(images := torch.rand(2, 3, 32, 32))
    torch.testing.assert_close(teacher(images).softmax(1)[:, 1:], logit.sigmoid())
    assert any("it has one output, a logit" in line for line in said)


def test_weights_without_torchvisions_second_head_say_so(tmp_path: Path) -> None:
    spec = NetworkSpec(
        network="torchvision/deeplabv3_mobilenet_v3_large",
        args={"aux_loss": True},
        weights=weights_of("torchvision/deeplabv3_mobilenet_v3_large", 3, tmp_path),
    )
    with pytest.raises(WeightsError, match=r"leave args\.aux_loss out"):
        build_network(spec, num_classes=3)


def test_what_was_left_out_of_a_weights_file_is_said(tmp_path: Path) -> None:
    network = build_network(NetworkSpec(network="timm/test_resnet"), num_classes=3)
    torch.save({**network.state_dict(), "criterion.weight": torch.ones(3)}, tmp_path / "w.pt")
    said: list[str] = []
    spec = NetworkSpec(network="timm/test_resnet", weights=tmp_path / "w.pt")
    task = Classification(num_classes=3, image_size=(32, 32))
    prepare(spec, task, "teacher", torch.device("cpu"), torch.float32, say=said.append)
    assert said[0] == "note: weights w.pt: left out as parts of something else: 1 (first: 'criterion.weight')"
    assert "it is given mean [0, 0, 0] and std [1, 1, 1], the defaults, but timm's" in said[1]


def test_a_teacher_of_fixed_numbers_alone_is_taken() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.linspace(-3, 3, 12).view(3, 4))

        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)) @ self.weight

    spec = NetworkSpec(network="mine:fixed")
    teacher = prepare(spec, TASK, "teacher", CPU, torch.float32, given=Fixed())
    require_gradients(Cgdd(), teacher, TASK, CPU, "mine:fixed")


# ---- A detector's own loss ------------------------------------------------------------------------------------------


class Cells(Detector):
    """A detector of one location for each cell of 8 x 8 pixels, with any loss."""

    backbone = "0"

    def __init__(self, loss: Any) -> None:
        super().__init__(nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.BatchNorm2d(4), nn.Conv2d(4, 4 + 2, 1)))
        self.given = loss

    def forward(self, images: Tensor) -> Predictions:
        raw = self.network(images)  # (B, 4 + C, h, w)
        rows = raw.flatten(2).mT
        corners = 8 * rows[..., :4]
        return Predictions(
            class_logits=rows[..., 4:],
            scores=rows[..., 4:].sigmoid(),
            boxes=torch.cat([corners[..., :2], corners[..., :2] + corners[..., 2:].exp()], -1),
            centres=corners[..., :2],
            heads=(raw,),
            loss=self.given,
        )


def squares(heads: Heads, targets: list[Labelled]) -> Tensor:
    assert [len(labels) for labels, _ in targets] == [1, 0]
    return heads[0].square().mean()


def raising(heads: Heads, targets: list[Labelled]) -> Tensor:
    raise ValueError("no such\nthing")


def looped(heads: Heads, targets: list[Labelled]) -> Tensor:
    """Of boxes alone, by a stack that fails for images without."""
    return torch.stack([torch.stack([box.sum() * heads[0].mean() for box in found]) for _, found in targets]).sum()


FAULTY: dict[str, tuple[Any, str]] = {
    "dict": (
        lambda heads, targets: {"box": heads[0].mean(), "class": heads[0].sum()},
        r"gives a dict with the keys \['box', 'class'\] \(add up its values\); a tensor of shape \(\) with a finite",
    ),
    "vector": (lambda heads, targets: heads[0].mean((1, 2, 3)), r"gives a tensor of shape \(2,\); a tensor of shape"),
    "None": (lambda heads, targets: None, "gives None; a tensor"),
    "float": (lambda heads, targets: heads[0].mean().item(), "gives a float; a tensor"),
    "nan": (lambda heads, targets: heads[0].mean() * torch.nan, "gives nan; a tensor"),
    "raises": (raising, r"raises ValueError: no such; "),
    "no box": (looped, "raises RuntimeError: stack expects a non-empty TensorList; "),
    "no function": (None, "raises TypeError: 'NoneType' object is not callable; "),
    "detached": (
        lambda heads, targets: heads[0].detach().mean(),
        r"no gradient \(a detach\(\), no_grad\(\) or item\(\)",
    ),
    "whole number": (lambda heads, targets: heads[0].mean().round().long(), "no gradient"),
}
BOXES = Detection(num_classes=2, image_size=(32, 32))


def detector(loss: Any, what: str = "teacher", task: Detection = BOXES) -> Normalized:
    return prepare(NetworkSpec(network="mine:net"), task, what, torch.device("cpu"), torch.float32, given=Cells(loss))


@pytest.mark.parametrize("fault", FAULTY)
def test_a_student_whose_loss_does_not_serve_is_refused(fault: str) -> None:
    loss, line = FAULTY[fault]
    with pytest.raises(NetworkError, match=f"^the loss of the student mine:net, asked about a box .*{line}") as caught:
        detector(loss, "student")
    assert "\n" not in str(caught.value) and "task.distill=heads does without" in str(caught.value)
    detector(loss, "student", Detection(num_classes=2, image_size=(32, 32), distill="heads"))


@pytest.mark.parametrize("fault", FAULTY)
def test_a_teacher_whose_loss_does_not_serve_is_refused_where_it_is_learnt_by(fault: str) -> None:
    loss, line = FAULTY[fault]
    teacher = detector(loss)
    sources: list[ImageSource] = [SOURCES["diode"](warmup=1), SOURCES["fast"]()]
    for source in sources:
        with pytest.raises(NetworkError, match=f"^the loss of the teacher mine:net, asked .*{line}") as caught:
            require_gradients(source, teacher, BOXES, CPU, "mine:net")
        assert "\n" not in str(caught.value) and "folder, dataset and noise" in str(caught.value)
    unlearned: list[ImageSource] = [Noise(), Asking(warmup=3)]
    for source in unlearned:
        require_gradients(source, teacher, BOXES, CPU, "mine:net")


def test_a_look_at_a_loss_leaves_random_numbers_and_networks_as_they_were() -> None:
    def drawing(heads: Heads, targets: list[Labelled]) -> Tensor:
        return squares(heads, targets) * torch.rand(())

    torch.manual_seed(0)
    Cells(drawing)
    expected = torch.rand(3)
    torch.manual_seed(0)
    student = detector(drawing, "student")
    assert torch.equal(torch.rand(3), expected)
    before = torch.get_rng_state()
    require_gradients(SOURCES["diode"](warmup=1), student, BOXES, CPU, "mine:net")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in student.parameters())
    assert student.training and all(norm.num_batches_tracked == 0 for norm in student.modules() if hasattr(norm, "eps"))


def test_a_run_with_a_faulty_loss_ends_in_a_line_before_any_work(tmp_path: Path) -> None:
    faulty, good = Cells(FAULTY["dict"][0]), Cells(lambda heads, targets: heads[0].square().mean())
    sections: dict[str, Any] = {
        "task": {"kind": "detection", "num_classes": 2, "image_size": (32, 32), "distill": "boxes"},
        "source": {"method": "noise"},
        "training": {"steps": 1, "batch_size": 2, "device": "cpu"},
    }
    with pytest.raises(NetworkError, match=r"the loss of the student .* gives a dict with the keys"):
        distill(teacher=good, student=faulty, out=tmp_path / "run", **sections)
    assert distill(teacher=faulty, student=good, out=tmp_path / "asked", **sections).run == tmp_path / "asked"
    stage = {"iterations": 1}
    sections["source"] = {"method": "diode", "warmup": 1, "batch_size": 2, "stages": [stage]}
    with pytest.raises(NetworkError, match=r"the loss of the teacher .* gives a dict with the keys"):
        distill(teacher=faulty, student=good, out=tmp_path / "learnt", **sections)
    assert not list((tmp_path / "learnt").glob("*.safetensors"))
