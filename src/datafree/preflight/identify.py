"""The architecture of a weights file, told by the names and shapes of its tensors.

torchvision's and timm's networks are proposed by their fingerprints, datafree's and smp's by a few shapes; what is
proposed is built on the meta device, and has to have the file's tensors exactly, for some number of classes.

C classes.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from datafree.errors import DatafreeError, NetworkError, WeightsError
from datafree.networks.bounded import few_modules
from datafree.networks.checkpoints.naming import held_prefix
from datafree.networks.checkpoints.weights import load_weights, read_shapes
from datafree.networks.checkpoints.whole_modules import read_module
from datafree.networks.checks.class_count import classes_of
from datafree.networks.fingerprints import Shape, counted, proposed, shapes_of
from datafree.networks.foreign.open_file import PICKLES
from datafree.networks.load import NetworkSpec, build_network
from datafree.networks.preprocessing import known
from datafree.ops import modes
from datafree.tasks.base import synthetic_batch
from datafree.text import show

_COMPARED = 6  # networks whose answers are compared, at most
_SHOWN = 4  # networks in an error
_MOST = 0.9  # of a file's tensors that have to be the network's
_SIDE = 64  # pixels of images that they answer, where the networks do not say
_SECOND_HEAD = "aux_classifier."  # of torchvision's segmentation networks, which learn by it and answer without
_ENCODERS = (  # of smp, that are tried besides those in the file's name
    *("resnet34", "resnet18", "resnet50", "resnet101", "mobilenet_v2", "efficientnet-b0", "efficientnet-b1"),
    *("efficientnet-b2", "efficientnet-b3", "efficientnet-b4", "vgg16", "densenet121", "mit_b0", "mit_b1", "mit_b2"),
)


@dataclass(frozen=True, kw_only=True)
class Identified:
    """What a weights file is of."""

    spec: NetworkSpec  # with these weights, or the file itself where it is a whole network
    why: str
    doubt: str | None  # other networks of which they may be

    @property
    def called(self) -> str:
        """The network with its arguments, as one text."""
        return _name(self.spec)


def identify(file: Path) -> Identified:
    """The network whose weights `file` holds. Raises WeightsError, NetworkError where none fits, or several do."""
    if file.suffix == ".weights":
        raise WeightsError(
            f"weights {file}: Darknet's format names no tensors, so it tells no network: "
            f"datafree distill 'datafree/yolov3?cfg=FILE.cfg' --weights {file}"
        )
    if file.suffix in PICKLES and (module := read_module(file)) is not None:  # which says itself what it is
        why = f"a whole module, {show(module.kind)}"
        return Identified(spec=NetworkSpec(network=str(file)), why=why, doubt=None)
    stored = read_shapes(file)
    given = counted(stored)
    if not given:
        raise WeightsError(f"weights {file}: holds no tensors")
    told = _hints(file)
    for lead, shapes in _parts(given):
        tried = dict.fromkeys(_candidates(file, given, shapes, told))
        if fitting := [_spec(*candidate, file) for candidate in tried if _fits(candidate, shapes)]:
            return _decided(file, fitting, told, _counted(stored, lead, shapes))
    first = ", ".join(show(name) for name in list(given)[:2])
    hint = "timm/NAME, torchvision/NAME or your own module:callable, and its number with --classes"
    raise WeightsError(
        f"weights {file}: {len(given)} tensors (first: {first}) of no network that is known here; say which: "
        f"datafree distill NETWORK --weights {file}, NETWORK being {hint}"
    )


def _parts(given: Mapping[str, Shape]) -> Iterator[tuple[str, dict[str, Shape]]]:
    """Prefixes, and what lies under them: which may be the network, or is it without a second head beside its own."""
    for lead in (held_prefix(given), *_main_prefixes(given)):
        shapes = {name.removeprefix(lead): shape for name, shape in given.items() if name.startswith(lead)}
        yield lead, shapes
        if any(name.startswith(_SECOND_HEAD) for name in shapes):
            yield lead, {name: shape for name, shape in shapes.items() if not name.startswith(_SECOND_HEAD)}


def _counted(stored: Iterable[str], lead: str, shapes: Mapping[str, Shape]) -> str:
    """Which of the tensors `stored` are the network's, whose tensors are `shapes` under `lead`: for people."""
    names, inside = list(stored), [name.removeprefix(lead) for name in stored if name.startswith(lead)]
    has_second = any(name.startswith(_SECOND_HEAD) for name in shapes)
    second = 0 if has_second else sum(name.startswith(_SECOND_HEAD) for name in inside)
    under = f" under {show(lead)}" if len(inside) < len(names) else ""
    return f"{len(inside) - second} tensors{under}" + (f" but for {second} of a second head" if second else "")


