"""The folder source: every image once an epoch, exactly repeatable, whatever lies in the folder."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from datafree.errors import DataError
from datafree.sources.base import SourceContext
from datafree.sources.folder import Folder
from datafree.tasks.segmentation import Segmentation


def make_folder(path: Path, count: int, size: tuple[int, int] = (8, 8)) -> Path:
    """Images 000.png, 001.png, ... whose every pixel has the value of their name."""
    path.mkdir(exist_ok=True)
    for index in range(count):
        Image.new("RGB", (size[1], size[0]), (index, index, index)).save(path / f"{index:03}.png")
    return path


def attached(path: Path, *, seed: int = 0, image_size: tuple[int, int] = (8, 8), **options: Any) -> Folder:
    folder = Folder(path=path, **options)
    task = Segmentation(num_classes=2, image_size=image_size)
    folder.attach(SourceContext(task=task, teacher=nn.Identity(), steps=10, batch_size=4, seed=seed))
    return folder


def names(images: torch.Tensor) -> list[int]:
    """Which images of `make_folder` these are."""
    return [round(float(image.mean()) * 255) for image in images]


def draw(folder: Folder, count: int, batch: int = 5) -> list[int]:
    return [name for _ in range(count // batch) for name in names(folder.sample(batch).images)]


def test_samples_are_images_in_the_unit_range(tmp_path: Path) -> None:
    folder = attached(make_folder(tmp_path, 4, size=(20, 30)), image_size=(8, 12))
    batch = folder.sample(3)
    assert batch.images.shape == (3, 3, 8, 12) and batch.images.dtype == torch.float32
    assert batch.images.is_contiguous() and batch.targets is None
    assert batch.images.min() >= 0 and batch.images.max() <= 1
    assert folder.sample(0).images.shape == (0, 3, 8, 12)
    assert folder.warmup == folder.update_every == 0 and folder.update(nn.Identity(), 0) == {}


def test_an_epoch_holds_each_image_once_and_the_next_has_another_order(tmp_path: Path) -> None:
    folder = attached(make_folder(tmp_path, 30), hold_out=0)
    epochs = [draw(folder, 30) for _ in range(3)]
    assert all(sorted(epoch) == list(range(30)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != list(range(30))


def test_the_order_follows_from_the_seed_and_not_from_batch_size_or_cache(tmp_path: Path) -> None:
    make_folder(tmp_path, 20)
    reference = draw(attached(tmp_path), 60, batch=4)
    assert draw(attached(tmp_path, cache_mib=0), 60, batch=15) == reference
    assert draw(attached(tmp_path, seed=1), 60, batch=4) != reference
    mixed = attached(tmp_path)
    assert [name for n in (1, 30, 7, 22) for name in names(mixed.sample(n).images)] == reference


def test_no_global_random_state_is_touched_or_used(tmp_path: Path) -> None:
    make_folder(tmp_path, 10, size=(12, 20))
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    first = attached(tmp_path, crop="random", flip=True)
    first.sample(8)
    first.validation_images(2)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())


def noisy_folder(path: Path) -> Path:
    generator = np.random.default_rng(0)
    for index in range(11):
        pixels = generator.integers(0, 256, (14, 19, 3), np.uint8)
        Image.fromarray(pixels).save(path / f"{index}.png")
    (path / "bad.png").write_text("not an image")
    return path


@pytest.mark.parametrize("drawn", [0, 3, 7, 26])
def test_a_resumed_run_goes_on_with_the_very_same_images(tmp_path: Path, drawn: int) -> None:
    noisy_folder(tmp_path)
    straight = attached(tmp_path, crop="random", flip=True, hold_out=1)
    straight.sample(drawn)  # the next batch is on its way by now
    state = straight.state_dict()
    expected = [straight.sample(n) for n in (5, 9, 2, 13)]
    resumed = attached(tmp_path, crop="random", flip=True, hold_out=1)
    resumed.sample(4)  # whatever it did before
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    for batch, n in zip(expected, (5, 9, 2, 13), strict=True):
        assert torch.equal(resumed.sample(n).images, batch.images)
    assert resumed.state_dict() == straight.state_dict()
    assert resumed.notes() == straight.notes()


def test_the_state_is_plain_and_does_not_know_of_images_read_ahead(tmp_path: Path) -> None:
    make_folder(tmp_path, 20)
    folder = attached(tmp_path, hold_out=0)
    folder.sample(6)
    state = folder.state_dict()
    assert (state["epoch"], state["position"]) == (0, 6)
    torch.save(state, tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True) == state


def test_a_run_goes_on_exactly_after_a_skipped_file_is_gone(tmp_path: Path) -> None:
    noisy_folder(tmp_path)
    straight = attached(tmp_path, hold_out=1)
    straight.sample(24)
    state = straight.state_dict()
    assert list(state["skipped"]) == ["bad.png"]
    (tmp_path / "bad.png").unlink()
    resumed = attached(tmp_path, hold_out=1)
    resumed.load_state_dict(state)
    assert torch.equal(resumed.sample(20).images, straight.sample(20).images)


def test_a_changed_folder_is_said_and_goes_on_with_a_new_epoch(tmp_path: Path) -> None:
    folder = attached(make_folder(tmp_path, 10), hold_out=0)
    folder.sample(14)
    state = folder.state_dict()
    make_folder(tmp_path, 12)
    resumed = attached(tmp_path, hold_out=0)
    resumed.load_state_dict(state)
    assert "changed" in resumed.notes()[0]
    assert sorted(draw(resumed, 12, batch=4)) == list(range(12))


def test_a_crop_in_the_centre_is_the_middle_of_the_image(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 14, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = torch.from_numpy(pixels[:, 3:11]).permute(2, 0, 1) / 255
    assert torch.equal(attached(tmp_path).sample(1).images[0], expected)


def test_random_crops_and_flips_are_windows_of_the_image_and_all_of_them_come(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    windows = {}
    for left in range(3):
        window = pixels[:, left : left + 8]
        windows[window.tobytes()], windows[window[:, ::-1].tobytes()] = (left, False), (left, True)
    drawn = attached(tmp_path, crop="random", flip=True).sample(120).images
    bytes_ = (drawn * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    counts = [windows[image.tobytes()] for image in bytes_]  # a KeyError is an image that is no window
    for window in windows.values():
        assert 8 <= counts.count(window) <= 36  # 20 expected; 4 standard deviations of 4.1


def test_unreadable_files_are_skipped_once_and_named(tmp_path: Path) -> None:
    make_folder(tmp_path, 12)
    for index in range(8):
        (tmp_path / f"bad{index}.png").write_text("not an image")
    folder = attached(tmp_path, hold_out=0)
    assert sorted(draw(folder, 24, batch=12)) == sorted([*range(12)] * 2)
    (note,) = folder.notes()
    assert note.startswith(f"8 of 20 images of {tmp_path} could not be read")
    assert note.count("bad") == 5 and "not an image" in note and note.endswith("and 3 more")


def test_a_damaged_file_read_ahead_in_several_epochs_counts_once(tmp_path: Path) -> None:
    make_folder(tmp_path, 2)
    (tmp_path / "bad.png").write_text("not an image")
    folder = attached(tmp_path, hold_out=0)
    assert sorted(draw(folder, 40, batch=20)) == [0] * 20 + [1] * 20
    assert folder.notes()[0].startswith("1 of 3 images")


def test_files_that_vanish_during_a_run_are_skipped(tmp_path: Path) -> None:
    folder = attached(make_folder(tmp_path, 10), hold_out=0, cache_mib=0)
    first = draw(folder, 2, batch=1)
    for name in range(10):
        if name not in (3, 4):
            (tmp_path / f"{name:03}.png").unlink()
    later = draw(folder, 12, batch=2)
    assert set(later[-8:]) == {3, 4} and len(first) == 2
    assert "no such file" in folder.notes()[0]


@pytest.mark.parametrize("hold_out", [0, 1])
def test_a_folder_without_one_readable_image_is_refused(tmp_path: Path, hold_out: int) -> None:
    for index in range(3):
        (tmp_path / f"{index}.png").write_text("not an image")
    folder = attached(tmp_path, hold_out=hold_out)
    assert folder.validation_images(2).shape == (0, 3, 8, 8)
    for _ in range(2):  # and again: never an endless loop
        with pytest.raises(DataError, match=rf"none of the {3 - hold_out} images .* can be read"):
            folder.sample(4)
    resumed = attached(tmp_path, hold_out=hold_out)
    resumed.load_state_dict(folder.state_dict())
    with pytest.raises(DataError, match="none of the"):
        resumed.sample(1)


def test_an_empty_or_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no images"):
        attached(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        attached(tmp_path / "gone")


@pytest.mark.parametrize(
    ("count", "hold_out", "kept"), [(1, 64, 0), (2, 64, 1), (15, 64, 1), (40, 64, 4), (40, 2, 2), (40, 0, 0)]
)
def test_held_out_images_are_never_sampled(tmp_path: Path, count: int, hold_out: int, kept: int) -> None:
    folder = attached(make_folder(tmp_path, count), hold_out=hold_out)
    held = names(folder.validation_images(100))
    assert len(held) == kept and held == names(attached(tmp_path, hold_out=hold_out).validation_images(100))
    assert set(draw(folder, 2 * count, batch=count)) == set(range(count)) - set(held)


def test_looking_at_held_out_images_changes_nothing(tmp_path: Path) -> None:
    make_folder(tmp_path, 20)
    damaged, sound = names(attached(tmp_path).validation_images(2))
    (tmp_path / f"{damaged:03}.png").write_text("not an image")
    looked, plain = attached(tmp_path), attached(tmp_path)
    for _ in range(3):
        state = looked.state_dict()
        assert names(looked.validation_images(2)) == names(looked.validation_images(2)) == [sound]
        assert looked.state_dict() == state
        assert torch.equal(looked.sample(4).images, plain.sample(4).images)
    assert f"{damaged:03}.png (not an image" in looked.notes()[0]


def damage(path: Path, drawn: str, count: int) -> list[str]:
    """Damage those files that are drawn to be kept back of as many: `drawn` says which, "x" for a damaged one.

    All names, in the order of the draw.
    """
    names = [path.name for path in sorted(path.iterdir())]
    assert len(names) == count
    order = attached(path)._drawn(names)
    for name, letter in zip(order, drawn, strict=False):
        if letter == "x":
            (path / name).write_text("not an image")
    return order


@pytest.mark.parametrize(
    ("drawn", "options", "kept", "learnt"),
    [
        ("x....", {}, 1, [2, 3, 4]),
        ("xx.x.", {}, 2, [4]),
        ("xxxx.", {}, None, [4]),  # the only one is learnt from
        ("x.x..", {"limit": 1}, None, [1]),  # else there would be none to learn from
        ("x....", {"hold_out": 0}, None, [1, 2, 3, 4]),
    ],
)
def test_an_image_is_kept_back_in_the_stead_of_one_that_cannot_be_read(
    tmp_path: Path, drawn: str, options: dict[str, int], kept: int | None, learnt: list[int]
) -> None:
    order = damage(make_folder(tmp_path, 5), drawn, 5)
    places = {index: order.index(f"{index:03}.png") for index in range(5)}
    folder = attached(tmp_path, **options)
    assert {places[name] for name in draw(folder, 12, batch=4)} == set(learnt)
    assert [places[name] for name in names(folder.validation_images(9))] == ([] if kept is None else [kept])
    if drawn[0] == "x" and folder.hold_out:
        assert f"{order[0]} (not an image" in folder.notes()[0]  # which `select` of agreement may tell


@pytest.mark.parametrize("drawn", [0, 3, 7])
@pytest.mark.parametrize("gone", [False, True])
def test_what_is_kept_back_in_another_image_s_stead_stays_so_after_a_resume(
    tmp_path: Path, drawn: int, gone: bool
) -> None:
    path = make_folder(tmp_path / "photos", 8)
    order = damage(path, "xx", 8)
    straight = attached(path)
    straight.sample(drawn)
    state = straight.state_dict()
    torch.save(state, tmp_path / "state.pt")
    expected, held = [straight.sample(n).images for n in (5, 9)], straight.validation_images(9)
    for name in order[:2]:  # both may be mended, or removed as the note asks
        if gone:
            (path / name).unlink()
        else:
            Image.new("RGB", (8, 8)).save(path / name)
    resumed = attached(path)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(resumed.validation_images(9), held) and len(held) == 1
    for images in expected:
        assert torch.equal(resumed.sample(len(images)).images, images)
    assert not any("had changed" in note for note in resumed.notes())


def test_a_folder_that_has_changed_is_looked_at_again(tmp_path: Path) -> None:
    path = make_folder(tmp_path / "photos", 8)
    order = damage(path, "x", 8)
    state = attached(path).state_dict()
    (path / order[1]).write_text("not an image")  # the one that was kept back
    (path / order[2]).unlink()
    resumed = attached(path)
    resumed.load_state_dict(state)
    assert any("had changed" in note for note in resumed.notes())
    assert [f"{name:03}.png" for name in names(resumed.validation_images(9))] == [order[3]]
    assert set(draw(resumed, 8, batch=4)) == {int(name[:3]) for name in order[4:]}


def test_crops_of_the_only_readable_photograph_are_held_out(tmp_path: Path) -> None:
    damage(make_folder(tmp_path, 2), "x", 2)
    folder = attached(tmp_path, crop="multiscale")
    assert len(folder.validation_images(3)) == len(folder.sample(3).images) == 3


def test_held_out_images_are_read_and_no_others(tmp_path: Path) -> None:
    make_folder(tmp_path, 20)
    held = names(attached(tmp_path).validation_images(9))
    for index in set(range(20)) - set(held):
        (tmp_path / f"{index:03}.png").write_text("not an image")
    folder = attached(tmp_path)
    assert names(folder.validation_images(9)) == held and folder.notes() == []


def test_a_limit_keeps_so_many_images_and_the_same_held_out_ones(tmp_path: Path) -> None:
    make_folder(tmp_path, 40)
    limited, whole = attached(tmp_path, limit=5), attached(tmp_path)
    seen = draw(limited, 20)
    assert len(set(seen)) == 5 and sorted(seen) == sorted([*set(seen)] * 4)
    assert torch.equal(limited.validation_images(9), whole.validation_images(9))
    assert set(draw(attached(tmp_path, limit=5, seed=1), 5)) != set(seen)


def kept_bytes(folder: Folder) -> int:
    return sum(pixels.nbytes for pixels, _ in folder._cache.values())


def test_memory_stays_below_the_bound_and_does_not_grow_with_steps(tmp_path: Path) -> None:
    make_folder(tmp_path, 12, size=(256, 256))  # 192 KiB each, 5 in a MiB
    folder = attached(tmp_path, image_size=(256, 256), cache_mib=1, hold_out=0)
    sizes = []
    for _ in range(12):
        folder.sample(6)
        sizes.append((kept_bytes(folder), len(folder._reader._ahead), len(folder._reader._order[1])))
    files = len(folder._reader.keys)
    assert all(kept <= 2**20 and ahead == 6 and order == files for kept, ahead, order in sizes)
    assert sizes[-1][0] == 5 * 256 * 256 * 3
    uncached = attached(tmp_path, image_size=(256, 256), cache_mib=0, hold_out=0)
    uncached.sample(24)
    assert kept_bytes(uncached) == 0


def test_kept_images_are_not_read_again(tmp_path: Path) -> None:
    make_folder(tmp_path, 6)
    folder = attached(tmp_path, hold_out=0)
    draw(folder, 12, batch=6)
    for path in tmp_path.iterdir():
        path.unlink()
    assert sorted(draw(folder, 6, batch=6)) == list(range(6))


@pytest.mark.parametrize("options", [{"limit": 0}, {"cache_mib": -1}, {"hold_out": -2}, {"crop": "middle"}])
def test_impossible_options_are_refused_with_their_value(tmp_path: Path, options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(DataError, match=rf"{name}.*{value}"):
        Folder(path=tmp_path, **options)
