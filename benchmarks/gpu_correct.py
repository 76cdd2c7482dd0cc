"""Whether a device computes what the CPU does: an update of each method, what it makes, and a step of the student.

Both sides have the same networks and, drawn on the CPU, the same random numbers. The student's step is on the CPU's
images. Distances are relative to the CPU's: of the terms that an update logs the largest, of images and gradients that
of the whole vectors. bf16 is compared with the CPU's float32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from datafree.engine.nonfinite import Watch
from datafree.engine.recovery import Recovery
from datafree.engine.student_step import StudentStep
from datafree.ops import modes
from datafree.sources.base import Batch
from speed_passes import Rig
from speed_rigs import CLASSIFICATION, QUICK, READ, make_rig
from speed_timing import Metrics

Precision = Literal["fp64", "fp32", "bf16"]
CPU = torch.device("cpu")
GROUPS = (
    *(f"small/{method}" for method in (*CLASSIFICATION, *READ)),
    *(f"{pair}/{method}" for pair in ("unet", "yolov3-tiny") for method in QUICK[pair].rows),
)
# Adam's first steps have the size of the rate whatever the gradient, so that rounding moves images more than terms.
TOLERANCE: dict[Precision, dict[str, float]] = {
    "fp64": {"terms": 1e-7, "images": 1e-5, "loss": 1e-9, "gradients": 1e-7},
    "fp32": {"terms": 1e-2, "images": 5e-2, "loss": 1e-3, "gradients": 2e-2},
    "bf16": {"terms": 0.3, "images": 0.3, "loss": 0.1, "gradients": 0.5},
}
CHOSEN = ("procedural",)  # whose images are drawn and then chosen by the teacher's answers, so that rounding swaps some


class HostRandom(TorchFunctionMode):
    """Within it every random number is drawn on the CPU and then brought to where it is wanted."""

    makers = (torch.rand, torch.randn, torch.randint, torch.randperm)
    alike = (torch.rand_like, torch.randn_like)
    fillers = (Tensor.normal_, Tensor.uniform_, Tensor.bernoulli_)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self.makers and kwargs.get("device") is not None and kwargs.get("generator") is None:
            return func(*args, **{**kwargs, "device": CPU}).to(kwargs["device"])
        if func in self.alike:
            return func(args[0].to(CPU), *args[1:], **kwargs).to(args[0].device)
        if getattr(func, "__module__", "") == "torch.nn.init":  # which call their fillers below this mode
            rest = {key: value for key, value in kwargs.items() if key != "tensor"}
            filled = kwargs["tensor"] if "tensor" in kwargs else args[0]
            with torch.no_grad():
                return filled.copy_(func(torch.empty_like(filled, device=CPU), *args[1:], **rest))
        if func in self.fillers:
            return args[0].copy_(func(torch.empty_like(args[0], device=CPU), *args[1:], **kwargs))
        if func is torch.multinomial and kwargs.get("generator") is None:
            return func(args[0].to(CPU), *args[1:], **kwargs).to(args[0].device)
        return func(*args, **kwargs)


@contextlib.contextmanager
def computed_in(precision: Precision) -> Iterator[None]:
    """Within it networks are made in float64, if that is asked for; and float32 is not rounded to TF32."""
    floats, tf32 = Tensor.float, (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    if precision == "fp64":
        Tensor.float = Tensor.double  # type: ignore[method-assign]
        torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        Tensor.float = floats  # type: ignore[method-assign]
        torch.set_default_dtype(torch.float32)
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = tf32


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What an update and a step came to, on the CPU."""

    terms: dict[str, float]
    batch: Batch
    loss: float
    gradients: Tensor  # (P,)


def outcome(group: str, photos: Path, device: torch.device, precision: Precision, learnt: Batch | None) -> Outcome:
    """An update, the images made after it, and a step of the student on `learnt`, by default on these."""
    name, method = group.split("/")
    sizes = QUICK[name].batch_size
    pair = replace(
        QUICK[name],
        training={**QUICK[name].training, "precision": "bf16" if precision == "bf16" else "fp32"},
        batch_size={device.type: sizes["cpu"]} if sizes else {},
    )
    with HostRandom():
        rig = make_rig(pair, method, photos, device)
        rig.attach()
        terms = {}
        if rig.source.due(0):
            with modes.frozen(rig.networks["teacher"]):
                terms = rig.source.update(rig.networks["student"], 1)
        modes.seed_everything(1)
        made = rig.source.sample(rig.batch)
        batch = made if learnt is None else Batch(images=learnt.images, targets=learnt.targets)
        modes.seed_everything(2)
        loss, gradients = _learnt(rig, _onto(batch, device))
    return Outcome(
        terms={key: float(value) for key, value in terms.items()},
        batch=_onto(made, CPU),
        loss=loss,
        gradients=gradients,
    )


def _onto(batch: Batch, device: torch.device) -> Batch:
    targets = None if batch.targets is None else batch.targets.to(device)
    return Batch(images=batch.images.to(device), targets=targets)


def _learnt(rig: Rig, batch: Batch) -> tuple[float, Tensor]:
    """The loss and the gradients of a step of the student."""
    teacher, student = rig.networks["teacher"], rig.networks["student"]
    student.train()
    with modes.frozen(teacher):
        step = StudentStep(
            task=rig.task,
            teacher=teacher,
            student=student,
            training=rig.training,
            pairs={},
            optimizer=rig.training.make_optimizer(student),
            watch=Watch(rig.device),
            recovery=Recovery(),
        )
        figures = step.learn(batch, 0)
    gradients = [p.grad.flatten().to(CPU) for p in student.parameters() if p.grad is not None]
    return float(figures["loss"]), torch.cat(gradients).double()


def compare(group: str, photos: Callable[[str], Path], device: torch.device, precision: Precision) -> Metrics:
    """Distances of the device's outcome from the CPU's, and `within`: 1 if all are within the tolerance, else 0.

    `photos` makes a folder of a user's images by its name.
    """
    exact: Precision = "fp64" if precision == "fp64" else "fp32"
    with computed_in(exact):
        wanted = outcome(group, photos(f"{group}-{precision}-cpu"), CPU, exact, None)
    with computed_in(precision):
        found = outcome(group, photos(f"{group}-{precision}-device"), device, precision, wanted.batch)
    terms = [abs(found.terms[name] - value) / (abs(value) + 1e-2) for name, value in wanted.terms.items()]
    distances = {
        "terms": max(terms, default=0.0),
        "images": _apart(found.batch.images, wanted.batch.images),
        "loss": abs(found.loss - wanted.loss) / (abs(wanted.loss) + 1e-3),
        "gradients": _apart(found.gradients, wanted.gradients),
    }
    limits = {**TOLERANCE[precision]}
    if group.split("/")[1] in CHOSEN:
        del limits["images"]
    good = found.terms.keys() == wanted.terms.keys() and all(distances[name] <= limits[name] for name in limits)
    return {**distances, "within": float(good)}


def _apart(ours: Tensor, theirs: Tensor) -> float:
    """Relative to the second's length; of another shape or not finite: infinitely."""
    if ours.shape != theirs.shape:
        return float("inf")
    distance = float((ours.double() - theirs.double()).norm() / theirs.double().norm().clamp_min(1e-12))
    return distance if distance == distance else float("inf")
