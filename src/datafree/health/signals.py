"""Health metrics without labels: class balance, diversity, agreement, calibration, on validation images.

B images, K features, C classes, H x W pixels, N rows (an image, a pixel or a location each). Nothing here touches a
random state: looking at a run may not change it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datafree.distributed import replicas
from datafree.networks.batchnorm import batchnorm_layers
from datafree.networks.features import last_layers
from datafree.networks.normalized import bare
from datafree.ops import modes
from datafree.ops.moments import plain_moments
from datafree.tasks.base import OutputsT, Task

AT_ONCE = 16  # images in a pass
NOISE = 16  # images of noise
CORRUPTED = 32  # images of these at most are looked at again, corrupted


@torch.no_grad()
def health_metrics(task: Task, teacher: nn.Module, student: nn.Module, images: Tensor) -> dict[str, float]:
    """The signals that `images` (B, 3, H, W) in [0, 1] give, made of the teacher or held out; B at least 1.

    held_out_class_balance, held_out_confidence, held_out_pixel_diversity: `signals` of the teacher's answers.
    held_out_feature_diversity: mean cosine distance of two images in the teacher's deepest features; 0 = all alike.
    statistics_distance: of the inputs of its BatchNorm layers from what they have kept, in standard deviations.
    agreement: of student and teacher, in [0, 1], as `Task.agreement` measures it; agreement_corrupted: the same on mild
    corruptions of these images; agreement_noise: on uniform noise.
    calibration_gap: mean probability of the class the student names, minus the fraction of rows in which the teacher
    names the same; above 0 = surer than right.
    What cannot be had is left out: features and statistics of a teacher without, diversity of a single image, agreement
    of two detectors that see nothing.
    """
    with modes.frozen(teacher, student), watched_features(teacher, images) as seen, watched_moments(teacher) as moments:
        answers = _answers(task, teacher, images)
        found = {f"held_out_{name}": float(value) for name, value in signals(task, images, answers).items()}
        if seen and len(images) > 1:
            found["held_out_feature_diversity"] = float(diversity(torch.cat(seen)))
        if moments:
            found["statistics_distance"] = statistics_distance(teacher, moments)
    with modes.frozen(teacher, student):
        ours = _answers(task, student, images)
        agreed = {"agreement": task.agreement(ours, answers)}
        found["calibration_gap"] = calibration_gap(task.class_probs(ours), task.class_probs(answers))
        noise = torch.rand(NOISE, *images.shape[1:], generator=torch.Generator().manual_seed(1)).to(images.device)
        for name, others in (("corrupted", corrupted(images[:CORRUPTED])), ("noise", noise)):
            pair = _answers(task, student, others), _answers(task, teacher, others)
            agreed[f"agreement_{name}"] = task.agreement(*pair)
    found |= {name: value for name, value in agreed.items() if value is not None}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def images_looked_at(count: int) -> int:
    """Images that each network is asked about for the metrics on `count` of them."""
    return count + min(count, CORRUPTED) + NOISE if count else 0


def _answers(task: Task[OutputsT], network: nn.Module, images: Tensor) -> OutputsT:
    return task.join([network(part) for part in torch.split(images, AT_ONCE)])


def diversity(features: Tensor) -> Tensor:
    """Scalar: mean cosine distance 1 - cos of all pairs of rows of `features` (B, K), B at least 2; in [0, 2].

    Rows of nothing but zeros are at a distance of 1 from all.
    """
    count = len(features)
    unit = F.normalize(features.double(), dim=1)
    pairs = unit.sum(0).square().sum() - unit.square().sum()  # sum of cos over ordered pairs
    return 1 - pairs / (count * (count - 1))


def calibration_gap(student: Tensor, teacher: Tensor) -> float:
    """Mean confidence of `student` (N, C) minus the fraction of rows where it names the class `teacher` (N, C) does."""
    confidence, named = student.max(1)
    return float(confidence.mean() - (named == teacher.argmax(1)).float().mean())


def corrupted(images: Tensor) -> Tensor:
    """(B, 3, H, W): mild corruptions in turn: noise of deviation 0.04, a small blur, less contrast, more light."""
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(images.shape, generator=generator).to(images.device)
    row = torch.tensor([1.0, 2.0, 1.0], device=images.device) / 4
    kernel = (row[:, None] * row).expand(images.shape[1], 1, 3, 3)
    blurred = F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), kernel, groups=images.shape[1])
    mean = images.mean((1, 2, 3), keepdim=True)
    kinds = torch.stack([images + 0.04 * noise, blurred, mean + 0.75 * (images - mean), images + 0.1])  # (4, B, ...)
    turns = torch.arange(len(images), device=images.device)
    return kinds[turns % 4, turns].clamp(0, 1)


@contextmanager
def watched_features(network: nn.Module, images: Tensor) -> Iterator[list[Tensor]]:
    """Within it, each pass of `network` appends its deepest features (B, K), averaged over their places.

    The output of the layer that ends its last stage; where there are no feature maps, what goes into its last linear
    layer. Nothing is appended where it has neither.
    """
    seen: list[Tensor] = []
    stages = list(last_layers(network, images[:1]).values())
    linear = [module for module in bare(network).modules() if isinstance(module, nn.Linear)]
    with ExitStack() as stack:
        if stages:
            layer = bare(network).get_submodule(stages[-1])
            latest: list[Tensor] = []  # an activation may be shared: its last call of a pass is what counts
            hooks = (
                layer.register_forward_hook(lambda _, __, output: latest.append(output.mean((2, 3)))),
                network.register_forward_hook(lambda *_: seen.append(replicas.collected(latest[-1]))),
                network.register_forward_hook(lambda *_: latest.clear()),
            )
            for hook in hooks:
                stack.callback(hook.remove)
        elif linear:
            stack.callback(
                linear[-1]
                .register_forward_pre_hook(lambda _, inputs: seen.append(replicas.collected(_pooled(inputs[0]))))
                .remove
            )
        yield seen


def _pooled(features: Tensor) -> Tensor:
    """(B, ..., K) -> (B, K), the mean over places."""
    return features.flatten(1, -2).mean(1) if features.ndim > 2 else features


@dataclass
class Moments:
    """The mean and the mean square of each channel of a layer's inputs over several passes."""

    count: int = 0  # images
    mean: Tensor = field(default_factory=lambda: torch.zeros(()))  # (K,)
    square: Tensor = field(default_factory=lambda: torch.zeros(()))  # (K,)

    def add(self, inputs: Tensor) -> None:
        """Count inputs (B, K, ...)."""
        mean, var = replicas.pooled(*plain_moments(inputs))
        images = replicas.images(len(inputs))
        share = images / (self.count + images)
        self.count += images
        self.mean = self.mean + share * (mean - self.mean)
        self.square = self.square + share * (var + mean.square() - self.square)


