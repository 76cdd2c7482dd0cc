"""Balance of classes among images that nothing was said of: by what the teacher sees in them.

B images, C classes, N images to choose from.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from datafree.tasks.base import Task

MOST_REPEATED = 10.0  # times an image of a key that has its share: a class of three does not fill every batch


def class_shares(task: Task, outputs: Any) -> Tensor:
    """(B, C): which share of an image each class takes, as the teacher names it; a row of 0 where it sees nothing.

    Under classification a single 1; under segmentation of the pixels, under detection of the cells that boxes reach.
    """
    return task.class_maps(task.pseudo_targets(outputs)).float().mean((2, 3))


def keys_of(shares: Tensor) -> Tensor:
    """(B,) the class that each image counts for, C for those in which nothing is seen.

    It is the one whose share of the image is the largest multiple of its share of all images: a rare class in a corner
    counts more than what is behind it everywhere. With one class an image it is that class.
    """
    mean = shares.mean(0).clamp_min(1e-12)
    return torch.where(shares.sum(1) > 0, (shares / mean).argmax(1), shares.shape[1])


def ranks(keys: Tensor) -> Tensor:
    """(N,): how many later images have the same key."""
    newest = torch.arange(len(keys) - 1, -1, -1, device=keys.device)
    order = newest[keys[newest].argsort(stable=True)]  # by key, the latest first
    grouped = keys[order]
    place = torch.arange(len(keys), device=keys.device)
    rank = torch.empty_like(place)
    rank[order] = place - torch.searchsorted(grouped, grouped)
    return rank


def entropy(keys: Tensor, classes: int) -> Tensor:
    """Scalar in [0, 1]: entropy of the histogram of keys (C, where nothing is seen, left out) over log C.

    Frank and Davis, arXiv 2411.12817, tell by it, without a student, which images teach well.
    """
    seen = torch.bincount(keys, minlength=classes)[:classes].float()
    share = seen / seen.sum().clamp_min(1)
    return -(share * share.clamp_min(1e-12).log()).sum() / math.log(max(classes, 2))


def weights_of(keys: Tensor) -> Tensor:
    """(N,) weights by which every key is drawn as often: 1 for the images of a key that has its share of them."""
    counts = torch.bincount(keys).float()
    share = len(keys) / (counts > 0).sum()  # images of a key if all had as many
    weights: Tensor = share / counts[keys]
    return weights


class BalancedBank:
    """At most `capacity` images, 8 bits a channel: the latest of each key, of all keys as many as there are.

    When it is full, an image of the key that has the most makes room, the oldest of it.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.count = self.added = 0
        self.images = torch.empty(0, dtype=torch.uint8)  # (capacity, 3, H, W)
        self.keys = torch.empty(0, dtype=torch.int64)  # (count,)
        self.born = torch.empty(0, dtype=torch.int64)  # (count,): `added` when it came
        self.weights = torch.empty(0)

    def __len__(self) -> int:
        return self.count

    def add(self, images: Tensor, keys: Tensor) -> None:
        """Images (N, 3, H, W) in [0, 1] and their keys (N,)."""
        self._put((images.detach() * 255).round_().clamp_(0, 255).to(torch.uint8), keys)

    def sample(self, n: int, most: float = MOST_REPEATED) -> Tensor:
        """(n, 3, H, W) in [0, 1], all keys alike, with repetition; `most`: see `weights_of`."""
        assert self.count, "an empty bank has nothing to draw"
        index = torch.multinomial(self.weights.clamp_max(most), n, replacement=True)
        return self.images[index].float() / 255

    def first(self, n: int) -> Tensor:
        """Up to n images, always the same while none is added."""
        return self.images[: min(n, self.count)].float() / 255

    def state_dict(self) -> dict[str, Any]:
        return {
            "images": self.images[: self.count].clone(),
            "keys": self.keys.clone(),
            "born": self.born.clone(),
            "added": self.added,
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self.count = 0
        self.keys, self.born = state["keys"][:0].to(device), state["born"][:0].to(device)
        self._put(state["images"].to(device), state["keys"].to(device))
        self.born = state["born"].to(device).clone()
        self.added = state["added"]

    def _put(self, data: Tensor, keys: Tensor) -> None:
        if not len(data):
            return
        if not len(self.images):  # memory is taken whole, once
            self.images = data.new_empty(self.capacity, *data.shape[1:])
            self.keys, self.born = (
                self.keys.to(data.device, non_blocking=True),
                self.born.to(data.device, non_blocking=True),
            )
        born = self.added + torch.arange(len(data), device=data.device)
        self.added += len(data)
        every_key, every_born = torch.cat([self.keys, keys]), torch.cat([self.born, born])
        stays = self._staying(every_key, every_born)
        old, new = stays[: self.count], stays[self.count :]
        free = torch.cat([(~old).nonzero()[:, 0], torch.arange(self.count, self.capacity, device=data.device)])
        places = free[: int(new.sum())]
        self.images[places] = data[new]
        self.count = int(stays.sum())
        grown = self.count - len(self.keys)
        self.keys = torch.cat([self.keys, keys.new_zeros(grown)])
        self.born = torch.cat([self.born, born.new_zeros(grown)])
        self.keys[places], self.born[places] = keys[new], born[new]
        self.weights = weights_of(self.keys)

    def _staying(self, keys: Tensor, born: Tensor) -> Tensor:
        """(N,) bool: `capacity` of them, those with the fewest later ones of their key, and of these the latest."""
        if len(keys) <= self.capacity:
            return torch.ones_like(keys, dtype=torch.bool)
        by_age = born.argsort()
        rank = torch.empty_like(keys)
        rank[by_age] = ranks(keys[by_age])
        order = by_age.flip(0)
        best = order[rank[order].argsort(stable=True)[: self.capacity]]
        return torch.zeros_like(keys, dtype=torch.bool).index_fill_(0, best, True)
