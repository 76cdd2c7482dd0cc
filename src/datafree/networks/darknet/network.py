"""Networks built from Darknet's .cfg files.

Layers are numbered from 0; a [route] or [shortcut] names others by number, negative ones counted back from itself.

B images, A anchors of a head, C classes, H x W pixels, ny x nx cells.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

from torch import Tensor, nn

from datafree.errors import NetworkError
from datafree.networks.darknet.cfg import Section
from datafree.networks.darknet.layers import Head, Route, Shortcut, UnevenMaxPool
from datafree.text import show

MOST_CHANNELS = 65_536  # of a layer's output
MOST_WEIGHTS = 400_000_000  # of convolutions: 1.6 GB; yolov3-spp has 63 million


class Map(NamedTuple):
    """A layer's output."""

    channels: int
    step: Fraction  # pixels of the image from one cell to the next


class Darknet(nn.Module):
    """The network of a cfg: images (B, channels, H, W) -> each [yolo]'s raw tensor (B, A * (5 + C), ny, nx), in order.

    Layers are named by their number in the cfg: `body.0`, `body.1`, ... up to the end of the classifier the detector
    is built on, `head.N` from there. That end is the last [shortcut] before the first [yolo] (Darknet-53's, layer 74 of
    yolov3 and yolov3-spp); without any, what comes before the first 1x1 convolution at the coarsest step (layer 12 of
    yolov3-tiny). A convolution holds `conv`, `norm`, `activation`. H and W are multiples of `stride`.

    BatchNorm adds 1e-5 to the variance, as Darknet's later releases and cuDNN do; the first release added 1e-6 to the
    standard deviation, which differs by 0.5 % at a variance of 1e-3, less above. Its momentum is torch's.

    A fresh network starts with objectness 1 % and a class at odds of 1 : C, so that the many cells without a box do not
    drown the others' gradients (focal loss, Lin et al., arXiv 1708.02002, section 4.1). Raises NetworkError, naming the
    line, for sections that make no network.
    """

    def __init__(self, sections: Sequence[Section]) -> None:
        super().__init__()
        net, *layers = sections
        self.channels = net.whole("channels", 3, 1, 64)
        maps = {-1: Map(self.channels, Fraction(1))}  # -1: the images
        self.sources: list[tuple[int, ...]] = []  # of each layer, the numbers of the layers it takes
        built: list[nn.Module] = []
        heads: list[Head] = []
        weights = 0
        for index, section in enumerate(layers):
            sources = _sources(section, layers, index)
            given = [maps[source] for source in sources]
            if len({one.step for one in given}) > 1:
                steps = ", ".join(f"{maps[source].step} (layer {source})" for source in sources)
                raise section.fault(f"joins maps of different sizes, a cell every {steps} pixels")
            weights += _weights(section, given[0].channels)
            if weights > MOST_WEIGHTS:  # before they take room
                raise section.fault(f"is where the network exceeds {MOST_WEIGHTS} weights")
            layer, maps[index] = _BUILDERS[section.kind](section, given)
            if not 0 < maps[index].channels <= MOST_CHANNELS:
                raise section.fault(f"makes {maps[index].channels} channels; at most {MOST_CHANNELS} are understood")
            if isinstance(layer, Head):
                heads.append(layer)
                if layer.classes != heads[0].classes:
                    raise section.fault(f"has {layer.classes} classes, the first {heads[0].classes}", "classes")
                _start(built[-1] if built else None, layer)
            built.append(layer)
            self.sources.append(sources)
        if not heads:
            raise NetworkError("there is no [yolo] section: the network would answer nothing")
        self.classes = heads[0].classes
        self.stride = math.lcm(*(one.step.numerator for one in maps.values()))
        end = _body_end(layers, [maps[index].step for index in range(len(layers))])
        self.body = nn.ModuleDict({str(index): layer for index, layer in enumerate(built[:end])})
        self.head = nn.ModuleDict({str(index): layer for index, layer in enumerate(built[end:], end)})
        # A layer's output is let go once the last layer that takes it has it.
        self._last = {source: index for index, sources in enumerate(self.sources) for source in sources}

    @property
    def heads(self) -> list[Head]:
        return [layer for layer in self.layers().values() if isinstance(layer, Head)]

    def layers(self) -> dict[str, nn.Module]:
        """Name -> layer, in the order of the cfg."""
        named = {f"body.{number}": layer for number, layer in self.body.items()}
        return named | {f"head.{number}": layer for number, layer in self.head.items()}

    def forward(self, images: Tensor) -> list[Tensor]:
        height, width = images.shape[-2:]
        if height % self.stride or width % self.stride:
            near = [max(1, round(side / self.stride)) * self.stride for side in (height, width)]
            raise NetworkError(
                f"images of {height} x {width} pixels do not fit the network, which takes multiples of {self.stride}; "
                f"input_size: {near} resizes them"
            )
        outputs, heads = {-1: images}, []
        for index, (layer, sources) in enumerate(zip(self.layers().values(), self.sources, strict=True)):
            output = layer(*(outputs[source] for source in sources))
            for source in set(sources):
                if self._last[source] == index:
                    del outputs[source]
            if self._last.get(index, -1) > index:
                outputs[index] = output
            if isinstance(layer, Head):
                heads.append(output)
        return heads


