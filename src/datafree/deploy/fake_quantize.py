"""A network computed in torch as its INT8 file will compute it: rounded, with gradients (fake quantisation).

Jacob et al., CVPR 2018, arXiv 1712.05877, section 3. Values are rounded where `quantize` puts its quantise-dequantise
pairs: weights of layers with a scale for each output channel, what goes into a layer and what comes out of it (behind
its BatchNorm and its Relu or Clip) with a scale and zero point for each tensor. Gradients pass a rounding as if it were
none, and are zero for what lies outside its range (the straight-through estimator).

A network is seen call by call of torch's functions, so that it stays the network that it is, whatever Python it is made
of, and its answer of the task's type. A value is known by its place among those that a pass makes: a network that
makes others for other images is refused. What happens inside one function of torch (attention) stays in float.

B images, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from datafree.deploy.last_layers import Step, last_steps
from datafree.errors import NetworkError
from datafree.ops.predictions import all_tensors

# Functions of torch, without the underscore of those that work in place.
_LAYERS = {"conv1d": 0, "conv2d": 0, "conv3d": 0, "linear": 0}  # name -> the axis of a weight's output channels
_LAYERS |= {"conv_transpose1d": 1, "conv_transpose2d": 1, "conv_transpose3d": 1}
_FOLDED = ("batch_norm",)  # what a converter makes part of the layer before
_ACTIVATIONS = ("relu", "relu6", "hardtanh", "clamp", "clip")  # what a layer's integer kernel computes on the way

_WEIGHT_STEPS = 127  # on both sides of 0
_ACTIVATION_STEPS = 255
_SMALLEST = 1e-12  # range: channels of zeros stay zeros

Range = tuple[float, float]  # least and largest value


def rounded_weight(weight: Tensor, axis: int) -> Tensor:
    """A layer's weight as 8-bit integers hold it: s round(w / s) with s = max |w| / 127 of each channel on `axis`."""
    others = [index for index in range(weight.ndim) if index != axis]
    scale = weight.detach().abs().amax(others).clamp_min(_SMALLEST) / _WEIGHT_STEPS
    zero = torch.zeros(len(scale), dtype=torch.int32, device=weight.device)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, axis, -_WEIGHT_STEPS, _WEIGHT_STEPS)


def rounded_activation(values: Tensor, span: Range) -> Tensor:
    """Values as unsigned 8-bit integers hold them: s (clamp(round(x / s) + z, 0, 255) - z).

    s = (most - least) / 255 and z = round(-least / s) of a range that is widened to hold 0.
    """
    least, most = min(span[0], 0.0), max(span[1], 0.0)
    scale = max(most - least, _SMALLEST) / _ACTIVATION_STEPS
    return torch.fake_quantize_per_tensor_affine(values, scale, round(-least / scale), 0, _ACTIVATION_STEPS)


@dataclass(kw_only=True)
class Places:
    """Where a network is rounded. A value is a number: how many tensors the pass has made before it."""

    values: int  # of a pass
    layers: dict[int, tuple[int, Tensor]] = field(default_factory=dict)  # a layer's output -> axis, weight
    rounded: set[int] = field(default_factory=set)  # values
    fed: set[int] = field(default_factory=set)  # outputs of layers whose input no call has made: the images themselves
    ranges: dict[int, Range] = field(default_factory=dict)  # of a rounded value; of the input of fed n: -1 - n


def find_places(network: nn.Module, images: Tensor, *, exact_ends: bool) -> Places:
    """Where `network` is rounded, found by a pass with `images` (B, 3, H, W) in [0, 1]. `exact_ends`: as in `quantize`.

    Raises NetworkError where no layer is seen.
    """
    network(images)  # what is made at the first pass alone is made
    trace = _Trace()
    with trace:
        answer = network(images)
    places = trace.places(all_tensors(answer), exact_ends)
    if not places.layers:
        raise NetworkError("no layer with weights is seen in the network, and nothing can be trained for INT8")
    return places


def find_ranges(network: nn.Module, batches: Iterable[Tensor], places: Places) -> None:
    """Set `places.ranges` to the least and largest values in float, over batches (B, 3, H, W). Raises NetworkError."""
    places.ranges = {}
    with torch.no_grad():
        for images in batches:
            with _passing(_Watch(places)):
                network(images)


def fake_quantized(network: nn.Module, images: Tensor, places: Places) -> Any:
    """The answer of the network that `places` are of, rounded by `places.ranges`. Raises NetworkError."""
    with _passing(_Rounding(places)):
        return network(images)


