"""Statistics of BatchNorm inputs: the fused form against the plain one, the distance against the paper's formula."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops.misc import FrozenBatchNorm2d

import datafree.ops.moments
from datafree.errors import NetworkError
from datafree.networks.batchnorm import StatisticsMatch, batchnorm_layers, require_batchnorm
from datafree.networks.normalized import Normalized
from datafree.networks.resnet import resnet
from datafree.ops import modes
from datafree.ops.moments import is_line, moments, normalised, plain_moments

C = 5


def maps(*, offset: float = 1.0, dtype: torch.dtype = torch.float32, batch: int = 4) -> Tensor:
    """(B, 6, 7, 9) with means and deviations of its own in each channel."""
    torch.manual_seed(0)
    scale, shift = torch.rand(6) + 0.5, offset * torch.randn(6)
    return (torch.randn(batch, 6, 7, 9) * scale[:, None, None] + shift[:, None, None]).to(dtype)


def gradient(of: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
    """The gradient of a loss that uses every mean and every variance, each with another weight."""
    x = x.clone().requires_grad_()
    mean, var = of(x)
    weights = torch.linspace(-1, 2, len(mean))
    (grad,) = torch.autograd.grad((weights * mean.square() + weights.flip(0) * var.sqrt()).sum(), x)
    return grad


def teacher(seed: int = 0) -> nn.Module:
    """A frozen ResNet-8 whose BatchNorm has seen images."""
    torch.manual_seed(seed)
    network = Normalized(resnet(C, depth=8, width=4))
    for _ in range(5):
        network(torch.rand(8, 3, 16, 16))
    return network.eval().requires_grad_(False)


def by_hand(network: nn.Module, images: Tensor, p: float = 2.0) -> list[Tensor]:
    """||mean_l(x) - running_mean_l||_p + ||var_l(x) - running_var_l||_p of each BatchNorm, in the order of the pass."""
    found: list[Tensor] = []

    def look(layer: nn.BatchNorm2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0].transpose(0, 1).flatten(1)  # (K, B*H*W)
        mean, var = x.mean(1), ((x - x.mean(1, keepdim=True)) ** 2).mean(1)
        found.append(
            ((mean - layer.running_mean).abs() ** p).sum() ** (1 / p)
            + ((var - layer.running_var).abs() ** p).sum() ** (1 / p)
        )

    handles = [m.register_forward_hook(look) for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    network(images)
    for handle in handles:
        handle.remove()
    return found


# Moments.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_moments_equal_torch_var_mean_in_float32(dtype: torch.dtype) -> None:
    x = maps(dtype=dtype)
    mean, var = moments(x)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    expected_var, expected_mean = torch.var_mean(x.to(wide), (0, 2, 3), correction=0)
    torch.testing.assert_close(mean, expected_mean, rtol=1e-5, atol=1e-6)  # of the same type, too
    torch.testing.assert_close(var, expected_var, rtol=1e-5, atol=1e-6)


def test_variance_keeps_its_figures_far_from_zero() -> None:
    x = maps() + 1000.0
    expected = x.double().var((0, 2, 3), correction=0).float()
    torch.testing.assert_close(moments(x)[1], expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("used", ["both", "mean", "var"])
def test_gradient_passes_gradcheck_in_float64(used: str) -> None:
    def chosen(x: Tensor) -> tuple[Tensor, ...]:
        mean, var = moments(x)
        return {"both": (mean, var), "mean": (mean,), "var": (var,)}[used]

    x = maps(dtype=torch.float64, batch=2).requires_grad_()
    assert torch.autograd.gradcheck(chosen, (x,))


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_gradient_equals_that_of_the_plain_form(memory: torch.memory_format) -> None:
    x = maps().to(memory_format=memory)
    ours = gradient(moments, x)
    torch.testing.assert_close(ours, gradient(plain_moments, x), rtol=1e-5, atol=1e-6)
    assert ours.is_contiguous(memory_format=memory)


@pytest.mark.parametrize(("offset", "tolerance"), [(0.0, 0.01), (1.0, 0.02), (10.0, 0.1)])
def test_gradient_in_bf16_is_off_by_roundings_only(offset: float, tolerance: float) -> None:
    x = maps(offset=offset, dtype=torch.bfloat16)
    ours, plain = gradient(moments, x), gradient(plain_moments, x)
    assert ours.dtype == torch.bfloat16
    assert (ours.float() - plain.float()).norm() < tolerance * plain.float().norm()


def test_plain_form_serves_where_torch_has_no_fused_one(monkeypatch: pytest.MonkeyPatch) -> None:
    x = maps()
    fused, fused_gradient = moments(x), gradient(moments, x)
    monkeypatch.setattr(datafree.ops.moments, "_FUSED", False)
    monkeypatch.delattr(torch, "batch_norm_update_stats")
    torch.testing.assert_close(moments(x), fused)
    torch.testing.assert_close(gradient(moments, x), fused_gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(9, 6), (4, 6, 10), (2, 6, 3, 4, 5)])
def test_inputs_of_batchnorm_1d_and_3d_have_moments_too(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape) + 2
    rows = x.movedim(1, -1).flatten(0, -2)
    torch.testing.assert_close(moments(x), (rows.mean(0), rows.var(0, correction=0)))


def test_a_single_value_a_channel_has_variance_zero() -> None:
    mean, var = moments(torch.full((1, 3, 1, 1), 2.0))
    assert mean.tolist() == [2, 2, 2]
    assert var.tolist() == [0, 0, 0]


# A frozen layer's answer with its moments.


def that_has_seen_data(layer: nn.Module) -> nn.Module:
    """The layer, of 6 channels, with statistics, weight and bias of its own; frozen."""
    torch.manual_seed(1)
    for tensor in layer.state_dict().values():
        if tensor.ndim:
            tensor.uniform_(0.5, 1.5)
    return layer.eval().requires_grad_(False)


FROZEN = {
    "affine": lambda: that_has_seen_data(nn.BatchNorm2d(6)),
    "plain": lambda: that_has_seen_data(nn.BatchNorm2d(6, affine=False)),
    "torchvision": lambda: that_has_seen_data(FrozenBatchNorm2d(6)),
}


@pytest.mark.parametrize("kind", FROZEN)
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_a_frozen_layers_answer_moments_and_gradient_equal_its_own(kind: str, memory: torch.memory_format) -> None:
    layer, x = FROZEN[kind](), maps().to(memory_format=memory)
    assert is_line(layer, x)

    def all_used(answer: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        weights = torch.linspace(-1, 2, 6)
        return (answer * torch.linspace(0, 1, answer.numel()).view_as(answer)).sum() + (weights * mean * var).sum()

    ours, own = x.clone().requires_grad_(), x.clone().requires_grad_()
    got, wanted = normalised(layer, ours), (layer(own), *plain_moments(own))
    torch.testing.assert_close(got, wanted)
    all_used(*got).backward()
    all_used(*wanted).backward()
    assert ours.grad is not None
    torch.testing.assert_close(ours.grad, own.grad, rtol=1e-5, atol=1e-5)
    assert got[0].is_contiguous(memory_format=memory)
    assert ours.grad.is_contiguous(memory_format=memory)


@pytest.mark.parametrize("used", [*(pytest.param((i,), marks=pytest.mark.thorough) for i in range(3)), (0, 1, 2)])
def test_gradient_through_a_frozen_layer_passes_gradcheck(used: tuple[int, ...]) -> None:
    layer = FROZEN["affine"]().double()
    x = maps(dtype=torch.float64, batch=2)[..., :3, :2].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: tuple(normalised(layer, x)[i] for i in used), (x,))


def test_layers_that_do_more_or_learn_answer_for_themselves() -> None:
    x = maps()
    assert not is_line(FROZEN["affine"]().train(), x)
    assert not is_line(FROZEN["affine"]().requires_grad_(), x)
    assert not is_line(FROZEN["affine"](), x.bfloat16())
    of_the_batch = nn.BatchNorm2d(6, track_running_stats=False)
    for layer in (of_the_batch, timm.layers.BatchNormAct2d(6), nn.SyncBatchNorm(6), nn.BatchNorm1d(6)):
        assert not is_line(that_has_seen_data(layer), x)


# The distance.


@pytest.mark.parametrize("p", [1.0, 2.0])
@pytest.mark.parametrize("first", [0.0, 9.0])
def test_distance_is_the_papers_formula_summed_over_layers(p: float, first: float) -> None:
    network, images = teacher(), torch.rand(6, 3, 16, 16)
    match = StatisticsMatch(network=network, p=p, first=first)
    with match.watching():
        network(images)
    terms = by_hand(network, images, p)
    assert len(terms) == 7
    assert match.distance().item() == pytest.approx((sum(terms) + first * terms[0]).item(), rel=1e-5)
    names = [name for name, m in network.network.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert list(match.terms()) == names  # of the bare network
    assert [term.item() for term in match.terms().values()] == pytest.approx([t.item() for t in terms], rel=1e-5)


def test_gradient_of_the_distance_reaches_the_images_and_equals_autograds() -> None:
    network, images = teacher(), torch.rand(6, 3, 16, 16)
    match = StatisticsMatch(network=network)
    first, second = images.clone().requires_grad_(), images.clone().requires_grad_()
    with match.watching():
        network(first)
    match.distance().backward()
    torch.stack(by_hand(network, second)).sum().backward()
    assert first.grad is not None
    torch.testing.assert_close(first.grad, second.grad, rtol=1e-4, atol=1e-6)


def test_momentum_compares_a_blend_with_the_average_of_past_rounds() -> None:
    network = teacher()
    match, m = StatisticsMatch(network=network, momentum=0.9), 0.9
    layer = network.network.bn1
    assert isinstance(layer, nn.BatchNorm2d)
    kept: tuple[Tensor, Tensor] | None = None
    for seed in range(3):
        images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
        with match.watching():
            network(images)
        now = plain_moments(network.network.conv1(images))
        blend = now if kept is None else tuple((1 - m) * new + m * old for new, old in zip(now, kept, strict=True))
        expected = (blend[0] - layer.running_mean).norm() + (blend[1] - layer.running_var).norm()
        assert match.terms()["bn1"].item() == pytest.approx(expected.item(), rel=1e-4)
        match.remember()
        kept = blend
        assert not any(tensor.requires_grad for pair in match.state_dict().values() for tensor in pair)


def test_saved_averages_go_on_to_the_same_distance() -> None:
    network, images = teacher(), torch.rand(4, 3, 16, 16)
    matches = [StatisticsMatch(network=network, momentum=0.5) for _ in range(2)]
    with matches[0].watching():
        network(images + 0.5)
    matches[0].remember()
    file = io.BytesIO()
    torch.save(matches[0].state_dict(), file)
    file.seek(0)
    matches[1].load_state_dict(torch.load(file, weights_only=True))
    for match in matches:
        with match.watching():
            network(images)
    assert matches[0].distance() == matches[1].distance()
    assert matches[0].distance() != sum(by_hand(network, images))


def test_channels_last_images_have_the_same_distance() -> None:
    network, images = teacher(), torch.rand(4, 3, 16, 16)
    distances = []
    for x in (images, images.to(memory_format=torch.channels_last)):
        match = StatisticsMatch(network=network)
        with match.watching():
            network(x)
        distances.append(match.distance())
    torch.testing.assert_close(distances[0], distances[1])


def test_a_pass_in_bf16_measures_nearly_the_same_and_has_a_gradient() -> None:
    network, images = teacher(), torch.rand(8, 3, 16, 16).requires_grad_()
    match = StatisticsMatch(network=network)
    seen: list[torch.dtype] = []
    handle = network.network.bn1.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0].dtype))
    with match.watching(), modes.autocast(images.device, torch.bfloat16):
        network(images)
    handle.remove()
    assert seen == [torch.bfloat16]
    distance = match.distance()
    assert distance.dtype == torch.float32
    assert distance.item() == pytest.approx(sum(by_hand(network, images)).item(), rel=0.02)
    distance.backward()
    assert images.grad is not None
    assert images.grad.dtype == torch.float32
    assert images.grad.isfinite().all()
    assert images.grad.norm() > 0


def test_watching_changes_nothing_in_the_network_and_leaves_no_hook_also_after_an_error() -> None:
    network = teacher()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    match = StatisticsMatch(network=network)
    with match.watching():
        network(torch.rand(2, 3, 16, 16))
    with pytest.raises(RuntimeError), match.watching():
        network(torch.rand(2, 4, 16, 16))
    assert not any("forward" in vars(module) for module in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_distance_without_a_pass_is_a_fault_of_the_caller() -> None:
    match = StatisticsMatch(network=teacher())
    with pytest.raises(AssertionError, match="watching"):
        match.distance()
    with match.watching():
        pass
    with pytest.raises(AssertionError, match="watching"):
        match.distance()


# Layers that explode.


def exploding(factor: float = 50.0) -> nn.Module:
    """The teacher, one of whose layers has kept statistics that are far from everything."""
    network = teacher()
    layer = network.network.layer2[0].bn2
    layer.running_mean += factor
    return network


def grads(match: StatisticsMatch, images: Tensor) -> tuple[Tensor, Tensor]:
    """The distance, and its gradient to the pixels."""
    images = images.clone().requires_grad_()
    with match.watching():
        match.network(images)
    distance = match.distance()
    return distance.detach(), torch.autograd.grad(distance, images)[0]


@pytest.mark.parametrize("p", [1.0, 2.0])
@pytest.mark.parametrize("first", [0.0, 2.0])
def test_a_layer_far_above_the_median_counts_as_the_limit(p: float, first: float) -> None:
    network, images = exploding(), torch.rand(6, 3, 16, 16)
    match = StatisticsMatch(network=network, p=p, first=first, clip=3.0)
    distance, _ = grads(match, images)
    terms = by_hand(network, images, p)
    limit = 3 * sorted(terms)[3]  # of seven layers
    kept = [min(term, limit) for term in terms]
    assert sum(term > limit for term in terms) == 1
    assert distance.item() == pytest.approx((sum(kept) + first * kept[0]).item(), rel=1e-5)
    assert [term.item() for term in match.terms().values()] == pytest.approx([t.item() for t in kept], rel=1e-5)
    worst = max(range(7), key=lambda i: terms[i].item())
    name = [name for name, m in network.network.named_modules() if isinstance(m, nn.BatchNorm2d)][worst]
    assert match.clipped() == {name: pytest.approx((terms[worst] / (limit / 3)).item(), rel=1e-5)}


def test_its_gradient_shrinks_with_its_value_and_that_of_the_others_stays() -> None:
    network, images = exploding(), torch.rand(6, 3, 16, 16)
    pixels = images.clone().requires_grad_()
    terms = by_hand(network, pixels)
    limit = 3 * sorted(term.item() for term in terms)[3]
    factors = [min(1.0, limit / term.item()) for term in terms]
    assert min(factors) < 0.2
    (expected,) = torch.autograd.grad(sum(f * term for f, term in zip(factors, terms, strict=True)), pixels)
    _, found = grads(StatisticsMatch(network=network, clip=3.0), images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("factor", [1e3, 1e18, 1e22])
def test_a_layer_beyond_what_float32_holds_counts_as_the_limit_and_has_no_slope(factor: float) -> None:
    def three(scale: float) -> nn.Sequential:
        torch.manual_seed(0)
        layers = [layer for _ in range(3) for layer in (nn.Conv2d(3, 3, 3, bias=False), nn.BatchNorm2d(3))]
        network = nn.Sequential(*layers).eval().requires_grad_(False)
        network[4].weight *= scale  # type: ignore[operator]
        return network

    match, images = StatisticsMatch(network=three(factor), clip=10.0), torch.rand(4, 3, 16, 16)
    distance, gradient = grads(match, images)
    first, second, third = match.terms().values()
    assert third == 10 * max(first, second)  # the median of three is the second in size
    assert distance == first + second + third
    assert list(match.clipped()) == ["5"]
    assert torch.isfinite(gradient).all()
    if factor > 1e4:  # no slope is left: that of the others alone
        alone = StatisticsMatch(network=three(1.0), count=2)
        torch.testing.assert_close(gradient, grads(alone, images)[1])


def test_nothing_is_clipped_without_a_limit_or_below_it() -> None:
    network, images = exploding(), torch.rand(6, 3, 16, 16)
    plain = StatisticsMatch(network=network)
    distance, grad = grads(plain, images)
    assert plain.clipped() == {}
    high = StatisticsMatch(network=network, clip=1e6)
    assert high.clipped() == {}
    for found, expected in zip(grads(high, images), (distance, grad), strict=True):
        assert torch.equal(found, expected)
    assert high.clipped() == {}


def test_layers_that_match_to_the_last_bit_are_no_trouble_to_the_median() -> None:
    network = teacher()
    images = torch.rand(4, 3, 16, 16).requires_grad_()
    match = StatisticsMatch(network=network, clip=2.0)
    with match.watching():
        network(images)
    for name, (mean, var) in match._now.items():
        layer = match.layers[name]
        layer.running_mean, layer.running_var = mean.detach().clone(), var.detach().clone()
    distance = match.distance()
    assert distance == 0
    assert torch.equal(torch.autograd.grad(distance, images)[0], torch.zeros_like(images))
    assert match.clipped() == {}


class HostLooks(TorchDispatchMode):
    """Counts the numbers that the host reads: on an accelerator, each is a wait."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        return func(*args, **(kwargs or {}))


