"""The moving average of weights, against the sum written out."""

import torch
from torch import nn

from datafree.networks import moving_average


def test_each_past_value_counts_by_the_momentum_to_its_age() -> None:
    torch.manual_seed(0)
    network, average = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    past = [{name: value.clone().double() for name, value in average.state_dict().items()}]
    for _ in range(4):
        nn.init.normal_(network.weight)
        network(torch.randn(5, 3))
        past.append({name: value.clone().double() for name, value in network.state_dict().items()})
        moving_average.take_in(average.state_dict(), network.state_dict(), 0.75)
    for name in ("weight", "running_mean", "running_var"):
        aged = [0.25 * 0.75**age * values[name] for age, values in enumerate(reversed(past[1:]))]
        expected = torch.stack([0.75**4 * past[0][name], *aged]).sum(0)
        torch.testing.assert_close(average.state_dict()[name].double(), expected, rtol=1e-6, atol=1e-6)
    assert average.num_batches_tracked == network.num_batches_tracked == 4  # a count is no average
