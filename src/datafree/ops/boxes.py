"""Box targets of a batch in one tensor: packed, clipped, moved, sampled, compared by IoU.

Targets are (B, M, 5) float32: a row is (class id, x1, y1, x2, y2), in pixels, x to the right and y down, 0 <= x1 < x2
<= W. Images with fewer than M boxes are filled up with rows of class -1 (NONE). A class below -1 is a crowd of class
-2 - id: a region of labelled data in which nobody counted; only the score looks at it.

B images, M rows an image, N boxes of one image, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datafree.ops.upload import uploaded

if TYPE_CHECKING:
    from datafree.ops.augment import Move

NONE = -1  # class of a row that holds no box
MIN_SIDE = 1.0  # pixels: a box with a shorter side is degenerate and dropped

Labelled = tuple[Tensor, Tensor]  # one image's class ids (N,) int64 and boxes (N, 4)


def pack(images: Sequence[Labelled], rows: int) -> Tensor:
    """(B, rows, 5) targets of each image's ids (N,) and boxes (N, 4); where N > rows, the first `rows` of them."""
    device = images[0][1].device if images else None
    packed = torch.zeros(len(images), rows, 5, device=device)
    packed[:, :, 0] = NONE
    for row, (labels, boxes) in zip(packed, images, strict=True):
        count = min(len(labels), rows)
        row[:count, 0] = labels[:count].to(row.dtype)
        row[:count, 1:] = boxes[:count].to(row.dtype)
    return packed


def unpack(targets: Tensor) -> list[Labelled]:
    """Each image's ids (N,) int64 and boxes (N, 4), without empty, crowd and degenerate rows."""
    wanted = present(targets)
    order = wanted.int().argsort(dim=1, descending=True, stable=True)[..., None].expand_as(targets)
    rows = targets.gather(1, order)
    counts = wanted.sum(1).tolist()  # the one look from the host
    return [
        (labels[:n], boxes[:n]) for labels, boxes, n in zip(rows[..., 0].long(), rows[..., 1:], counts, strict=True)
    ]


def present(targets: Tensor) -> Tensor:
    """(B, M) bool: rows that hold a box a detector can learn from: of a class, finite, MIN_SIDE pixels or more."""
    sides = targets[..., 3:] - targets[..., 1:3]
    return (targets[..., 0] >= 0) & (sides >= MIN_SIDE).all(-1) & targets.isfinite().all(-1)


def renumbered(targets: Tensor, order: Tensor) -> Tensor:
    """The rows (B, M, 5) in which class c is called `order[c]` (C,), a crowd of it too; rows without a box stay."""
    labels = targets[..., 0].long()
    crowd = labels < NONE
    named = order.to(targets.device)[torch.where(crowd, -2 - labels, labels).clamp_min(0)]
    found = torch.where(labels == NONE, labels, torch.where(crowd, -2 - named, named))
    return torch.cat((found[..., None].to(targets.dtype), targets[..., 1:]), -1)


def clip(targets: Tensor, size: tuple[int, int]) -> Tensor:
    """The rows with their boxes cut to images of `size` (height, width); what is left of none becomes empty."""
    height, width = size
    cut = _rows(targets[..., 0], targets[..., 1::2].clamp(0, width), targets[..., 2::2].clamp(0, height))
    return emptied(cut, ~present(cut) & (cut[..., 0] >= NONE))