def test_the_host_reads_no_number_until_it_is_asked_which_layers_were_clipped() -> None:
    network, images = exploding(), torch.rand(4, 3, 16, 16)
    match = StatisticsMatch(network=network, clip=3.0, momentum=0.5)
    with HostLooks() as looks:
        grads(match, images)
        match.remember()
        grads(match, images)
    assert looks.count == 0
    assert len(match.clipped()) == 1


# Which layers count.


def test_only_the_layers_inside_a_module_count() -> None:
    network, images = teacher(), torch.rand(6, 3, 16, 16)
    every = list(batchnorm_layers(network.network))
    inside = [name for name in every if name.startswith("layer2.")]
    assert 0 < len(inside) < len(every)
    match = StatisticsMatch(network=network, within="layer2", first=9.0)
    assert list(match.layers) == inside
    distance, _ = grads(match, images)
    terms = [term for name, term in zip(every, by_hand(network, images), strict=True) if name in inside]
    assert distance.item() == pytest.approx((sum(terms) + 9 * terms[0]).item(), rel=1e-5)  # the first of these
    assert list(StatisticsMatch(network=network, within="bn1").layers) == ["bn1"]


def test_a_module_is_not_taken_for_another_whose_name_begins_alike() -> None:
    network = nn.ModuleDict({"body": nn.BatchNorm2d(3), "body2": nn.BatchNorm2d(3)})
    assert list(StatisticsMatch(network=network, within="body").layers) == ["body"]


