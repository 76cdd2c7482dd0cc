"""Balance of classes by a teacher's answers: keys, ranks, draws, and a bank that keeps as many of each."""

from __future__ import annotations

import io
import math

import pytest
import torch
from torch import Tensor

from datafree.sources.procedural.balance import (
    BalancedBank,
    class_shares,
    entropy,
    keys_of,
    ranks,
    weights_of,
)
from datafree.sources.procedural.shares import told_apart
from datafree.tasks.classification import Classification
from datafree.tasks.segmentation import Segmentation

CPU = torch.device("cpu")


def images(values: range | list[int]) -> Tensor:
    """One image (3, 8, 8) of each value."""
    return (torch.tensor(list(values)).float() / 255)[:, None, None, None].expand(-1, 3, 8, 8)


def values_in(bank: BalancedBank) -> list[int]:
    return sorted(bank.images[: len(bank), 0, 0, 0].tolist())


def test_shares_are_of_an_image_under_classification_and_of_pixels_under_segmentation() -> None:
    labels = Classification(num_classes=3, image_size=(8, 8))
    assert class_shares(labels, torch.tensor([[0.0, 2, 1], [5, 1, 1]])).tolist() == [[0, 1, 0], [1, 0, 0]]
    masks = Segmentation(num_classes=3, image_size=(8, 8))
    logits = torch.zeros(1, 3, 8, 8)
    logits[:, 2, :2] = 1  # two of eight rows
    logits[:, 0, 2:] = 1
    assert class_shares(masks, logits).tolist() == [[0.75, 0, 0.25]]


def test_an_image_counts_for_the_class_that_is_rare_elsewhere_and_for_none_where_nothing_is_seen() -> None:
    shares = torch.tensor([[0.9, 0.1, 0.0], [1.0, 0.0, 0.0], [0.8, 0.0, 0.2], [0.0, 0.0, 0.0]])
    # Means .675, .025, .05: multiples of the first row 1.33, 4, 0; of the third 1.19, 0, 4.
    assert keys_of(shares).tolist() == [1, 0, 2, 3]


def test_a_rank_counts_later_images_of_the_same_key() -> None:
    assert ranks(torch.tensor([5, 2, 5, 5, 2, 0])).tolist() == [2, 1, 1, 0, 0, 0]
    keys = torch.randint(4, (50,))
    expected = [int((keys[i + 1 :] == key).sum()) for i, key in enumerate(keys)]
    assert ranks(keys).tolist() == expected


def test_entropy_is_1_for_all_classes_alike_and_0_for_one() -> None:
    assert float(entropy(torch.tensor([0, 1, 2, 3]), 4)) == pytest.approx(1)
    assert float(entropy(torch.tensor([2, 2, 2]), 4)) == pytest.approx(0)
    assert float(entropy(torch.tensor([0, 0, 0, 1]), 4)) == pytest.approx(
        -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(4)
    )
    assert float(entropy(torch.tensor([0, 1, 4, 4, 4]), 4)) == pytest.approx(0.5)  # 4: nothing is seen


def test_what_is_told_apart_is_the_mutual_information_of_image_and_class() -> None:
    sure = torch.eye(4).repeat(3, 1)
    assert told_apart([sure]) == pytest.approx(math.log(4))
    assert told_apart([torch.full((5, 4), 0.25)]) == pytest.approx(0, abs=1e-6)
    assert told_apart([sure[:1].expand(6, 4)]) == 0
    probs = torch.rand(20, 3).softmax(1)
    mean = probs.mean(0)
    of_mean, of_each = -(mean * mean.log()).sum(), -(probs * probs.log()).sum(1).mean()
    assert told_apart(probs.split(7)) == pytest.approx(float(of_mean - of_each), abs=1e-6)


def test_weights_draw_every_key_as_often() -> None:
    keys = torch.tensor([0, 0, 0, 0, 0, 0, 2, 2, 7])
    weights = weights_of(keys)
    assert [float(weights[keys == key].sum()) for key in (0, 2, 7)] == pytest.approx([3, 3, 3])


def test_a_bank_draws_keys_alike_but_no_image_ten_times_as_often_as_its_share() -> None:
    torch.manual_seed(0)
    bank = BalancedBank(200)
    bank.add(images([10] * 50 + [20] * 100), torch.tensor([0] * 50 + [1] * 100))
    drawn = (bank.sample(4000)[:, 0, 0, 0] * 255).round()
    assert float((drawn == 10).float().mean()) == pytest.approx(0.5, abs=0.03)
    bank.add(images([30]), torch.tensor([2]))
    drawn = (bank.sample(8000)[:, 0, 0, 0] * 255).round()
    # Shares of 151 / 3 = 50.3 for the two others, of 10 for the single one.
    assert float((drawn == 30).float().mean()) == pytest.approx(10 / (10 + 2 * 151 / 3), abs=0.015)
    drawn = (bank.sample(8000, math.inf)[:, 0, 0, 0] * 255).round()
    assert float((drawn == 30).float().mean()) == pytest.approx(1 / 3, abs=0.03)


def test_a_full_bank_keeps_as_many_of_each_key_and_of_each_the_latest() -> None:
    bank = BalancedBank(6)
    bank.add(images([1, 2, 3, 4, 5]), torch.tensor([0, 0, 0, 0, 0]))
    bank.add(images([6, 7]), torch.tensor([1, 0]))
    assert len(bank) == 6 and values_in(bank) == [2, 3, 4, 5, 6, 7]  # the oldest of the many made room
    bank.add(images([8, 9]), torch.tensor([1, 2]))
    assert values_in(bank) == [4, 5, 6, 7, 8, 9]
    bank.add(images([10, 11]), torch.tensor([2, 2]))
    assert values_in(bank) == [5, 6, 7, 8, 10, 11]
    assert sorted(bank.keys.tolist()) == [0, 0, 1, 1, 2, 2]
    bank.add(images(range(100, 120)), torch.tensor([3] * 20))  # more than there is room for
    assert values_in(bank) == [7, 8, 10, 11, 118, 119]  # one of each, and the two latest of the second ones


def test_keys_stay_with_their_images() -> None:
    torch.manual_seed(0)
    bank = BalancedBank(40)
    for _ in range(10):
        values = torch.randint(256, (17,))
        bank.add(images(values.tolist()), values % 5)
    assert len(bank) == 40 and len(bank.keys) == len(bank.born) == 40
    assert torch.equal(bank.images[:, 0, 0, 0].long() % 5, bank.keys)
    assert torch.bincount(bank.keys).tolist() == [8] * 5


@pytest.mark.parametrize("rounds", [0, 1, 6])
def test_a_state_goes_on_to_the_same_images(rounds: int) -> None:
    def feed(bank: BalancedBank, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        values = torch.randint(256, (9,), generator=generator)
        bank.add(images(values.tolist()), values % 3)

    bank, other = BalancedBank(20), BalancedBank(20)
    for seed in range(rounds):
        feed(bank, seed)
    file = io.BytesIO()
    torch.save(bank.state_dict(), file)
    file.seek(0)
    feed(other, 99)  # another past
    other.load_state_dict(torch.load(file, weights_only=True), CPU)
    for seed in (50, 51, 52):
        feed(bank, seed)
        feed(other, seed)
        torch.manual_seed(0)
        expected = bank.sample(8)
        torch.manual_seed(0)
        assert torch.equal(other.sample(8), expected)
    assert torch.equal(bank.first(5), other.first(5)) and len(bank.first(5)) == 5
