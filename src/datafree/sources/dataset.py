"""A data set on disk with its targets: what `datafree synthesize` has made, or any that the task's folders can hold.

B images, H x W pixels.
"""

from __future__ import annotations

import random
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast, final

import torch
from torch import Tensor, nn

from datafree.errors import DataError
from datafree.images import UnreadableImage
from datafree.sources.base import Batch, ImageSource, Setting

_READERS = 2  # threads that decode ahead; Pillow's decoders let other threads run
_NAMED = 5  # skipped files named in the notes

Example = tuple[Tensor, Tensor]  # an image (3, H, W) and its target


class _Examples(Protocol):
    """Labelled data that is read one image at a time, in any order."""

    def __getitem__(self, index: int) -> Example: ...

    def __len__(self) -> int: ...


class _Ahead(NamedTuple):
    """An image being read before it is asked for."""

    epoch: int
    position: int  # in the epoch
    which: int  # in the data set
    example: Future[Example]


@final
@dataclass(kw_only=True)
class Dataset(ImageSource):
    """Images and targets of a data set, each once an epoch, in an order drawn anew for each.

    The order is a pure function of the run's seed and the epoch: no random state is touched, and a resumed run goes on
    with the very image. The next batch is read while the student learns from this one. Images come as they are in
    the files, scaled to the task's size as labelled data is; training.shift moves them. Files that cannot be read are
    skipped and named in `notes`. The targets are learnt from by training.label_weight, and by nothing else.
    """

    path: Path  # the --out of `datafree synthesize`, or a folder of labelled images
    hold_out: int = 64  # images kept back for `held_out` at most, and at most a tenth of the set (but one)

    def __post_init__(self) -> None:
        if self.hold_out < 0:
            raise DataError(f"a data set's hold_out must not be negative, but is {self.hold_out}; 0 turns it off")

    def attach(self, setting: Setting) -> None:
        self._setting = setting
        made = (self.path / "shards").is_dir() and (self.path / "data").is_dir()
        opened = setting.task.open_labelled(self.path / "data" if made else self.path)
        assert hasattr(opened, "__getitem__"), "the task's labelled data cannot be read one image at a time"
        self._data = cast("_Examples", opened)
        if not len(self._data):
            raise DataError(f"{self.path} holds no images; give a data set that does")
        self._held, self._learnt = self._split(len(self._data))
        self._skipped: dict[int, str] = {}  # index -> file and reason, of images to learn from
        self._held_skipped: dict[int, str] = {}  # not in the state: looking changes nothing
        self._remarks: list[str] = []
        self._next = (0, 0)  # epoch and position of the first image not handed out
        self._ahead: deque[_Ahead] = deque()
        self._ahead_next = (0, 0)  # of the first image not being read
        self._order: tuple[int, list[int]] = (-1, [])  # of one epoch
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="datafree-dataset")

    def _split(self, count: int) -> tuple[list[int], list[int]]:
        """Images to keep back and images to learn from, drawn by the seed."""
        drawn = list(range(count))
        random.Random(f"{self._setting.seed} held out").shuffle(drawn)
        held = min(self.hold_out, max(1, count // 10)) if count > 1 else 0
        return drawn[:held], sorted(drawn[held:])

    def update(self, student: nn.Module, step: int) -> dict[str, Tensor]:
        return {}

    def sample(self, n: int) -> Batch:
        """The next n images of the sequence, with targets. Raises DataError when no image of the set can be read."""
        examples: list[Example] = []
        while len(examples) < n:
            self._read_ahead(n - len(examples))
            ahead = self._ahead.popleft()
            if ahead.which not in self._skipped:  # skipped once is skipped for good
                try:
                    examples.append(ahead.example.result())
                except UnreadableImage as error:
                    self._skipped[ahead.which] = self._fault(error)
            self._next = (ahead.epoch, ahead.position + 1)
        self._read_ahead(n)
        return self._to_batch(examples)

    def held_out(self, n: int) -> Tensor:
        """Up to n images (B, 3, H, W) of those kept back; unreadable ones are passed over."""
        found: list[Example] = []
        for index in self._held:
            if len(found) == n:
                break
            try:
                found.append(self._data[index])
            except UnreadableImage as error:
                self._held_skipped[index] = self._fault(error)
        return self._to_batch(found).images

    def state_dict(self) -> dict[str, Any]:
        return {
            "epoch": self._next[0],
            "position": self._next[1],
            "count": len(self._data),
            "skipped": dict(self._skipped),
            "remarks": list(self._remarks),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        while self._ahead:
            self._ahead.pop().example.cancel()
        self._next = (state["epoch"], state["position"])
        self._skipped, self._remarks = dict(state["skipped"]), list(state["remarks"])
        if state["count"] != len(self._data):  # the old position means nothing in the new order
            self._next, self._skipped = (state["epoch"] + 1, 0), {}
            self._remarks.append(
                f"{self.path} had {state['count']} images when the run was stopped in epoch {state['epoch']}, and has "
                f"{len(self._data)} now: it went on with the next epoch, and cannot be repeated exactly"
            )
        self._ahead_next = self._next

    def notes(self) -> list[str]:
        skipped = self._skipped | self._held_skipped
        if not skipped:
            return list(self._remarks)
        named = ", ".join(list(skipped.values())[:_NAMED])
        more = f" and {len(skipped) - _NAMED} more" if len(skipped) > _NAMED else ""
        line = f"{len(skipped)} of {len(self._data)} images of {self.path} could not be read: {named}{more}"
        return [*self._remarks, line]

    def _read_ahead(self, n: int) -> None:
        """Have n images on their way, besides those known to be unreadable."""
        if len(self._skipped) == len(self._learnt):
            raise DataError(
                f"none of the {len(self._learnt)} images of {self.path} can be read, the first: "
                f"{next(iter(self._skipped.values()))}; give a data set of sound images"
            )
        while len(self._ahead) < n:
            epoch, position = self._ahead_next
            if position == len(self._learnt):
                epoch, position = epoch + 1, 0
            index = self._order_of(epoch)[position]
            if index not in self._skipped:
                self._ahead.append(_Ahead(epoch, position, index, self._readers.submit(self._data.__getitem__, index)))
            self._ahead_next = (epoch, position + 1)

    def _order_of(self, epoch: int) -> list[int]:
        """The images of an epoch: a pure function of (seed, epoch)."""
        if self._order[0] != epoch:
            order = list(self._learnt)
            random.Random(f"{self._setting.seed} {epoch}").shuffle(order)
            self._order = (epoch, order)  # reading ahead asks for epochs one after the other
        return self._order[1]

    def _fault(self, error: UnreadableImage) -> str:
        path = error.path
        name = path.relative_to(self.path) if path.is_relative_to(self.path) else path
        return f"{name.as_posix()} ({error.reason})"

    def _to_batch(self, examples: list[Example]) -> Batch:
        """Images (B, 3, H, W) float32 in [0, 1] and their targets (B, ...), on the run's device."""
        device = self._setting.device
        if not examples:
            return Batch(images=torch.zeros(0, 3, *self._setting.task.image_size, device=device))
        images = torch.stack([image for image, _ in examples])
        targets = torch.stack([target for _, target in examples])
        return Batch(images=images.to(device), targets=targets.to(device))
