"""Checks of a detector's own training loss: a finite number, with a gradient to what it is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from datafree.errors import NetworkError
from datafree.ops import boxes, modes
from datafree.ops.predictions import Predictions
from datafree.text import first_line, show


def require_loss(
    outputs: Predictions, leaves: Sequence[Tensor], size: tuple[int, int], whose: str, to: str, why: str
) -> None:
    """Raise NetworkError unless a detector's own loss is a finite number with a gradient to one of `leaves`.

    `outputs` are about two images of `size` (height, width), of which the first is said to show a box, the second none.
    `to` names the leaves; `why` says what needs this.
    """
    height, width = size
    one = torch.tensor([[0.25 * width, 0.25 * height, 0.75 * width, 0.75 * height]], device=outputs.scores.device)
    ids = torch.zeros(1, dtype=torch.int64, device=one.device)
    targets = boxes.pack([(ids, one), (ids[:0], one[:0])], 1)
    asked = f"the loss of {whose}, asked about a box in one image and none in another,"
    before = modes.random_state()  # some draw which locations they learn from
    try:
        loss: object = outputs.own_loss(targets)
        number = isinstance(loss, Tensor) and loss.ndim == 0 and bool(loss.isfinite())
        if isinstance(loss, Tensor) and number and loss.requires_grad:
            torch.autograd.backward(loss)
    except Exception as error:  # whatever a loss of anyone's raises
        raise NetworkError(f"{asked} raises {first_line(error)}; {why}") from error
    finally:
        modes.set_random_state(before)
    if not number:
        raise NetworkError(f"{asked} gives {_named(loss)}; a tensor of shape () with a finite number is needed: {why}")
    if all(leaf.grad is None for leaf in leaves):
        raise NetworkError(f"{asked} gives its {to} no gradient (a detach(), no_grad() or item() in its code?): {why}")


def _named(loss: object) -> str:
    """What a loss is that is no finite number."""
    if isinstance(loss, Tensor):
        return f"{loss.item()}" if loss.ndim == 0 else f"a tensor of shape {tuple(loss.shape)}"
    if isinstance(loss, Mapping):
        return f"a dict with the keys {show(sorted(map(str, loss)))} (add up its values)"
    return "None" if loss is None else f"a {type(loss).__name__}"
