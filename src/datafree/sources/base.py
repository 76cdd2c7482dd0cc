"""Image sources: where the student's images come from. A method is one of these plus two integers.

B images, H x W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, final

import torch
from torch import Tensor, nn
from typing_extensions import Doc

from datafree.config import options
from datafree.config.options import Count
from datafree.errors import DataError, NetworkError, RunError
from datafree.ops import modes
from datafree.ops.performance import ALL_ON, Speed
from datafree.tasks.base import Task
from datafree.text import first_line


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images (B, 3, H, W) float32 in [0, 1], and what they were meant to show (or None)."""

    images: Tensor
    targets: Tensor | None = None
    figures: dict[str, float] = field(default_factory=dict)  # what the update logged that made a data set's shard


@dataclass(frozen=True, kw_only=True)
class SourceContext:
    """What every source is given before it works. The teacher is frozen by the engine and stays so."""

    task: Task
    teacher: nn.Module  # images in [0, 1] -> outputs, eval mode, no parameter gradients
    steps: int  # the student's steps in the whole run (for rates that fall during it)
    batch_size: int  # the student's batch
    class_names: Sequence[str] = ()  # in the order of the teacher's outputs; empty where nobody has named them
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32  # of forward passes
    speed: Speed = ALL_ON  # how networks, optimisers and statistics are to be made
    say: Callable[[str], None] = lambda line: None  # tells the user something at once
    on_finished_batch: Callable[[Batch], None] | None = None  # takes finished batches; None: they go into the bank
    lr_scale: Callable[[], float] = lambda: 1.0  # times every learning rate; falls when numbers were not finite

    def autocast(self) -> torch.autocast:
        return modes.autocast(self.device, self.dtype)


@dataclass(frozen=True, kw_only=True)
class UpdateSize:
    """How large one update of a source is: its time and its memory are in proportion to it."""

    images: int  # B, images of one update
    iterations: tuple[int, ...] = ()  # of each stage of one update; empty: an update does not iterate


class Paper(NamedTuple):
    """Where a method was published."""

    authors: str
    arxiv: str = ""  # its number; the documentation links it
    remark: str = ""  # the venue of a paper that is not there, what of it was taken


_COUNTED = 100_000  # steps at most at which a source is asked whether an update is due, to count them


