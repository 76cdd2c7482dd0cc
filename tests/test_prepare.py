"""The first look at a run's networks: what answers in another way than is needed is refused before any work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datafree import modes
from datafree.errors import NetworkError
from datafree.networks.load import NetworkSpec
from datafree.networks.normalized import Normalized
from datafree.prepare import prepare, require_gradients
from datafree.sources import SOURCES
from datafree.sources.base import ImageSource
from datafree.sources.cgdd import Cgdd
from datafree.sources.noise import Noise
from datafree.tasks.classification import Classification

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
    with pytest.raises(NetworkError, match=r"answers 4 classes, but the task has 3; set task\.num_classes=4, or"):
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
                require_gradients(SOURCES[method](), teacher, TASK, name)
            assert "folder, dataset and noise" in str(caught.value)
    unlearned: list[ImageSource] = [Noise(), Asking(warmup=3)]
    for source in unlearned:
        require_gradients(source, teacher, TASK, name)
    require_gradients(Cgdd(), prepared(), TASK, name)
    assert all(parameter.requires_grad for parameter in teacher.parameters())
