"""A data set on disk with its targets: what `datafree synthesize` has made, or any that the task's folders can hold.

B images, H x W pixels.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, final

import torch
from torch import Tensor, nn
from typing_extensions import Doc

from datafree.config.options import Count, ExistingFolder
from datafree.data.images import UnreadableImage
from datafree.data.labelled import LabelledData, NamesFiles, NothingToScore, Remarked
from datafree.distributed import divided
from datafree.errors import DataError
from datafree.ops.upload import uploaded
from datafree.sources.base import Batch, ImageSource, SourceContext
from datafree.sources.parts.held_out import HeldOut
from datafree.sources.parts.prefetch import Place, Reader, listed
from datafree.sources.parts.seen_files import SeenFiles, content_of, remark
from datafree.tasks.labelled import open_labelled

Example = tuple[Tensor, Tensor]  # an image (3, H, W) and its target


@final
@dataclass(kw_only=True)
class Dataset(ImageSource):
    """Images and targets of a data set, each once an epoch, in an order drawn anew for each.

    The order is a pure function of the run's seed and the epoch: no random state is touched, and a resumed run goes on
    with the very image. The next batch is read while the student learns from this one. Images come as they are in
    the files, scaled to the task's size as labelled data is; training.shift moves them. Files that cannot be read are
    skipped and named in `notes`; where none of those to keep back can be read, another is kept back (`HeldOut`). The
    targets are learnt from by training.label_weight, and by nothing else.
    """

    needs_images: ClassVar[bool] = True

    path: Annotated[ExistingFolder, Doc("the --out of `datafree synthesize`, or a folder of labelled images")]
    hold_out: Annotated[Count, Doc("images kept back for validation; at most a tenth of the set (but one)")] = 64

    def attach(self, context: SourceContext) -> None:
        self._context = context
        self._data, self._lacking = _opened(context, self.path)
        if not len(self._data):
            raise DataError(f"{self.path} holds no images; give a data set that does")
        self._held_out = HeldOut(wanted=self.hold_out, read=self._data.__getitem__, fault=self._fault)
        self._reader = Reader(
            keys=sorted(self._held_out.split(self._drawn())),
            seed=context.seed,
            turn=divided.turn(),
            read=lambda index, place: self._read(index),
            fault=self._fault,
            none_left=lambda index, fault: (
                f"none of the {len(self._reader.keys)} images of {self.path} can be read, the first: {fault}; give a "
                "data set of sound images"
            ),
        )
        known = self._data.files if isinstance(self._data, NamesFiles) else lambda index: ()
        self._files = SeenFiles([known(index) for index in range(len(self._data))])
        self._remarks: list[str] = []

    def _drawn(self) -> list[int]:
        """All images in an order drawn by the seed."""
        drawn = list(range(len(self._data)))
        random.Random(f"{self._context.seed} held out").shuffle(drawn)
        return drawn

    def _settle(self) -> None:
        if (learnt := self._held_out.settle(self._drawn)) is not None:
            self._reader.resume_at(sorted(learnt), self._reader.next, {})

    def reads(self) -> tuple[Path, ...]:
        return (self.path,)

    def update(self, student: nn.Module, step: int) -> dict[str, Tensor]:
        return {}

    def sample(self, n: int) -> Batch:
        """The next n images of the sequence, with targets. Raises DataError when no image of the set can be read."""
        self._settle()
        taken = self._reader.take(n)
        for index, _, content in taken:
            self._files.note(index, content)
        return self._to_batch([example for _, example, _ in taken])

    def _read(self, index: int) -> tuple[int, Example, bytes]:
        """An item's number, image and target, and digest; runs in a reader's thread."""
        image, target = self._data[index]
        return index, (image, target), content_of(image.numpy(), target.numpy())

    def validation_images(self, n: int) -> Tensor:
        """Up to n images (B, 3, H, W) of those kept back; unreadable ones are passed over."""
        self._settle()
        return self._to_batch(self._held_out.first(n)).images

    def state_dict(self) -> dict[str, Any]:
        self._settle()
        return {
            "epoch": self._reader.next.epoch,
            "position": self._reader.next.position,
            "count": len(self._data),
            "skipped": dict(self._reader.skipped),
            "passed": dict(self._held_out.passed or {}),
            "remarks": list(self._remarks),
            "files": self._files.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        place, skipped = Place(state["epoch"], state["position"]), dict(state["skipped"])
        self._remarks = list(state["remarks"])
        if state["count"] != len(self._data):  # the old position means nothing in the new order
            place, skipped = Place(state["epoch"] + 1, 0), {}
            self._settle()
            self._remarks.append(
                f"{self.path} had {state['count']} images when the run was stopped in epoch {state['epoch']}, and has "
                f"{len(self._data)} now: it went on with the next epoch, and cannot be repeated exactly"
            )
        else:
            self._held_out.passed = dict(state.get("passed", {}))  # older checkpoints pass over none
            found = self._files.load_state_dict(state.get("files", {}), lambda index: self._read(index)[2])
            changed, unknown = ([self._name(index) for index in each] for each in found)
            if line := remark(self.path, changed, unknown, len(self._data)):
                self._remarks.append(line)
                self._context.say(f"warning: {line}")
        self._reader.resume_at(sorted(self._held_out.split(self._drawn())), place, skipped)

    def notes(self) -> list[str]:
        skipped = self._reader.skipped | self._held_out.faults()
        found = [
            *self._remarks,
            *([self._lacking] if self._lacking else []),
            *(f"{self.path}: {line}" for line in (self._data.remarks if isinstance(self._data, Remarked) else [])),
            *(f"{self.path}: {line}, left out" for line in self._data.skipped),
        ]
        if skipped:
            line = f"{len(skipped)} of {len(self._data)} images of {self.path} could not be read"
            found.append(f"{line}: {listed(list(skipped.values()))}")
        if changed := [self._name(index) for index in self._files.changed]:
            line = f"{len(changed)} of {len(self._data)} images of {self.path} were changed during the run"
            found.append(f"{line}, which cannot be repeated exactly: {listed(changed)}")
        return found

    def _name(self, index: int) -> str:
        """What an item is called: its image, below the set's folder."""
        files = self._data.files(index) if isinstance(self._data, NamesFiles) else ()
        return f"image {index}" if not files else self._below(files[0])

    def _below(self, path: Path) -> str:
        return (path.relative_to(self.path) if path.is_relative_to(self.path) else path).as_posix()

    def _fault(self, error: UnreadableImage) -> str:
        return f"{self._below(error.path)} ({error.reason})"

    def _to_batch(self, examples: list[Example]) -> Batch:
        """Images (B, 3, H, W) float32 in [0, 1] and their targets (B, ...), on the run's device."""
        device = self._context.device
        if not examples:
            return Batch(images=torch.zeros(0, 3, *self._context.task.image_size, device=device))
        images = torch.stack([image for image, _ in examples])
        targets = torch.stack([target for _, target in examples])
        return Batch(images=uploaded(images, device), targets=uploaded(targets, device))


def _opened(context: SourceContext, path: Path) -> tuple[LabelledData, str]:
    """The data at `path`, and why nothing is labelled in it, if so: it is learnt from, nothing is scored by it.

    Targets are in the order of the teacher's classes, where both are named.
    """
    try:
        return open_labelled(context.task, path, context.class_names), ""
    except NothingToScore as error:
        return error.data, f"{error} (its images are learnt from all the same)"
