"""Training for INT8: the rounded network comes nearer to the float one, which stays as it is."""

import copy
import math
import re

import pytest
import torch
from torch import Tensor, nn

from datafree.deploy.fake_quantize import fake_quantized, find_places, find_ranges, rounded_weight
from datafree.deploy.qat import train_for_int8
from datafree.errors import NetworkError
from datafree.networks.normalized import Normalized
from datafree.tasks.classification import Classification

TASK = Classification(num_classes=4, image_size=(8, 8))


def images(count: int, seed: int) -> Tensor:
    """Noise around a colour of each image's own."""
    draw = torch.Generator().manual_seed(seed)
    colours, noise = torch.rand(count, 3, 1, 1, generator=draw), torch.rand(count, 3, 8, 8, generator=draw)
    return ((0.8 * colours + 0.2 * noise) * 255).byte()


@pytest.fixture(scope="module")
def spoilt() -> Normalized:
    """A network that INT8 spoils: in each channel of a layer one weight is so large that the others round to 0."""
    torch.manual_seed(1)
    made = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 16, 4)
    )
    with torch.no_grad():
        made[5].bias -= made(images(100, 9).float() / 255).mean(0)
        made[5].weight *= 20  # so that classes differ
        made[5].bias *= 20
        made[0].bias[0] = -9.0  # a channel that is always 0 ...
        made[2].weight[:, 0] *= 250  # ... makes the scale of all that come of it
    return Normalized(made.eval())


def agreement(network: Normalized, exact: Normalized) -> float:
    """Of a network, rounded, with the float one, on images that nothing was trained on."""
    seen = images(200, 5).float() / 255
    with torch.no_grad():
        places = find_places(network, seen[:2], exact_ends=False)
        find_ranges(network, [seen], places)
        found = TASK.agreement(fake_quantized(network, seen, places), exact(seen))
    assert found is not None
    return found


def test_a_network_that_rounding_spoils_gains_agreement(spoilt: Normalized) -> None:
    before = copy.deepcopy(spoilt.state_dict())
    done = train_for_int8(spoilt, TASK, images(100, 0), 60, lr=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in spoilt.state_dict().items())
    assert done.after < 0.5 * done.before
    plain, trained = agreement(spoilt, spoilt), agreement(done.network, spoilt)
    assert plain < 0.4
    assert trained > plain + 0.2


def test_weights_that_were_trained_are_whole_numbers_of_steps(spoilt: Normalized) -> None:
    done = train_for_int8(spoilt, TASK, images(20, 0), 2)
    layers = [layer for layer in done.network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert len(layers) == 3
    for layer in layers:
        assert torch.allclose(rounded_weight(layer.weight, 0), layer.weight, atol=1e-7)
    assert not any(parameter.requires_grad for parameter in done.network.parameters())


def test_the_same_seed_gives_the_same_network(spoilt: Normalized) -> None:
    before = torch.get_rng_state()
    first, second = (train_for_int8(spoilt, TASK, images(20, 0), 2).network.state_dict() for _ in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert torch.equal(torch.get_rng_state(), before)


def test_training_that_did_not_help_is_told_and_not_used(spoilt: Normalized) -> None:
    done = train_for_int8(spoilt, TASK, images(20, 0), 3, lr=1.0)
    assert not done.helped
    assert done.line.endswith("; INT8 is made of the weights as they were")
    assert re.search(r"^3 steps of training for INT8: .* went from [\d.e-]+ to [\d.e+]+;", done.line)


def test_a_loss_that_is_no_number_is_one_line(spoilt: Normalized, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Classification, "distill_loss", lambda task, ours, theirs: (ours - theirs).sum() * math.nan)
    with pytest.raises(NetworkError, match="leave --qat-steps out"):
        train_for_int8(spoilt, TASK, images(20, 0), 2)
