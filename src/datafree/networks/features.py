"""Intermediate features: outputs of named layers, attention maps, pairs of layers of two networks.

B images, K channels, H x W pixels, h x w cells of a feature map.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datafree.distributed import replicas
from datafree.errors import NetworkError
from datafree.networks.normalized import bare, detector_of
from datafree.ops import modes


@contextmanager
def watched(network: nn.Module, layers: Iterable[str], what: str = "network") -> Iterator[dict[str, Tensor]]:
    """Within it, a forward pass of `network` fills the dict: layer name -> its output (of the latest pass).

    An output that the network then changes in place (by a ReLU behind it) is seen as changed.
    Raises NetworkError for a layer that `network`, called `what`, has not.
    """
    outputs: dict[str, Tensor] = {}
    names = list(layers)
    modules = dict(network.named_modules()) if names else {}
    handles = []
    try:
        for name in names:
            if name not in modules:
                near = difflib.get_close_matches(name, modules, n=3) or list(modules)[1:6]
                raise NetworkError(f"there is no layer {name!r} in the {what}; did you mean {', '.join(near)}?")
            handles.append(modules[name].register_forward_hook(_recorder(name, outputs)))
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _recorder(name: str, outputs: dict[str, Tensor]) -> Callable[[nn.Module, object, object], None]:
    def record(layer: nn.Module, inputs: object, output: object) -> None:
        if not isinstance(output, Tensor):
            raise NetworkError(
                f"the layer {name!r} answers a {type(output).__name__}, not a tensor; name another layer"
            )
        outputs[name] = output
        replicas.at_end(lambda: outputs.update({name: replicas.collected(output)}))

    return record


def attention_map(features: Tensor) -> Tensor:
    """(B, K, h, w) -> (B, h*w): where the energy is; mean over channels of the squares, brought to length 1.

    Zagoruyko and Komodakis, "Paying more attention to attention", arXiv 1612.03928, section 3.1.
    """
    return F.normalize(features.float().square().mean(1).flatten(1), dim=1)


def attention_loss(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], pairs: Mapping[str, str]) -> Tensor:
    """Sum over pairs (teacher layer -> student layer) of the mean squared difference of their attention maps.

    arXiv 1612.03928, eq. 2 in its public code's form. A student's map of another size is brought to the teacher's.
    """
    total = torch.zeros((), device=next(iter(teacher.values())).device)
    for theirs, ours in pairs.items():
        target, features = teacher[theirs], student[ours]
        energy = features.float().square().mean(1, keepdim=True)
        if energy.shape[-2:] != target.shape[-2:]:
            energy = F.interpolate(energy, size=target.shape[-2:], mode="bilinear", align_corners=False)
        total = total + (F.normalize(energy.flatten(1), dim=1) - attention_map(target)).square().mean()
    return total


@torch.no_grad()
def last_layers(network: nn.Module, images: Tensor) -> dict[tuple[int, int], str]:
    """(h, w) -> the bare network's layer that ends its stage of that size: the last with such a map in a forward pass.

    Largest maps first. Of a layer that is called several times the last call counts, as in `watched`. One inside a
    module that brings the next smaller size, such as the first block of the next stage, counts only where no layer
    before that module has the size. Left out: maps of a single cell, those not of the images' shape (a transformer's
    tokens), what an adaptive pooling enlarged, and what ends in class maps, whether they are the answer or are pooled
    to it: logits are no features, in whatever size, nor are a detector's heads.
    """
    height, width = images.shape[-2:]
    maps: dict[str, torch.Size] = {}  # layer -> its map (B, K, h, w), in the order of their last calls
    enlarged: set[torch.Size] = set()
    map_is_last = False  # of the layers with weights, the last one answers a map

    def recorder(name: str) -> Callable[[nn.Module, tuple[object, ...], object], None]:
        def record(layer: nn.Module, inputs: tuple[object, ...], output: object) -> None:
            nonlocal map_is_last
            maps.pop(name, None)
            is_map = isinstance(output, Tensor) and output.ndim == 4
            if any(parameter.ndim > 1 for parameter in layer.parameters(recurse=False)):  # not those of a norm
                map_is_last = is_map
            if not isinstance(output, Tensor) or not is_map:
                return
            h, w = size = output.shape[2:]
            if isinstance(layer, (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)) and _enlarges(inputs, output):
                enlarged.add(size)
            if size not in enlarged and abs(h * width - w * height) <= 2 * max(height, width):  # but for rounding
                maps[name] = output.shape

        return record

    detector = detector_of(network)
    within = f"{detector.backbone}." if detector is not None and detector.backbone else ""
    modules = [(name, m) for name, m in bare(network).named_modules() if name and name.startswith(within)]
    handles = [module.register_forward_hook(recorder(name)) for name, module in modules]
    try:
        with modes.frozen(network):
            answer = network(images)
    finally:
        for handle in handles:
            handle.remove()
    steps = _steps_around(maps)
    while maps and isinstance(answer, Tensor) and (answer.ndim == 4 or map_is_last):
        name, shape = maps.popitem()
        if shape[1] != answer.shape[1]:
            maps[name] = shape
            break
    found: dict[tuple[int, int], str] = {}
    for name, (_, _, h, w) in maps.items():
        before = found.get((h, w), name)
        if (h, w) != (1, 1) and all(before.startswith(step) for step in steps[name]):
            found[h, w] = name
    return dict(sorted(found.items(), reverse=True))


def _enlarges(inputs: tuple[object, ...], output: Tensor) -> bool:
    """Whether the first of `inputs` is a map (B, K, h, w) of fewer cells than `output`."""
    return bool(inputs) and isinstance(inputs[0], Tensor) and inputs[0].shape[2:].numel() < output.shape[2:].numel()


def _steps_around(maps: Mapping[str, torch.Size]) -> dict[str, list[str]]:
    """Layer -> those modules around it, as "name.", that bring the next size below its own.

    A module with sizes in between is none of them: it holds several stages, in which each has an end.
    """
    cells = {name: shape[2:].numel() for name, shape in maps.items()}
    around = {name: [name[:i] for i, letter in enumerate(name) if letter == "."] for name in maps}
    inside: dict[str, set[int]] = {}
    for name, modules in around.items():
        for module in modules:
            inside.setdefault(module, set()).add(cells[name])
    return {
        name: [
            f"{module}."
            for module in modules
            if cells.get(module, cells[name]) < cells[name]
            and not any(cells[module] < between < cells[name] for between in inside[module])
        ]
        for name, modules in around.items()
    }


def pair_layers(teacher: nn.Module, student: nn.Module, images: Tensor, most: int = 3) -> dict[str, str]:
    """Teacher layer -> student layer: the ends of their stages of equal size, from the deepest, at most `most`.

    Fits networks that halve the size stage by stage, which most do. Raises NetworkError if no size is common.
    """
    theirs, ours = last_layers(teacher, images), last_layers(student, images)
    common = [size for size in sorted(theirs) if size in ours][:most]
    if not common:
        raise NetworkError(
            f"teacher and student have no feature maps of equal size ({_sizes(theirs)}; {_sizes(ours)}); name the "
            "layers with training.attention_layers={teacher layer: student layer}, or set training.attention_weight=0"
        )
    return {theirs[size]: ours[size] for size in common}


def chosen_pairs(teacher: nn.Module, student: nn.Module, images: Tensor, named: Mapping[str, str]) -> dict[str, str]:
    """Teacher layer -> student layer as the user has `named` them, or by `pair_layers` where none are.

    Raises NetworkError for a layer that is not there or answers no feature map.
    """
    if not named:
        return pair_layers(teacher, student, images)
    for what, network, layers in (("teacher", teacher, list(named)), ("student", student, list(named.values()))):
        with torch.no_grad(), modes.frozen(network), watched(bare(network), layers, what) as maps:
            network(images)
        for name in layers:
            if name not in maps or maps[name].ndim != 4:
                raise NetworkError(
                    f"the {what}'s layer {name!r} of training.attention_layers answers no feature map (B, K, h, w)"
                )
    return dict(named)


def _sizes(layers: Mapping[tuple[int, int], str]) -> str:
    return ", ".join(f"{h} x {w}" for h, w in layers) or "none"
