"""Each loss equals its paper's formula, written out here in plain Python and float64."""

import math

import pytest
import torch

from datafree.ops import losses

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


@pytest.mark.parametrize(("classes", "floor"), [(10, 1e-3), (250, 1e-3), (1000, 2.5e-4), (2000, 1.25e-4)])
def test_weighted_diversity_pulls_a_vanished_class_back_however_many_there_are(classes: int, floor: float) -> None:
    q = torch.full((1, classes), 1 / (classes - 1), dtype=torch.float64)
    q[0, 0] = 0.0
    q.requires_grad_()
    loss = losses.weighted_diversity_loss(q)
    (gradient,) = torch.autograd.grad(loss, q)
    slope = 1 - (1 / classes / floor) ** 2  # by hand; from 250 classes on 1 - 4^2
    assert gradient[0, 0].item() == pytest.approx(slope / classes) and slope <= -15 + 1e-9
    tangent = (1 / classes - floor) ** 2 / floor - slope * floor
    others = (classes - 1) * (1 / classes - 1 / (classes - 1)) ** 2 * (classes - 1)
    assert loss.item() == pytest.approx((tangent + others) / classes, rel=1e-9)


@pytest.mark.parametrize("classes", [1000, 2000])
def test_weighted_diversity_of_many_classes_is_zero_when_uniform(classes: int) -> None:
    uniform = torch.full((2, classes), 1 / classes, dtype=torch.float64)
    assert losses.weighted_diversity_loss(uniform).item() == pytest.approx(0.0, abs=1e-12)


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
    assert losses.dfad_generator_loss(losses.l1_loss(s, t)).item() == pytest.approx(-math.log(4 / 3 + 1))


def test_class_information_loss_is_dafls_in_powers_of_ten() -> None:
    probs = some_probs()
    expected = sum(q * math.log10(q) for q in mean_row(probs))
    assert losses.class_information_loss(probs).item() == pytest.approx(expected, rel=1e-12)
    assert losses.class_information_loss(torch.full((4, C), 1 / C)).item() == pytest.approx(-math.log10(C))


def test_activation_loss_is_minus_the_mean_size() -> None:
    assert losses.activation_loss(torch.tensor([[1.0, -2.0], [0.0, 5.0]])).item() == pytest.approx(-2.0)


def test_zskt_generator_loss_is_minus_kl_over_classes() -> None:
    s, t = some_probs(sharpness=2.0), some_probs().flip(1)
    rows = [
        sum(pi * math.log(pi / qi) for pi, qi in zip(p, q, strict=True))
        for p, q in zip(t.tolist(), s.tolist(), strict=True)
    ]
    assert losses.zskt_generator_loss(s, t).item() == pytest.approx(-sum(rows) / len(rows) / C, rel=1e-9)
    assert losses.zskt_generator_loss(t, t).item() == pytest.approx(0.0, abs=1e-12)


def test_zskt_generator_loss_stays_finite_where_the_student_is_certainly_wrong() -> None:
    logits = torch.tensor([[300.0, 0.0, 0.0, 0.0, 0.0]], requires_grad=True)
    certain = torch.tensor([[0.0, 1.0, 0.0, 0.0, 0.0]])
    loss = losses.zskt_generator_loss(logits.softmax(1), certain)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


