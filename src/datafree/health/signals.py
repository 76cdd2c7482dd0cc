"""Health metrics without labels: class balance, diversity, agreement, calibration, on validation images.

B images, K features, C classes, H x W pixels, N rows (an image, a pixel or a location each). Nothing here touches a
random state: looking at a run may not change it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from datafree.distributed import replicas
from datafree.networks.batchnorm import batchnorm_layers
from datafree.networks.features import last_layers
from datafree.networks.normalized import bare
from datafree.ops import modes
from datafree.ops.moments import plain_moments
from datafree.tasks.base import OutputsT, Task

LookT = TypeVar("LookT")

AT_ONCE = 16  # images in a pass
NUMBERS = 2**26  # in the maps that a pass answers, unless one image has more: 256 MiB in float32
NOISE = 16  # images of noise
CORRUPTED = 32  # images of these at most are looked at again, corrupted


@torch.no_grad()
def health_metrics(task: Task[OutputsT], teacher: nn.Module, student: nn.Module, images: Tensor) -> dict[str, float]:
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

    Memory: of a dense task both networks' maps of one pass (`NUMBERS`) are held at a time, and kept of a pixel its
    class and probability; agreement is then the mean over images. Of other tasks the answers to all images are held.
    """

    def agreement(theirs: OutputsT, ours: OutputsT) -> float | None:
        return task.agreement(ours, theirs)

    def all_of(theirs: OutputsT, ours: OutputsT) -> tuple[Rows, Rows, float | None]:
        return rows(task.class_probs(theirs)), rows(task.class_probs(ours)), agreement(theirs, ours)

    with modes.frozen(teacher, student):
        inside = Inside(teacher, images)
        parts = looked(task, teacher, student, images, all_of, inside.watched)
        theirs, ours = _joined([look[0] for look, _ in parts]), _joined([look[1] for look, _ in parts])
        found = {f"held_out_{name}": float(value) for name, value in _signals(images, theirs).items()}
        if inside.features and len(images) > 1:
            found["held_out_feature_diversity"] = float(diversity(torch.cat(inside.features)))
        if inside.moments:
            found["statistics_distance"] = statistics_distance(teacher, inside.moments)
        found["calibration_gap"] = calibration_gap(ours, theirs)
        agreed = {"agreement": _mean((look[2], count) for look, count in parts)}
        noise = torch.rand(NOISE, *images.shape[1:], generator=torch.Generator().manual_seed(1)).to(images.device)
        for name, others in (("corrupted", corrupted(images[:CORRUPTED])), ("noise", noise)):
            agreed[f"agreement_{name}"] = _mean(looked(task, teacher, student, others, agreement))
    found |= {name: value for name, value in agreed.items() if value is not None}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def images_looked_at(count: int) -> int:
    """Images that each network is asked about for the metrics on `count` of them."""
    return count + min(count, CORRUPTED) + NOISE if count else 0


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What a network names in the rows of its answers."""

    named: Tensor  # (N,) the likeliest class
    confidence: Tensor  # (N,) its probability
    classes: int  # C


def rows(probs: Tensor) -> Rows:
    """The rows of probabilities (N, C)."""
    confidence, named = probs.max(1)
    return Rows(named=named, confidence=confidence, classes=probs.shape[1])


def looked(
    task: Task[OutputsT],
    teacher: nn.Module,
    student: nn.Module,
    images: Tensor,
    look: Callable[[OutputsT, OutputsT], LookT],
    watched: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> list[tuple[LookT, int]]:
    """What `look` makes of the teacher's and the student's answers to images (B, 3, H, W), and to how many of these.

    To all at once; of a dense task to those of a pass, which are then dropped. The teacher passes within `watched`.
    """
    passes = torch.split(images, in_a_pass(task, images[0, 0].numel()))
    found = []
    for group in [[part] for part in passes] if task.dense else [passes]:
        with watched():
            theirs = task.join([teacher(part) for part in group])
        ours = task.join([student(part) for part in group])
        found.append((look(theirs, ours), sum(map(len, group))))
        del theirs, ours  # before there are others
    return found


def in_a_pass(task: Task[OutputsT], pixels: int) -> int:
    """Images, of so many pixels, that are answered at once."""
    return min(AT_ONCE, max(1, NUMBERS // (task.num_classes * pixels))) if task.dense else AT_ONCE


def _joined(parts: Sequence[Rows]) -> Rows:
    return Rows(
        named=torch.cat([part.named for part in parts]),
        confidence=torch.cat([part.confidence for part in parts]),
        classes=parts[0].classes,
    )


def _mean(shares: Iterable[tuple[float | None, int]]) -> float | None:
    """The mean over images of shares, each with its number of images; None where all are."""
    mean, count = None, 0
    for share, images in shares:
        if share is not None:
            count += images
            mean = share if mean is None else mean + images / count * (share - mean)  # of equal shares, that share
    return mean


def diversity(features: Tensor) -> Tensor:
    """Scalar: mean cosine distance 1 - cos of all pairs of rows of `features` (B, K), B at least 2; in [0, 2].

    Rows of nothing but zeros are at a distance of 1 from all.
    """
    count = len(features)
    unit = F.normalize(features.double(), dim=1)
    pairs = unit.sum(0).square().sum() - unit.square().sum()  # sum of cos over ordered pairs
    return 1 - pairs / (count * (count - 1))


def calibration_gap(student: Rows, teacher: Rows) -> float:
    """Mean confidence of the student minus the fraction of rows in which it names the class that the teacher does."""
    return float(student.confidence.mean() - (student.named == teacher.named).float().mean())


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


class Inside:
    """What is seen inside a network in the passes that are watched.

    features: of each pass the deepest, (B, K), averaged over their places: the output of the layer that ends its last
    stage; where there are no feature maps, what goes into its last linear layer; none where it has neither.
    moments: of the inputs of each of its BatchNorm layers that ran, by name.
    """

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        self.features: list[Tensor] = []
        self.moments: dict[str, Moments] = {}
        self._network = network
        self._stages = list(last_layers(network, images[:1]).values())

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within it, passes of the network are watched."""
        with ExitStack() as stack:
            for hook in (*self._feature_hooks(), *self._moment_hooks()):
                stack.callback(hook.remove)
            yield

    def _feature_hooks(self) -> Iterator[RemovableHandle]:
        linear = [module for module in bare(self._network).modules() if isinstance(module, nn.Linear)]
        if self._stages:
            layer = bare(self._network).get_submodule(self._stages[-1])
            latest: list[Tensor] = []  # an activation may be shared: its last call of a pass is what counts
            yield layer.register_forward_hook(lambda _, __, output: latest.append(output.mean((2, 3))))
            yield self._network.register_forward_hook(lambda *_: self._keep(latest[-1]))
            yield self._network.register_forward_hook(lambda *_: latest.clear())
        elif linear:
            yield linear[-1].register_forward_pre_hook(lambda _, inputs: self._keep(_pooled(inputs[0])))

    def _keep(self, features: Tensor) -> None:
        self.features.append(replicas.collected(features))

    def _moment_hooks(self) -> Iterator[RemovableHandle]:
        for name, layer in batchnorm_layers(bare(self._network)).items():
            yield layer.register_forward_pre_hook(self._counted(name))

    def _counted(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda layer, inputs: self.moments.setdefault(name, Moments()).add(inputs[0])


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
def signals(task: Task[OutputsT], images: Tensor, outputs: OutputsT) -> dict[str, Tensor]:
    """What a batch looks like, and to the teacher: detached scalars in [0, 1].

    class_balance: entropy of the classes named (hard answers), over the highest that so many rows can have, log C or
    log N; 0 = one class only.
    confidence: mean probability of the class named.
    pixel_diversity: mean over pixels and channels of the standard deviation between images; 0 = all images alike.
    """
    return _signals(images, rows(task.class_probs(outputs)))


def _signals(images: Tensor, seen: Rows) -> dict[str, Tensor]:
    shares = torch.bincount(seen.named, minlength=seen.classes).float() / len(seen.named)
    entropy = 0.0 - (shares * shares.clamp_min(1e-12).log()).sum()  # of one class 0, not -0
    spread = images.float().std(0, correction=0).mean() if len(images) > 1 else images.new_zeros(())
    most = min(seen.classes, len(seen.named))  # different classes that could be named
    balance = entropy / math.log(most) if most > 1 else torch.ones_like(entropy)  # one: nothing to tell
    return {"class_balance": balance, "confidence": seen.confidence.mean(), "pixel_diversity": spread}
