"""The task: the only object that knows what an answer is (labels, masks or boxes).

Outputs are what a network answers (for most tasks a tensor of logits), targets what an image shows, always a tensor
with the batch first.

B images, C classes, H x W pixels, N rows (an image, a pixel or a location each).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Protocol, cast

import torch
from torch import Tensor
from typing_extensions import Doc, TypeVar

from datafree.config import options
from datafree.config.options import PositiveInt
from datafree.config.overrides import set_classes
from datafree.data.labelled import LabelledData
from datafree.data.visualize import class_colours
from datafree.errors import DataError, NetworkError
from datafree.ops.augment import Move
from datafree.text import show

# What a network answers in a task. A bare `Task` is a task of whatever kind.
OutputsT = TypeVar("OutputsT", default=Any)


@dataclass(kw_only=True)
class Scores:
    """Measured quality of a network on labelled data. Fractions in [0, 1]."""

    values: dict[str, float]  # the headline first: {"miou": ..., "pixel_accuracy": ...}
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)  # {"iou": {"road": ..., ...}}
    remarks: list[str] = field(default_factory=list)  # what of the data the figures say nothing about, a line each


class NotLogits(NetworkError):
    """Answers of the right form whose numbers look like something else than logits: probabilities, an embedding."""


class Metric(Protocol):
    """Sums over batches, then answers."""

    def update(self, outputs: Any, targets: Tensor) -> None: ...

    def compute(self) -> Scores: ...


@dataclass(kw_only=True)
class Task(ABC, Generic[OutputsT]):
    """A kind of answer and how two answers are compared. Final subclasses; their fields are their options."""

    num_classes: Annotated[PositiveInt, Doc("C")]
    image_size: Annotated[tuple[PositiveInt, PositiveInt], Doc("(height, width), pixels")]

    min_classes: ClassVar[int] = 2  # of one class only, nothing can be told apart
    reads_files: ClassVar[bool] = False  # whether labelled data may be a file; else it is a folder
    dense: ClassVar[bool] = False  # whether outputs are maps (B, C, H, W), resized with their images
    localizes: ClassVar[bool] = False  # whether an answer says where in an image: pictures of it are shown large
    exact_ends: ClassVar[bool] = False  # whether an INT8 file keeps the last layers in float
    hub_name: ClassVar[str] = ""  # the Hugging Face Hub's name of the task ("pipeline_tag"); "" where it has none
    noun: ClassVar[str] = "A network"  # what a model card calls a network of this task
    padding_mode: ClassVar[str] = (
        "zeros"  # what comes into an image that is moved: black, or ("border") its edge's pixels
    )

    def __post_init__(self) -> None:
        options.check(self)
        if self.num_classes < self.min_classes:
            one = " (a network of one output teaches two classes, no and yes: set 2)" if self.num_classes == 1 else ""
            raise DataError(f"num_classes is {self.num_classes}; it must be {self.min_classes} or more{one}")

    @abstractmethod
    def check(self, outputs: object, what: str) -> OutputsT:
        """Return `outputs` if a network called `what` answers in this task's form, else raise NetworkError."""

    def check_form(self, outputs: OutputsT, what: str) -> OutputsT:
        """`check`, but for what outputs look like: a few rows of logits may look like probabilities by chance.

        For a network whose answers have been checked, on batches of any size.
        """
        try:
            return self.check(outputs, what)
        except NotLogits:
            return outputs

    @classmethod
    def classes_of(cls, outputs: Any) -> int | None:
        """How many classes outputs in this task's form tell apart; None where they have another form, or it is shared.

        Of a network that nobody has described, the first task of the registry whose form fits is suggested.
        """
        return None

    def warning(self, outputs: OutputsT, what: str) -> str:
        """What to tell of outputs that pass `check` but may not be what they look like; "" if nothing."""
        if not isinstance(outputs, Tensor) or outputs.min() < 0 or outputs.min() == outputs.max():
            return ""
        if outputs.max() <= 1:
            return (
                f"what the {what} answers to a first image lies all between 0 and 1; if its last layer is a sigmoid, "
                "take it off, as logits are needed; if each class is a yes or no by itself, set task.kind=multilabel"
            )
        if outputs.ndim != 2 or outputs.shape[1] < FEATURES:  # few logits may all be above 0 by chance
            return ""
        return (
            f"nothing that the {what} answers to a first image is below 0; if these are features, an embedding, give "
            "it with its classifier, as logits are needed"
        )

    def probe_student(self, outputs: OutputsT, what: str) -> None:
        """Raise NetworkError if a student that answers this about two images in train mode cannot learn; most can."""
        return

    def probe_teacher(self, outputs: OutputsT, images: Tensor, what: str, why: str) -> None:
        """Send a gradient from a frozen teacher's outputs about two images back to these, as sources do.

        Whether it arrives is seen in `images.grad`. Raises whatever the network does, or NetworkError; `why` says what
        needs the gradient.
        """
        torch.autograd.backward(cast("Tensor", outputs).sum())

    @abstractmethod
    def sample_targets(self, n: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
        """n targets that images could show, every class as often; from `generator` (a CPU one) if given."""

    @abstractmethod
    def move_targets(self, targets: Tensor, move: Move) -> Tensor:
        """Targets that follow their images' pixels through an augmentation."""

    @abstractmethod
    def class_maps(self, targets: Tensor) -> Tensor:
        """Class maps (B, C, h, w) of targets, the condition a generator works to: h x w is H x W or a single cell."""

    @abstractmethod
    def distill_loss(self, student: OutputsT, teacher: OutputsT) -> Tensor:
        """Scalar: how far the student's outputs are from the teacher's."""

    @abstractmethod
    def target_loss(self, outputs: OutputsT, targets: Tensor) -> Tensor:
        """Scalar: how far outputs are from showing the targets."""

    @abstractmethod
    def pseudo_targets(self, outputs: OutputsT) -> Tensor:
        """What outputs say, as targets (hard labels)."""

    @abstractmethod
    def class_probs(self, outputs: OutputsT) -> Tensor:
        """(N, C) probabilities, rows sum to 1: a row is an image, a pixel or a location."""

    @abstractmethod
    def new_metric(self, class_names: list[str] | None = None) -> Metric:
        """A fresh, empty metric; classes are called "class 0", ... where no names are given."""

    @abstractmethod
    def open_dataset(self, path: Path) -> LabelledData:
        """Labelled data at `path`, in this task's folder layout. Raises DataError."""

    def renumbered(self, targets: Tensor, order: Tensor) -> Tensor:
        """Targets (B, ...) in which class c is called `order[c]` (C,); by default they are class ids."""
        return order.to(targets.device)[targets]

    def require_names(self, class_names: Sequence[str]) -> None:
        """Raise DataError where a data set cannot be written whose classes are called so."""
        return

    @abstractmethod
    def write_example(
        self, folder: Path, name: str, image: Tensor, target: Tensor, class_names: list[str]
    ) -> dict[str, Any] | None:
        """Write an image (3, H, W) in [0, 1] and its target below `folder`, so that `open_dataset` reads them there.

        `name` is "SHARD/NUMBER". Returns what `write_index` lists of it, or None. Raises OSError, DataError.
        """

    def is_entry(self, entry: Any) -> bool:
        """Whether a value from a file that is not trusted is what `write_example` returns, where that is not None."""
        return False

    def write_index(self, folder: Path, listings: Callable[[], Iterable[list[Any]]], class_names: list[str]) -> None:
        """Write what is about all images of a data set into `folder`, from what `write_example` returned of each.

        By default nothing. `listings` may be called again; it goes through the images by shards. Raises OSError.
        """
        return

    @abstractmethod
    def draw_outputs(self, images: Tensor, outputs: OutputsT) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] of what `outputs` say about `images` (for people)."""

    def draw_targets(self, images: Tensor, targets: Tensor) -> Tensor | None:
        """Pictures (B, 3, H, W) in [0, 1] of what `images` are meant to show; None where there is no way to draw it."""
        return None

    @classmethod
    def colours(cls, count: int) -> Tensor:
        """(C, 3) in [0, 1]: the colour of each of `count` classes in pictures."""
        return class_colours(count)

    def numpy_decoding(self) -> str:
        """Python for a model card: what a user makes of an ONNX file's answers, numpy arrays; "" if they are logits."""
        return ""

    def join(self, parts: list[OutputsT]) -> OutputsT:
        """Answers about several batches as about one."""
        joined: Any = torch.cat(cast("list[Tensor]", parts))
        return cast("OutputsT", joined)

    @abstractmethod
    def disagreement(self, student: OutputsT, teacher: OutputsT) -> Tensor:
        """Scalar: mean absolute difference of the raw answers, with gradients to both (what DFAD's generator seeks)."""

    def agreement(self, student: OutputsT, teacher: OutputsT) -> float | None:
        """Fraction of rows (images, pixels or locations) on which both name the same class.

        None where there is nothing to compare.
        """
        same = self.class_probs(student).argmax(1) == self.class_probs(teacher).argmax(1)
        return float(same.float().mean())

    def class_agreement(self, student: OutputsT, teacher: OutputsT) -> list[float | None]:
        """`agreement` for each class: of the rows in which the teacher names it; None where it names it in none."""
        return same_by_class(self.class_probs(student).argmax(1), self.class_probs(teacher).argmax(1), self.num_classes)