def _sources(section: Section, layers: Sequence[Section], index: int) -> tuple[int, ...]:
    """The numbers of the layers that layer `index` takes; -1 stands for the images."""
    if section.kind == "route":
        named = [int(number) for number in section.numbers("layers", None, -len(layers), len(layers), whole=True)]
    elif section.kind == "shortcut":
        named = [-1, section.whole("from", None, -len(layers), len(layers))]
    else:
        named = [-1]
    key = {"route": "layers", "shortcut": "from"}.get(section.kind, "")
    sources = tuple(index + number if number < 0 else number for number in named)
    for number, source in zip(named, sources, strict=True):
        if source >= index or source < (0 if key else -1):
            raise section.fault(f"is layer {index} and takes layer {number}, which does not stand before it", key)
        if source >= 0 and layers[source].kind == "yolo":
            raise section.fault(f"takes layer {source}, a [yolo]: only its answer comes out of there", key)
    return sources


def _weights(section: Section, inputs: int) -> int:
    if section.kind != "convolutional":
        return 0
    each = inputs * section.whole("size", 1, 1, 99) ** 2 // section.whole("groups", 1, 1, inputs)
    return section.whole("filters", 1, 1, MOST_CHANNELS) * each


def _convolutional(section: Section, maps: list[Map]) -> tuple[nn.Module, Map]:
    inputs, step = maps[0]
    filters = section.whole("filters", 1, 1, MOST_CHANNELS)
    size = section.whole("size", 1, 1, 99)
    stride = section.whole("stride", 1, 1, 64)
    groups = section.whole("groups", 1, 1, inputs)
    padding = size // 2 if section.whole("pad", 0, 0, 1) else section.whole("padding", 0, 0, 99)
    if size % 2 == 0 or padding != size // 2:
        raise section.fault(f"of size {size} with padding {padding}: only odd sizes with pad=1 are understood", "size")
    if inputs % groups or filters % groups:
        raise section.fault(f"makes {filters} channels of {inputs}, which {groups} groups do not divide", "groups")
    norm = section.whole("batch_normalize", 0, 0, 1) == 1
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["conv"] = nn.Conv2d(inputs, filters, size, stride, padding, groups=groups, bias=not norm)
    if norm:
        parts["norm"] = nn.BatchNorm2d(filters)
    parts["activation"] = _activation(section)
    return nn.Sequential(parts), Map(filters, step * stride)


def _activation(section: Section) -> nn.Module:
    name = section.options.get("activation", "linear" if section.kind == "shortcut" else "logistic")
    if name not in _ACTIVATIONS:
        raise section.fault(f"has activation {show(name)}; known: {', '.join(_ACTIVATIONS)}", "activation")
    return _ACTIVATIONS[name]()


def _maxpool(section: Section, maps: list[Map]) -> tuple[nn.Module, Map]:
    """size - 1 cells of padding in all, one more on the right and below where that is odd, as Darknet has it."""
    stride = section.whole("stride", 1, 1, 64)
    size = section.whole("size", stride, 1, 99)
    before, after = (size - 1) // 2, size // 2
    made = Map(maps[0].channels, maps[0].step * stride)
    if before == after:
        return nn.MaxPool2d(size, stride, before), made
    if size == stride == 2:  # its windows end where the map does
        return nn.MaxPool2d(2, 2), made
    return UnevenMaxPool(size, stride, before, after), made


