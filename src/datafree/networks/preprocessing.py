"""The preprocessing a network expects: as its library states it, or as its first BatchNorm suggests.

`known` reads the libraries' own metadata and downloads nothing. `suggested` reasons backwards from a trained network,
and is only ever shown to people: nothing here changes how a network is run.

B images, C channels, K filters, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datafree.networks.batchnorm import batchnorm_layers
from datafree.networks.checkpoints.whole_modules import read_module
from datafree.networks.first_input import PHOTO_MEAN, UNSURE, Order, Seen, Three, distance, first_input, told_order
from datafree.networks.foreign.onnx_file import SUFFIX as ONNX
from datafree.networks.foreign.onnx_file import read_onnx
from datafree.networks.foreign.open_file import PICKLES
from datafree.networks.foreign.torchscript import is_torchscript
from datafree.networks.foreign.ultralytics_model import size_of_training
from datafree.networks.huggingface.directory import ModelDirectory, open_directory
from datafree.networks.huggingface.preprocessor import read_preprocessor
from datafree.networks.libraries import build_from_library
from datafree.networks.load import NetworkSpec
from datafree.networks.normalized import bare
from datafree.networks.onnx import DESCRIPTION
from datafree.ops import modes

_IMAGENET_STD: Three = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What images in [0, 1] go through, as `NetworkSpec` has it."""

    mean: Three  # R, G, B
    std: Three
    channel_order: Order | None  # None: nobody says
    input_size: tuple[int, int] | None  # (height, width), pixels; None: nobody says, or any
    classes: int | None  # of the weights it belongs to, as a task counts them
    origin: str  # who says so


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """What the first BatchNorm makes likely. For people to judge; never to be used silently."""

    preprocessing: Preprocessing | None  # None: unknown
    seen: Seen | None  # None: the statistics do not tell
    why: str


# The usual ranges: what images in [0, 1] are brought to, by mean and std.
_USUAL: dict[str, tuple[Three, Three]] = {
    "in [0, 1], as they are": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "normalised by ImageNet's mean and std": (PHOTO_MEAN, _IMAGENET_STD),
    "brought to -1 to 1": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "brought to 0 to 255": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
    "brought to 0 to 255, less a mean": (PHOTO_MEAN, (1 / 255, 1 / 255, 1 / 255)),
    "less a mean": (PHOTO_MEAN, (1.0, 1.0, 1.0)),
    "normalised, then divided by 255": (PHOTO_MEAN, (255 * 0.229, 255 * 0.224, 255 * 0.225)),
}


def known(spec: NetworkSpec) -> Preprocessing | None:
    """What timm's or torchvision's metadata say of the weights they offer for this architecture, or a directory of its.

    That is what a file of the user's own was most likely trained with, too, but nothing proves it. None for all other
    networks, unknown names among them, and where the library offers no weights. Nothing is downloaded. Raises
    NetworkError for a model directory that cannot be read.
    """
    if spec.is_directory:
        return _directory(open_directory(spec.network))
    if spec.network.endswith(PICKLES):
        return _ultralytics(Path(spec.network))
    if spec.network.endswith(ONNX):
        return _exported(Path(spec.network))
    library, _, name = spec.network.partition("/")
    if library == "timm":
        return _timm(name, spec.args)
    if library == "torchvision":
        return _torchvision(name, spec.args)
    return None


def _ultralytics(file: Path) -> Preprocessing | None:
    """Its networks are all trained on RGB images in [0, 1], as they are."""
    module = read_module(file) if file.is_file() and not is_torchscript(file) else None
    if module is None or not module.kind.startswith("ultralytics."):
        return None
    side = size_of_training(module)
    return Preprocessing(
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        channel_order="rgb",
        input_size=None if side is None else (side, side),
        classes=None,
        origin="Ultralytics' own preprocessing",
    )


def _exported(file: Path) -> Preprocessing | None:
    """What `datafree export` wrote takes images in [0, 1] as they are: mean and std are inside."""
    if not file.is_file() or DESCRIPTION not in read_onnx(file).metadata:
        return None
    return Preprocessing(
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        channel_order="rgb",
        input_size=None,
        classes=None,
        origin="datafree's own export",
    )


def _directory(directory: ModelDirectory) -> Preprocessing | None:
    found = read_preprocessor(directory)
    if found is None:
        return None
    return Preprocessing(
        mean=found.mean,
        std=found.std,
        channel_order=found.channel_order,
        input_size=found.size,
        classes=directory.classes,
        origin=found.origin,
    )


def _timm(name: str, args: dict[str, Any]) -> Preprocessing | None:
    import timm

    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if config is None or config.mean is None or len(config.mean) != 3:
        return None
    return Preprocessing(
        mean=_three(config.mean),
        std=_three(config.std),
        channel_order="rgb",
        input_size=_built_for(args, "img_size") or (config.input_size[1], config.input_size[2]),
        classes=config.num_classes or None,
        origin=f"timm's default_cfg{f' ({config.tag})' if config.tag else ''}",
    )


