"""What a student draws from batches that were made."""

import torch
from torch import nn

from datafree.ops import modes
from datafree.sources.base import SourceContext
from datafree.sources.parts.image_pool import ImagePool
from datafree.tasks import Task
from datafree.tasks.classification import Classification
from datafree.tasks.segmentation import Segmentation

SIZE = (16, 24)


def stock(task: type[Task] = Classification, shift: int = 3, crop: float = 1.0) -> ImagePool:
    context = SourceContext(task=task(num_classes=4, image_size=SIZE), teacher=nn.Identity(), steps=1, batch_size=4)
    return ImagePool(context=context, capacity=64, shift=shift, crop=crop)


def test_there_is_noise_until_something_is_made() -> None:
    modes.seed_everything(0)
    made = stock()
    batch = made.sample(3)
    assert batch.images.shape == (3, 3, *SIZE)
    assert batch.targets is None
    assert torch.equal(made.validation_images(2), made.validation_images(2))
    assert made.validation_images(2).shape == (2, 3, *SIZE)
    assert not torch.equal(made.sample(3).images, batch.images)


def test_images_come_shifted_with_their_labels_or_as_they_were_made() -> None:
    modes.seed_everything(0)
    values = torch.arange(15) / 15  # an image is of one value, which is also its label
    images = values[:, None, None, None].expand(-1, 3, *SIZE)
    for shift in (0, 3):
        made = stock(shift=shift)
        made.add(images, torch.arange(15))
        batch = made.sample(40)
        assert batch.targets is not None
        centre = batch.images[:, 0, 8, 12]
        assert torch.allclose(centre * 15, batch.targets.float(), atol=0.05)
        assert bool((batch.images.amax((1, 2, 3)) - batch.images.amin((1, 2, 3)) > 0.01).any()) == (shift > 0)


def test_masks_come_shifted_with_their_images() -> None:
    modes.seed_everything(0)
    made = stock(Segmentation)
    masks = torch.randint(0, 4, (15, *SIZE))
    made.add((masks / 3)[:, None].expand(-1, 3, -1, -1), masks)
    batch = made.sample(20)
    assert batch.targets is not None
    assert torch.equal((batch.images[:, 0] * 3).round().long(), batch.targets)


def test_crops_come_at_full_size_with_their_part_of_the_mask() -> None:
    modes.seed_everything(0)
    made = stock(Segmentation, shift=0, crop=0.1)
    left = (torch.arange(SIZE[1]) < SIZE[1] // 2).long().expand(15, *SIZE)
    made.add(left[:, None].expand(-1, 3, -1, -1).float(), left)
    batch = made.sample(60)
    assert batch.targets is not None
    sure = (batch.images[:, 0] - 0.5).abs() > 0.49  # the border is blended
    assert sure.float().mean() > 0.9
    assert torch.equal(batch.images[:, 0][sure].round().long(), batch.targets[sure])
    assert len(batch.images[:, 0].mean((1, 2)).round(decimals=1).unique()) > 6  # of all left to all right


def test_what_is_held_out_is_never_drawn() -> None:
    made = stock(shift=0)
    images = torch.zeros(16, 3, *SIZE)
    images[15] = 1.0
    made.add(images, torch.zeros(16, dtype=torch.int64))
    assert torch.equal(made.validation_images(4), torch.ones(1, 3, *SIZE))
    assert made.sample(200).images.max() == 0


def test_held_out_images_come_with_their_targets() -> None:
    made = stock(shift=0)
    assert made.validation_targets(4) is None  # noise shows nothing
    for first in (0, 40):
        labels = torch.arange(first, first + 40)
        made.add((labels / 100)[:, None, None, None].expand(-1, 3, *SIZE), labels)
    for n in (1, 3, 4, 8):  # of 5 that are held out
        shown, targets = made.validation_images(n), made.validation_targets(n)
        assert targets is not None and targets.dtype == torch.int64
        assert (shown[:, 0, 0, 0] * 100).round().long().tolist() == targets.tolist() == [15, 31, 47, 63, 79][:n]
