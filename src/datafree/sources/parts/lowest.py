"""The best of several tries, by their losses, without asking an accelerator for a number: that would make it wait."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from datafree.networks.detectors import Predictions


@dataclass(kw_only=True)
class Lowest:
    """Keeps copies of what belonged to the lowest loss that was offered; of equal ones to the first."""

    kept: tuple[Any, ...] = field(default=(), init=False)  # tensors or predictions, without gradients

    def offer(self, loss: Tensor, *made: Any) -> None:
        """A try: its scalar loss, and what it made, of the same shapes each time. A loss that is NaN is no lower."""
        loss, made = loss.detach(), tuple(each.detach() for each in made)
        if not self.kept:
            self._least, self.kept = loss, made
        lower = loss < self._least  # never at first; but then it is copied, too, before anyone changes it
        self._least = torch.where(lower, loss, self._least)
        self.kept = tuple(
            new.where(lower, old) if isinstance(new, Predictions) else torch.where(lower, new, old)
            for new, old in zip(made, self.kept, strict=True)
        )
