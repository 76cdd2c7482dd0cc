"""Crops of every scale from a single photograph: their chain, and the folder that makes them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from datafree.sources.base import SourceContext
from datafree.sources.folder import Folder
from datafree.sources.parts import multiscale as module
from datafree.sources.parts.multiscale import multiscale
from datafree.tasks.classification import Classification

SIZE = (12, 20)


def ramp(height: int, width: int) -> module.Pixels:
    """A photograph whose red is its place from the left, green from the top, in 255ths of its sides; no blue."""
    right = np.linspace(0, 255, width)[None].repeat(height, 0)
    down = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    return np.stack([right, down, np.zeros((height, width))], 2).round().astype(np.uint8)


def attached(path: Path, *, seed: int = 0, **options: Any) -> Folder:
    folder = Folder(path=path, crop="multiscale", **options)
    task = Classification(num_classes=2, image_size=SIZE)
    folder.attach(SourceContext(task=task, teacher=nn.Identity(), steps=10, batch_size=4, seed=seed))
    return folder


def one_photo(path: Path) -> Path:
    path.mkdir()
    Image.fromarray(ramp(90, 120)).save(path / "photo.png")
    return path


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (40, 60), (300, 20)])
@pytest.mark.parametrize("size", [(8, 8), (12, 20)])
def test_a_crop_has_the_size_asked_for_whatever_the_photographs(shape: tuple[int, int], size: tuple[int, int]) -> None:
    for seed in range(4):
        crop = multiscale(ramp(*shape), size, random.Random(seed))
        assert crop.shape == (*size, 3) and crop.dtype == np.uint8


def test_a_crop_is_a_function_of_its_generators_seed() -> None:
    photo = ramp(60, 80)
    assert np.array_equal(multiscale(photo, SIZE, random.Random(7)), multiscale(photo, SIZE, random.Random(7)))
    assert not np.array_equal(multiscale(photo, SIZE, random.Random(7)), multiscale(photo, SIZE, random.Random(8)))


def test_crops_show_parts_of_every_scale_up_to_half_the_shorter_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEGREES", 0.0)
    monkeypatch.setattr(module, "JITTERED", 0.0)
    photo = ramp(400, 400)  # a pixel's green is its row, in 255 / 400
    seen = []
    for seed in range(300):
        crop = multiscale(photo, (16, 16), random.Random(seed)).astype(float)
        seen.append((crop[-1, :, 1].mean() - crop[0, :, 1].mean()) / 255 * 16 / 15 * np.sqrt(2))
    # Of the whole: a patch of one half, of it sqrt(area), of area U(.002, 1), heights sqrt(area / aspect) at most 1.
    assert 0 < min(seen) < 0.1 and max(seen) == pytest.approx(0.5, abs=0.03)
    expected = 0.5 * np.sqrt(np.random.default_rng(0).uniform(*module.AREA, 10_000)).mean()
    assert np.mean(seen) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(("turn", "shear"), [(25.0, 0.0), (0.0, 20.0), (-15.0, 10.0)])
def test_an_image_is_sheared_and_turned_about_its_middle(turn: float, shear: float) -> None:
    angles = iter([turn, shear])

    class Given(random.Random):
        def uniform(self, a: float, b: float) -> float:
            return next(angles)

    moved = np.asarray(module._moved(Image.fromarray(ramp(60, 80)), Given())).astype(float)
    a, s = np.radians(turn), np.tan(np.radians(shear))
    turned = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])  # x to the right, y down
    inverse = np.linalg.inv(turned @ np.array([[1, s], [0, 1]]))
    for x, y in ((0, 0), (10, -5), (-12, 9), (15, 12)):
        was = inverse @ np.array([x + 0.5, y + 0.5])
        expected = [(was[0] + 39.5) / 79 * 255, (was[1] + 29.5) / 59 * 255]
        assert moved[30 + y, 40 + x, :2] == pytest.approx(expected, abs=3)


def test_colours_change_at_even_odds_and_stay_where_nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    flat = np.full((50, 50, 3), (200, 100, 50), np.uint8)
    crops = [multiscale(flat, (8, 8), random.Random(seed)) for seed in range(200)]
    same = sum(bool((crop == flat[:8, :8]).all()) for crop in crops)
    assert 75 < same < 125
    monkeypatch.setattr(module, "JITTER", (0.0, 0.0, 0.0, 0.0))
    again = multiscale(flat, (8, 8), random.Random(0)).astype(int)
    assert np.abs(again - flat[:8, :8]).max() <= 3  # there and back through hues


def test_a_folder_of_a_single_photograph_gives_other_crops_and_holds_some_out(tmp_path: Path) -> None:
    folder = attached(one_photo(tmp_path / "one"))
    images = torch.cat([folder.sample(4).images for _ in range(3)])
    assert images.shape == (12, 3, *SIZE)
    assert len({image.numpy().tobytes() for image in images}) == 12
    held = folder.validation_images(6)
    assert len(held) == 6 and torch.equal(held, folder.validation_images(6))
    assert not {h.numpy().tobytes() for h in held} & {image.numpy().tobytes() for image in images}


def test_crops_follow_from_seed_and_position_alone(tmp_path: Path) -> None:
    path = one_photo(tmp_path / "one")
    before = random.getstate(), torch.get_rng_state()
    whole = attached(path)
    expected = whole.sample(12).images
    pieces = attached(path, cache_mib=0)
    assert torch.equal(torch.cat([pieces.sample(n).images for n in (1, 4, 7)]), expected)
    resumed = attached(path)
    state = attached(path).state_dict() | {"epoch": 4, "position": 0}
    resumed.load_state_dict(state)
    assert torch.equal(resumed.sample(8).images, expected[4:])
    assert not torch.equal(attached(path, seed=1).sample(12).images, expected)
    assert before[0] == random.getstate() and torch.equal(before[1], torch.get_rng_state())


def test_held_out_crops_are_of_photographs_kept_back_where_there_are_several(tmp_path: Path) -> None:
    folder_path = tmp_path / "many"
    folder_path.mkdir()
    for value in range(20):
        Image.new("RGB", (40, 40), (10 * value, 10 * value, 10 * value)).save(folder_path / f"{value:02}.png")
    folder = attached(folder_path)
    held_values = [int(Path(name).stem) * 10 for name in folder._held_out.keys]
    assert len(held_values) == 2
    assert len(folder.validation_images(9)) == 9
    for name in folder._held_out.keys:
        (folder_path / name).write_text("not an image")
    another = attached(folder_path)
    assert len(another.validation_images(9)) == 9 and "2 of 20 images" in another.notes()[0]
    kept = another._held_out.keys
    assert [name for name in kept if name not in folder._held_out.keys] == kept[2:] and len(kept) == 3
