"""Images move as they should, and their masks with them."""

import torch

from datafree import augment, modes

H, W = 12, 20


def numbered(count: int) -> torch.Tensor:
    """(B, 1, H, W): each pixel has a value of its own, above 0."""
    values = torch.arange(1.0, H * W + 1) / (H * W)
    return values.reshape(1, 1, H, W).repeat(count, 1, 1, 1)


def masks_of(images: torch.Tensor) -> torch.Tensor:
    """The class of each pixel, read off its value."""
    return (images[:, 0] * H * W).round().long()


def test_roll_and_flip_moves_the_batch_and_its_masks_alike() -> None:
    modes.seed_everything(0)
    images = numbered(3)
    seen = set()
    for _ in range(40):
        moved, masks = augment.roll_and_flip(images, masks_of(images), 2)
        assert torch.equal(masks, masks_of(moved))
        assert torch.equal(moved[0], moved[2])
        assert torch.equal(moved.flatten().sort()[0], images.flatten().sort()[0])
        seen.add(int(masks[0, 0, 0]))
    assert len(seen) > 20  # of 5 x 5 places, mirrored or not
    labels = torch.tensor([0, 1, 2])
    assert augment.roll_and_flip(images, labels, 2)[1] is labels
    still = [augment.roll_and_flip(images, labels, 0)[0] for _ in range(20)]
    assert all(torch.equal(s, images) or torch.equal(s, images.flip(-1)) for s in still)


def test_shift_and_flip_is_a_crop_of_the_padded_image() -> None:
    modes.seed_everything(0)
    images = numbered(64)
    moved, none = augment.shift_and_flip(images, None, 4)
    assert none is None
    padded = torch.nn.functional.pad(images[:1], (4, 4, 4, 4))
    crops = [padded[0, :, y : y + H, x : x + W] for y in range(9) for x in range(9)]
    possible = torch.stack([c for crop in crops for c in (crop, crop.flip(-1))])
    distance = (moved[:, None] - possible[None]).abs().amax((2, 3, 4))
    assert distance.min(1).values.max() < 1e-4
    assert len(set(distance.argmin(1).tolist())) > 20


def test_shift_and_flip_moves_masks_with_the_pixels_and_goes_on_at_the_edge() -> None:
    modes.seed_everything(0)
    images = numbered(16)
    moved, masks = augment.shift_and_flip(images, masks_of(images), 3)
    assert masks is not None
    assert masks.dtype == torch.int64
    assert torch.equal(masks, masks_of(moved))
    assert masks.min() >= 1  # nothing but classes that were there
    labels = torch.arange(16)
    assert augment.shift_and_flip(images, labels, 3)[1] is labels


def test_gradients_come_back_through_the_moves_to_the_pixels_that_stay() -> None:
    modes.seed_everything(0)
    images = numbered(4).requires_grad_()
    augment.shift_and_flip(images, None, 2)[0].sum().backward()  # type: ignore[no-untyped-call]
    assert images.grad is not None
    assert torch.allclose(images.grad[:, :, 2:-2, 2:-2], torch.ones(4, 1, H - 4, W - 4), atol=1e-4)


def test_resized_crop_shows_a_part_of_the_asked_area() -> None:
    modes.seed_everything(0)
    across = torch.linspace(0, 1, 64).expand(200, 1, 64, 64).contiguous()
    for ramp in (across, across.mT.contiguous()):
        shown = augment.resized_crop(ramp)
        part = shown.flatten(1).amax(1) - shown.flatten(1).amin(1)  # of the side along which the ramp goes
        assert part.min() > (0.25 * 3 / 4) ** 0.5 - 0.05
        assert part.min() < 0.55
        assert 0.9 < part.max() <= 1
    mirrored = (augment.resized_crop(across)[:, 0, 0].diff().mean(1) < 0).float().mean()
    assert 0.35 < mirrored < 0.65
