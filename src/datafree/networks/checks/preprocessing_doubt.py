"""Whether a teacher is given images as it was trained on them: what speaks against its mean and std.

Against them speak its library's or its directory's own word, and its first BatchNorm, if images in [0, 1] could not
have given what that has seen.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from datafree.networks.first_input import Three, distance, implied
from datafree.networks.instances import is_live
from datafree.networks.load import NetworkSpec, has_weights
from datafree.networks.normalized import Normalized
from datafree.networks.preprocessing import Preprocessing, known, suggested

_NO_NORMALISATION = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # what NetworkSpec has by default
_SPREADS = (0.1, 0.5)  # of the pixels of any images in [0, 1], even dark ones; 0.5 is the most there can be


def doubt(spec: NetworkSpec, network: Normalized, size: tuple[int, int]) -> str:
    """What speaks against the mean and std that `network` is run with, and the values to set; "" if nothing.

    `size` (height, width) is one that the bare network takes. Draws no random number.
    """
    if not has_weights(spec):
        return ""
    suggestion = suggested(network.network, _ramp(spec.channels, size, network.mean.device))
    seen, given = suggestion.seen, (spec.mean, spec.std)
    if seen is not None and distance(seen, *given) <= 1:
        return ""
    said = None if is_live(spec.network) else known(spec)
    if said is not None and not _close((said.mean, said.std), given):
        fits = seen is not None and distance(seen, said.mean, said.std) <= 1
        # A file of one's own may have been trained otherwise: then only a default is doubted, or with evidence.
        if spec.weights is None or fits or (seen is None and given == _NO_NORMALISATION):
            return f"{_fed(given)}, but {said.origin} has others: {_way(said)}"
    if seen is None:
        return ""
    level, spread = implied(seen, *given)
    if 0 <= level <= 1 and _SPREADS[0] < spread <= _SPREADS[1]:
        return ""
    what = f"by which its first BatchNorm saw images of mean {level:.2g} and spread {spread:.2g}, unlike any in [0, 1]"
    found = suggestion.preprocessing
    return f"{_fed(given)}, {what}: {'set its own mean and std' if found is None else _way(found)}"


def _ramp(channels: int, size: tuple[int, int], device: torch.device) -> Tensor:
    """(1, channels, height, width) smooth values; draws no random number."""
    return torch.linspace(0, 1, size[1], device=device).expand(1, channels, *size).contiguous()


def _close(one: tuple[Three, Three], other: tuple[Three, Three]) -> bool:
    pairs = zip((*one[0], *one[1]), (*other[0], *other[1]), strict=True)
    return all(math.isclose(a, b, rel_tol=0.02, abs_tol=0.01) for a, b in pairs)


def _fed(given: tuple[Three, Three]) -> str:
    default = ", the defaults" if given == _NO_NORMALISATION else ""
    return f"it is given mean {_list(given[0])} and std {_list(given[1])}{default}"


def _way(said: Preprocessing) -> str:
    return f"set teacher.mean={_list(said.mean)} and teacher.std={_list(said.std)}"


def _list(values: Three) -> str:
    return f"[{', '.join(f'{value:.4g}' for value in values)}]"
