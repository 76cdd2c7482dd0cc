"""A folder of unlabelled images: proxy images for DeGAN, real images for comparison. Labels are never read.

B images, H x W pixels.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Annotated, Any, ClassVar, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import Doc

from datafree.config.options import Count, ExistingFolder, PositiveInt
from datafree.data import images
from datafree.distributed import divided
from datafree.ops.upload import uploaded
from datafree.sources.base import Batch, ImageSource, Paper, SourceContext
from datafree.sources.parts.held_out import HeldOut
from datafree.sources.parts.multiscale import multiscale
from datafree.sources.parts.prefetch import Place, Reader, listed
from datafree.sources.parts.seen_files import SeenFiles, content_of, remark
from datafree.storage import made_set

Pixels = NDArray[np.uint8]  # (H, W, 3)


@final
@dataclass(kw_only=True)
class Folder(ImageSource):
    """Images of a folder and the folders below it, every one once an epoch, in an order drawn anew for each.

    Order, crops and flips are pure functions of the run's seed, the epoch and the position in it: no random
    state is touched, and a resumed run goes on with the very image. The next batch is decoded while the
    student learns from this one; the state knows only of images handed out. Files that cannot be read, or
    vanish, are skipped and named in `notes`. Where none of those to keep back can be read, the next one of the draw
    is kept back that can, if another is left to learn from; the state knows which.
    """

    paper: ClassVar[Paper | None] = Paper("Hinton et al.", "1503.02531", "distillation itself")
    needs_images: ClassVar[bool] = True

    path: Annotated[ExistingFolder, Doc("with every image below it")]
    crop: Annotated[
        Literal["centre", "random", "multiscale"],
        Doc("of the image scaled to just cover the task's size; multiscale: crops of every scale, for few photographs"),
    ] = "centre"
    flip: Annotated[bool, Doc("mirror left and right with probability 0.5")] = False
    limit: Annotated[PositiveInt | None, Doc("images to learn from at most, chosen by the seed; unset: all")] = None
    cache_mib: Annotated[Count, Doc("MiB of decoded images kept in memory; the others are read each epoch")] = 256
    hold_out: Annotated[Count, Doc("images kept back for validation; at most a tenth of the folder (but one)")] = 64

    def attach(self, context: SourceContext) -> None:
        self._context = context
        self._root = Path(self.path)
        made_set.data_of(self._root)  # which refuses a made set that is not finished
        self._found = [p.relative_to(self._root).as_posix() for p in images.list_images(self._root)]
        self._index = {name: index for index, name in enumerate(self._found)}
        self._files = SeenFiles([(self._root / name,) for name in self._found])
        self._held_out: HeldOut[str, Pixels] = HeldOut(
            wanted=self.hold_out,
            read=lambda name: self._covering(name)[0],
            fault=lambda error: error.reason,
            limit=self.limit,
        )
        self._reader = Reader(
            keys=self._split(self._found),  # names of files
            seed=context.seed,
            turn=divided.turn(),
            read=lambda name, place: (name, *self._read(name, place)),
            fault=lambda error: error.reason,
            none_left=lambda name, reason: (
                f"none of the {len(self._reader.keys)} images of {self.path} can be read, the first {name} ({reason}); "
                "give a folder of sound images"
            ),
        )
        self._remarks: list[str] = []
        self._sizes: dict[str, tuple[int, int]] = {}  # name -> bytes and time of change, of files that were read
        self._changed: dict[str, None] = {}  # files that were others when they were read again; an ordered set
        self._cache: dict[str, tuple[Pixels, bytes]] = {}  # with their digests
        self._cache_room = self.cache_mib * 2**20  # bytes
        self._cache_lock = Lock()

    def _split(self, names: list[str]) -> list[str]:
        """Keep some back; names to learn from, all drawn by the seed."""
        return sorted(self._held_out.split(self._drawn(names)))

    def _drawn(self, names: list[str]) -> list[str]:
        """Names in the order drawn by the seed: name by name, so that a file that comes or goes moves no other."""
        return sorted(names, key=lambda name: _digest(self._context.seed, name))

    def _settle(self) -> None:
        if (learnt := self._held_out.settle(lambda: self._drawn(self._found))) is not None:
            self._reader.resume_at(sorted(learnt), self._reader.next, {})

    def reads(self) -> tuple[Path, ...]:
        return (self.path,)

    def update(self, student: nn.Module, step: int) -> dict[str, Tensor]:
        return {}

    def sample(self, n: int) -> Batch:
        """The next n images of the sequence. Raises DataError when no image of the folder can be read."""
        self._settle()
        taken = self._reader.take(n)
        for name, _, content in taken:
            if name in self._index:
                self._files.note(self._index[name], content)
        return Batch(images=self._to_images([pixels for _, pixels, _ in taken]))

    def validation_images(self, n: int) -> Tensor:
        """Up to n centre crops (B, 3, H, W) of the images kept back; unreadable ones are passed over.

        Of a folder of multiscale crops, n such crops, if need be of images that others are learnt from.
        """
        self._settle()
        if self.crop == "multiscale":
            return self._to_images(self._held_crops(n))
        return self._to_images([self._centre(pixels) for pixels in self._held_out.first(n)])

    def _held_crops(self, n: int) -> list[Pixels]:
        """n crops of the readable images kept back, in turn; of one that is learnt from where that is the only one."""
        held = self._held_out
        photos = held.first(len(held.keys)) or held.first(1, self._reader.keys)
        draws = [random.Random(f"{self._context.seed} held {place}") for place in range(n)] if photos else []
        size = self._context.task.image_size
        return [multiscale(photos[place % len(photos)], size, draw) for place, draw in enumerate(draws)]

    def state_dict(self) -> dict[str, Any]:
        self._settle()
        return {
            "epoch": self._reader.next.epoch,
            "position": self._reader.next.position,
            "skipped": dict(self._reader.skipped),
            "passed": dict(self._held_out.passed or {}),
            "fingerprint": _digest(*self._reader.keys).hex(),
            "remarks": list(self._remarks),
            "files": self._files.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        skipped, self._remarks = dict(state["skipped"]), list(state["remarks"])
        place = Place(state["epoch"], state["position"])
        # A file that was skipped may be gone by now, but it still has its place in the order.
        self._held_out.passed = passed = dict(state.get("passed", {}))  # older checkpoints pass over none
        names = self._split([*{*self._found, *skipped, *passed}])
        if state["fingerprint"] != _digest(*names).hex():  # the old position means nothing in the new order
            self._held_out.passed = None
            self._settle()
            names = self._split(self._found)
            place = Place(state["epoch"] + 1, 0)
            self._remarks.append(
                f"the files in {self.path} had changed when the run was resumed in epoch {state['epoch']}: "
                "it went on with the next epoch, and cannot be repeated exactly"
            )
        else:
            found = self._files.load_state_dict(state.get("files", {}), lambda i: self._covering(self._found[i])[1])
            changed, unknown = ([self._found[index] for index in each] for each in found)
            if line := remark(self.path, changed, unknown, len(self._found)):
                self._remarks.append(line)
                self._context.say(f"warning: {line}")
        self._reader.resume_at(names, place, skipped)

    def notes(self) -> list[str]:
        skipped, lines = self._reader.skipped | self._held_out.faults(), list(self._remarks)
        used = len(self._held_out.keys) + len(self._reader.keys)
        if skipped:
            named = listed([f"{name} ({reason})" for name, reason in skipped.items()])
            lines.append(f"{len(skipped)} of {used} images of {self.path} could not be read: {named}")
        if self._changed:
            lines.append(
                f"{len(self._changed)} of {used} images of {self.path} were changed during the run, which cannot be "
                f"repeated exactly: {listed(list(self._changed))}"
            )
        return lines

    def _read(self, name: str, place: Place) -> tuple[Pixels, bytes]:
        """The image at its place in the sequence, cropped and flipped, and its digest; runs in a reader's thread."""
        pixels, content = self._covering(name)
        return self._cut(pixels, place), content

    def _cut(self, pixels: Pixels, place: Place) -> Pixels:
        draw = random.Random(f"{self._context.seed} {place.epoch} {place.position}")
        if self.crop == "multiscale":
            return multiscale(pixels, self._context.task.image_size, draw)
        down, right, mirrored = draw.random(), draw.random(), draw.random() < 0.5
        if self.crop == "centre":
            pixels = self._centre(pixels)
        else:
            height, width = self._context.task.image_size
            top = int(down * (pixels.shape[0] - height + 1))
            left = int(right * (pixels.shape[1] - width + 1))
            pixels = pixels[top : top + height, left : left + width]
        return pixels[:, ::-1] if self.flip and mirrored else pixels

    def _covering(self, name: str) -> tuple[Pixels, bytes]:
        """The image from memory or its file, scaled to just cover the task's size; but whole for multiscale crops.

        And its digest.
        """
        with self._cache_lock:
            kept = self._cache.get(name)
        if kept is not None:
            return kept
        size = self._context.task.image_size
        self._note_change(name)
        image = images.read_image(self._root / name)
        if self.crop != "multiscale":
            image = images.fit(image, size) if self.crop == "centre" else images.cover(image, size)
        pixels: Pixels = np.array(image)
        content = content_of(pixels)
        with self._cache_lock:  # what came first stays: each epoch needs every image once
            if name not in self._cache and pixels.nbytes <= self._cache_room:
                self._cache[name] = pixels, content
                self._cache_room -= pixels.nbytes
        return pixels, content

    def _note_change(self, name: str) -> None:
        """Remember a file as it is now, and whether it was another one the last time; runs in a reader's thread."""
        try:
            status = (self._root / name).stat()
        except OSError:
            return  # reading it says why
        now = status.st_size, status.st_mtime_ns
        with self._cache_lock:
            if self._sizes.setdefault(name, now) != now:
                self._sizes[name] = now
                self._changed[name] = None

    def _centre(self, pixels: Pixels) -> Pixels:
        height, width = self._context.task.image_size
        top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
        return pixels[top : top + height, left : left + width]

    def _to_images(self, batch: list[Pixels]) -> Tensor:
        """(B, 3, H, W) float32 in [0, 1] on the run's device; bytes travel, floats are made there."""
        if not batch:
            return torch.zeros(0, 3, *self._context.task.image_size, device=self._context.device)
        pixels = uploaded(np.stack(batch), self._context.device)  # (B, H, W, 3)
        return pixels.permute(0, 3, 1, 2).contiguous().float() / 255


def _digest(*parts: object) -> bytes:
    """The same 16 bytes for the same parts, on every machine."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).digest()
