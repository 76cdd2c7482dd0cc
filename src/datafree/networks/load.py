"""Networks by name, and their weights from files that are not trusted.

A weights file is only ever read as tensors: nothing in it is run or imported. Code is imported in one case
only, when the user writes "package.module:callable" themselves.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict
from torch import nn

from datafree.errors import DatafreeError, NetworkError
from datafree.networks.resnet import resnet
from datafree.networks.small import unet
from datafree.networks.weights import load_weights
from datafree.wording import one_line

_DATAFREE: dict[str, Callable[..., nn.Module]] = {"resnet": resnet, "unet": unet}
_SMP = (  # architectures of segmentation_models_pytorch
    *("deeplabv3", "deeplabv3plus", "dpt", "fpn", "linknet", "manet"),
    *("pan", "pspnet", "segformer", "unet", "unetplusplus", "upernet"),
)
_SMP_SHORT = {"encoder": "encoder_name", "output_stride": "encoder_output_stride"}
_TORCHVISION = (  # its segmentation models
    *("deeplabv3_mobilenet_v3_large", "deeplabv3_resnet101", "deeplabv3_resnet50"),
    *("fcn_resnet101", "fcn_resnet50", "lraspp_mobilenet_v3_large"),
)
_CHANNELS_ARG = {"datafree": "channels", "smp": "in_channels", "timm": "in_chans"}  # torchvision's are all for three
# Arguments by which timm reads a file itself, in older releases with pickle.
_FILE_ARGS = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay")


@dataclass(kw_only=True)
class NetworkSpec:
    """Which network: the `teacher:` or `student:` section of a recipe."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    network: str  # "library/name" as in network_names(), "timm/resnet18", "package.module:callable"
    args: dict[str, Any] = field(default_factory=dict)  # of its constructor, besides the number of classes
    weights: Path | None = None  # .safetensors, or a .pt/.pth with nothing but tensors and plain values
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)  # R, G, B of images in [0, 1]
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    channels: Literal[1, 3] = 3  # of the images it takes; 1: grey, the average of R, G and B


# Arguments by which a library loads weights of its own, perhaps from the network.
PRETRAINED = ("pretrained", "weights", "weights_backbone", "encoder_weights")


def has_weights(spec: NetworkSpec) -> bool:
    """Whether the network comes trained: from a file, from its library, or (as far as anyone knows) from own code."""
    return spec.weights is not None or ":" in spec.network or any(spec.args.get(name) for name in PRETRAINED)


def network_names() -> list[str]:
    """The names of our networks and of the libraries' for segmentation, sorted; timm's (hundreds) are left out."""
    libraries: dict[str, Iterable[str]] = {"datafree": _DATAFREE, "smp": _SMP, "torchvision": _TORCHVISION}
    return sorted(f"{library}/{name}" for library, names in libraries.items() for name in names)


def build_network(spec: NetworkSpec, *, num_classes: int, allow_import: bool = True) -> nn.Module:
    """The bare network of `spec` for `num_classes` classes, with its weights if it names some.

    Nothing is downloaded unless `spec.args` asks the library for pretrained weights. A library's network gets
    the number of classes; the user's own "package.module:callable" gets `spec.args` and nothing else.
    `allow_import=False` refuses the latter: for names the user did not write (those in a run directory).
    Raises NetworkError for whatever cannot be built, WeightsError for weights that cannot be loaded.
    """
    if ":" in spec.network and "/" not in spec.network:
        network = _build_imported(spec, allow_import)
    else:
        network = _build_from_library(spec, num_classes)
    if spec.weights is not None:
        load_weights(network, spec.weights)
    return network


def _build_from_library(spec: NetworkSpec, num_classes: int) -> nn.Module:
    library, _, name = spec.network.partition("/")
    if library not in _LIBRARIES or (library in ("datafree", "smp") and spec.network not in network_names()):
        same = [full for full in network_names() if full.endswith(f"/{spec.network}")]
        known = [*network_names(), "timm/NAME", "PACKAGE.MODULE:CALLABLE"]
        raise _unknown(spec.network, known, close=same)
    args = dict(spec.args)
    for key in ("classes", "num_classes"):
        given = args.pop(key, num_classes)
        if given != num_classes:
            raise NetworkError(
                f"{spec.network} is given {key}={given!r}, but the task has {num_classes}: leave {key} out"
            )
    if spec.channels != 3:
        if library not in _CHANNELS_ARG:
            raise NetworkError(f"{spec.network} takes colour images only; choose another network, or channels: 3")
        args[_CHANNELS_ARG[library]] = spec.channels
    for key in _FILE_ARGS:
        if key in args:
            raise NetworkError(f"{spec.network} does not take {key} here: give the file as `weights`")
    with warnings.catch_warnings(), _one_line_errors(f"{spec.network} cannot be built with args {args}"):
        warnings.simplefilter("ignore")  # the libraries' own deprecations are not the user's concern
        return _LIBRARIES[library](name, args, num_classes)


def _build_datafree(name: str, args: dict[str, Any], num_classes: int) -> nn.Module:
    return _DATAFREE[name](num_classes=num_classes, **args)


