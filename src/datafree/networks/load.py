"""Networks by name, and their weights from files that are not trusted.

A weights file is only ever read as tensors: nothing in it is run or imported. Code is imported in one case
only, when the user writes "package.module:callable" themselves.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict
from torch import nn
from typing_extensions import Doc

from datafree.config import options, paths, yaml
from datafree.config.options import ExistingFile, Positive
from datafree.config.schema import Fault, Invalid
from datafree.errors import NetworkError
from datafree.networks.checkpoints.weights import load_weights
from datafree.networks.darknet.weights import load_darknet_weights
from datafree.networks.exported.program import SUFFIX as PT2
from datafree.networks.first_input import per_255
from datafree.networks.foreign.open_file import SUFFIXES, open_file
from datafree.networks.huggingface.build import adapted_detector, asks_for_its_weights, build_from_directory
from datafree.networks.huggingface.directory import PREFIX, located
from datafree.networks.instances import is_live, not_by_name, require_values
from datafree.networks.libraries import build_from_library, library_names
from datafree.networks.normalized import Normalized, bare
from datafree.networks.own_code import import_network, name_it_yourself
from datafree.networks.pretrained import PRETRAINED, asks_for_weights
from datafree.text import show

_PYTHON_FILE = re.compile(r"([\w./ -]+)\.py:([\w.]+)")


@dataclass(kw_only=True)
class NetworkSpec:
    """Which network: the `teacher:` or `student:` section of a recipe.

    `network` may end in arguments, for a single command line: smp/deeplabv3?encoder=resnet50&output_stride=8 is
    smp/deeplabv3 with these two in `args`. Raises NetworkError for arguments that cannot be read or are given twice.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    network: Annotated[
        str,
        Doc('"library/name" as in network_names(), perhaps "?key=..."; hf/DIR; "module:callable"; FILE.pt2, FILE.onnx'),
    ]
    args: Annotated[dict[str, Any], Doc("of its constructor, besides the number of classes")] = field(
        default_factory=dict
    )
    weights: Annotated[
        ExistingFile | None, Doc(".safetensors, .index.json, tensors-only .pt/.pth, or Darknet's .weights")
    ] = None
    mean: Annotated[tuple[float, float, float], Doc("R, G, B of images in [0, 1]")] = (0.0, 0.0, 0.0)
    std: tuple[Positive, Positive, Positive] = (1.0, 1.0, 1.0)
    pixel_range: Annotated[
        Literal[1, 255],
        Doc("255: mean, std and what it was trained on are of 0 to 255; kept as a mean and std of [0, 1]"),
    ] = 1
    channels: Annotated[Literal[1, 3], Doc("of the images it takes; 1: grey, the average of R, G and B")] = 3
    channel_order: Annotated[
        Literal["rgb", "bgr"], Doc("of its channels; mean and std are given for R, G, B all the same")
    ] = "rgb"
    input_size: Annotated[
        tuple[int, int] | None, Doc("(height, width), pixels: images are resized to it; unset: as they are")
    ] = None
    upsample: Annotated[
        bool, Doc("class maps that are smaller than the images are brought to their size, bilinearly; hf/DIR's always")
    ] = False
    init: Annotated[
        Literal["random", "teacher", "auto"],
        Doc(
            "a student's first weights, where `weights` gives none: random; its teacher's, cut and refitted; or auto, "
            "a recipe's default: its teacher's with source.method=auto where layers correspond, else random"
        ),
    ] = "random"
    licence: Annotated[
        str | None, Doc("of its weights, as their owner declares it; a teacher's stands on its student's card")
    ] = None

    def __post_init__(self) -> None:
        options.check(self, NetworkError)
        if self.licence is not None and not (self.licence.isprintable() and 0 < len(self.licence.strip()) <= 200):
            raise NetworkError(f"licence is {show(self.licence)}: give a name on one line, such as Apache-2.0")
        if self.pixel_range == 255:  # (255 x - mean) / std
            self.mean, self.std = per_255(self.mean), per_255(self.std)
            self.pixel_range = 1
        name, given = _without_query(self.network)
        for key in given.keys() & self.args.keys():
            raise NetworkError(
                f"{key} is given in the network's name, {show(self.network)}, and in args: leave one out"
            )
        self.network, self.args = name, {**self.args, **given}
        if self.is_program and (self.weights is not None or (self.args and self.network.endswith(PT2))):
            out = "args and weights" if self.network.endswith(PT2) else "weights"  # ONNX files take some args
            raise NetworkError(f"{show(self.network)} is a program and holds its weights: leave {out} out")
        if (found := _PYTHON_FILE.fullmatch(self.network)) is not None:
            parts = Path(found[1]).parts
            module = ".".join(parts) if {"/", ".."}.isdisjoint(parts) else parts[-1]
            raise NetworkError(
                f"{show(self.network)} is no import path: write {module}:{found[2]}, for a module in the current "
                "directory or an installed package"
            )

    def located(self) -> NetworkSpec:
        """The same with the arguments that name files as absolute paths, as a recipe's. Raises Invalid."""
        args, faults = dict(self.args), []
        for key in _files_in(self):
            try:
                args[key] = paths.shorten(paths.expand(args[key]))
            except ValueError as error:
                faults.append(Fault(("args", key), str(error)))
        if faults:
            raise Invalid(faults)
        return replace(self, args=args, network=located(self.network) if self.is_directory else self.network)

    @property
    def is_own_code(self) -> bool:
        """Whether it is the user's own, by import path."""
        return ":" in self.network and "/" not in self.network

    @property
    def is_program(self) -> bool:
        """Whether it is a file that holds the whole network: of torch.export, ONNX, TorchScript."""
        return self.network.endswith(SUFFIXES)

    @property
    def is_directory(self) -> bool:
        """Whether it is a model directory as Hugging Face's libraries write them."""
        return self.network.startswith(PREFIX)

    @property
    def called(self) -> str:
        """The network for a line of text: a directory by its path alone where that begins at the root."""
        return self.network.removeprefix(PREFIX) if self.network.startswith(f"{PREFIX}/") else self.network

    def wrap(self, network: nn.Module, dtype: torch.dtype = torch.float32) -> Normalized:
        """The network of this section, taking images in [0, 1]. Raises NetworkError."""
        return Normalized(
            network,
            self.mean,
            self.std,
            dtype=dtype,
            channels=self.channels,
            channel_order=self.channel_order,
            input_size=self.input_size,
            upsample=self.upsample or self.is_directory,
        )