class _Calls(TorchFunctionMode):
    """Sees the calls of torch's functions that make tensors, and counts these."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name, named = getattr(func, "__name__", "").rstrip("_"), dict(kwargs or {})
        if name in _LAYERS:
            given = {**dict(zip(("input", "weight"), args, strict=False)), **named}
            changed = self.before(given["input"], given["weight"], _LAYERS[name])
            args, named = (*changed, *args[2:]), {key: named[key] for key in named if key not in ("input", "weight")}
        versions = {id(each): each._version for each in _tensors((args, named))}
        answer = func(*args, **named)
        # Not what a call hands on as it is: `float()` of what is float32 already.
        if not (made := [each for each in _tensors(answer) if versions.get(id(each)) != each._version]):
            return answer
        self.see(name, _tensors((args, named)), made)
        first, self.count = self.count, self.count + len(made)
        numbers = {id(each): number for number, each in enumerate(made, first)}
        return _changed(answer, lambda each: self.after(numbers[id(each)], each) if id(each) in numbers else each)

    def before(self, values: Tensor, weight: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        """What a layer computes with instead of its input and its weight."""
        return values, weight

    def see(self, name: str, taken: list[Tensor], made: list[Tensor]) -> None:
        """A call, and the tensors that it takes and makes."""

    def after(self, number: int, value: Tensor) -> Tensor:
        """What the network goes on with instead of a value that was made."""
        return value


class _Trace(_Calls):
    """Notes the calls of a pass."""

    def __init__(self) -> None:
        super().__init__()
        self._alive: list[Tensor] = []  # so that no two tensors have the same id
        self._numbers: dict[int, int] = {}  # id of a tensor -> the value that it holds now: calls in place change it
        self._names: list[str] = []
        self._steps: list[Step[int]] = []
        self._layers: dict[int, tuple[int, Tensor, int | None]] = {}  # output -> axis, weight, the value it takes
        self._makers: dict[int, int] = {}  # value -> its call

    def before(self, values: Tensor, weight: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        self._layers[self.count] = axis, weight, self._numbers.get(id(values))
        return values, weight

    def see(self, name: str, taken: list[Tensor], made: list[Tensor]) -> None:
        self._alive += [*taken, *made]
        inputs = [self._numbers[id(each)] for each in taken if id(each) in self._numbers]
        outputs = list(range(self.count, self.count + len(made)))
        self._numbers |= {id(each): number for each, number in zip(made, outputs, strict=True)}
        self._makers |= dict.fromkeys(outputs, len(self._steps))
        self._names.append(name)
        self._steps.append(Step(inputs, outputs, layer=name in _LAYERS))

    def places(self, answer: list[Tensor], exact_ends: bool) -> Places:
        """Where the pass is rounded that gave `answer`, but for the answer itself."""
        finals = {self._numbers.get(id(each)) for each in answer}
        exact = set(last_steps(self._steps)) if exact_ends else set[int]()
        takers: dict[int, list[int]] = {}  # value -> calls
        for index, step in enumerate(self._steps):
            for value in step.inputs:
                takers.setdefault(value, []).append(index)
        found = Places(values=self.count)

        def behind(value: int, kinds: tuple[str, ...]) -> int:
            """The value that a call of one of these kinds makes of `value`, if nothing else takes it; else itself."""
            calls = takers.get(value, [])
            alone = len(calls) == 1 and value not in finals and self._names[calls[0]] in kinds
            return self._steps[calls[0]].outputs[0] if alone else value

        for output, (axis, weight, source) in self._layers.items():
            if self._makers[output] in exact:
                continue
            found.layers[output] = axis, weight
            if source is None:
                found.fed.add(output)
            else:
                found.rounded.add(source)
            if (end := behind(behind(output, _FOLDED), _ACTIVATIONS)) not in finals:
                found.rounded.add(end)
        return found


class _Watch(_Calls):
    """Notes the ranges of the values that are to be rounded."""

    def __init__(self, places: Places) -> None:
        super().__init__()
        self.places = places

    def before(self, values: Tensor, weight: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        if self.count in self.places.fed:
            self._note(-1 - self.count, values)
        return values, weight

    def after(self, number: int, value: Tensor) -> Tensor:
        if number in self.places.rounded:
            self._note(number, value)
        return value

    def _note(self, place: int, value: Tensor) -> None:
        least, most = (float(each) for each in value.aminmax())
        before = self.places.ranges.get(place, (least, most))
        self.places.ranges[place] = min(before[0], least), max(before[1], most)


class _Rounding(_Calls):
    """Rounds what is to be rounded."""

    def __init__(self, places: Places) -> None:
        super().__init__()
        self.places = places

    def before(self, values: Tensor, weight: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        if self.count in self.places.fed:
            values = rounded_activation(values, self.places.ranges[-1 - self.count])
        return values, rounded_weight(weight, axis) if self.count in self.places.layers else weight

    def after(self, number: int, value: Tensor) -> Tensor:
        return rounded_activation(value, self.places.ranges[number]) if number in self.places.rounded else value


@contextmanager
def _passing(calls: _Watch | _Rounding) -> Iterator[None]:
    """Within it, `calls` sees one pass. Raises NetworkError where that makes other values than the one before."""
    with calls:
        yield
    if calls.count != calls.places.values:
        raise NetworkError("what the network computes depends on the image: it cannot be trained for INT8")


def _tensors(values: Any) -> list[Tensor]:
    """Those in lists, tuples and dicts."""
    if isinstance(values, Tensor):
        return [values]
    inner = values.values() if isinstance(values, Mapping) else values if isinstance(values, tuple | list) else ()
    return [tensor for each in inner for tensor in _tensors(each)]


def _changed(answer: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A tensor, or a tuple or list of some, changed; torch's named ones, which no layer takes, are left as they are."""
    if isinstance(answer, Tensor):
        return change(answer)
    if type(answer) not in (tuple, list):
        return answer
    return type(answer)(_changed(each, change) for each in answer)