def _main_prefixes(given: Mapping[str, Shape]) -> list[str]:
    """What nearly all names of a file begin with: the network, where a few belong to something else; longest last."""
    counts = Counter(name[: dot.end()] for name in given for dot in re.finditer(r"\.", name))
    return sorted((lead for lead, count in counts.items() if _MOST * len(given) < count < len(given)), key=len)


_Candidate = tuple[str, tuple[tuple[str, Any], ...], int]  # network, args, channels


def _spec(network: str, args: tuple[tuple[str, Any], ...], channels: int, file: Path) -> NetworkSpec:
    assert channels in (1, 3)
    return NetworkSpec(network=network, args=dict(args), channels=1 if channels == 1 else 3, weights=file)


# --- what is tried ---


def _candidates(file: Path, given: Mapping[str, Shape], shapes: Mapping[str, Shape], told: str) -> Iterator[_Candidate]:
    """Networks worth building, each perhaps more than once."""
    yield from _own(shapes)
    if "inception5b.branch4.1.conv.weight" in shapes:  # as torchvision leaves its own weights' network to be trained on
        yield "torchvision/googlenet", (("aux_logits", False),), 3
    if any(name.startswith("encoder.") for name in shapes):
        yield from _smp(shapes, told)
    for one in (given, shapes):
        for network in proposed(one):
            yield network, (), 3
    for name, shape in shapes.items():  # grey images: one channel where the libraries' networks have three
        if len(shape) == 4 and shape[1] == 1:
            for network in proposed({**shapes, name: (shape[0], 3, *shape[2:])}):
                if network.startswith("timm/"):
                    yield network, (), 1


def _own(shapes: Mapping[str, Shape]) -> Iterator[_Candidate]:
    """datafree/resnet and datafree/unet: their options stand in their shapes, but for the strides."""
    if "linear.weight" in shapes and len(first := shapes.get("conv1.weight", ())) == 4:
        depth = 6 * _numbered(shapes, "layer1.") + 2
        yield "datafree/resnet", (("depth", depth), ("width", first[0])), first[1]
    if "head.weight" in shapes and len(first := shapes.get("stem.0.0.weight", ())) == 4:
        depth = _numbered(shapes, "down.") + 1
        yield "datafree/unet", (("width", first[0]), ("depth", depth)), first[1]


def _numbered(shapes: Mapping[str, Shape], lead: str) -> int:
    """How many modules are called `lead` and a number."""
    found = (re.match(r"\d+", name.removeprefix(lead)) for name in shapes if name.startswith(lead))
    return len({number[0] for number in found if number})


def _smp(shapes: Mapping[str, Shape], told: str) -> Iterator[_Candidate]:
    """Those of its architectures with an encoder whose tensors are the file's."""
    import segmentation_models_pytorch as smp

    encoder = {name.removeprefix("encoder."): shape for name, shape in shapes.items() if name.startswith("encoder.")}
    named = [name for name in smp.encoders.get_encoder_names() if _plain(name) in told]
    for name in dict.fromkeys([*sorted(named, key=len, reverse=True), *_ENCODERS]):
        try:
            with torch.device("meta"):
                built = shapes_of(smp.encoders.get_encoder(name, weights=None))
        except Exception:  # of any class
            continue
        if built == encoder:
            for architecture in sorted(smp.MODEL_ARCHITECTURES_MAPPING):
                yield f"smp/{architecture}", (("encoder", name),), 3