@dataclass(kw_only=True)
class ImageSource(ABC):
    """Makes images. A method is a final, keyword-only dataclass whose fields are its options.

    The loop counts steps from `-warmup` to the end; `due(step)` says when `update` is called. All randomness comes
    from torch's global generators, or is a pure function of (seed, position): then a resumed run is exact.

    What it needs and costs it declares by the class variables and by `update_size`, `resize_updates`, `bank_images` and
    `nested_sources`. Nothing outside reads its options to find out.
    """

    paper: ClassVar[Paper | None] = None
    serves: ClassVar[type[Any]] = Task  # the tasks it makes images for: this one, or all
    finishes: ClassVar[bool] = False  # whether each update finishes a batch, for `on_finished_batch` or a bank
    needs_batchnorm: ClassVar[bool] = False  # whether it refuses a teacher without BatchNorm statistics
    or_attention: ClassVar[bool] = False  # whether attention layers serve it where there is no BatchNorm
    uses_batchnorm: ClassVar[bool] = False  # whether `bn_weight` is of a term on these statistics, and not 0 by default
    needs_gradients: ClassVar[bool] = True  # whether its updates, if it has any, learn through the teacher
    needs_images: ClassVar[bool] = False  # whether it needs images of the user's own: photos, proxies, a data set
    forwards_updates: ClassVar[bool] = False  # whether its update is nothing but those of its nested sources
    passes: ClassVar[Mapping[str, int]] = {}  # of one iteration, forward and backward: network -> how many

    warmup: Annotated[Count, Doc("updates before the student's first step")] = 0
    update_every: Annotated[Count, Doc("student steps from one update to the next; 0 = none after the warm-up")] = 0

    def __post_init__(self) -> None:
        options.check(self)

    @abstractmethod
    def attach(self, context: SourceContext) -> None:
        """Build networks, open folders. Called once, before anything else. Raises DataError, NetworkError."""

    def due(self, step: int) -> bool:
        """Whether `update` is to be called at `step` (negative during the warm-up)."""
        if step < 0:
            return step >= -self.warmup
        return self.update_every > 0 and step % self.update_every == 0

    @final
    def count_due(self, steps: range) -> int:
        """How many updates are due at `steps`. Many steps of a source with a `due` of its own: in proportion."""
        if type(self).due is ImageSource.due:
            early = max(0, min(steps.stop, 0) - max(steps.start, -self.warmup))
            every, first = self.update_every, max(steps.start, 0)
            return early + (len(range(-(-first // every) * every, steps.stop, every)) if every else 0)
        counted = steps[:_COUNTED]
        return sum(map(self.due, counted)) * len(steps) // max(1, len(counted))

    def update_size(self) -> UpdateSize | None:
        """How large an update is; None: nothing is known of it, and it is taken to cost the same at any batch size."""
        return None

    def resize_updates(self, size: UpdateSize) -> None:
        """Make the updates that follow as large as `size`, also after `attach`. For sources with an `update_size`.

        A calibration times small updates by it; a search for the batch that fits into memory halves them.
        """
        raise DataError(f"{type(self).__name__} has an update_size but no resize_updates; give it both, or neither")

    def bank_images(self) -> int:
        """Images that it keeps in memory once its bank is full; 0 without a bank."""
        return 0

    def size_bank(self, image_size: tuple[int, int]) -> None:
        """Put a number where the size of its bank was left to that of the images (H, W). A recipe does so; as `attach`.

        Only for sources with a bank whose size need not be stated.
        """
        assert min(image_size) > 0

    def reads(self) -> tuple[Path, ...]:
        """The user's folders that it takes images from itself, with all below them."""
        return ()

    def nested_sources(self) -> tuple[ImageSource, ...]:
        """The sources that it holds: what it mixes, where its proxy images come from."""
        return ()

    @final
    def all_sources(self) -> Iterator[ImageSource]:
        """Itself and its nested sources, however deep."""
        yield self
        for nested in self.nested_sources():
            yield from nested.all_sources()

    @final
    def updated_sources(self) -> list[ImageSource]:
        """The sources whose updates are their own work: itself, or those that it forwards its updates to."""
        if not self.forwards_updates:
            return [self]
        return [source for nested in self.nested_sources() for source in nested.updated_sources()]

    @abstractmethod
    def update(self, student: nn.Module, step: int) -> dict[str, Tensor]:
        """One unit of work; returns detached scalars to log. The student is left as it was found."""

    @abstractmethod
    def sample(self, n: int) -> Batch:
        """n images for the student to learn from, without gradients."""

    @abstractmethod
    def validation_images(self, n: int) -> Tensor:
        """Up to n images (B, 3, H, W) that `sample` never returns, perhaps none; the same for the same state.

        Must not touch any random state: looking at a run may not change it.
        """

    def validation_targets(self, n: int) -> Tensor | None:
        """What the images of `validation_images(n)` were meant to show, in order, or None. Touches no random state."""
        return None

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values from which `load_state_dict` goes on exactly."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned (after `attach`)."""

    def artefacts(self) -> dict[str, nn.Module]:
        """Trained networks worth keeping apart from the run's state, by name: each becomes NAME.safetensors."""
        return {}

    def notes(self) -> list[str]:
        """Lines for the end of the run: images skipped, terms that were off."""
        return []


def require_outside(source: ImageSource, out: Path) -> None:
    """Raise RunError for a place to write to that lies in a folder of images: its own pictures would be among them."""
    for folder in (folder for each in source.all_sources() for folder in each.reads()):
        if out.resolve().is_relative_to(folder.resolve()):
            raise RunError(
                f"{out} lies in {folder}, of which every image is learnt from: those that are written there would be, "
                "too; choose another --out"
            )


def attach(source: ImageSource, context: SourceContext) -> None:
    """`source.attach(context)`; networks and banks of sizes that nothing holds are one line. Raises NetworkError."""
    try:
        source.attach(context)
    except (RuntimeError, MemoryError, OverflowError) as error:
        raise NetworkError(
            f"the source {type(source).__name__} cannot be built: {first_line(error)}; lower its sizes and its banks'"
        ) from error
