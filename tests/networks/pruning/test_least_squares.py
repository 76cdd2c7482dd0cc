"""Layers solved for by least squares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datafree.networks.pruning import least_squares
from datafree.networks.pruning.equations import Moments, Rows, bytes_of, equations

CONVOLUTIONS = {
    "plain": {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "padding": 1},
    "stride": {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "padding": 1, "stride": 2},
    "dilation": {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "padding": 2, "dilation": 2},
    "uneven": {"in_channels": 4, "out_channels": 6, "kernel_size": (1, 3), "padding": (0, 1), "stride": (2, 1)},
    "groups": {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "padding": 1, "groups": 2},
    "depthwise": {"in_channels": 4, "out_channels": 4, "kernel_size": 5, "padding": 2, "groups": 4},
}


def moments(x: Tensor, y: Tensor) -> Moments:
    """Of (P, K) and (P, O), added in two parts."""
    found = Moments.empty(1, x.shape[1], y.shape[1], x.device)
    for a, b in ((x[:40], y[:40]), (x[40:], y[40:])):
        found.add(a[None], b[None])
    return found


def test_a_solution_without_penalty_is_numpys_least_squares_with_a_column_of_ones() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(200, 7) + 3, torch.randn(200, 4) - 2
    wanted = np.linalg.lstsq(np.hstack([x.double().numpy(), np.ones((200, 1))]), y.double().numpy(), rcond=None)[0]
    found = moments(x, y).solve(torch.zeros(1, 7, 4), ridge=0.0)
    np.testing.assert_allclose(found.weight[0].numpy(), wanted[:-1], atol=1e-9)
    np.testing.assert_allclose(found.offset[0].numpy(), wanted[-1], atol=1e-9)
    left = y.double().numpy() - np.hstack([x.double().numpy(), np.ones((200, 1))]) @ wanted
    share = (left**2).sum() / ((y - y.mean(0)) ** 2).sum().item()
    assert found.error == pytest.approx(share, rel=1e-6)


def test_a_penalty_pulls_towards_the_weights_as_they_are_but_not_the_offset() -> None:
    """The same minimum from ordinary least squares with a row sqrt(ridge m P) for each weight below centred data."""
    torch.manual_seed(0)
    x, y, prior = torch.randn(100, 5).double() + 1, torch.randn(100, 3).double(), torch.randn(5, 3).double()
    a, b = x - x.mean(0), y - y.mean(0)
    scale = (0.1 * a.square().mean(0).mean() * 100).sqrt()
    tall = torch.cat([a, scale * torch.eye(5).double()]), torch.cat([b, scale * prior])
    wanted = torch.linalg.lstsq(*tall).solution
    found = moments(x, y).solve(prior[None], ridge=0.1)
    torch.testing.assert_close(found.weight[0], wanted)
    torch.testing.assert_close(found.offset[0], y.mean(0) - x.mean(0) @ wanted)


def test_without_an_offset_nothing_is_centred() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(100, 5).double() + 1, torch.randn(100, 3).double() + 4
    found = moments(x, y).solve(torch.zeros(1, 5, 3), ridge=0.0, offset=False)
    torch.testing.assert_close(found.weight[0], torch.linalg.lstsq(x, y).solution)
    assert not found.offset.any()


@pytest.mark.parametrize("offset", [True, False])
def test_few_rows_give_the_solution_of_their_sums(offset: bool) -> None:
    """Of more unknowns than rows, in two groups and two batches."""
    torch.manual_seed(0)
    x, y, prior = torch.randn(2, 12, 30) + 1, torch.randn(2, 12, 3) - 2, torch.randn(2, 30, 3)
    sums, rows = equations(30, 2, 30, 3, x.device), equations(12, 2, 30, 3, x.device)
    assert isinstance(sums, Moments) and isinstance(rows, Rows)
    for found in (sums, rows):
        for part, wanted in zip(x.split(8, 1), y.split(8, 1), strict=True):
            found.add(part, wanted)
    one, other = (found.solve(prior, 0.01, offset) for found in (sums, rows))
    for name in ("weight", "offset", "mean", "variance"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name))
    assert one.error == pytest.approx(other.error)


def test_equations_of_vggs_first_linear_layer_are_small_for_512_images() -> None:
    """512 rows of 25,088 are .1 GB in float64; their sums of products 5 GB."""
    assert bytes_of(512, 1, 25088) == 8 * (2 * 512 * 25088 + 5 * 512**2)
    assert bytes_of(10**6, 1, 25088) == 5 * 8 * 25088**2


def test_a_layer_that_makes_its_weight_anew_or_pads_by_itself_is_not_solved_for() -> None:
    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True))

    normed = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    named = type("Conv", (nn.Conv2d,), {})(3, 4, 3)  # a name of its own changes nothing
    assert [least_squares.can_solve(one) for one in (nn.Conv2d(3, 4, 3), named)] == [True, True]
    assert [least_squares.can_solve(one) for one in (Standardised(3, 4, 3), normed)] == [False, False]


@pytest.mark.parametrize("form", CONVOLUTIONS)
def test_patches_times_the_weight_are_the_convolutions_answer(form: str) -> None:
    torch.manual_seed(0)
    layer, x = nn.Conv2d(**CONVOLUTIONS[form], bias=False), torch.rand(3, 4, 7, 9)
    answer = layer(x).detach()
    size = least_squares.answer_size(layer, x)
    assert size == (3, *answer.shape[2:])
    positions = torch.randperm(answer[:, 0].numel())[:50]
    made = least_squares.patches(layer, x, positions, size) @ least_squares.as_matrix(layer)  # (G, P, O)
    torch.testing.assert_close(made.transpose(0, 1).flatten(1), least_squares.at(answer, positions, size))


@pytest.mark.parametrize("form", CONVOLUTIONS)
def test_a_layer_and_its_norm_are_set_to_answer_what_another_layer_does(form: str) -> None:
    """From that layer's answers alone, behind its BatchNorm; the running statistics are those of the new answers."""
    torch.manual_seed(0)
    make = CONVOLUTIONS[form]
    target = nn.Sequential(nn.Conv2d(**make), nn.BatchNorm2d(make["out_channels"])).eval()
    nn.init.uniform_(target[1].weight, 0.5, 2)
    nn.init.normal_(target[1].bias)
    layer, norm, x = nn.Conv2d(**make), nn.BatchNorm2d(make["out_channels"]).eval(), torch.rand(8, 4, 7, 9)
    with torch.no_grad():
        wanted = target(x)
    size = least_squares.answer_size(layer, x)
    positions = torch.arange(wanted[:, 0].numel())
    taken = least_squares.patches(layer, x, positions, size)
    groups, _, inputs = taken.shape
    sums = Moments.empty(groups, inputs, wanted.shape[1] // groups, x.device)
    sums.add(taken, least_squares.at(wanted, positions, size).view(len(positions), groups, -1).transpose(0, 1))
    solution = sums.solve(least_squares.folded(layer, norm), ridge=1e-9)
    least_squares.put(layer, norm, solution, torch.ones(wanted.shape[1], dtype=torch.bool))
    with torch.no_grad():
        torch.testing.assert_close(norm(layer(x)), wanted, rtol=1e-3, atol=1e-4)
        raw = layer(x)
    torch.testing.assert_close(norm.running_mean, raw.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(norm.running_var, raw.var((0, 2, 3), unbiased=False), rtol=1e-3, atol=1e-5)


def test_a_linear_layers_patches_are_its_rows() -> None:
    layer, x = nn.Linear(5, 3), torch.rand(2, 4, 5)
    positions, size = torch.tensor([7, 0]), least_squares.answer_size(layer, x)
    made = least_squares.patches(layer, x, positions, size)
    assert torch.equal(made[0], torch.stack([x[1, 3], x[0, 0]]))
    torch.testing.assert_close(least_squares.at(layer(x), positions, size), F.linear(made[0], layer.weight, layer.bias))
