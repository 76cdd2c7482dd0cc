"""Bias correction: the means that it takes are those of the images, and rounding then shifts no layer's mean."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx

from datafree.deploy import quantize as quantizing
from datafree.deploy.bias_correction import InputMeans
from datafree.networks.normalized import Normalized
from datafree.networks.onnx import OnnxNetwork, write_onnx


class Grouped(nn.Module):
    """A pass through convolutions without padding, dense, grouped and depthwise, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=2), nn.ReLU(), nn.Conv2d(12, 12, 1, groups=12)
        )
        self.linear = nn.Linear(12, 5)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.convolutions(images).relu().mean((2, 3)))
        return logits


@pytest.fixture
def network() -> Normalized:
    torch.manual_seed(0)
    found = Grouped().eval()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.mul_(2).add_(0.1)  # a mean other than zero, so that rounding has one, too
    return Normalized(found, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def written(network: Normalized, folder: Path) -> Path:
    file = folder / "float.onnx"
    write_onnx(network, file, (12, 12), {})
    return file


def test_means_of_inputs_are_those_of_all_images(network: Normalized, tmp_path: Path) -> None:
    seen: list[Tensor] = []
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.rand(10, 3, 12, 12)
    network(images)
    model = onnx.load(str(written(network, tmp_path)))
    means = InputMeans(model)
    for part in (images[:4], images[4:]):  # batches of unequal size
        means.see({model.graph.input[0].name: part.numpy()})
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    assert [node.op_type for node in layers] == ["Conv", "Conv", "Conv", "Gemm"]
    for node, inputs in zip(layers, seen[:4], strict=True):
        expected = inputs.movedim(1, 0).flatten(1).mean(1)
        torch.testing.assert_close(torch.from_numpy(means.of(node.input[0])), expected, rtol=1e-4, atol=1e-5)


class Tokens(nn.Module):
    """A linear layer for each patch of an image, its rows those of all images: (B * T, C) -> (B * T, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 2, 2)
        self.linear, self.head = nn.Linear(16, 8), nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.patches(images).flatten(2).transpose(1, 2)  # (B, T, 16)
        seen = self.linear(maps.reshape(-1, 16)).relu().view(len(images), -1, 8)
        logits: Tensor = self.head(seen.mean(1))
        return logits


def test_a_linear_layer_of_many_rows_an_image_takes_their_mean(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Normalized(Tokens().eval())
    rows: list[Tensor] = []
    for layer in (network.network.linear, network.network.head):
        layer.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0]))
    images = torch.rand(10, 3, 12, 12)
    network(images)
    given_rows = list(rows)
    model = onnx.load(str(written(network, tmp_path)))
    means = InputMeans(model)
    for part in (images[:4], images[4:]):
        means.see({"images": part.numpy()})
    layers = [node for node in model.graph.node if node.op_type == "Gemm"]
    assert len(layers) == 2 and len(given_rows[0]) == 360
    for node, given in zip(layers, given_rows, strict=True):
        torch.testing.assert_close(torch.from_numpy(means.of(node.input[0])), given.mean(0))


def test_rounding_shifts_the_mean_of_answers_less(
    network: Normalized, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, images = written(network, tmp_path), torch.rand(64, 3, 12, 12)
    exact = OnnxNetwork(file)(images)

    def shift(name: str) -> float:
        quantizing.quantize(file, tmp_path / name, torch.split(images, 16))
        answers = OnnxNetwork(tmp_path / name)(images)
        assert isinstance(answers, Tensor)
        assert isinstance(exact, Tensor)
        return float((answers - exact).mean(0).abs().mean())

    corrected = shift("corrected.onnx")
    monkeypatch.setattr(quantizing, "correct_biases", lambda *_: None)
    assert corrected < 0.5 * shift("plain.onnx")


def test_layers_need_no_names_in_a_file(network: Normalized, tmp_path: Path) -> None:
    named, images = written(network, tmp_path), torch.rand(8, 3, 12, 12)
    model = onnx.load(str(named))
    for node in model.graph.node:
        node.name = ""
    onnx.save(model, str(tmp_path / "unnamed.onnx"))
    answers = []
    for file in (named, tmp_path / "unnamed.onnx"):
        quantizing.quantize(file, tmp_path / f"int8-{file.name}", [images])
        answers.append(OnnxNetwork(tmp_path / f"int8-{file.name}")(images))
    assert torch.equal(answers[0], answers[1])


def test_a_grouped_layers_bias_takes_what_the_formula_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """(W' - W) E[x] of Nagel et al., section 4.2, for a layer of two groups, from what the two files hold."""
    torch.manual_seed(1)
    layer = nn.Conv2d(3, 6, 3, groups=3)
    file = written(Normalized(layer, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)), tmp_path)
    images = torch.rand(8, 3, 12, 12)
    quantizing.quantize(file, tmp_path / "corrected.onnx", [images])
    monkeypatch.setattr(quantizing, "correct_biases", lambda *_: None)
    quantizing.quantize(file, tmp_path / "plain.onnx", [images])

    def held(name: str) -> dict[str, Tensor]:
        found = onnx.load(str(tmp_path / name)).graph.initializer
        return {each.name: torch.from_numpy(onnx.numpy_helper.to_array(each).copy()) for each in found}

    before, after = held("plain.onnx"), held("corrected.onnx")
    kernel, bias = (
        next(name.removesuffix("_quantized") for name in before if name.endswith(end))
        for end in ("weight_quantized", "bias_quantized")
    )
    used = before[f"{kernel}_quantized"].float() - before[f"{kernel}_zero_point"].float()[:, None, None, None]
    change = used * before[f"{kernel}_scale"][:, None, None, None] - layer.weight.detach()
    mean = images.mean((0, 2, 3)).repeat_interleave(2)  # of the one channel that each output reads
    moved = (after[f"{bias}_quantized"] - before[f"{bias}_quantized"]) * before[f"{bias}_quantized_scale"]
    step = float(before[f"{bias}_quantized_scale"].max())
    torch.testing.assert_close(moved, -change.flatten(1).sum(1) * mean, atol=step, rtol=0)
    assert moved.abs().max() > 2 * step