def _build_smp(name: str, args: dict[str, Any], num_classes: int) -> nn.Module:
    import segmentation_models_pytorch as smp  # seconds to import

    make = smp.MODEL_ARCHITECTURES_MAPPING[name]
    for short, full in _SMP_SHORT.items():
        if short in args and full in args:
            raise NetworkError(f"smp/{name} is given {short} and {full}, which mean the same: leave one out")
        if short in args:
            args[full] = args.pop(short)
    parameters = inspect.signature(make).parameters
    encoder = str(args.get("encoder_name", parameters["encoder_name"].default))
    if ":" in encoder:  # tu-hf_hub:..., tu-local-dir:... take code paths that download or read files
        raise NetworkError(f"encoder {encoder!r} of smp/{name} is a place: give a name, and `weights`")
    if not encoder.startswith(("tu-", "timm-")):  # those take timm's arguments, the others drop any silently
        if encoder not in smp.encoders.get_encoder_names():
            raise _unknown(encoder, smp.encoders.get_encoder_names(), what=f"encoder of smp/{name}")
        _check_args(f"smp/{name}", args, parameters.keys() - {"kwargs", "classes"} | _SMP_SHORT.keys())
    network: nn.Module = make(**{"encoder_weights": None, **args, "classes": num_classes})
    return network


def _build_torchvision(name: str, args: dict[str, Any], num_classes: int) -> nn.Module:
    import torchvision

    known = [*_TORCHVISION, *torchvision.models.list_models(module=torchvision.models)]
    if name not in known:
        raise _unknown(f"torchvision/{name}", (f"torchvision/{k}" for k in known))
    offline = {"weights": None}
    if name in _TORCHVISION:  # these, too, drop arguments they do not know
        offline["weights_backbone"] = None
        parameters = inspect.signature(torchvision.models.get_model_builder(name)).parameters
        _check_args(f"torchvision/{name}", args, parameters.keys() - {"kwargs", "num_classes"})
    network: nn.Module = torchvision.models.get_model(name, **{**offline, **args, "num_classes": num_classes})
    return network


def _build_timm(name: str, args: dict[str, Any], num_classes: int) -> nn.Module:
    import timm

    if ":" in name or not timm.is_model(name):  # hf_hub:... and local-dir:... would download or read files
        raise _unknown(f"timm/{name}", (f"timm/{known}" for known in timm.list_models()))
    network: nn.Module = timm.create_model(name, **{"pretrained": False, **args, "num_classes": num_classes})
    return network


def _check_args(network: str, args: dict[str, Any], known: Iterable[str]) -> None:
    for key in args:
        if key not in known:
            raise _unknown(key, known, what=f"argument of {network}")


_LIBRARIES: dict[str, Callable[[str, dict[str, Any], int], nn.Module]] = {
    "datafree": _build_datafree,
    "smp": _build_smp,
    "torchvision": _build_torchvision,
    "timm": _build_timm,
}


def _build_imported(spec: NetworkSpec, allow_import: bool) -> nn.Module:
    if not allow_import:
        raise NetworkError(
            f"{spec.network!r} names code to import, which is never done for a name found in a file; "
            f"give it yourself with --student {spec.network} if you trust that code"
        )
    dotted = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
    if not re.fullmatch(f"{dotted}:{dotted}", spec.network):
        raise NetworkError(f"{spec.network!r} is no import path: write package.module:callable")
    module_name, _, attribute = spec.network.partition(":")
    with _current_directory_importable():
        importlib.invalidate_caches()
        with _one_line_errors(f"{module_name!r} cannot be imported (current directory, installed packages)"):
            module = importlib.import_module(module_name)
        try:
            make = reduce(getattr, attribute.split("."), module)
        except AttributeError:
            raise _unknown(attribute, vars(module), what=f"name in {module_name}") from None
        if not callable(make) or isinstance(make, nn.Module):
            raise NetworkError(f"{spec.network} is a {type(make).__name__}: name what makes a network")
        with _one_line_errors(f"{spec.network} cannot be built with args {spec.args}"):
            network = make(**spec.args)
    if not isinstance(network, nn.Module):
        raise NetworkError(f"{spec.network} makes a {type(network).__name__}: a torch.nn.Module is needed")
    return network


@contextlib.contextmanager
def _current_directory_importable() -> Iterator[None]:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)


@contextlib.contextmanager
def _one_line_errors(what: str) -> Iterator[None]:
    """Turn whatever foreign code raises into one line; the original stays as the cause."""
    try:
        yield
    except DatafreeError:
        raise
    except (Exception, SystemExit) as error:  # a user's script may call exit() at import
        raise NetworkError(f"{what}: {one_line(error)}") from error


def _unknown(name: str, known: Iterable[str], what: str = "network", close: list[str] | None = None) -> NetworkError:
    known = sorted(known)
    close = close or difflib.get_close_matches(name, known, n=3)
    listed = f"known: {', '.join(known)}" if len(known) <= 40 else f"{len(known)} are known, as {known[0]}"
    return NetworkError(f"there is no {what} {name!r}; " + (f"did you mean {' or '.join(close)}?" if close else listed))