def same_by_class(student: Tensor, teacher: Tensor, num_classes: int) -> list[float | None]:
    """For each class, of the rows (N,) in which the teacher names it: the share in which the student does, too."""
    seen, same = (torch.bincount(x, minlength=num_classes).tolist() for x in (teacher, teacher[student == teacher]))
    return [hit / count if count else None for hit, count in zip(same, seen, strict=True)]


def unseen(class_names: Sequence[str], seen: Sequence[bool], what: str) -> list[str]:
    """A line about the classes that no labelled `what` ("image", "box", "pixel") is of: no figure is about them."""
    names = [name for name, there in zip(class_names, seen, strict=True) if not there]
    if not names:
        return []
    some = ", ".join(map(show, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return [f"{len(names)} of {len(class_names)} classes are not scored, no labelled {what} is of them: {some}"]


def require_spread(distill: str, num_classes: int) -> None:
    """Raise DataError for a `distill` that teaches nothing of so few classes."""
    if distill == "zscore" and num_classes < 3:
        raise DataError(
            f"distill is {show(distill)} with num_classes {num_classes}: two standardised logits are 0.7 and -0.7 "
            "whatever a network answers, so nothing would be learnt; set distill=kl"
        )


FEATURES = 16  # numbers from which on none below 0 is a sign of features behind a ReLU


def check_logits(outputs: object, what: str, *, dims: int, wanted: str, num_classes: int) -> Tensor:
    """`outputs` if they are logits of `num_classes` classes in `dims` dimensions, shaped as `wanted` says.

    Raises NetworkError for another shape or class count and for answers that are not finite; if nothing else is wrong,
    NotLogits for probabilities, which would distil silently and badly. Logarithms of these are logits like any other.
    """
    if not isinstance(outputs, Tensor):
        raise NetworkError(f"the {what} answers with a {type(outputs).__name__}, not a tensor of logits {wanted}")
    if outputs.ndim != dims:
        raise NetworkError(f"the {what} answers {tuple(outputs.shape)}, but the task needs logits {wanted}")
    if outputs.shape[1] != num_classes:
        follows = what.startswith("student")  # the task
        way = f"give its last layer {num_classes}" if follows else f"{set_classes(outputs.shape[1])}, or choose another"
        raise NetworkError(f"the {what} answers {outputs.shape[1]} classes, but the task has {num_classes}; {way}")
    if not torch.isfinite(outputs).all():
        raise NetworkError(f"the {what} answers numbers that are not finite; its weights may be damaged")
    sums = outputs.float().sum(1)
    if outputs.min() >= 0 and torch.allclose(sums, torch.ones_like(sums), atol=4e-3):
        raise NotLogits(
            f"the {what} answers probabilities (not below 0, sum 1 over classes), but logits {wanted} are needed; "
            "take its last softmax off"
        )
    return outputs


def synthetic_batch(size: tuple[int, int], device: torch.device) -> Tensor:
    """(2, 3, H, W) smooth images for a first look at a network: one from black to white, one from white down to grey.

    Two, so that train-mode BatchNorm works; unlike in direction and mean, so that logits that look like probabilities
    by chance do so for one of them only.
    """
    right = torch.linspace(0, 1, size[1], device=device).expand(3, *size)
    down = 1 - torch.linspace(0, 0.5, size[0], device=device)[:, None].expand(3, *size)
    return torch.stack([right, down])


def relative(scores: Mapping[str, Scores]) -> dict[str, float]:
    """The student's share of each of the teacher's figures, CGDD's "relative accuracy"; empty without both."""
    if not {"teacher", "student"} <= scores.keys():
        return {}
    ours, theirs = scores["student"].values, scores["teacher"].values
    return {name: ours[name] / theirs[name] for name in ours if theirs.get(name)}
