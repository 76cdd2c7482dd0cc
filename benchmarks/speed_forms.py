"""What each speed-up is worth: pixels optimised through ResNet-50 in several forms, and a run with and without them.

pixels/resnet50: an iteration of DeepInversion's kind (the teacher's answers, the statistics of its BatchNorm inputs,
and back to the pixels) as one would write it first, and then with one thing after the other. Ratios are of the same
moments.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datafree.engine.build_networks import prepare
from datafree.errors import Interrupted
from datafree.networks.batchnorm import StatisticsMatch
from datafree.networks.load import NetworkSpec
from datafree.ops import modes
from datafree.ops.performance import ALL_ON, Speed
from datafree.recipe.recipe import load_recipe
from datafree.run import run_recipe
from datafree.tasks.classification import Classification
from speed_rigs import Pair, make_rig
from speed_timing import Metrics, Stop, in_turns, never, over

SWITCHES = tuple(field.name for field in fields(Speed))
OFF = Speed(**dict.fromkeys(SWITCHES, False))
RESNET50 = NetworkSpec(network="torchvision/resnet50", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@dataclass(frozen=True, kw_only=True)
class Form:
    """How an iteration on pixels is computed."""

    frozen: bool = True  # no gradients to the teacher's parameters
    speed: Speed = ALL_ON
    precision: modes.Precision = "fp32"


FORMS = {
    "plain": Form(frozen=False, speed=OFF),
    "frozen": Form(speed=OFF),
    "channels_last": Form(speed=replace(OFF, channels_last=True)),
    "fused_statistics": Form(),
    "bf16": Form(precision="bf16"),
}


def measure_pixels(
    device: torch.device,
    rounds: int,
    stop: Stop = never,
    *,
    spec: NetworkSpec = RESNET50,
    side: int = 128,
    batch: int = 8,
    classes: int = 1000,
) -> dict[str, Metrics]:
    """FORM -> how many times as fast as the plain form it is, images a second."""
    task = Classification(num_classes=classes, image_size=(side, side))
    images, labels = torch.rand(batch, 3, side, side, device=device), torch.arange(batch, device=device) % classes
    parts = {name: _iteration(form, spec, task, images, labels) for name, form in FORMS.items()}
    seconds = in_turns(parts, device, rounds, stop)
    return {
        name: {
            **over("times_as_fast", seconds["plain"], taken),
            "images_per_second": batch / statistics.median(taken),
        }
        for name, taken in seconds.items()
    }


def _iteration(
    form: Form, spec: NetworkSpec, task: Classification, images: Tensor, labels: Tensor
) -> Callable[[], Tensor]:
    """What runs one iteration of a form and answers the pixels' gradient."""
    modes.seed_everything(0)
    dtype = modes.choose_precision(form.precision, images.device)
    teacher: nn.Module = prepare(spec, task, "teacher", images.device, dtype, speed=form.speed).eval()
    match = StatisticsMatch(network=teacher, fused=form.speed.fused_statistics)

    def work() -> Tensor:
        pixels = images.detach().requires_grad_()
        with modes.frozen(teacher) if form.frozen else nullcontext():
            with match.watching():
                answers = teacher(pixels)
            torch.autograd.backward(F.cross_entropy(answers, labels) + match.distance())
        teacher.zero_grad()
        assert pixels.grad is not None
        return pixels.grad

    return work


def measure_switches(
    pair: Pair, method: str, photos: Path, device: torch.device, rounds: int, stop: Stop = never
) -> dict[str, Metrics]:
    """SWITCH -> how many times as long an update takes without it."""
    kinds = {"on": Speed(), **{name: replace(Speed(), **{name: False}) for name in SWITCHES}}
    rigs = {name: make_rig(pair, method, photos, device, speed=speed) for name, speed in kinds.items()}
    for rig in rigs.values():
        rig.attach()

    def held(name: str) -> Callable[[], None]:
        def work() -> None:
            with modes.frozen(rigs[name].networks["teacher"]):
                rigs[name].update()

        return work

    seconds = in_turns({name: held(name) for name in rigs}, device, rounds, stop)
    return {name: over("times_as_long_without", seconds[name], seconds["on"]) for name in SWITCHES}


def measure_agreement(
    recipe: str, wanted: float, device: torch.device, stop: Stop = never, *words: str
) -> dict[str, Metrics]:
    """Speed-ups "on" and "off" -> seconds and steps of a packaged recipe until student and teacher agree.

    That is on `wanted` of the images, a fraction. `words` are changes of the recipe.

    Agreement is that on images the source holds out, looked at every 25 steps. Raises Interrupted when `stop` says so.
    """
    found = {}
    for name, speed in (("on", Speed()), ("off", OFF)):
        switches = [f"training.speed.{switch}={str(getattr(speed, switch)).lower()}" for switch in SWITCHES]
        options = ["training.save_every=25", "training.log_every=25", f"training.device={device}", *switches, *words]
        found[name] = _until(recipe, options, wanted, stop)
    return found


def _until(recipe: str, words: list[str], wanted: float, stop: Stop) -> Metrics:
    made = replace(load_recipe(recipe, words), data=None)
    began, why, read, last = time.perf_counter(), "", 0, {"agreement": 0.0, "step": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "run" / "metrics.jsonl"

        def enough() -> str | None:
            nonlocal why, read
            if log.exists() and log.stat().st_size != read:
                read = log.stat().st_size
                last.update(_latest(log))
            why = stop() or ""
            return "they agree" if last["agreement"] >= wanted else why or None

        try:
            run_recipe(made, log.parent, stop=enough)
        except Interrupted as error:
            if why:
                raise Interrupted(why) from error
        last.update(_latest(log))
    return {"seconds": time.perf_counter() - began, "steps": last["step"], "agreement": last["agreement"]}


def _latest(log: Path) -> dict[str, float]:
    """The step and the agreement of the latest comparison in a run's log."""
    for line in reversed(log.read_text(encoding="utf-8").splitlines()):
        values = json.loads(line)
        if "agreement" in values:
            return {name: float(values[name]) for name in ("step", "agreement")}
    return {}