def _without_query(network: str) -> tuple[str, dict[str, Any]]:
    """What stands before the "?", and the arguments after it: key=value, with & between; values are YAML's scalars."""
    name, question, query = network.partition("?")
    args: dict[str, Any] = {}
    for part in query.split("&") if question else ():
        key, _, text = part.partition("=")
        if not key.isidentifier() or not text.strip():
            raise NetworkError(
                f"{show(network)}: {show(part)} is no argument; write ?key=value&key=value after the name"
            )
        if key in args:
            raise NetworkError(f"{show(network)}: {key} is given twice; keep one")
        try:
            args[key] = yaml.parse(text, f"{show(network)}, {key}")
        except ValueError as error:
            raise NetworkError(str(error).partition("\n")[0]) from error
        if isinstance(args[key], (dict, list)):
            raise NetworkError(f"{show(network)}: {key} is {show(args[key])}, no plain value; give it in args")
    return name, args


FILES = ("cfg",)  # arguments that name a file to read: all of our networks' that are of type Path


def _files_in(spec: NetworkSpec) -> list[str]:
    """The arguments by which one of our networks is to read a file; any other network takes them as they are."""
    ours = spec.network.startswith("datafree/")
    return [key for key in FILES if spec.args.get(key) is not None] if ours else []


def has_weights(spec: NetworkSpec) -> bool:
    """Whether the network comes trained: from a file or its library; own code and objects are taken at their word."""
    if spec.weights is not None or spec.is_own_code or spec.is_program or is_live(spec.network):
        return True
    if spec.is_directory:
        return asks_for_its_weights(spec.network, spec.args)
    return asks_for_weights(spec.args)