def test_decision_kl_loss_earns_only_where_both_name_the_same_class() -> None:
    student = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1]], dtype=torch.float64)
    teacher = torch.tensor([[0.8, 0.1, 0.1], [0.5, 0.2, 0.3]], dtype=torch.float64)  # the second row differs
    kl = 0.8 * math.log(0.8 / 0.6) + 0.1 * math.log(0.1 / 0.3)
    assert losses.decision_kl_loss(student, teacher).item() == pytest.approx(-kl / 2, rel=1e-9)
    assert losses.decision_kl_loss(teacher, teacher).item() == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_competition_loss_is_one_minus_the_js_divergence_of_softened_answers(temperature: float) -> None:
    generator = torch.Generator().manual_seed(2)
    s, t = (3 * torch.randn(4, C, generator=generator, dtype=torch.float64) for _ in range(2))
    total = 0.0
    for s_row, t_row in zip(s.tolist(), t.tolist(), strict=True):
        p, q = (softmax([v / temperature for v in row]) for row in (s_row, t_row))
        middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
        for side in (p, q):
            total += sum(a * math.log(a / m) for a, m in zip(side, middle, strict=True)) / 2
    ours = losses.competition_loss(torch.softmax(s, 1), torch.softmax(t, 1), temperature)
    assert ours.item() == pytest.approx(1 - total / 4, rel=1e-6)
    opposite = torch.eye(2, dtype=torch.float64)
    assert losses.competition_loss(opposite, opposite.flip(0), 1.0).item() == pytest.approx(1 - math.log(2), rel=1e-6)


def test_total_variation_sums_four_directions() -> None:
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    mean, norm = 0.0, 0.0
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        found = [
            (images[b, c, y + dy, x + dx] - images[b, c, y, x]).item()
            for b in range(2)
            for c in range(3)
            for y in range(4 - dy)
            for x in range(max(0, -dx), 5 - max(0, dx))
        ]
        mean += sum(map(abs, found)) / len(found)
        norm += math.sqrt(sum(v * v for v in found))
    assert losses.total_variation_l1(images).item() == pytest.approx(mean, rel=1e-9)
    assert losses.total_variation_l2(images).item() == pytest.approx(norm, rel=1e-9)


def test_total_variation_of_smooth_images_keeps_its_figures_in_float32() -> None:
    row = torch.linspace(0.4, 0.6, 320)  # 0.2 in 319 steps to the right and on both diagonals; none down
    found = losses.total_variation_l1(row.expand(8, 3, 320, 320).clone())
    assert found.item() == pytest.approx(3 * 0.2 / 319, rel=1e-4)


@pytest.mark.parametrize("weights", [(75.0, 0.0), (0.0, 0.5), (1.0, 0.5)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_total_variation_has_the_gradient_of_its_formula(
    weights: tuple[float, float], layout: torch.memory_format
) -> None:
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(2, 3, 6, 5, generator=generator, dtype=torch.float64).contiguous(memory_format=layout)
    images[1, :, 2:4, 2:4] = 0.5  # equal neighbours: a slope of 0
    images.requires_grad_()
    steps = [
        images[..., 1:] - images[..., :-1],
        images[..., 1:, :] - images[..., :-1, :],
        images[..., 1:, 1:] - images[..., :-1, :-1],
        images[..., 1:, :-1] - images[..., :-1, 1:],
    ]
    formula = sum(weights[0] * step.abs().mean() + weights[1] * step.square().sum().sqrt() for step in steps)
    assert isinstance(formula, torch.Tensor)
    (expected,) = torch.autograd.grad(formula, images)
    ours = weights[0] * losses.total_variation_l1(images) + weights[1] * losses.total_variation_l2(images)
    (found,) = torch.autograd.grad(ours, images)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_total_variation_of_a_row_of_pixels_is_that_of_its_one_direction() -> None:
    row = torch.tensor([0.0, 0.3, 0.1]).expand(2, 3, 1, 3)
    for images in (row, row.mT):
        assert losses.total_variation_l1(images).item() == pytest.approx((0.3 + 0.2) / 2)
        assert losses.total_variation_l2(images).item() == pytest.approx((6 * (0.09 + 0.04)) ** 0.5)
    assert losses.total_variation_l1(row[..., :1]) == losses.total_variation_l2(row[..., :1]) == 0


def test_total_variation_of_flat_images_has_no_gradient_and_no_nan() -> None:
    images = torch.full((1, 3, 8, 8), 0.3, requires_grad=True)
    values = [losses.total_variation_l1(images), losses.total_variation_l2(images)]
    assert [value.item() for value in values] == [0.0, 0.0]
    (gradient,) = torch.autograd.grad(torch.stack(values).sum(), images)
    assert torch.equal(gradient, torch.zeros_like(images))