def _built_for(args: dict[str, Any], key: str) -> tuple[int, int] | None:
    """(height, width) that a network of a fixed size is built for, where this argument says it."""
    size = args.get(key)
    sides = size if isinstance(size, list | tuple) else [size, size]
    whole = [side for side in sides if isinstance(side, int)]
    return (whole[0], whole[1]) if len(whole) == len(sides) == 2 else None


def _torchvision(name: str, args: dict[str, Any]) -> Preprocessing | None:
    import torchvision

    try:
        weights: Any = torchvision.models.get_model_weights(name)
    except ValueError:  # no such model: to be said by whoever builds it
        return None
    default = getattr(weights, "DEFAULT", None)
    if default is None:
        return None
    mean: Any
    std: Any
    preset, classes = default.transforms(), len(default.meta.get("categories", ()))
    mean, std = getattr(preset, "mean", None), getattr(preset, "std", None)
    side = getattr(preset, "crop_size", None) or getattr(preset, "resize_size", None)  # a list of one
    size: tuple[int, int] | None = (side[0], side[0]) if side else None
    if mean is None:  # detectors normalise in a part of their own, which our adapters pass by
        with torch.device("meta"):
            network: Any = bare(build_from_library(f"torchvision/{name}", {}, num_classes=1, channels=3))
        if not hasattr(network, "transform"):
            return None
        mean, std, fixed = network.transform.image_mean, network.transform.image_std, network.transform.fixed_size
        size = None if fixed is None else (fixed[1], fixed[0])
        classes -= 1  # the first is background
    return Preprocessing(
        mean=_three(mean),
        std=_three(std),
        channel_order="rgb",
        input_size=_built_for(args, "image_size") or size,
        classes=classes if classes > 0 else None,
        origin=f"torchvision's {type(default).__name__}.{default.name}",
    )


def _three(values: Sequence[float]) -> Three:
    red, green, blue = map(float, values)
    return red, green, blue


def suggested(network: nn.Module, images: Tensor) -> Suggestion:
    """What `network`, bare and trained, was likely given: from its first convolution and the BatchNorm behind it.

    `images` (B, C, H, W) are any that it takes; they go through it once, in eval mode.
    """
    found = _first_layers(network, images)
    if isinstance(found, str):
        return Suggestion(preprocessing=None, seen=None, why=found)
    conv, norm = found
    bias = None if conv.bias is None else conv.bias.detach()
    return explained(first_input(conv.weight.detach(), norm.running_mean, norm.running_var, bias))


@torch.no_grad()
def _first_layers(network: nn.Module, images: Tensor) -> tuple[nn.Conv2d, Any] | str:
    """The convolution that runs first and the BatchNorm that takes its output, or why there are none to reason from."""
    convolved: list[tuple[nn.Conv2d, Tensor, Tensor, int]] = []
    normed: list[nn.Module] = []

    def after_conv(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        if not convolved:
            convolved.append((layer, inputs[0], output, output._version))

    def before_norm(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        _, _, output, version = convolved[0] if convolved else (None, None, None, 0)
        if inputs[0] is output and output._version == version:  # unchanged since, also in place
            normed.append(layer)

    norms = batchnorm_layers(network)
    handles = [norm.register_forward_pre_hook(before_norm) for norm in norms.values()]
    handles += [m.register_forward_hook(after_conv) for m in network.modules() if isinstance(m, nn.Conv2d)]
    try:
        with modes.frozen(network):
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    if not convolved:
        return "no convolution of it can be seen"
    conv, given, *_ = convolved[0]
    if given.shape != images.shape or not torch.equal(given, images):
        return "it changes its images itself before its first convolution"
    if not normed:
        return "no BatchNorm follows its first convolution"
    return conv, normed[0]


def explained(seen: Seen | None) -> Suggestion:
    """The usual form of photographs that is most like what was seen, if any is like it."""
    if seen is None:
        return Suggestion(
            preprocessing=None, seen=None, why="its first BatchNorm is as new, or its filters do not tell"
        )
    if seen.error > UNSURE:
        why = f"its first BatchNorm does not tell (a mean's standard error is {seen.error:.0%} of the spread)"
        return Suggestion(preprocessing=None, seen=None, why=why)
    order = told_order(seen)
    about = (
        f"its first convolution saw a mean of {', '.join(f'{m:.3g}' for m in seen.mean)} and a spread of "
        f"{seen.spread:.3g} (residual {seen.residual:.1%})"
    )
    fits = {name: off for name, (mean, std) in _USUAL.items() if (off := distance(seen, mean, std)) <= 1}
    if not fits:
        return Suggestion(preprocessing=None, seen=seen, why=f"{about}, which is no usual form of photographs")
    name = min(fits, key=lambda name: fits[name])
    mean, std = _USUAL[name]
    told = len(set(mean)) == 1  # else the means were taken off, and the order with them
    made = Preprocessing(
        mean=mean,
        std=std,
        channel_order=order if told else None,
        input_size=None,
        classes=None,
        origin="its first BatchNorm",
    )
    return Suggestion(preprocessing=made, seen=seen, why=f"{about}: like photographs {name}")