@pytest.mark.parametrize("within", ["", "layer2"])
def test_the_first_layers_of_the_definition_can_be_chosen(within: str) -> None:
    network, images = teacher(), torch.rand(6, 3, 16, 16)
    every = list(StatisticsMatch(network=network, within=within).layers)
    match = StatisticsMatch(network=network, within=within, count=len(every) - 1)  # DIODE's 320 pixels: all but one
    assert list(match.layers) == every[:-1]
    distance, _ = grads(match, images)
    named = dict(zip(batchnorm_layers(network.network), by_hand(network, images), strict=True))
    assert distance.item() == pytest.approx(sum(named[name].item() for name in every[:-1]), rel=1e-5)
    assert list(StatisticsMatch(network=network, within=within, count=99).layers) == every


def test_a_module_without_batchnorm_in_it_is_named_with_layers_that_are_there() -> None:
    with pytest.raises(NetworkError) as caught:
        StatisticsMatch(network=teacher(), within="backbone")
    line = str(caught.value)
    assert "\n" not in line
    assert "'backbone'" in line
    assert "bn1, layer1.0.bn1" in line
    bare = nn.Sequential(nn.Conv2d(3, 4, 1))
    assert StatisticsMatch(network=bare, within="backbone").layers == {}  # `require_batchnorm` says what is wrong


