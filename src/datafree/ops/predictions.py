"""`Predictions`: what a detector says about a batch, in one form for every detector.

B images, L locations (cells x anchors, or proposals), C classes, M rows of targets, N boxes of one image.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from datafree.ops.boxes import Labelled, unpack
from datafree.ops.upload import uploaded

Heads = tuple[Tensor, ...]


Loss = Callable[[Heads, list[Labelled]], Tensor]


Decoding = tuple[tuple[str, Hashable], ...]  # names of settings and what they are


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What a detector says about a batch, at each of its locations. All tensors are float32 with gradients."""

    class_logits: Tensor  # (B, L, C) of the C classes alone: no column for background
    scores: Tensor  # (B, L, C) in [0, 1]: how sure it is that this box is there and of this class; ranks detections
    boxes: Tensor  # (B, L, 4): x1, y1, x2, y2 in pixels; may reach beyond the image
    centres: Tensor  # (B, L, 2): x, y in pixels of the cell or anchor that the location stands for
    heads: Heads  # the raw tensors its own loss is computed from, batch first, before any activation
    # Its own training loss as a scalar: heads (as above) and, for each image, class ids (N,) int64 and boxes (N, 4) in
    # pixels, N >= 0, none degenerate. A function of its arguments alone: heads may be a part of a batch or several.
    loss: Loss
    whole: bool = True  # who has these heads has the whole answer: two-stage detectors have more behind them
    # What makes boxes of heads besides their shapes (`described` makes it): equal heads are equal answers where this is
    # equal, too. Empty: not known, and equal shapes are taken at their word.
    decoding: Decoding = ()

    def own_loss(self, targets: Tensor) -> Tensor:
        """The detector's training loss for targets (B, M, 5): a scalar with gradients to whatever made the heads."""
        return self.loss(self.heads, unpack(targets))

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: Tensor | slice) -> Predictions:
        """What is said about some of the images."""
        return self.each(lambda values: values[index])

    def floats(self) -> Predictions:
        """Everything in float32."""
        return self.each(lambda values: values.float())

    def detach(self) -> Predictions:
        """The same without gradients."""
        return self.each(lambda values: values.detach())

    def scaled(self, width: float, height: float) -> Predictions:
        """The same about images `width` and `height` times as large: boxes, centres and the loss's targets."""
        factors = uploaded([width, height], self.boxes.device)
        four = factors.repeat(2)

        def loss(heads: Heads, targets: list[Labelled]) -> Tensor:
            return self.loss(heads, [(labels, boxes / four) for labels, boxes in targets])

        decoding = self.decoding
        if decoding and (width, height) != (1, 1):  # anchors are pixels of what the network sees
            decoding = (*decoding, ("scale by input_size", (width, height)))
        return replace(self, boxes=self.boxes * four, centres=self.centres * factors, loss=loss, decoding=decoding)

    def where(self, chosen: Tensor, other: Predictions) -> Predictions:
        """These if the scalar `chosen` is true, else the `other` ones, of the same shapes and detector."""
        pairs = zip(self.heads, other.heads, strict=True)
        return replace(
            self,
            class_logits=torch.where(chosen, self.class_logits, other.class_logits),
            scores=torch.where(chosen, self.scores, other.scores),
            boxes=torch.where(chosen, self.boxes, other.boxes),
            centres=torch.where(chosen, self.centres, other.centres),
            heads=tuple(torch.where(chosen, ours, theirs) for ours, theirs in pairs),
        )

    def each(self, change: Callable[[Tensor], Tensor]) -> Predictions:
        """The same with every tensor changed, the batch first in all of them."""
        return replace(
            self,
            class_logits=change(self.class_logits),
            scores=change(self.scores),
            boxes=change(self.boxes),
            centres=change(self.centres),
            heads=tuple(change(head) for head in self.heads),
        )


def joined(parts: Sequence[Predictions]) -> Predictions:
    """What one detector said about several batches of equal image size, as about one."""

    def cat(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(tensors))

    return Predictions(
        class_logits=cat([part.class_logits for part in parts]),
        scores=cat([part.scores for part in parts]),
        boxes=cat([part.boxes for part in parts]),
        centres=cat([part.centres for part in parts]),
        heads=tuple(cat(heads) for heads in zip(*(part.heads for part in parts), strict=True)),
        loss=parts[0].loss,
        whole=parts[0].whole,
        decoding=parts[0].decoding,
    )


def described(family: str, **parts: object) -> Decoding:
    """`Predictions.decoding` of a detector: its family's name, and all else that turns its heads into boxes.

    A part is a number, a word or a sequence of such; or an object, which stands for its class and those of its public
    attributes that are such. Tensors are none: to read them makes the host wait for the device, at every pass.
    """
    found: list[tuple[str, Hashable]] = [("family", family)]
    for name, part in parts.items():
        if isinstance(part, int | float | str | list | tuple):
            found.append((name, _plain(part)))
            continue
        found.append((name, type(part).__name__))
        held = getattr(part, "__dict__", {}).items()
        found += [(f"{key} of {name}", _plain(value)) for key, value in held if key[0] != "_" and key != "training"]
    return tuple(found)


def _plain(value: object) -> Hashable:
    """The value with tuples for lists, and None for whatever is no number, word or sequence."""
    if isinstance(value, list | tuple):
        return tuple(_plain(each) for each in value)
    return value if isinstance(value, int | float | str) else None


# --- an answer of any task: a tensor, batch first, or `Predictions` ---


def map_answer(outputs: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The answer with every tensor in it changed, the batch first in all of them."""
    return outputs.each(change) if isinstance(outputs, Predictions) else change(outputs)


def where_answer(chosen: Tensor, outputs: Any, other: Any) -> Any:
    """`outputs` if the scalar `chosen` is true, else the `other` answer, of the same shapes and network."""
    if isinstance(outputs, Predictions):
        return outputs.where(chosen, other)
    return torch.where(chosen, outputs, other)


def raw_tensors(outputs: Any) -> list[Tensor]:
    """What a network computes all else of its answer from: a tensor of logits, or a detector's heads."""
    return [*outputs.heads] if isinstance(outputs, Predictions) else [outputs]


def answer_tensors(outputs: Any) -> list[Tensor]:
    """What of a network's answer must be finite: a tensor, or a detector's heads and scores."""
    return [*outputs.heads, outputs.scores] if isinstance(outputs, Predictions) else [outputs]


def all_tensors(outputs: Any) -> list[Tensor]:
    """Every tensor of an answer."""
    tensors: list[Tensor] = []

    def note(values: Tensor) -> Tensor:
        tensors.append(values)
        return values

    map_answer(outputs, note)
    return tensors


def answer_form(outputs: Any) -> str:
    """The shapes of an answer in words."""
    if isinstance(outputs, Predictions):
        heads = ", ".join(_shape_of(head) for head in outputs.heads)
        _, locations, columns = outputs.scores.shape
        return f"predictions at {locations:,} locations of {columns} classes; heads {heads}"
    return f"one tensor {_shape_of(outputs)}"


def _shape_of(values: Tensor) -> str:
    return f"({', '.join(map(str, ('B', *values.shape[1:])))})"
