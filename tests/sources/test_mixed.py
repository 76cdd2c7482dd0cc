from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from datafree.errors import DataError
from datafree.sources import Folder, Mixed, Noise
from datafree.sources.base import Batch, SourceContext
from datafree.tasks.segmentation import Segmentation


def attached(mixed: Mixed) -> Mixed:
    task = Segmentation(num_classes=3, image_size=(32, 32))
    mixed.attach(SourceContext(task=task, teacher=nn.Identity(), steps=1, batch_size=4))
    return mixed


@pytest.mark.parametrize(
    ("ratio", "n", "counts"),
    [
        ((1, 1), 16, (8, 8)),
        ((3, 1), 16, (12, 4)),
        ((1, 0), 7, (7, 0)),
        ((0, 1), 7, (0, 7)),
        ((1, 1), 5, (3, 2)),
    ],
)
def test_batch_holds_its_parts_in_the_ratio(
    ratio: tuple[float, float], n: int, counts: tuple[int, int], photos: Callable[..., Path]
) -> None:
    mixed = attached(Mixed(parts=[Folder(path=photos()), Noise()], ratio=ratio))
    images = mixed.sample(n).images
    rough = (images[:, :, 1:] - images[:, :, :-1]).abs().mean((1, 2, 3)) > 0.2  # noise is rough, photos are smooth
    assert ((~rough).sum().item(), rough.sum().item()) == counts
    assert not rough[: counts[0]].any()


@pytest.mark.parametrize(("ratio", "n"), [((1, 1), 1), ((1, 9), 4), ((1, 31), 16), ((2, 3, 5), 3)])
def test_batches_too_small_for_the_ratio_hold_it_together(ratio: tuple[float, ...], n: int) -> None:
    """No part is ever more than one image off its share, and a run that is resumed goes on as it would have."""

    class Numbered(Noise):
        number = 0.0

        def sample(self, n: int) -> Batch:
            return Batch(images=torch.full((n, 3, 32, 32), self.number))

    def make() -> Mixed:
        parts = [Numbered() for _ in ratio]
        for number, part in enumerate(parts):
            part.number = float(number)
        return attached(Mixed(parts=list(parts), ratio=ratio))

    mixed, given = make(), torch.zeros(len(ratio))
    for batch in range(1, 41):
        given += torch.bincount(mixed.sample(n).images[:, 0, 0, 0].long(), minlength=len(ratio))
        wanted = batch * n * torch.tensor(ratio) / sum(ratio)
        assert given.sum() == batch * n and (given - wanted).abs().max() <= 1
    again = make()
    again.load_state_dict(mixed.state_dict())
    assert torch.equal(again.sample(n).images, mixed.sample(n).images)


def test_networks_of_one_name_are_all_kept() -> None:
    class Made(Noise):
        def artefacts(self) -> dict[str, nn.Module]:
            return {"generator": self.network}

    parts = [Made() for _ in range(3)]
    for part in parts:
        part.network = nn.Identity()
    found = Mixed(parts=list(parts), ratio=(1, 1, 1)).artefacts()
    assert list(found) == ["generator", "generator_2", "generator_3"]
    assert [found[name] for name in found] == [part.network for part in parts]


def test_metrics_of_all_parts_are_kept_under_names_that_stay() -> None:
    class Logs(Noise):
        def update(self, student: nn.Module, step: int) -> dict[str, torch.Tensor]:
            return {"loss": torch.tensor(float(self.update_every))}

    mixed = Mixed(parts=[Noise(), Logs(update_every=2), Logs(update_every=3), Logs(warmup=1)], ratio=(1, 1, 1, 1))
    found = {
        step: {name: int(value) for name, value in mixed.update(nn.Identity(), step).items()} for step in (-1, 0, 2, 3)
    }
    assert found == {-1: {"loss_3": 0}, 0: {"loss": 2, "loss_2": 3}, 2: {"loss": 2}, 3: {"loss_2": 3}}


def test_shares_must_fit_the_parts() -> None:
    with pytest.raises(DataError, match="2 parts but a ratio of 3"):
        Mixed(parts=[Noise(), Noise()], ratio=(1, 1, 1))
    with pytest.raises(DataError, match="negative"):
        Mixed(parts=[Noise(), Noise()], ratio=(2, -1))
    with pytest.raises(DataError, match="on its parts"):
        Mixed(parts=[Noise(), Noise()], warmup=5)


def test_parts_are_updated_each_when_its_own_turn_comes() -> None:
    class Counting:
        def __init__(self, warmup: int, update_every: int) -> None:
            self.warmup, self.update_every, self.steps = warmup, update_every, list[int]()

        due = Noise.due

        def update(self, student: nn.Module, step: int) -> dict[str, torch.Tensor]:
            self.steps.append(step)
            return {}

    early, often = Counting(3, 0), Counting(1, 2)
    mixed = Mixed(parts=[early, often])  # type: ignore[list-item]
    assert mixed.warmup == 3
    for step in range(-3, 4):
        if mixed.due(step):
            mixed.update(nn.Identity(), step)
    assert (early.steps, often.steps) == ([-3, -2, -1], [-1, 0, 2])
