"""Losses: plain functions, tensors in, a scalar out. Equation numbers are those of arXiv 2011.00809
(Bhogale, DeGAN for segmentation) unless another source is named.

B images, C classes, N rows (an image, a pixel or a location each).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from datafree.ops.whole_batch import parts, whole_mean, whole_norm


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """L_D = -E_x log D(x) - E_z log(1 - D(G(z))), eq. 1. `real`, `fake`: D's logits, any shape."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """L_adv = -E_z log D(G(z)), the non-saturating form, eq. 2. `fake`: D's logits, any shape."""
    return F.softplus(-fake).mean()


def entropy_loss(probs: Tensor) -> Tensor:
    """L_ent = mean over rows of -sum_c p log(p + 1e-5), eq. 3: low where the teacher is sure. `probs`: (N, C)."""
    return -(probs * (probs + 1e-5).log()).sum(1).mean()


def diversity_loss(probs: Tensor) -> Tensor:
    """L_div = sum_c q_c log q_c with q the mean row, eq. 4: minus the entropy of the average answer.

    `probs`: (N, C). Lowest, -log C, when all classes are equally frequent.
    """
    q = whole_mean(probs.mean(0))
    return (q * q.clamp_min(1e-8).log()).sum()


def weighted_diversity_loss(probs: Tensor, floor: float = 1e-3) -> Tensor:
    """L_wdiv = (1/C) sum_c (1/C - q_c)^2 / q_c with q the mean row, eq. 5. `probs`: (N, C).

    The squared distance to the uniform distribution, each class weighted by how rare it is *in this batch*;
    gradients flow through the weight too. It equals chi-squared(uniform || q) / C: zero only when uniform, and
    unbounded as a class vanishes. The public code has no guard; here q is kept above `floor`, below which
    the slope stays that at `floor` (clamping would give a vanished class no gradient at all). The slope is 0 at the
    uniform share 1/C, so that from 250 classes on the floor is a quarter of that.
    """
    q = whole_mean(probs.mean(0))
    uniform = 1.0 / q.numel()
    floor = min(floor, uniform / 4)
    safe = q.clamp_min(floor)
    slope = (1 - (uniform / floor) ** 2) * (q - safe)  # the tangent at `floor`: zero where q >= floor
    return ((uniform - safe) ** 2 / safe + slope).mean()


def kl_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """L_KD = T^2 * mean over positions of KL(teacher || student), eq. 10. Logits (B, C, ...), same shape.

    T^2 keeps the gradient's size independent of the temperature (Hinton et al., arXiv 1503.02531); the paper has T = 1.
    """
    return kl_rows(student, teacher, temperature).mean()


def kl_rows(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """The terms of `kl_loss`, one for each position: logits (B, C, ...) -> (B, ...)."""
    log_s = F.log_softmax(student.float() / temperature, 1)
    log_t = F.log_softmax(teacher.float() / temperature, 1)
    return (log_t.exp() * (log_t - log_s)).sum(1) * temperature**2


def heads_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Sum over heads of the mean squared difference of their raw tensors: DIODE's student loss (its public code).

    Raw: before any sigmoid or exponential; every cell, anchor and channel counts alike. Same shapes, pair by pair.
    """
    return torch.stack(
        [F.mse_loss(ours.float(), theirs.float()) for ours, theirs in zip(student, teacher, strict=True)]
    ).sum()