def at_size(targets: Tensor, size: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
    """Boxes in images of `size` (height, width) as they lie in the same images at the `wanted` size."""
    if size == wanted:
        return targets
    right, down = wanted[1] / size[1], wanted[0] / size[0]
    factors = uploaded([1, right, down, right, down], targets.device)
    return torch.where(targets[..., :1] == NONE, targets, targets * factors)


def emptied(targets: Tensor, rows: Tensor) -> Tensor:
    """The targets with the rows of a (B, M) mask empty."""
    empty = torch.zeros(5, dtype=targets.dtype, device=targets.device)
    empty[0] = NONE
    return torch.where(rows[..., None], empty, targets)


def moved(targets: Tensor, move: Move, size: tuple[int, int]) -> Tensor:
    """Boxes that follow their pixels through `move`, cut to the frame; those that have left it are dropped.

    Pixels that a roll brings in on the other side have no box there, as published for DIODE. A box that was none
    before (inverted, not finite) stays none: a mirror must not turn it into one.
    """
    targets = emptied(targets, ~present(targets) & (targets[..., 0] >= 0))

    def along(axis: int, roll: int, length: int) -> Tensor:
        """(B, M, 2): the lower and the upper edge on one axis."""
        edges = (targets[..., axis + 1 :: 2] + roll).clamp(0, length)
        if move.scale is None or move.offset is None:
            return edges
        scale, offset = (values[:, None, axis : axis + 1] for values in (move.scale, move.offset))
        edges = ((2 * edges / length - 1 - offset) / scale + 1) * length / 2
        return torch.stack([edges.amin(-1), edges.amax(-1)], -1)  # a mirror swaps them

    height, width = size
    return clip(_rows(targets[..., 0], along(0, move.right, width), along(1, move.down, height)), size)


def mosaic(targets: Tensor, order: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes of four images in one: targets (N, M, 5) of what `augment.mosaic` makes by the indices `order` (N, 4).

    Images are of `size` (height, width). Where there are more than M boxes, the M largest stay.
    """
    height, width = size
    four = targets[order]  # (N, 4, M, 5)
    right, below = (torch.arange(4, device=targets.device).view(4, 1, 1) // step % 2 for step in (1, 2))
    x, y = four[..., 1::2] / 2 + right * (-(-width // 2)), four[..., 2::2] / 2 + below * (-(-height // 2))
    rows = clip(_rows(four[..., 0], x, y).flatten(1, 2), size)  # (N, 4 M, 5)
    area = torch.where(present(rows), (rows[..., 3:] - rows[..., 1:3]).prod(-1), -1.0)
    largest = area.argsort(dim=1, descending=True, stable=True)[:, : targets.shape[1], None]
    return rows.gather(1, largest.expand(-1, -1, 5))


def _rows(classes: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """(..., 5) of the classes (...) and the lower and upper edges (..., 2) on both axes."""
    return torch.cat([classes[..., None], torch.stack([x, y], -1).flatten(-2)], -1)


def sampled(
    n: int,
    *,
    num_classes: int,
    size: tuple[int, int],
    rows: int,
    count: tuple[int, int] = (1, 1),
    sides: tuple[float, float] = (0.2, 0.8),
    frequencies: Sequence[float] = (),
    generator: torch.Generator | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """(n, rows, 5) targets of random boxes in images of `size` (height, width), as DIODE's one-box sets have them.

    Width and height are each U(`sides`) of the image's; the centre is off the image's middle by U(0, 1) of the way the
    box has to either edge, so that it is always inside. Classes are drawn by `frequencies`, without them all as often
    (whole rounds). `count` (least, most): boxes an image, all numbers between as often; of two whose IoU is above 0.3
    the later is left out, so that there may be fewer.
    """
    height, width = size
    shape = (n, count[1])

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    extent = sides[0] + (sides[1] - sides[0]) * uniform(*shape, 2)  # width, height, shares of the image
    centre = 0.5 + (0.5 - extent / 2) * uniform(*shape, 2) * (uniform(*shape, 2) < 0.5).float().mul(2).sub(1)
    pixels = uploaded([width, height], device)
    corners = torch.cat([(centre - extent / 2) * pixels, (centre + extent / 2) * pixels], -1)
    targets = torch.cat([_classes(shape, num_classes, frequencies, generator, device)[..., None], corners], -1)
    wanted = torch.randint(count[0], count[1] + 1, (n, 1), generator=generator, device=device)
    targets = emptied(targets, torch.arange(count[1], device=device) >= wanted)
    for later in range(1, count[1]):
        covered = overlaps(targets[:, later : later + 1], targets[:, :later])[:, 0].amax(1) > 0.3  # (n,)
        hidden = torch.zeros(shape, dtype=torch.bool, device=device)
        hidden[:, later] = covered
        targets = emptied(targets, hidden)
    filled = torch.zeros(n, rows, 5, device=device)
    filled[:, :, 0] = NONE
    filled[:, : count[1]] = targets
    return clip(filled, size)


def _classes(
    shape: tuple[int, int],
    num_classes: int,
    frequencies: Sequence[float],
    generator: torch.Generator | None,
    device: torch.device | None,
) -> Tensor:
    total = shape[0] * shape[1]
    if not total:
        return torch.zeros(shape, device=device)
    if frequencies:
        weights = uploaded(frequencies, device, torch.float32)
        drawn = torch.multinomial(weights, total, replacement=True, generator=generator)
    else:
        rounds = -(-total // num_classes)
        drawn = torch.cat([torch.randperm(num_classes, generator=generator, device=device) for _ in range(rounds)])
    return drawn[:total].view(shape[1], shape[0]).T.float()


def overlaps(ours: Tensor, theirs: Tensor) -> Tensor:
    """(B, M, K) IoU of each row of (B, M, 5) with each of (B, K, 5); 0 where either holds no box."""
    low = torch.maximum(ours[:, :, None, 1:3], theirs[:, None, :, 1:3])
    high = torch.minimum(ours[:, :, None, 3:], theirs[:, None, :, 3:])
    shared = (high - low).clamp_min(0).prod(-1)
    areas = [(rows[..., 3:] - rows[..., 1:3]).clamp_min(0).prod(-1) for rows in (ours, theirs)]
    union = areas[0][:, :, None] + areas[1][:, None] - shared
    both = present(ours)[:, :, None] & present(theirs)[:, None]
    return torch.where(both, shared / union.clamp_min(1e-9), 0.0)


def giou_loss(ours: Tensor, theirs: Tensor) -> Tensor:
    """(N,) 1 - GIoU of boxes (N, 4) pair by pair: Rezatofighi et al., arXiv 1902.09630, algorithm 1.

    As torchvision's, but without its masks, for each of which a device makes the host wait.
    """
    (x1, y1, x2, y2), (u1, v1, u2, v2) = ours.unbind(1), theirs.unbind(1)
    across = (torch.minimum(x2, u2) - torch.maximum(x1, u1)).clamp_min(0)
    down = (torch.minimum(y2, v2) - torch.maximum(y1, v1)).clamp_min(0)
    shared = across * down
    union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - shared
    hull = (torch.maximum(x2, u2) - torch.minimum(x1, u1)) * (torch.maximum(y2, v2) - torch.minimum(y1, v1))
    return 1 - shared / (union + 1e-7) + (hull - union) / (hull + 1e-7)