def _fits(candidate: _Candidate, shapes: Mapping[str, Shape]) -> bool:
    """Whether the network has exactly these tensors, for some C."""
    network, args, channels = candidate
    if channels not in (1, 3):
        return False
    spec = NetworkSpec(network=network, args=dict(args), channels=1 if channels == 1 else 3)
    try:
        with few_modules("the file"):  # layers by the thousand are proposed where it names as many
            count = classes_of(spec, shapes)
            return count is not None and _built(spec, count) == dict(shapes)
    except DatafreeError:
        return False


def _built(spec: NetworkSpec, classes: int) -> dict[str, Shape]:
    try:
        with torch.device("meta"):
            return shapes_of(build_network(spec, num_classes=classes))
    except NetworkError:  # some need values while they are built
        return shapes_of(build_network(spec, num_classes=classes))


# --- one of several ---


def _hints(file: Path) -> str:
    """What the names of the file and its folder, and a config.json beside it, say of the architecture."""
    said = [file.name, file.resolve().parent.name]
    try:
        with (file.parent / "config.json").open(encoding="utf-8") as text:
            config = json.loads(text.read(1_000_000))
        said.insert(0, str(config.get("architecture", "")))
    except (OSError, ValueError, AttributeError):
        pass
    return " ".join(map(_plain, said))


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower())


def _decided(file: Path, fitting: list[NetworkSpec], told: str, part: str) -> Identified:
    """The one that the file's name says, or any of those that answer alike; else torchvision's, the others in doubt.

    `part`: which of its tensors are the network's. Raises NetworkError where none of that decides.
    """
    named = sorted(
        (spec for spec in fitting if _plain(_short(spec)) in told), key=lambda spec: len(_short(spec)), reverse=True
    )
    named = list(takewhile(lambda spec: len(_short(spec)) == len(_short(named[0])), named))
    left = named or fitting
    doubt = None
    if len(left) > 1 and left[0].network.startswith("torchvision/"):  # timm's variants differ in what has no tensors
        plain = [spec for spec in left if _short(spec) == _short(left[0])]
        others = ", ".join(_name(spec) for spec in left if spec not in plain)
        doubt = f"{others} would have the same tensors (give the network, and --weights)" if others else None
        left = plain
    why = f"its {part} have the names and shapes of {_name(left[0])}"
    if len(left) > 1 and not _alike(left):
        others = ", ".join(map(_name, left[:_SHOWN])) + (
            f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
        )
        raise NetworkError(
            f"weights {file} fit several networks, {others}: say which, such as "
            f"datafree distill {_name(left[0])} --weights {file}"
        )
    if named and len(fitting) > 1:
        why += ", as its name says"
    return Identified(spec=left[0], why=why, doubt=doubt)


def _short(spec: NetworkSpec) -> str:
    return spec.network.partition("/")[2]


def _name(spec: NetworkSpec) -> str:
    query = "&".join(f"{key}={value}" for key, value in spec.args.items())
    return f"{spec.network}?{query}" if query else spec.network


def _alike(specs: list[NetworkSpec]) -> bool:
    """Whether all of them mean the same by these weights: the same preprocessing, and the same answers to images."""
    if len(specs) > _COMPARED:
        return False
    metadata = [known(spec) for spec in specs]
    if len({None if one is None else (one.mean, one.std) for one in metadata}) > 1:
        return False
    size = next((one.input_size for one in metadata if one is not None and one.input_size), (_SIDE, _SIDE))
    assert specs[0].weights is not None
    shapes = counted(read_shapes(specs[0].weights))
    answers = []
    try:
        for spec in specs:
            count = classes_of(replace(spec, weights=None), shapes)
            network = build_network(replace(spec, weights=None), num_classes=count or 1)
            load_weights(network, specs[0].weights)
            with torch.no_grad(), modes.frozen(network):
                answers.append(spec.wrap(network)(synthetic_batch(size, torch.device("cpu"))))
        return all(torch.allclose(answers[0], other, rtol=1e-4, atol=1e-4) for other in answers[1:])
    except Exception:  # whatever networks raise, or answers that are no tensors
        return False
