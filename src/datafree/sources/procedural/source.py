"""Images drawn by formulas, balanced by what the teacher sees in them: they need no data, gradients or BatchNorm.

Hierarchical noise and mask CutMix: DIP-KD, Vo et al., arXiv 2604.25794. Dead leaves and noise with a falling spectrum:
Baradad et al., arXiv 2106.05963. Balance, and boundary pairs: Frank and Davis, arXiv 2411.12817.

B images, C classes, H x W pixels, N candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, final

import torch
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import Doc

from datafree.config.options import Count, NonNegative, PositiveInt, Share
from datafree.errors import DataError
from datafree.ops import augment, modes
from datafree.ops.upload import uploaded
from datafree.ops.whole_batch import part_of
from datafree.sources.base import Batch, ImageSource, Paper, SourceContext, UpdateSize
from datafree.sources.parts.memory_bank import VALIDATION_EVERY, default_capacity
from datafree.sources.procedural.balance import BalancedBank, class_shares, entropy, keys_of, ranks
from datafree.sources.procedural.boundary import boundary_pairs, gives_gradients
from datafree.sources.procedural.mixture import Mixture
from datafree.sources.procedural.shares import weighed

MIN_SIDE = 8  # pixels; below, formulas have nothing to draw
MOST_BANKED = 10_000  # images in a bank whose size is not stated, where these are small
_HELD = 64  # images held out at most
_PIXELS = 2**18  # of the images that are drawn anew for the student at once: a few small ones cost as much as many


@final
@dataclass(kw_only=True)
class Procedural(ImageSource):
    """Noise of every scale, dead leaves, random sine networks and coloured noise, warped and joined; and figures.

    An update draws more images than it needs, asks the teacher once, and keeps those of the classes that are rarest
    among them, in a bank that keeps as many of each. The student draws from the bank, every class as often, and some
    images that were never looked at. Nothing is learnt, so that nothing can collapse.
    """

    paper: ClassVar[Paper | None] = Paper(
        "Vo et al.", "2604.25794", "its images; dead leaves: Baradad et al., 2106.05963"
    )
    finishes: ClassVar[bool] = True
    needs_gradients: ClassVar[bool] = False

    noise_share: Annotated[NonNegative, Doc("of hierarchical noise among the images, relative to the other four")] = 1.0
    leaves_share: Annotated[NonNegative, Doc("of dead leaves")] = 1.0
    sines_share: Annotated[NonNegative, Doc("of random sine networks")] = 1.0
    spectrum_share: Annotated[NonNegative, Doc("of noise whose spectrum falls as f^-s, s from 0.5 to 3.5")] = 1.0
    figures_share: Annotated[NonNegative, Doc("of single things of a few parts, not warped or joined when drawn")] = 1.0
    weighed: Annotated[
        bool,
        Doc("each share times the cube of what the teacher tells apart in its images; false = as stated"),
    ] = True
    gain: Annotated[
        Share, Doc("share of the hierarchical noise that gets random contrast and offset for each channel")
    ] = 0.5
    rotation: Annotated[NonNegative, Doc("degrees at most")] = 45.0
    elastic: Annotated[
        NonNegative, Doc("standard deviation of elastic moves at most, of half the image's side; 0 = none")
    ] = 0.1
    dark: Annotated[Share, Doc("share of the images that are multiplied by a number from 0 to 1")] = 0.25
    cutmix: Annotated[Share, Doc("share of the images that are joined with another by a mask")] = 0.5
    plain: Annotated[Share, Doc("share of these whose other is a single colour: black, white, or any")] = 0.5
    balanced: Annotated[bool, Doc("by the teacher's answers; false = the teacher is not asked")] = True
    surplus: Annotated[float, Field(ge=1), Doc("images drawn for each that is kept")] = 2.0
    bred: Annotated[
        Share, Doc("share of these that are images of the bank, warped and joined anew, once it holds some")
    ] = 0.5
    most_of_one: Annotated[
        Share, Doc("of a segmented image that one class may cover; with more it is kept only if others lack")
    ] = 0.9
    boundary: Annotated[
        Share, Doc("share of the images kept that are boundary pairs; needs `balanced` and a teacher with gradients")
    ] = 0.0
    boundary_steps: Annotated[
        Count, Doc("towards the other class at most; each asks the teacher forward and backward")
    ] = 20
    fresh: Annotated[
        Share, Doc("share of the student's images that are drawn anew, unbalanced; the others are the bank's")
    ] = 0.1
    shift: Annotated[
        Count, Doc("pixels: the bank's images are shifted by up to this, and mirrored; 0 = as they were drawn")
    ] = 4
    batch_size: Annotated[PositiveInt, Doc("images that an update keeps")] = 256
    bank_size: Annotated[PositiveInt | None, Doc("images; unset: 10,000, of large images as many as 2 GB hold")] = None
    warmup: Annotated[Count, Doc("updates before the student's first step")] = 8
    update_every: Annotated[Count, Doc("student steps from one update to the next")] = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if not sum(self._shares):
            raise DataError(
                f"noise_share, leaves_share, sines_share, spectrum_share and figures_share are {list(self._shares)}; "
                "one must be above 0"
            )
        if self.boundary and not self.balanced:
            raise DataError(
                f"boundary is {self.boundary:g}, but the teacher is not asked where balanced is false; "
                "give boundary: 0, or balanced: true"
            )

    @property
    def _shares(self) -> tuple[float, ...]:
        return self.noise_share, self.leaves_share, self.sines_share, self.spectrum_share, self.figures_share

    def attach(self, context: SourceContext) -> None:
        if min(context.task.image_size) < MIN_SIDE:
            height, width = context.task.image_size
            raise DataError(
                f"procedural draws images of {MIN_SIDE} x {MIN_SIDE} pixels or more, but task.image_size is "
                f"{height} x {width}; choose a larger size, or source.method=noise"
            )
        self._context = context
        self._mixture = Mixture(
            shares=self._shares,
            gain=self.gain,
            rotation=self.rotation,
            elastic=self.elastic,
            dark=self.dark,
            cutmix=self.cutmix,
            plain=self.plain,
        )
        if self.balanced and self.weighed:
            self._mixture = weighed(self._mixture, context)
        self.size_bank(context.task.image_size)
        self._bank, self._held = BalancedBank(part_of(self.bank_images())), BalancedBank(_HELD)
        self._ready = torch.empty(0, 3, *context.task.image_size, device=context.device)  # drawn, not yet sampled
        self._note = ""
        self._walks = self.boundary > 0 and self._can_walk()

    def update_size(self) -> UpdateSize:
        return UpdateSize(images=self.batch_size)

    def resize_updates(self, size: UpdateSize) -> None:
        self.batch_size = size.images

    def bank_images(self) -> int:
        return MOST_BANKED if self.bank_size is None else self.bank_size

    def size_bank(self, image_size: tuple[int, int]) -> None:
        if self.bank_size is None:
            self.bank_size = default_capacity(MOST_BANKED, image_size)

    def _can_walk(self) -> bool:
        """Whether boundary pairs can be made; else says why not."""
        task, device = self._context.task, self._context.device
        targets = task.sample_targets(1, device, torch.Generator().manual_seed(0))
        if targets.ndim > 1:  # not a class id (B,), but masks, boxes or several labels
            self._note = "source.boundary is off: boundary pairs are made for tasks with one class an image"
        elif not gives_gradients(task, self._context.teacher, device):
            self._note = "source.boundary is off: no gradient comes back through the teacher to its images"
        if self._note:
            self._context.say(f"note: {self._note}")
        return not self._note

    @torch.no_grad()
    def update(self, student: nn.Module, step: int) -> dict[str, Tensor]:
        candidates, fresh = self._candidates()
        shares = self._seen(candidates)
        keys = keys_of(shares)
        crowded = self._crowded(shares)
        mixed = torch.arange(len(keys), device=keys.device)
        if fresh < len(keys):  # of a class the latest are kept, which else were the bred ones
            mixed = mixed[torch.randperm(len(keys), device=keys.device)]
        order = mixed[(ranks(keys[mixed]) + len(keys) * crowded[mixed]).argsort(stable=True)]
        chosen, rest = order[: self.batch_size], order[self.batch_size :]
        images, kept = candidates[chosen], keys[chosen]
        if self._walks:
            images, kept = self._with_pairs(images, kept, candidates[rest])
        self._keep(images, kept)
        if not self.balanced:
            return {}
        classes = self._context.task.num_classes
        return {
            **({"drawn_balance": entropy(keys[:fresh], classes)} if fresh else {}),
            "kept_balance": entropy(kept, classes),
            "crowded": crowded.float().mean(),
        }

    def _candidates(self) -> tuple[Tensor, int]:
        """(N, 3, H, W): images drawn anew, then offspring of the bank's, all classes alike; how many the former are."""
        count = round(self.surplus * self.batch_size) if self.balanced else self.batch_size
        bred = round(self.bred * count) if self.balanced and len(self._bank) else 0
        drawn = self._draw(count - bred)
        if bred:
            drawn = torch.cat([drawn, self._mixture.varied(self._bank.sample(bred, math.inf))])
        return drawn, count - bred

    def _draw(self, count: int) -> Tensor:
        return self._mixture.draw(count, self._context.task.image_size, self._context.device)

    def _seen(self, images: Tensor) -> Tensor:
        """(N, C): which share of each image (N, 3, H, W) the teacher gives to which class; all to one if unasked."""
        task, teacher = self._context.task, self._context.teacher
        if not self.balanced:
            return torch.ones(len(images), 1, device=images.device)
        parts = torch.split(images, max(self._context.batch_size, 2))
        return torch.cat([class_shares(task, teacher(part)) for part in parts])

    def _crowded(self, shares: Tensor) -> Tensor:
        """(N,) bool: one class covers nearly all of an image that could show several."""
        highest = shares.amax(1)
        several = ((highest > 0) & (highest < 1)).any()
        return (highest > self.most_of_one) & several

    def _with_pairs(self, images: Tensor, keys: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """As many images, the last of them boundary pairs of `others` or, where these are few, of the first."""
        count = round(self.boundary * len(images) / 2)
        if not count:
            return images, keys
        seeds = torch.cat([others, images])[:count]
        pairs, named = boundary_pairs(self._context.task, self._context.teacher, seeds, self.boundary_steps)
        left = len(images) - len(pairs)
        return torch.cat([images[:left], pairs]), torch.cat([keys[:left], named])

    def _keep(self, images: Tensor, keys: Tensor) -> None:
        """To the set that is being made, or into the bank but for every sixteenth, which is held out."""
        if self._context.on_finished_batch is not None:
            self._context.on_finished_batch(Batch(images=images))
            if not self.bred:  # a set needs no bank but to breed from
                return
        before = self._bank.added + self._held.added  # of all updates: one may keep fewer than sixteen
        every = torch.arange(before, before + len(images)) % VALIDATION_EVERY == VALIDATION_EVERY - 1
        learnt, held = (uploaded(mask.nonzero()[:, 0], images.device) for mask in (~every, every))
        self._bank.add(images[learnt], keys[learnt])
        self._held.add(images[held], keys[held])

    @torch.no_grad()
    def sample(self, n: int) -> Batch:
        known = n - round(self.fresh * n) if len(self._bank) else 0
        parts = [self._fresh(n - known)]
        if known:
            images = self._bank.sample(known)
            if self.shift:
                images = augment.shift_and_flip(images, self.shift, "reflection")[0].clamp(0, 1)
            parts.append(images)
        return Batch(images=torch.cat(parts))

    def _fresh(self, count: int) -> Tensor:
        """(count, 3, H, W), each handed out once, whatever the teacher sees in it."""
        missing = count - len(self._ready)
        if missing > 0:
            height, width = self._context.task.image_size
            self._ready = torch.cat([self._ready, self._draw(max(missing, _PIXELS // (height * width)))])
        given, self._ready = self._ready[:count], self._ready[count:]
        return given

    @torch.no_grad()
    def validation_images(self, n: int) -> Tensor:
        if len(self._held):
            return self._held.first(n)
        before = modes.random_state()  # the makers draw from the global generators
        try:
            modes.seed_everything(self._context.seed + 1)
            return self._draw(min(n, _HELD))
        finally:
            modes.set_random_state(before)

    def state_dict(self) -> dict[str, Any]:
        return {"bank": self._bank.state_dict(), "held": self._held.state_dict(), "ready": self._ready.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._bank.load_state_dict(state["bank"], self._context.device)
        self._held.load_state_dict(state["held"], self._context.device)
        self._ready = state.get("ready", self._ready[:0]).to(self._context.device)  # earlier states have none

    def notes(self) -> list[str]:
        return [self._note] if self._note else []
