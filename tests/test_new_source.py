"""A new source is one file and one line of the registry; a new option is one line (docs/architecture.md).

The file is written here, in a package of the user's own, and is held to what every source owes the engine.
"""

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import test_contract
from datafree.cli.catalog import listing
from datafree.errors import DataError
from datafree.recipe.recipe import dump
from datafree.sources import SOURCES
from datafree.sources.base import ImageSource
from datafree.tasks import TASKS
from recipes import changed, faults, load
from thorough import some

FILE = '''
"""Stripes of colours of which the teacher is sure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, final

import torch
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import Doc

from datafree.config.options import Positive, PositiveInt
from datafree.sources.base import Batch, ImageSource, SourceContext, UpdateSize


@final
@dataclass(kw_only=True)
class Stripes(ImageSource):
    """Stripes whose colours are drawn about a mean that is learnt: where the teacher's entropy is low."""

    passes: ClassVar[dict[str, int]] = {"teacher": 1}  # what an update costs, for plans and measurements

    tiles: Annotated[int, Field(ge=2, le=8), Doc("stripes of an image, from top to bottom")] = 4
    clip: Annotated[
        float, Field(gt=-1, lt=0), Doc("of logits of colours: the least, times ten")
    ] = -0.5
    lr: Annotated[Positive, Doc("of the mean")] = 0.1
    batch_size: Annotated[PositiveInt, Doc("images of an update")] = 4
    loud: bool = False  # a comment alone: no text
    update_every: int = 1

    def attach(self, setting: SourceContext) -> None:
        self._setting = setting
        self._mean = torch.zeros(3, device=setting.device)

    def update_size(self) -> UpdateSize:
        return UpdateSize(images=self.batch_size)

    def resize_updates(self, size: UpdateSize) -> None:
        self.batch_size = size.images

    def update(self, student: nn.Module, step: int) -> dict[str, Tensor]:
        mean = self._mean.clone().requires_grad_()
        probs = self._setting.task.class_probs(self._setting.teacher(self._draw(self.batch_size, mean)))  # (N, C)
        entropy = -(probs * probs.clamp_min(1e-8).log()).sum(1).mean()
        (gradient,) = torch.autograd.grad(entropy, mean)
        self._mean = self._mean - self.lr * gradient
        return {"entropy": entropy.detach()}

    def sample(self, n: int) -> Batch:
        return Batch(images=self._draw(n, self._mean))

    def validation_images(self, n: int) -> Tensor:
        return self._draw(n, self._mean, torch.Generator().manual_seed(self._setting.seed + 1))

    def _draw(self, n: int, mean: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(n, 3, H, W) in [0, 1]: a colour for each of `tiles` rows, held over the rows' pixels."""
        noise = torch.randn(n, 3, self.tiles, 1, generator=generator)
        colours = torch.sigmoid((mean[:, None, None] + noise).clamp_min(10 * self.clip))
        return nn.functional.interpolate(colours, self._setting.task.image_size)

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self._mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._mean = state["mean"]
'''
OPTION = '    hue: Annotated[int, Field(ge=0, lt=360), Doc("degrees")] = 0\n'  # the one line of a new option

CONTRACT = [name for name in vars(test_contract) if name.startswith("test_")]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., type[ImageSource]]]:
    """A maker of the package `mypkg` in a folder that Python knows; its source."""

    def make(text: str = FILE) -> type[ImageSource]:
        folder = tmp_path / "code" / "mypkg"
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
        (folder / "mysource.py").write_text(text, encoding="utf-8")
        monkeypatch.syspath_prepend(str(folder.parent))
        kind: type[ImageSource] = importlib.import_module("mypkg.mysource").Stripes
        return kind

    yield make
    for name in ("mypkg", "mypkg.mysource"):
        sys.modules.pop(name, None)


def with_stripes(**options: Any) -> dict[str, Any]:
    return changed(source={"method": "mypkg.mysource:Stripes", **options})


