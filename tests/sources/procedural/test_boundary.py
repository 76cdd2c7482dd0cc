"""Boundary pairs: on both sides of a border that is known."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from datafree.sources.procedural.boundary import boundary_pairs, gives_gradients
from datafree.tasks.classification import Classification

TASK = Classification(num_classes=2, image_size=(8, 8))
CPU = torch.device("cpu")


class Brightness(nn.Module):
    """Class 1 where the mean is above one half."""

    def forward(self, images: Tensor) -> Tensor:
        mean = images.mean((1, 2, 3)) - 0.5
        return torch.stack([-mean, mean], 1)


class Deaf(Brightness):
    """The same, but no gradient comes back."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.detach())


def test_pairs_lie_on_both_sides_of_the_border_less_than_a_step_apart() -> None:
    torch.manual_seed(0)
    seeds = (0.5 + 0.08 * torch.randn(24, 1, 1, 1)).expand(-1, 3, 8, 8).clamp(0, 1)
    pairs, keys = boundary_pairs(TASK, Brightness(), seeds, 30)
    count = len(pairs) // 2
    assert count >= 6  # half of the targets are the class that a seed has already
    before, after = pairs[:count], pairs[count:]
    sides = (pairs.mean((1, 2, 3)) > 0.5).long()
    assert torch.equal(sides, keys)
    assert (sides[:count] != sides[count:]).all()
    step = (after - before).abs().amax((1, 2, 3))
    largest = 1 / 255 * 1.2**29 / 16  # the last step, halved four times
    assert (step > 0).all() and (step <= largest).all()
    assert pairs.min() >= 0 and pairs.max() <= 1 and not pairs.requires_grad


def test_seeds_that_do_not_arrive_are_left_out() -> None:
    torch.manual_seed(0)
    far = torch.zeros(8, 3, 8, 8)
    assert len(boundary_pairs(TASK, Brightness(), far, 3)[0]) == 0
    assert len(boundary_pairs(TASK, Brightness(), far, 0)[0]) == 0
    assert len(boundary_pairs(TASK, Brightness(), far[:0], 3)[0]) == 0


def test_a_teacher_without_gradients_is_known_and_no_random_number_is_drawn() -> None:
    before = torch.get_rng_state()
    assert gives_gradients(TASK, Brightness(), CPU)
    assert not gives_gradients(TASK, Deaf(), CPU)
    assert torch.equal(torch.get_rng_state(), before)
