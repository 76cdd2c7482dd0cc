"""networks/one_output.py: a network of one logit or one sigmoid teaches two classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import datafree
from datafree.engine.build_networks import prepare
from datafree.errors import DataError, NetworkError
from datafree.evaluation.finished_run import load_student
from datafree.networks.checkpoints.weights import save_weights
from datafree.networks.checks.one_output import settle_one_output
from datafree.networks.load import NetworkSpec, build_network
from datafree.networks.normalized import Normalized
from datafree.preflight.cost import estimate
from datafree.preflight.inspection import inspect_teacher
from datafree.tasks.base import Task
from datafree.tasks.classification import Classification
from datafree.tasks.segmentation import Segmentation

CPU = torch.device("cpu")


def classifier(*last: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1), *last)


def mask(*last: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 1, 3, padding=1), *last)


@pytest.mark.parametrize(
    ("network", "task"),
    [
        (classifier, Classification(num_classes=2, image_size=(16, 16))),
        (mask, Segmentation(num_classes=2, image_size=(16, 16))),
    ],
)
@pytest.mark.parametrize("squashed", [False, True])
def test_two_classes_have_the_sigmoids_probabilities(network: type, task: Task, squashed: bool) -> None:
    said: list[str] = []
    made = network(*([nn.Sigmoid()] if squashed else []))
    prepared = prepare(NetworkSpec(network="own:net"), task, "teacher", CPU, torch.float32, made, say=said.append)
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    yes = torch.sigmoid(network()(images))
    torch.testing.assert_close(prepared(images).softmax(1), torch.cat((1 - yes, yes), 1))
    assert said[0].endswith(
        f"it has one output, a {'sigmoid' if squashed else 'logit'}: taken as two classes, 0 for no and 1 for yes"
    )
    assert len(said) == 1


def test_a_sigmoid_inside_is_not_taken_for_the_last_layer() -> None:
    network = Normalized(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sigmoid(), nn.Conv2d(4, 1, 1)))
    assert "a logit" in settle_one_output(network, torch.rand(1, 3, 4, 4))


class Function(nn.Module):
    """A mask by torch.sigmoid, as many U-Nets end, and what stands behind it."""

    def __init__(self, behind: Callable[[Tensor], Tensor], sigmoid: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer = mask()
        self.behind, self.sigmoid = behind, sigmoid

    def forward(self, images: Tensor) -> Tensor:
        return self.behind(self.sigmoid(4 * self.layer(images)))


@pytest.mark.parametrize("sigmoid", [torch.sigmoid, torch.Tensor.sigmoid_])
@pytest.mark.parametrize(
    ("behind", "said"),
    [
        (lambda yes: yes, "a sigmoid"),
        (lambda yes: yes.squeeze(1)[:, None], "a sigmoid"),
        (lambda yes: F.interpolate(yes.clamp(1e-4, 1 - 1e-4), scale_factor=2, mode="bilinear"), "a sigmoid"),
        (lambda yes: 10 * yes - 5, "a logit"),
        (lambda yes: yes.mul_(10).sub_(5), "a logit"),
    ],
)
def test_a_sigmoid_is_seen_where_it_is_a_function(
    behind: Callable[[Tensor], Tensor], said: str, sigmoid: Callable[[Tensor], Tensor]
) -> None:
    function, images = Function(behind, sigmoid), torch.rand(2, 3, 4, 4)
    network = Normalized(function)
    assert said in settle_one_output(network, images)
    if said == "a sigmoid":
        torch.testing.assert_close(network(images).softmax(1)[:, 1:], function(images))


def test_chosen_classes_are_no_logits() -> None:
    class Chosen(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.argmax(1, keepdim=True)

    with pytest.raises(NetworkError, match=r"whole numbers, one each \(int64\).* take its last argmax"):
        settle_one_output(Normalized(Chosen()), torch.rand(1, 3, 4, 4))


def test_two_outputs_stay_two_outputs() -> None:
    network = Normalized(nn.Conv2d(3, 2, 1))
    assert settle_one_output(network, torch.rand(1, 3, 4, 4)) == ""
    assert network(torch.rand(1, 3, 4, 4)).shape == (1, 2, 4, 4)


def test_a_librarys_network_of_one_output_goes_from_inspect_to_a_finished_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "PASS", 0.0)
    file = tmp_path / "w.safetensors"
    save_weights(build_network(NetworkSpec(network="datafree/unet?width=2&depth=1"), num_classes=1), file)
    found = inspect_teacher("datafree/unet", args=["width=2", "depth=1"], weights=file, size="16")
    assert (found.task.value, found.classes.value, found.problem) == ("segmentation", 2, None)
    assert any("one output, a logit" in note for note in found.notes)
    network = {"network": "datafree/unet", "args": {"width": 2, "depth": 1, "num_classes": 1}}
    said: list[str] = []
    result = datafree.distill(
        teacher={**network, "weights": str(file)},
        student=network,
        task={"kind": "segmentation", "num_classes": 2, "image_size": (16, 16)},
        source="noise",
        training={"steps": 2, "batch_size": 2, "device": "cpu", "precision": "fp32"},
        out=tmp_path / "run",
        say=said.append,
    )
    assert any("teacher datafree/unet: it has one output" in line for line in said)
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        answer: Tensor = load_student(tmp_path / "run").network.eval()(x)
        torch.testing.assert_close(answer, result.network.eval()(x))
    assert answer.shape == (2, 2, 16, 16)
    assert not answer[:, 0].any()


def test_a_task_of_one_class_says_what_to_set() -> None:
    with pytest.raises(DataError, match="one output teaches two classes, no and yes: set 2"):
        Classification(num_classes=1, image_size=(16, 16))
