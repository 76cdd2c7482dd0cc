"""Each loss equals its paper's formula, written out here in plain Python and float64."""

import math

import pytest
import torch

from datafree import losses

C = 5


def softmax(row: list[float]) -> list[float]:
    top = max(row)
    powers = [math.exp(v - top) for v in row]
    return [p / sum(powers) for p in powers]


def some_probs(rows: int = 7, sharpness: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.softmax(torch.randn(rows, C, generator=generator, dtype=torch.float64) * sharpness, 1)


def mean_row(probs: torch.Tensor) -> list[float]:
    return [sum(row[c] for row in probs.tolist()) / len(probs) for c in range(C)]


def test_discriminator_loss_is_equation_1() -> None:
    real, fake = (
        torch.tensor([0.3, -2.0], dtype=torch.float64),
        torch.tensor([1.5, 0.1, -4.0], dtype=torch.float64),
    )

    def sigmoid(v: float) -> float:
        return 1 / (1 + math.exp(-v))

    expected = -sum(math.log(sigmoid(v)) for v in real.tolist()) / 2
    expected -= sum(math.log(1 - sigmoid(v)) for v in fake.tolist()) / 3
    assert losses.discriminator_loss(real, fake).item() == pytest.approx(expected, rel=1e-12)
    non_saturating = -sum(math.log(sigmoid(v)) for v in fake.tolist()) / 3
    assert losses.generator_loss(fake).item() == pytest.approx(non_saturating, rel=1e-12)


def test_entropy_loss_is_equation_3() -> None:
    probs = some_probs()
    expected = sum(-sum(p * math.log(p + 1e-5) for p in row) for row in probs.tolist()) / len(probs)
    assert losses.entropy_loss(probs).item() == pytest.approx(expected, rel=1e-12)


def test_diversity_loss_is_equation_4() -> None:
    probs = some_probs()
    expected = sum(q * math.log(q) for q in mean_row(probs))
    assert losses.diversity_loss(probs).item() == pytest.approx(expected, rel=1e-12)


def test_weighted_diversity_loss_is_equation_5() -> None:
    probs = some_probs(sharpness=3.0)
    expected = sum((1 / C - q) ** 2 / q for q in mean_row(probs)) / C
    assert losses.weighted_diversity_loss(probs).item() == pytest.approx(expected, rel=1e-12)


def test_weighted_diversity_loss_is_chi_squared_and_zero_only_when_uniform() -> None:
    probs = some_probs(sharpness=3.0)
    chi2 = sum((1 / C) ** 2 / q for q in mean_row(probs)) - 1
    assert losses.weighted_diversity_loss(probs).item() == pytest.approx(chi2 / C, rel=1e-9)
    assert losses.weighted_diversity_loss(torch.full((4, C), 1 / C)).item() == pytest.approx(0.0, abs=1e-9)


def test_weighted_diversity_gradient_flows_through_the_weight() -> None:
    q = torch.tensor([[0.05, 0.15, 0.2, 0.25, 0.35]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(losses.weighted_diversity_loss(q), q)
    expected = [(1 - (1 / C) ** 2 / v**2) / C for v in q[0].tolist()]  # the derivative of eq. 5 by hand
    assert gradient[0].tolist() == pytest.approx(expected, rel=1e-9)


def test_weighted_diversity_stays_finite_and_still_pulls_when_a_class_vanishes() -> None:
    q = torch.tensor([[0.0, 0.25, 0.25, 0.25, 0.25]], dtype=torch.float64, requires_grad=True)
    loss = losses.weighted_diversity_loss(q, floor=1e-3)
    (gradient,) = torch.autograd.grad(loss, q)
    assert torch.isfinite(loss)
    assert gradient[0, 0].item() == pytest.approx((1 - (0.2 / 1e-3) ** 2) / C)  # the slope at the floor
    above = losses.weighted_diversity_loss(torch.tensor([[1e-3, 0.25, 0.25, 0.25, 0.249]], dtype=torch.float64))
    assert loss > above  # still falls towards the floor


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kl_loss_is_equation_10_for_every_pixel(temperature: float) -> None:
    generator = torch.Generator().manual_seed(1)
    s, t = (torch.randn(2, C, 2, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    total = 0.0
    for b in range(2):
        for y in range(2):
            for x in range(3):
                p = softmax([v / temperature for v in t[b, :, y, x].tolist()])
                q = softmax([v / temperature for v in s[b, :, y, x].tolist()])
                total += sum(pi * math.log(pi / qi) for pi, qi in zip(p, q, strict=True))
    expected = total / 12 * temperature**2
    assert losses.kl_loss(s, t, temperature).item() == pytest.approx(expected, rel=1e-5)
    assert losses.kl_loss(t, t, temperature).item() == pytest.approx(0.0, abs=1e-7)


def test_dfad_losses_are_the_published_ones() -> None:
    s, t = torch.tensor([[1.0, -2.0, 0.5]]), torch.tensor([[0.0, -1.0, 2.5]])
    assert losses.l1_loss(s, t).item() == pytest.approx(4 / 3)
    assert losses.dfad_generator_loss(s, t).item() == pytest.approx(-math.log(4 / 3 + 1))
