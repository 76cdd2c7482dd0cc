"""Checks of generated images: AP50 of detectors on them, DIODE's own measure, and whether they are still noise.

B images, M rows of targets, H x W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from datafree.errors import NetworkError
from datafree.networks.load import NetworkSpec, build_network, has_weights
from datafree.ops import losses
from datafree.sources.base import SourceContext
from datafree.tasks.base import synthetic_batch
from datafree.tasks.detection import Detection


def build_verifier(spec: NetworkSpec, task: Detection, context: SourceContext) -> nn.Module:
    """A second detector, on the run's device and frozen, that has no part in making images.

    Building it leaves torch's random state as it is, so that images are the same with it and without.
    Raises NetworkError if it has no weights, cannot take the task's images or answers in another form or other classes.
    """
    what = f"verifier {spec.network}"
    if not has_weights(spec):
        raise NetworkError(f"the {what} has no weights, so it can verify nothing; give source.verifier.weights=FILE")
    with torch.random.fork_rng(devices=[]):
        network = spec.wrap(build_network(spec, num_classes=task.num_classes), context.dtype)
    context.speed.laid_out(network.to(context.device))
    network.eval().requires_grad_(False)
    task.check(first_answer(network, task.image_size, context.device, what), what)
    return network


@torch.no_grad()
def first_answer(network: nn.Module, size: tuple[int, int], device: torch.device, what: str) -> object:
    """What a network called `what` says of images of `size` (height, width). Raises NetworkError if it takes none."""
    try:
        return network(synthetic_batch(size, device))
    except (NetworkError, RuntimeError, ValueError, IndexError, TypeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise NetworkError(f"the {what} cannot take images of {size[0]} x {size[1]} pixels: {reason}") from error


@torch.no_grad()
def ap50(network: nn.Module, task: Detection, images: Tensor, targets: Tensor) -> Tensor:
    """AP50, a scalar, of what a detector finds in images (B, 3, H, W) against their boxes (B, M, 5), one or more."""
    metric = task.new_metric()
    for part, truth in zip(torch.split(images, 32), torch.split(targets, 32), strict=True):
        metric.update(network(part), truth)
    return torch.tensor(metric.compute().values["ap50"])


def still_noise(noise: Tensor, images: Tensor, tv_l1_weight: float) -> str:
    """A line, early, on what else is only seen in the pictures: images (B, 3, H, W) with much of their first noise."""
    began, ended = (float(losses.total_variation_l1(x)) for x in (noise, images))
    if not ended > began / 2:  # where all is well it is a tenth; NaN is for others to tell
        return ""
    return (
        f"after the first stage the images are still noise (total variation {ended:.2g}; it began at {began:.2g}), "
        f"of which a student learns little; raise source.tv_l1_weight={tv_l1_weight:g} to "
        f"{max(10 * tv_l1_weight, 100):g} or more, or the stage's first_bn_weight or iterations"
    )