def test_frozen_layers_of_torchvision_give_the_same_distance() -> None:
    torch.manual_seed(0)
    plain, frozen = nn.BatchNorm2d(3), FrozenBatchNorm2d(3)
    plain(torch.randn(4, 3, 5, 5))
    frozen.load_state_dict({k: v for k, v in plain.state_dict().items() if k != "num_batches_tracked"})
    images = torch.rand(2, 3, 5, 5)
    (one, grad), (other, same) = (
        grads(StatisticsMatch(network=nn.Sequential(layer.eval())), images) for layer in (plain, frozen)
    )
    assert one == other
    assert one > 0
    assert torch.equal(grad, same)


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm2d(4),
        nn.BatchNorm1d(4),
        nn.BatchNorm3d(4),
        nn.SyncBatchNorm(4),
        FrozenBatchNorm2d(4),
        timm.layers.BatchNormAct2d(4),
        freeze_batch_norm_2d(timm.layers.BatchNormAct2d(4)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_batchnorm_of_every_kind_is_found_frozen_or_not(layer: nn.Module) -> None:
    assert list(batchnorm_layers(nn.Sequential(nn.Identity(), layer))) == ["1"]


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.InstanceNorm2d(4),
        nn.InstanceNorm2d(4, track_running_stats=True),
        nn.GroupNorm(2, 4),
        nn.LayerNorm(4),
        fuse_conv_bn_eval(nn.Conv2d(3, 4, 1).eval(), nn.BatchNorm2d(4).eval()),
    ],
    ids=str,
)
def test_layers_that_keep_no_statistics_of_the_data_are_not_found(layer: nn.Module) -> None:
    network = nn.Sequential(layer)
    assert batchnorm_layers(network) == {}
    with pytest.raises(NetworkError, match="no BatchNorm statistics"):
        require_batchnorm(network, "inversion")
    match = StatisticsMatch(network=network)
    with match.watching():
        pass
    assert match.distance().item() == 0


def test_frozen_networks_of_timm_give_the_same_distance() -> None:
    torch.manual_seed(0)
    network = timm.create_model("mobilenetv3_small_050", num_classes=3)
    network(torch.rand(4, 3, 64, 64))
    network.eval()
    images, distances = torch.rand(2, 3, 64, 64), []
    for kind in ("BatchNormAct2d", "FrozenBatchNormAct2d"):
        assert type(network.bn1).__name__ == kind
        match = StatisticsMatch(network=network)
        with match.watching(), torch.no_grad():
            network(images)
        distances.append(match.distance().item())
        network = freeze_batch_norm_2d(network)
    assert distances[0] == pytest.approx(distances[1], rel=1e-5)


def test_a_teacher_without_batchnorm_is_told_what_does_without() -> None:
    require_batchnorm(teacher(), "inversion")
    with pytest.raises(NetworkError) as caught:
        require_batchnorm(nn.Sequential(nn.Conv2d(3, 4, 3)), "inversion")
    line = str(caught.value)
    assert "\n" not in line
    assert "source.method=inversion" in line
    assert "folded into its convolutions" in line
    assert "dfad" in line