def zscore_kl_loss(student: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """`kl_loss` of standardised logits: each row less its mean, over its standard deviation. Logits (B, C, ...).

    Sun et al., arXiv 2403.01427 (CVPR 2024), eq. 9, with the unbiased deviation of its code: the student need not learn
    the size of the teacher's logits, only their pattern. Published with T = 2 and weight 9.
    """
    return kl_loss(standardised(student), standardised(teacher), temperature)


def standardised(logits: Tensor) -> Tensor:
    """Logits (B, C, ...) less their mean over C, over their standard deviation; equal ones are all 0."""
    logits = logits.float()
    spread = logits.var(1, keepdim=True) + 1e-14  # under the root, which has no finite slope at 0
    return (logits - logits.mean(1, keepdim=True)) * spread.rsqrt()


def binary_kl_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 * mean over images and classes of KL(teacher || student) of each class's yes and no. Logits (B, C).

    Binary cross-entropy with the teacher's probabilities as soft labels, less its least value: 0 for equal logits.
    """
    ours, theirs = student.float() / temperature, teacher.float() / temperature
    soft = theirs.sigmoid()
    least = F.binary_cross_entropy_with_logits(theirs, soft)
    return (F.binary_cross_entropy_with_logits(ours, soft) - least) * temperature**2


def mse_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """mean (s - t)^2 over all logits (Kim et al., arXiv 2105.08919, eq. 4, a mean in place of the sum). Same shapes."""
    return F.mse_loss(student.float(), teacher.float())


def logits_loss(kind: str, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The distillation loss of that name on logits (B, C, ...): "kl", "zscore", "mse" or "l1"."""
    if kind == "l1":
        return l1_loss(student, teacher)
    if kind == "mse":
        return mse_loss(student, teacher)
    return (zscore_kl_loss if kind == "zscore" else kl_loss)(student, teacher, temperature)


def l1_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """mean |s - t| over all logits: DFAD's student loss (Fang et al., arXiv 1912.11006). Same shapes."""
    return (student.float() - teacher.float()).abs().mean()


def dfad_generator_loss(disagreement: Tensor) -> Tensor:
    """-log(mean |s - t| + 1), from that mean: DFAD's generator looks for disagreement (arXiv 1912.11006).

    The logarithm is the one of the public segmentation code: it flattens the reward as
    the disagreement grows, so that the generator does not run away.
    """
    return -torch.log1p(whole_mean(disagreement))


def js_divergence(first: Tensor, second: Tensor) -> Tensor:
    """(N,) Jensen-Shannon divergence of rows of probabilities (N, C): between 0 and log 2, symmetric."""
    middle = ((first + second) / 2).clamp_min(1e-8).log()
    rows = first * (first.clamp_min(1e-8).log() - middle) + second * (second.clamp_min(1e-8).log() - middle)
    return rows.sum(1) / 2


def decision_adversarial_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """-mean over rows of JS(student, teacher) where both still name the same class: seek disagreement, within bounds.

    Rows of probabilities (N, C). The mask is Fast-DFKD's (Fang et al., arXiv 2112.15278): a row on which they already
    differ earns nothing more, so that the generator cannot run away with nonsense.
    """
    agree = student.argmax(1) == teacher.argmax(1)
    return -(js_divergence(student, teacher) * agree).mean()


def decision_kl_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """-mean over rows of KL(teacher || student) where both still name the same class. Rows of probabilities (N, C).

    The adversarial term of CMI and Fast-DFKD as their code has it (arXiv 2105.08584, 2112.15278); unlike
    `decision_adversarial_loss` a row may earn without bound, as long as the student names its class.
    """
    agree = student.argmax(1) == teacher.argmax(1)
    rows = teacher * (teacher.clamp_min(1e-8).log() - student.clamp_min(1e-8).log())
    return -(rows.sum(1) * agree).mean()


def competition_loss(student: Tensor, teacher: Tensor, temperature: float = 3.0) -> Tensor:
    """1 - mean over rows of JS(student, teacher): Adaptive DeepInversion's term (arXiv 1912.08795, eq. 7 and 8).

    Rows of probabilities (N, C), softened to p^(1/T) / sum p^(1/T), which is a softmax at that temperature. Between
    1 - log 2 and 1.
    """
    soft = [F.softmax(probs.clamp_min(1e-30).log() / temperature, 1) for probs in (student, teacher)]
    return 1 - js_divergence(*soft).mean()


def total_variation_l1(images: Tensor) -> Tensor:
    """How rough images (B, 3, H, W) are: the mean |difference| of neighbours, summed over four directions.

    Right, down and both diagonals, as in DeepInversion's and DIODE's code. No double backward.
    """
    value: Tensor = _VariationL1.apply(images)
    return value


def total_variation_l2(images: Tensor) -> Tensor:
    """The same with the 2-norm of all differences of a direction in place of their mean."""
    value: Tensor = _VariationL2.apply(images)
    return value


class _Variation(torch.autograd.Function):
    """A value whose gradient is made with it; autograd would fill a whole image for each of eight slices."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        gradient: Tensor = ctx.saved_tensors[0]
        return gradient * grad


class _VariationL1(_Variation):
    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        gradient = torch.zeros_like(images)
        for (one, other), (to_one, to_other) in zip(_neighbours(images), _neighbours(gradient), strict=True):
            sign = (one - other).sign_()
            share = 1 / max(1, sign.numel())  # of an image one pixel high or wide there may be no neighbours
            to_one.add_(sign, alpha=share)
            to_other.sub_(sign, alpha=share)
        ctx.save_for_backward(gradient)
        return (images * gradient).sum()  # |d| is d times its sign: no second look at the differences


class _VariationL2(_Variation):
    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        gradient, norms = torch.zeros_like(images), []
        for (one, other), (to_one, to_other) in zip(_neighbours(images), _neighbours(gradient), strict=True):
            step = one - other
            norm = whole_norm(torch.linalg.vector_norm(step))
            step *= torch.where(norm > 0, parts() / norm, 0.0)
            to_one += step
            to_other -= step
            norms.append(norm)
        ctx.save_for_backward(gradient)
        return torch.stack(norms).sum()


def _neighbours(images: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    """Views of a pixel's neighbours right, down and on both diagonals, each with those of the pixel itself."""
    return (
        (images[..., :, 1:], images[..., :, :-1]),
        (images[..., 1:, :], images[..., :-1, :]),
        (images[..., 1:, 1:], images[..., :-1, :-1]),
        (images[..., 1:, :-1], images[..., :-1, 1:]),
    )


def class_information_loss(probs: Tensor) -> Tensor:
    """sum_c q_c log10 q_c with q the mean row: DAFL's information entropy (arXiv 1904.01186), -log10 C when balanced.

    `diversity_loss` in powers of ten, as DAFL's public code has it: only so does its weight mean the same. Rows (N, C).
    """
    return diversity_loss(probs) / math.log(10)


def activation_loss(features: Tensor) -> Tensor:
    """-mean |f|: strong activations, as training images give (DAFL, arXiv 1904.01186). Features of any shape."""
    return -features.float().abs().mean()


def zskt_generator_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """-KL(teacher || student), mean over rows and classes: ZSKT's generator (arXiv 1905.09768). Rows (N, C).

    The public code takes the mean over classes too; it matters where the gradient is clipped.
    """
    return -(teacher * (teacher.clamp_min(1e-30).log() - student.clamp_min(1e-30).log())).mean()