@contextmanager
def watched_moments(network: nn.Module) -> Iterator[dict[str, Moments]]:
    """Within it, passes of `network` are counted in a `Moments` for each of its BatchNorm layers that ran, by name."""
    found: dict[str, Moments] = {}

    def recorder(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda layer, inputs: found.setdefault(name, Moments()).add(inputs[0])

    with ExitStack() as stack:
        for name, layer in batchnorm_layers(bare(network)).items():
            stack.callback(layer.register_forward_pre_hook(recorder(name)).remove)
        yield found


def statistics_distance(network: nn.Module, moments: dict[str, Moments]) -> float:
    """How far the inputs of BatchNorm layers are from what these have kept, in standard deviations of the latter.

    Of a channel with mean m and deviation s against kept m', s': sqrt((m - m')^2 + (s - s')^2) / s', the Wasserstein
    distance of the two normal distributions (DeepInversion's eq. 4, arXiv 1912.08795, compares the same moments but
    grows with the network). The median over a layer's channels, since some are dead; the mean over layers.
    """
    layers = batchnorm_layers(bare(network))
    distances = []
    for name, seen in moments.items():
        mean, var = layers[name].running_mean, layers[name].running_var
        assert isinstance(mean, Tensor) and isinstance(var, Tensor)
        eps = float(getattr(layers[name], "eps", 1e-5))
        kept = (var.float() + eps).sqrt()
        now = ((seen.square - seen.mean.square()).clamp_min(0) + eps).sqrt()
        apart = ((seen.mean - mean.float()).square() + (now - kept).square()).sqrt() / kept  # (K,)
        distances.append(apart.median())
    return float(torch.stack(distances).mean())


@torch.no_grad()
def signals(task: Task, images: Tensor, outputs: Tensor) -> dict[str, Tensor]:
    """What a batch looks like, and to the teacher: detached scalars in [0, 1].

    class_balance: entropy of the classes named (hard answers), over that of all classes alike; 0 = one class only.
    confidence: mean probability of the class named.
    pixel_diversity: mean over pixels and channels of the standard deviation between images; 0 = all images alike.
    """
    probs = task.class_probs(outputs)  # (N, C)
    best, named = probs.max(1)
    shares = torch.bincount(named, minlength=probs.shape[1]).float() / len(named)
    entropy = -(shares * shares.clamp_min(1e-12).log()).sum()
    spread = images.float().std(0, correction=0).mean() if len(images) > 1 else images.new_zeros(())
    classes = probs.shape[1]
    balance = entropy / math.log(classes) if classes > 1 else torch.ones_like(entropy)  # one class: nothing to tell
    return {"class_balance": balance, "confidence": best.mean(), "pixel_diversity": spread}