def network_names() -> list[str]:
    """Names of our networks and of the libraries' for segmentation and detection, sorted; timm's are left out."""
    return library_names()


def build_network(
    spec: NetworkSpec, *, num_classes: int, allow_import: bool = True, say: Callable[[str], None] = lambda line: None
) -> nn.Module:
    """The network of `spec`, a detector adapted, for `num_classes` classes, with its weights if it names some.

    Nothing is downloaded unless `spec.args` asks the library for pretrained weights. A library's network gets the
    number of classes, torchvision's detectors one more, for background. The user's own "package.module:callable" gets
    `spec.args` and nothing else, and is adapted where it is a detection model of torchvision's.
    `allow_import=False` is for names the user did not write (those in a run directory): imports nothing, downloads
    nothing, reads no file but `spec.weights`. `say` is told what of the weights was left out. Raises NetworkError for
    whatever cannot be built, WeightsError for weights that cannot be loaded.
    """
    if is_live(spec.network):
        raise not_by_name(spec.network)
    if spec.is_program:
        return _open_program(spec, allow_import)
    if spec.is_own_code:
        network = adapted(import_network(spec.network, spec.args, allow_import))
    elif spec.is_directory:
        if not allow_import:
            raise _no_place(spec)
        own = spec.weights is None and asks_for_its_weights(spec.network, spec.args)
        network = build_from_directory(
            spec.network, spec.args, num_classes=num_classes, channels=spec.channels, own_weights=own
        )
    else:
        if not allow_import:
            refuse_files(spec.network, spec.args)
        args = {key: value for key, value in spec.args.items() if allow_import or key not in PRETRAINED}
        args |= {key: _file(key, spec.args[key]) for key in _files_in(spec)}
        network = build_from_library(spec.network, args, num_classes=num_classes, channels=spec.channels)
    if spec.weights is not None:
        if spec.weights.suffix == ".weights":
            load_darknet_weights(bare(network), spec.weights)
        elif remark := load_weights(bare(network), spec.weights):
            say(remark)
    return network


def _file(key: str, given: object) -> Path:
    """The file that an argument names. One that a recipe has named is absolute by now, and not expanded once more."""
    try:
        return Path(given) if isinstance(given, str | Path) and Path(given).is_absolute() else paths.expand(given)
    except ValueError as error:
        raise NetworkError(f"{key}: {error}") from error


def refuse_files(network: str, args: Mapping[str, Any]) -> None:
    """Raise NetworkError if `args`, which the user did not write, have `network` read a file."""
    for key in (key for key in FILES if args.get(key) is not None):
        raise NetworkError(
            f"{network} is to read {key}={show(args[key])}, which is never done for a name found in a file; "
            f"if you trust that file, {name_it_yourself(f'{network}?{key}=FILE')}"
        )


def adapted(network: nn.Module) -> nn.Module:
    """A network of the user's as it is used: a detector of torchvision's or transformers' adapted, any other itself.

    Raises NetworkError for one without values.
    """
    require_values(network)
    # Either library takes seconds to import; who made a model of its has done so.
    if "transformers" in sys.modules:
        network = adapted_detector(network)
    if "torchvision" not in sys.modules:
        return network
    from datafree.networks.torchvision_detectors import adapt, is_torchvision_detector

    return adapt(network) if is_torchvision_detector(network) else network


def _no_place(spec: NetworkSpec) -> NetworkError:
    return NetworkError(
        f"{show(spec.network)} is a place to read, which is never done for a name found in a file; "
        f"if you trust that place, {name_it_yourself(spec.network)}"
    )


def _open_program(spec: NetworkSpec, allow_import: bool) -> nn.Module:
    if not allow_import:
        raise _no_place(spec)
    try:
        path = paths.expand(spec.network)
    except ValueError as error:  # a variable that is not set
        raise NetworkError(str(error)) from error
    return open_file(path, spec.args, spec.std)
