"""Where a run is, and which figures are shown first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SAVED_WITHIN = 600  # seconds: the state is saved at least so often, however long `save_every` steps take


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run is, for displays."""

    phase: Literal["warm-up", "training", "images"]  # images: a data set, counted in images and not in steps
    step: int
    first: int  # -warmup
    last: int  # steps
    rate: float  # steps (images) a second in this phase and this process; 0 when not yet known
    values: dict[str, float]


FIRST = ("loss", "class_balance", "pixel_diversity", "teacher_ap50", "verifier_ap50")  # of these, where they are logged
