"""The memory of made images: what it keeps, in which form, and that it goes on exactly."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor

from datafree.errors import DataError
from datafree.sources.parts.memory_bank import VALIDATION_EVERY, Bank

CPU = torch.device("cpu")


def numbered(first: int, count: int) -> tuple[Tensor, Tensor]:
    """Images (count, 3, 2, 2) that show their number, exact in 8 bits, and it again as their target."""
    numbers = torch.arange(first, first + count)
    high, low = numbers // 256, numbers % 256
    pixels = torch.stack([high, low, numbers % 7], 1).float() / 255
    return pixels[:, :, None, None].expand(-1, -1, 2, 2), numbers


def numbers_in(images: Tensor) -> list[int]:
    pixels = (images[:, :, 0, 0] * 255).round().long()
    return (pixels[:, 0] * 256 + pixels[:, 1]).tolist()


def filled(capacity: int, *batches: int) -> Bank:
    bank = Bank(capacity=capacity)
    first = 0
    for count in batches:
        bank.add(*numbered(first, count))
        first += count
    return bank


def drawable(bank: Bank) -> set[int]:
    """The numbers of the images that can be drawn, by drawing many."""
    return set(numbers_in(bank.sample(max(60 * len(bank), 1))[0]))


def kept_of(total: int, capacity: int) -> set[int]:
    """The latest `capacity` of all images but every 16th."""
    return set([n for n in range(total) if n % VALIDATION_EVERY != VALIDATION_EVERY - 1][-capacity:])


@pytest.mark.parametrize(
    "batches", [(5,), (10,), (11,), (4, 4, 4), (7, 30, 2), (1,) * 25, (200,), (3, 200, 3), (16, 16, 16)]
)
def test_the_latest_images_are_kept_whatever_the_batches(batches: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    bank = filled(10, *batches)
    total = sum(batches)
    assert bank.added == total
    assert len(bank) == len(kept_of(total, 10))
    assert drawable(bank) == kept_of(total, 10)


def test_targets_stay_with_their_images() -> None:
    bank = filled(50, 30, 45, 90)
    images, targets = bank.sample(500)
    assert targets is not None
    assert targets.dtype == torch.int64
    assert targets.tolist() == numbers_in(images)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_targets_of_any_shape_come_back_as_they_were(dtype: torch.dtype) -> None:
    bank = Bank(capacity=8)
    images, numbers = numbered(0, 8)
    masks = (numbers[:, None, None] * 1000 + torch.arange(6).reshape(2, 3)).to(dtype)
    if dtype.is_floating_point:
        masks += 0.3
    masks[0, 0, 0] = 255
    bank.add(images, masks)
    drawn, targets = bank.sample(40)
    assert targets is not None
    assert targets.dtype == dtype
    assert torch.equal(targets, masks[numbers_in(drawn)])


def test_images_without_targets_are_kept_without() -> None:
    bank = Bank(capacity=4)
    bank.add(numbered(0, 6)[0])
    images, targets = bank.sample(3)
    assert images.shape == (3, 3, 2, 2)
    assert targets is None


def test_images_are_rounded_to_8_bits_and_clamped() -> None:
    torch.manual_seed(0)
    images = torch.rand(1, 3, 64, 64)
    images[0, 0, 0, :4] = torch.tensor([-0.5, 1.5, 0.0, 1.0])
    bank = Bank(capacity=1)
    bank.add(images)
    back = bank.sample(1)[0]
    assert back.dtype == torch.float32
    assert torch.equal(back, (images * 255).round().clamp(0, 255) / 255)
    assert back[0, 0, 0, :4].tolist() == [0, 1, 0, 1]
    assert (back - images.clamp(0, 1)).abs().max() <= 0.5 / 255 + 1e-6


def test_what_is_added_may_carry_gradients_and_is_not_changed() -> None:
    images = torch.rand(3, 3, 4, 4, requires_grad=True)
    before = images.detach().clone()
    bank = Bank(capacity=4)
    bank.add(images * 1.0)
    assert torch.equal(images, before)
    assert not bank.sample(2)[0].requires_grad


def test_every_16th_image_is_held_out_and_never_drawn() -> None:
    bank = filled(1000, 5, 20, 300, 75)
    held = bank.validation_images(1000)
    assert held is not None
    assert numbers_in(held) == list(range(15, 400, 16))
    assert drawable(bank).isdisjoint(range(15, 400, 16))
    assert len(bank) == 400 - 25


def test_no_more_are_held_out_than_the_reserve_and_the_latest_stay() -> None:
    bank = Bank(capacity=10, reserve=4)
    bank.add(*numbered(0, 16 * 10))
    held = bank.validation_images(10)
    assert held is not None
    assert set(numbers_in(held)) == {16 * n - 1 for n in (7, 8, 9, 10)}
    assert len(bank.validation_images(3)) == 3  # type: ignore[arg-type]


def test_looking_at_held_out_images_draws_nothing() -> None:
    bank = filled(20, 40)
    before = torch.get_rng_state()
    assert torch.equal(bank.validation_images(2), bank.validation_images(2))  # type: ignore[arg-type]
    assert torch.equal(before, torch.get_rng_state())
    assert filled(20, 15).validation_images(2) is None


def test_a_bank_without_a_reserve_holds_nothing_out() -> None:
    bank = Bank(capacity=10, reserve=0)
    bank.add(*numbered(0, 40))
    assert bank.validation_images(4) is None
    assert drawable(bank) == kept_of(40, 10)


@pytest.mark.parametrize("batches", [(), (3,), (10,), (40,), (7, 7, 7), (100, 3)], ids=str)
def test_a_saved_bank_goes_on_exactly(batches: tuple[int, ...]) -> None:
    bank, other = filled(10, *batches), filled(10, 24)  # the other with a past of its own
    file = io.BytesIO()
    torch.save(bank.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True), CPU)
    for count in (0, 4, 9, 33):  # before anything is added, and as it wraps around
        for each in (bank, other):
            each.add(*numbered(1000 + count, count))
        assert (len(bank), bank.added) == (len(other), other.added)
        if not len(bank):
            continue
        draws = []
        for each in (bank, other):
            torch.manual_seed(1)
            draws.append((*each.sample(20), each.validation_images(5)))
        for ours, theirs in zip(*draws, strict=True):
            assert (ours is None and theirs is None) or torch.equal(ours, theirs)


def test_a_saved_state_is_no_view_of_the_bank() -> None:
    bank = filled(10, 8)
    state = bank.state_dict()
    bank.add(*numbered(500, 20))
    bank.load_state_dict(state, CPU)
    assert drawable(bank) == set(range(8))


def test_memory_is_bounded_by_the_capacity_also_in_the_saved_state() -> None:
    bank = filled(10, 1000, 1000)
    file = io.BytesIO()
    torch.save(bank.state_dict(), file)
    small = io.BytesIO()
    torch.save(filled(10, 2000).state_dict(), small)
    assert len(file.getvalue()) == len(small.getvalue()) < 20_000


def test_draws_are_even() -> None:
    torch.manual_seed(0)
    bank = filled(12, 14)
    counts = torch.bincount(torch.tensor(numbers_in(bank.sample(14_000)[0])), minlength=14).float()[2:]
    assert ((counts - counts.mean()).abs() < 5 * counts.mean().sqrt()).all()


def test_a_bank_of_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="a bank of 0 images"):
        Bank(capacity=0)
