"""Which channels belong together."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pruning_families import Dense, Flattened, Grouped, Heads
from torch import Tensor, nn

from datafree.networks.pruning.channel_labels import Followed
from datafree.networks.pruning.channels import narrowed
from datafree.networks.pruning.follow import follow
from datafree.networks.pruning.groups import group
from datafree.networks.resnet import resnet


def labels(followed: Followed, name: str, role: str = "outputs") -> list[int]:
    found: list[int] = narrowed(getattr(followed, role)[name]).flatten().tolist()
    return found


def test_a_padded_shortcut_ties_channel_3_of_a_stage_to_channel_11_of_the_next() -> None:
    """Option A puts 8 zeros before the 16 channels: 3 becomes 11."""
    followed = follow(resnet(10, 14, 16).eval(), torch.rand(1, 3, 16, 16))
    first, second = labels(followed, "layer1.1.conv2.weight"), labels(followed, "layer2.0.conv2.weight")
    assert second[8:24] == first == labels(followed, "conv1.weight")
    assert first[3] == second[11]
    assert not set(second[:8] + second[24:]) & set(first)
    assert labels(followed, "layer2.1.conv1.weight", "inputs") == second
    sizes = sorted(len(one) for one in group(followed))
    inner = [16, 16, 32, 32, 64, 64]  # of the blocks, two in each stage
    assert sizes == sorted([3, 10, 16, 16, 32, *inner])  # images, classes, and what each stage adds to the stream


def test_joined_maps_keep_their_channels_in_the_order_of_the_join() -> None:
    followed = follow(Dense(2).eval(), torch.rand(1, 3, 8, 8))
    parts = [labels(followed, "first.weight"), labels(followed, "layers.0.weight")]
    images = labels(followed, "first.weight", "inputs")
    assert labels(followed, "layers.1.weight", "inputs") == [*parts[0], *parts[1], *images]
    assert labels(followed, "norms.1.weight") == [*parts[0], *parts[1], *images]


def test_a_flattened_map_has_each_channel_once_for_every_place() -> None:
    followed = follow(Flattened(4).eval(), torch.rand(1, 3, 32, 32))
    channels = labels(followed, "conv.weight")
    assert labels(followed, "first.weight", "inputs") == [one for one in channels for _ in range(16)]


def test_a_depthwise_convolution_answers_the_channels_that_it_takes() -> None:
    network = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 4, 1)).eval()
    followed = follow(network, torch.rand(1, 3, 8, 8))
    assert labels(followed, "0.weight") == labels(followed, "1.weight") == labels(followed, "2.weight", "inputs")


def test_the_channels_of_a_convolutions_group_have_one_owner() -> None:
    followed = follow(Grouped(2).eval(), torch.rand(1, 3, 8, 8))
    owners = followed.channels.owners()
    taken, made = labels(followed, "first.weight"), labels(followed, "grouped.weight")
    for number in range(4):
        members = taken[2 * number : 2 * number + 2] + made[4 * number : 4 * number + 4]
        assert len({owners[one] for one in members}) == 1
    assert owners[taken[0]] != owners[taken[2]]
    assert sorted(len(one) for one in group(followed)) == sorted([3, 3, *[2] * 4, *[4] * 4])


def test_queries_keys_and_values_of_a_head_have_one_owner() -> None:
    """qkv is (3, heads, 4): queries and keys of a head are the same channels, its values go on into proj."""
    followed = follow(Heads(3, 8).eval(), torch.rand(1, 3, 32, 32))
    qkv, owners = torch.tensor(labels(followed, "qkv.weight")).view(3, 3, 4), followed.channels.owners()
    assert torch.equal(qkv[0], qkv[1])
    assert labels(followed, "proj.weight", "inputs") == qkv[2].flatten().tolist()
    for head in range(3):
        assert len({owners[int(one)] for one in qkv[:, head].flatten()}) == 1
    assert owners[int(qkv[0, 0, 0])] != owners[int(qkv[0, 1, 0])]


def test_fused_attention_has_the_groups_of_the_one_written_out() -> None:
    class Fused(Heads):
        def forward(self, images: Tensor) -> Tensor:
            x = self.patches(images).flatten(2).transpose(1, 2)
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
            q, k, v = self.qkv(self.norm1(x)).reshape(len(x), 17, 3, self.heads, 4).permute(2, 0, 3, 1, 4)
            x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
            answer: Tensor = self.last((x + self.fc2(F.gelu(self.fc1(self.norm2(x)))))[:, 0])
            return answer

    images = torch.rand(1, 3, 32, 32)
    sizes = [sorted(map(len, group(follow(kind(3, 8).eval(), images)))) for kind in (Heads, Fused)]
    assert sizes[0] == sizes[1]


def test_a_tokens_stream_is_one_group_with_its_class_token_and_places() -> None:
    followed = follow(Heads(3, 8).eval(), torch.rand(1, 3, 32, 32))
    stream = labels(followed, "patches.weight")
    for name in ("token", "places", "norm1.weight", "proj.bias", "fc2.weight"):
        assert labels(followed, name) == stream


def test_a_norm_over_places_keeps_channels_and_one_over_all_ties_none() -> None:
    """ConvNeXt V2's response normalisation has the first; the second is what watches a teacher's answers on a GPU."""

    class Responding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)

        def forward(self, images: Tensor) -> Tensor:
            x = self.conv(images)
            energy = torch.linalg.vector_norm(x, 2, (2, 3), keepdim=True)
            answer: Tensor = self.last(x * energy / torch.linalg.vector_norm(x, 2.0))
            return answer

    followed = follow(Responding().eval(), torch.rand(1, 3, 8, 8))
    assert labels(followed, "conv.weight") == labels(followed, "last.weight", "inputs")
    assert len(set(labels(followed, "conv.weight"))) == 6 and not followed.lost


def test_a_gate_of_one_map_for_all_channels_ties_none_of_them() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.gate, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 1, 1), nn.Conv2d(6, 2, 1)

        def forward(self, images: Tensor) -> Tensor:
            x = self.conv(images)
            answer: Tensor = self.last(x * self.gate(x).sigmoid() + x.mean(1, keepdim=True))
            return answer

    followed = follow(Gated().eval(), torch.rand(1, 3, 8, 8))
    assert len(set(labels(followed, "last.weight", "inputs"))) == 6


def test_a_sum_over_branches_ties_their_channels() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other, self.last = (nn.Conv2d(n, m, 1) for n, m in ((3, 5), (3, 5), (5, 2)))

        def forward(self, images: Tensor) -> Tensor:
            answer: Tensor = self.last(torch.stack([self.one(images), self.other(images)], 1).sum(1))
            return answer

    followed = follow(Branches().eval(), torch.rand(1, 3, 8, 8))
    assert labels(followed, "one.weight") == labels(followed, "other.weight")


def test_following_leaves_modes_and_statistics_as_they_were() -> None:
    network = resnet(10, 8, 4).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    follow(network, torch.rand(1, 3, 16, 16))
    assert all(module.training for module in network.modules())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())