def test_a_recipe_names_it_by_its_import_path(package: Callable[..., type[ImageSource]], tmp_path: Path) -> None:
    Stripes = package()
    recipe = load(tmp_path, with_stripes(tiles=8))
    assert type(recipe.source) is Stripes and recipe.source.tiles == 8
    assert dump(recipe)["source"] == {
        "method": "mypkg.mysource:Stripes",
        "warmup": 0,
        "update_every": 1,
        "tiles": 8,
        "clip": -0.5,
        "lr": 0.1,
        "batch_size": 4,
        "loud": False,
    }
    again = dump(load(tmp_path, dump(recipe)))
    assert again == dump(recipe)


def test_its_bounds_are_enforced_and_it_inherits_none(
    package: Callable[..., type[ImageSource]], tmp_path: Path
) -> None:
    make: Any = package()
    assert faults(tmp_path, with_stripes(tiles=9, clip=-1.0, lr=0)) == [
        "source.tiles: 9 is out of range; it must be from 2 to 8",
        "source.clip: -1.0 is out of range; it must be above -1, and below 0",
        "source.lr: 0 is too small; it must be above 0",
    ]
    assert faults(tmp_path, with_stripes(clip=0.5)) == [  # zskt's option of this name takes it
        "source.clip: 0.5 is out of range; it must be above -1, and below 0"
    ]
    with pytest.raises(DataError, match="tiles is 1; it must be from 2 to 8"):
        make(tiles=1)


def test_one_line_of_the_registry_lists_it_with_its_texts(
    package: Callable[..., type[ImageSource]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Stripes = package()
    monkeypatch.setitem(SOURCES, "stripes", Stripes)
    assert type(load(tmp_path, changed(source={"method": "stripes"})).source) is Stripes
    _, _, after = listing().partition("  stripes: ")
    assert after.splitlines()[:8] == [
        "Stripes whose colours are drawn about a mean that is learnt: where the teacher's entropy is low.",
        "    warmup = 0        updates before the student's first step",
        "    update_every = 1",
        "    tiles = 4         stripes of an image, from top to bottom",
        "    clip = -0.5       of logits of colours: the least, times ten",
        "    lr = 0.1          of the mean",
        "    batch_size = 4    images of an update",
        "    loud = false",
    ]


def test_an_option_is_one_line(
    package: Callable[..., type[ImageSource]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = "    loud: bool"
    assert FILE.count(before) == 1
    monkeypatch.setitem(SOURCES, "stripes", package(FILE.replace(before, OPTION + before)))
    assert load(tmp_path, changed(source={"method": "stripes", "hue": 359})).source == SOURCES["stripes"](hue=359)
    assert faults(tmp_path, with_stripes(hue=360)) == [
        "source.hue: 360 is out of range; it must be 0 or more, and below 360"
    ]
    assert "    hue = 0           degrees\n" in listing()


@pytest.mark.parametrize("kind", some(TASKS, "segmentation"))
@pytest.mark.parametrize("name", CONTRACT)
def test_it_keeps_what_every_source_owes_the_engine(
    name: str,
    kind: str,
    package: Callable[..., type[ImageSource]],
    photos: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(SOURCES, "stripes", package())
    promise = getattr(test_contract, name)
    needs: dict[str, Callable[[], object]] = {
        "rig": lambda: test_contract.Rig("stripes", kind, photos()),
        "method": lambda: "stripes",
        "kind": lambda: kind,
        "photos": lambda: photos,
        "monkeypatch": lambda: monkeypatch,
    }
    promise(**{parameter: needs[parameter]() for parameter in inspect.signature(promise).parameters})


def test_a_source_that_breaks_the_contract_is_found(
    package: Callable[..., type[ImageSource]], photos: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the contract asks of it is asked in earnest: a source that forgets its state does not pass."""
    forgets = FILE.replace('self._mean = state["mean"]', "pass")
    monkeypatch.setitem(SOURCES, "stripes", package(forgets))
    rig = test_contract.Rig("stripes", "segmentation", photos())
    with pytest.raises(AssertionError):
        test_contract.test_saved_state_goes_on_to_the_same_bits(rig, "stripes", "segmentation", photos)
