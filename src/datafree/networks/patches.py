"""The patch-similarity prior: how varied the patches of an image are in a transformer's attention layers.

Li et al., "Patch Similarity Aware Data-Free Quantization for Vision Transformers", ECCV 2022, arXiv 2203.02250: an
attention layer of a trained ViT tells objects from background, so that the cosine similarities of the patches in its
answer are spread widely, and to noise alike. H = -integral of f log f, f the density of these similarities by Gaussian
kernels, is high for photographs and low for noise.

B images (of windowed attention: windows), N patches, D features, M = N (N - 1) / 2 pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datafree.distributed import replicas
from datafree.networks.normalized import bare
from datafree.ops.upload import uploaded

BANDWIDTH = 0.1  # of the kernels; the paper states none
CELLS = 128  # of a width of 1/64, a sixth of the bandwidth
_TAIL = 4.0  # bandwidths beyond -1 and 1 to which the integral goes


def attention_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Name -> layer, in the order of the network's definition: modules of a class called ...Attention, the outermost.

    So are they called in torch, torchvision, timm and transformers.
    """
    found: dict[str, nn.Module] = {}
    for name, module in network.named_modules():
        if type(module).__name__.endswith("Attention") and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = module
    return found


def similarity_entropy(tokens: Tensor) -> Tensor:
    """(B,) the differential entropy H of the patches' similarities. `tokens`: (B, N, D), N at least 2.

    Pairs of different patches alone. Similarities are shared out linearly among the two nearest of CELLS + 1 places in
    [-1, 1], whose kernels then count for all: M numbers an image are kept in place of M times the places.
    """
    unit = F.normalize(tokens.float(), dim=2)
    one, other = torch.triu_indices(tokens.shape[1], tokens.shape[1], 1, device=tokens.device)
    similar = (unit @ unit.mT)[:, one, other].clamp(-1, 1)  # (B, M)
    place = (similar + 1) * (CELLS / 2)
    left = place.detach().floor().long().clamp_max(CELLS - 1)
    share = place - left
    counts = similar.new_zeros(len(tokens), CELLS + 1)
    counts = counts.scatter_add(1, left, 1 - share).scatter_add(1, left + 1, share)
    kernels, width = _kernels()
    density = (counts / similar.shape[1]) @ uploaded(kernels, similar.device)  # (B, points)
    return -torch.trapezoid(density * (density + 1e-12).log(), dx=width)


@cache
def _kernels() -> tuple[Tensor, float]:
    """(places, points) Gaussians about each place, where the density is taken; and the distance of two points."""
    edge = 1 + _TAIL * BANDWIDTH
    points = torch.linspace(-edge, edge, 2 * CELLS + 1)
    # Sharing out a number among two places widens its kernel by a sixth of their distance squared, on average.
    width = math.sqrt(BANDWIDTH**2 - (2 / CELLS) ** 2 / 6)
    apart = (points - torch.linspace(-1, 1, CELLS + 1)[:, None]) / width
    kernels = (-apart.square() / 2).exp() / (width * math.sqrt(2 * math.pi))
    return kernels, float(points[1] - points[0])


@dataclass(kw_only=True)
class PatchEntropy:
    """Watches a network's attention layers and says how varied the patches are in what they answer.

        patches = PatchEntropy(network=teacher)
        with patches.watching():
            teacher(images)
        loss = -patches.entropy()

    A layer that answers something else than (B, N, D), such as maps or one number a channel, does not count. A class
    token counts as a patch.
    """

    network: nn.Module
    layers: dict[str, nn.Module] = field(init=False)

    def __post_init__(self) -> None:
        self.layers = attention_layers(bare(self.network))
        self._seen: dict[str, Tensor] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within it, a forward pass of the network records its layers' entropies."""
        self._seen = {}
        handles = [layer.register_forward_hook(self._recorder(name)) for name, layer in self.layers.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _recorder(self, name: str) -> Callable[[nn.Module, object, object], None]:
        def record(layer: nn.Module, inputs: object, answer: Any) -> None:
            tokens = answer[0] if isinstance(answer, tuple) and answer else answer
            if not isinstance(tokens, Tensor) or tokens.ndim != 3:
                return
            tokens = tokens if getattr(layer, "batch_first", True) else tokens.transpose(0, 1)
            if tokens.shape[1] < 2:
                return
            entropies = similarity_entropy(tokens)
            self._seen[name] = entropies
            replicas.at_end(lambda: self._seen.update({name: replicas.collected(entropies)}))

        return record

    @property
    def count(self) -> int:
        """How many layers counted in the pass just watched."""
        return len(self._seen)

    def entropy(self) -> Tensor:
        """The scalar sum over layers of the mean entropy in the pass just watched; zero where no layer counts."""
        return torch.stack([each.mean() for each in self._seen.values()]).sum() if self._seen else torch.zeros(())
