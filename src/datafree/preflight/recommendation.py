"""Which methods to take for a teacher, in order: two or three, why, and the time they take here.

The order is that of docs/choose.md, which rests on measurements with small networks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from datafree.networks.normalized import Normalized
from datafree.preflight.cost.estimate import TeacherCost
from datafree.preflight.suitability import Applies
from datafree.recipe.recipe import TASK
from datafree.sources import SOURCES
from datafree.sources.auto import Auto
from datafree.sources.base import ImageSource
from datafree.sources.procedural.boundary import gives_gradients
from datafree.sources.procedural.source import Procedural
from datafree.tasks.base import Task

STEPS, BATCH = 1000, 32  # of the student, as in the trials that docs/choose.md tells of
_NEXT = {  # task -> after what `auto` chooses for a teacher with BatchNorm
    "classification": (("cgdd", "more steps, more accuracy: longer than `auto`"), ("cmi", "images that differ more")),
    "segmentation": (("cgdd", "a generator for each class map; the best measured for segmentation"),),
    "detection": (("cgdd", "a generator for boxes"), ("diode", "images optimised one by one; the longest")),
}
_WITHOUT_BATCHNORM = (("dafl", "a generator that needs no BatchNorm"),)
_PHOTOS = "the surest, if you have unlabelled photos of a related kind with every class in them (source.path=DIR)"


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """A method to take."""

    method: str
    why: str
    seconds: float | None  # of the teacher's part of STEPS steps of BATCH images with its defaults, here; None: unknown


def recommended(
    task: Task, teacher: Normalized, device: torch.device, cost: TeacherCost, sources: dict[str, Applies]
) -> list[Recommendation]:
    """The methods to take, best first; empty where none applies. Draws no random number."""
    if not sources["auto"].applies:
        return []
    chosen, line = Auto().choose(task, teacher, device)
    found = [("auto", line.partition(": ")[2], chosen)]
    if not isinstance(chosen, Procedural):
        others = _NEXT.get(TASK.name_of(type(task)) or "", ())
    elif gives_gradients(task, teacher, device):
        others = _WITHOUT_BATCHNORM
    else:
        others = ()
    found += [(name, why, SOURCES[name]()) for name, why in others if sources[name].applies]
    made = [Recommendation(method=name, why=why, seconds=seconds_of(source, cost)) for name, why, source in found]
    photos = Recommendation(method="folder", why=_PHOTOS, seconds=STEPS * BATCH * cost.forward)
    return [*made[:2], photos]


def seconds_of(source: ImageSource, cost: TeacherCost) -> float | None:
    """The teacher's part of a run of STEPS steps: its answers, and its passes in the source's updates."""
    size = source.update_size()
    updates = source.warmup + (STEPS // source.update_every if source.update_every else 0)
    each = 0.0
    if size is not None:
        each = size.images * sum(size.iterations or (1,)) * source.passes.get("teacher", 0) * cost.backward
        each = each or size.images * cost.forward  # looks at what it has made
    return updates * each + STEPS * BATCH * cost.forward if size is not None or not updates else None