def _upsample(section: Section, maps: list[Map]) -> tuple[nn.Module, Map]:
    stride = section.whole("stride", 2, 1, 64)
    return nn.Upsample(scale_factor=stride, mode="nearest"), Map(maps[0].channels, maps[0].step / stride)


def _route(section: Section, maps: list[Map]) -> tuple[nn.Module, Map]:
    groups = section.whole("groups", 1, 1, MOST_CHANNELS)
    if any(channels % groups for channels, _ in maps):
        raise section.fault(f"takes maps of {[m.channels for m in maps]} channels in {groups} equal groups", "groups")
    group_id = section.whole("group_id", 0, 0, groups - 1)
    return Route(groups, group_id), Map(sum(channels for channels, _ in maps) // groups, maps[0].step)


def _shortcut(section: Section, maps: list[Map]) -> tuple[nn.Module, Map]:
    if maps[0].channels != maps[1].channels:
        raise section.fault(f"adds {maps[1].channels} channels to {maps[0].channels}; only equal ones are understood")
    return Shortcut(_activation(section)), maps[0]


def _yolo(section: Section, maps: list[Map]) -> tuple[nn.Module, Map]:
    classes = section.whole("classes", None, 1, 10_000)
    sides = section.numbers("anchors", None, 0.001, 100_000)
    if len(sides) % 2:
        raise section.fault(f"has {len(sides)} numbers for anchors, which are pairs of width and height", "anchors")
    pairs = list(zip(sides[::2], sides[1::2], strict=True))
    if section.whole("num", len(pairs), 1, 1000) != len(pairs):
        raise section.fault(f"has num={section.options['num']}, but {len(pairs)} anchors", "num")
    anchors = pairs
    if "mask" in section.options:
        anchors = [pairs[int(number)] for number in section.numbers("mask", None, 0, len(pairs) - 1, whole=True)]
    wanted = len(anchors) * (5 + classes)
    if maps[0].channels != wanted:
        taken = f"of {len(anchors)} anchors and {classes} classes takes {wanted} channels"
        raise section.fault(f"{taken}, but the layer before it makes {maps[0].channels}: set its filters={wanted}")
    if maps[0].step.denominator != 1:
        raise section.fault(f"has a cell every {maps[0].step} pixels; whole pixels are needed")
    stretch = section.numbers("scale_x_y", 1.0, 1.0, 10.0)[0]
    return Head(maps[0].step.numerator, classes, anchors, stretch), maps[0]


_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "linear": nn.Identity,
    "leaky": lambda: nn.LeakyReLU(0.1, inplace=True),
    "relu": lambda: nn.ReLU(inplace=True),
    "mish": nn.Mish,
}
_BUILDERS: dict[str, Callable[[Section, list[Map]], tuple[nn.Module, Map]]] = {
    "convolutional": _convolutional,
    "maxpool": _maxpool,
    "upsample": _upsample,
    "route": _route,
    "shortcut": _shortcut,
    "yolo": _yolo,
}


def _start(before: nn.Module | None, head: Head) -> None:
    """Set the biases of a fresh head's convolution: objectness 1 %, a class 1 : C."""
    bias = getattr(getattr(before, "conv", None), "bias", None)
    if bias is not None:
        rows = bias.detach().view(-1, 5 + head.classes)  # (A, 5 + C)
        rows[:, 4] = math.log(0.01 / 0.99)
        rows[:, 5:] = -math.log(head.classes)


def _body_end(layers: Sequence[Section], steps: Sequence[Fraction]) -> int:
    """The number of the first layer that is no more the classifier's."""
    first = next(index for index, section in enumerate(layers) if section.kind == "yolo")
    shortcuts = [index for index in range(first) if layers[index].kind == "shortcut"]
    if shortcuts:
        return shortcuts[-1] + 1
    coarsest = max(steps[:first], default=Fraction(1))
    for index, section in enumerate(layers[:first]):
        if section.kind == "convolutional" and steps[index] == coarsest and section.whole("size", 1, 1, 99) == 1:
            return index
    return first
