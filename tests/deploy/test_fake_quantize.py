"""Fake quantisation: onnxruntime's own numbers, at the places where the INT8 file has them."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datafree.deploy.fake_quantize import (
    fake_quantized,
    find_places,
    find_ranges,
    rounded_activation,
    rounded_weight,
)
from datafree.errors import NetworkError
from datafree.networks.normalized import Normalized

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from datafree.deploy.quantize import quantize
from datafree.networks.comparison import relative_error
from datafree.networks.onnx import OnnxNetwork, write_onnx


def dequantized(values: Tensor, scale: object, zero: object, axis: int = 0) -> Tensor:
    """What onnxruntime makes of values by QuantizeLinear and DequantizeLinear."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    held = [numpy_helper.from_array(np.asarray(scale), "s"), numpy_helper.from_array(np.asarray(zero), "z")]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=axis),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=axis),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, values.shape) for name in "xy"]
    graph = helper.make_graph(nodes, "pair", ends[:1], ends[1:], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": values.numpy()})[0])


@pytest.mark.parametrize(("low", "high"), [(-0.7, 2.0), (0.0, 3.0), (-5.0, -1.0)])
def test_activations_are_rounded_as_onnxruntime_rounds_them(low: float, high: float) -> None:
    from onnxruntime.quantization.quant_utils import compute_scale_zp

    bounds = [np.float32(value) for value in (low, high, 0, 255)]
    zero, scale = compute_scale_zp(bounds[0], bounds[1], np.array(0, np.uint8), np.array(255, np.uint8))
    values = low - 1 + (high - low + 2) * torch.rand(1000, generator=torch.Generator().manual_seed(0))
    wanted = dequantized(values, np.float32(scale), zero.astype(np.uint8))
    assert torch.allclose(rounded_activation(values, (low, high)), wanted, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1])
def test_weights_are_rounded_as_onnxruntime_rounds_them_by_channel(axis: int) -> None:
    weights = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    scale = weights.abs().amax([index for index in range(4) if index != axis]).numpy() / 127
    wanted = dequantized(weights, scale, np.zeros(len(scale), np.int8), axis)
    found = rounded_weight(weights, axis)
    assert torch.allclose(found, wanted, atol=1e-6)
    assert torch.allclose(rounded_weight(found, axis), found, atol=1e-7)  # its own grid: nothing is left to round


def test_gradients_pass_a_rounding_within_its_range_alone() -> None:
    values = torch.tensor([-0.5, 0.31, 0.9, 1.5], requires_grad=True)
    rounded_activation(values, (0.0, 1.0)).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0.0, 1.0, 1.0, 0.0]


class Branches(nn.Module):
    """What a pass can have: BatchNorm, activations in place and not, a sum, parts, a transposed layer, a linear one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.third = nn.Sequential(nn.Conv2d(4, 4, 1, groups=2), nn.ReLU6())
        self.wide = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.last = nn.Linear(24, 5)

    def forward(self, images: Tensor) -> Tensor:
        one = self.first(images)
        two = F.relu(self.second(one) + one)
        left, right = two.chunk(2, 1)
        three = torch.cat([self.third(left), right], 1)
        some = F.gelu(self.wide(three))[:, :, ::8, ::8]  # (B, 6, 2, 2)
        answer: Tensor = self.last(some.flatten(1))
        return answer


@pytest.fixture(scope="module")
def network() -> Normalized:
    """Its weights are rounded already, so that the file's biases have nothing to correct."""
    torch.manual_seed(0)
    made = Branches()
    made.train()
    with torch.no_grad():
        for _ in range(3):
            made(torch.rand(8, 3, 8, 8))
        for layer in made.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear | nn.ConvTranspose2d):
                layer.weight.data = rounded_weight(layer.weight.data, int(isinstance(layer, nn.ConvTranspose2d)))
    return Normalized(made.eval(), mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.3))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def file(network: Normalized, images: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network in INT8, calibrated on the images."""
    folder = tmp_path_factory.mktemp("branches")
    write_onnx(network, folder / "float.onnx", (8, 8), {})
    quantize(folder / "float.onnx", folder / "int8.onnx", [images])
    return folder / "int8.onnx"


def test_a_pass_is_rounded_where_the_int8_file_is(network: Normalized, images: Tensor, file: Path) -> None:
    with torch.no_grad():
        exact = network(images)
        places = find_places(network, images[:2], exact_ends=False)
        find_ranges(network, [images[:8], images[8:]], places)
        ours = fake_quantized(network, images, places)
    theirs = OnnxNetwork(file)(images)
    assert len(places.layers) == 5
    assert relative_error(exact, theirs) > 2e-3
    assert relative_error(theirs, ours) < 0.2 * relative_error(exact, theirs)


def test_rounded_weights_stand_in_the_file_as_they_are(network: Normalized, file: Path) -> None:
    import onnx
    from onnx import numpy_helper

    held = {each.name: numpy_helper.to_array(each) for each in onnx.load(file).graph.initializer}
    weight = network.network.last.weight.detach()  # type: ignore[union-attr]
    name = next(name for name, values in held.items() if values.dtype == np.uint8 and values.shape == weight.shape)
    scale = held[name.replace("_quantized", "_scale")]
    steps = (weight / torch.tensor(scale)[:, None]).round()
    assert torch.equal(steps + 128, torch.tensor(held[name]).float())
    assert steps.abs().amax(1).tolist() == [127.0] * 5


def test_a_detectors_last_layers_are_not_rounded(network: Normalized) -> None:
    whole = find_places(network, torch.rand(2, 3, 8, 8), exact_ends=False)
    less = find_places(network, torch.rand(2, 3, 8, 8), exact_ends=True)
    assert len(whole.layers) - len(less.layers) == 1
    assert less.rounded < whole.rounded


class Unsteady(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.layer(images).mean((2, 3))
        return answer * 2 if images.mean() > 0.5 else answer


def test_networks_that_cannot_be_followed_are_refused_in_a_line() -> None:
    steady = Unsteady()
    places = find_places(steady, torch.zeros(2, 3, 4, 4), exact_ends=False)
    with pytest.raises(NetworkError, match="depends on the image"):
        find_ranges(steady, [torch.ones(2, 3, 4, 4)], places)
    with pytest.raises(NetworkError, match="no layer with weights"):
        find_places(nn.Flatten(), torch.zeros(2, 3, 4, 4), exact_ends=False)
