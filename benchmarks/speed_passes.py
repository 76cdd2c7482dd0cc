"""What updates of sources and steps of the student are made of: the passes of networks that their formulas need."""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from datafree.engine.loop import distill
from datafree.errors import Interrupted
from datafree.ops import modes
from datafree.ops.predictions import Predictions
from datafree.recipe.training import Training
from datafree.storage.run_directory import Run
from datafree.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class Pass:
    """A forward pass of a network in a mode, and the backward pass from its answer to what is named."""

    network: Literal["teacher", "student", "generator", "discriminator"]
    images: int
    to: Literal["nothing", "input", "parameters", "both"]
    mode: Literal["train", "eval"] = "train"


def update_passes(method: str, source: Any) -> list[Pass]:
    """The passes of an update of an attached `source`, once the student learns."""
    n = source.batch_size
    teacher = Pass(network="teacher", images=n, to="input", mode="eval")
    student = Pass(network="student", images=n, to="input", mode=getattr(source, "student_mode", "eval"))
    generator = Pass(network="generator", images=n, to="parameters")
    adapted = replace(generator, to="both")  # with its latents
    judged = Pass(network="discriminator", images=n, to="parameters")
    if method == "diode":  # at the end a look at the whole batch
        return [teacher] * sum(stage.iterations for stage in source.stages) + [replace(teacher, to="nothing")]
    once = {
        "degan": [generator, judged, judged, replace(judged, to="input"), teacher],  # real and made; then deceived
        "cgdd": [generator, teacher, student],
        "dafl": [generator, teacher],
        "dfad": [generator, teacher, student],
        "zskt": [generator, teacher, student, replace(generator, to="nothing")],  # the student's images, anew
        "inversion": [teacher],
        "cmi": [adapted, teacher, teacher, student],  # the image and a part of it
        "fast": [adapted, teacher, student],
    }
    passes = once[method] * getattr(source, "iterations", 1)
    unasked = getattr(source, "adversarial_weight", None) == 0  # the student's answers are in no term
    return [one for one in passes if not (unasked and one.network == "student")]


def step_passes(method: str, source: Any, n: int) -> list[Pass]:
    """The passes of a student's step on n images, those of an update aside."""
    old = {"cgdd": lambda: round(n * source.replay), "zskt": lambda: min(n, source.batch_size)}
    generates = method in ("degan", "cgdd", "dafl", "dfad", "zskt")
    fresh = n - old.get(method, lambda: 0)() if generates else 0
    mode: Literal["train", "eval"] = "eval" if method == "degan" else "train"
    made = [Pass(network="generator", images=fresh, to="nothing", mode=mode)] if fresh else []
    taught = Pass(network="teacher", images=n, to="nothing", mode="eval")
    return [*made, taught, Pass(network="student", images=n, to="parameters")]


@dataclass(kw_only=True)
class Rig:
    """A source, a teacher and a student as a run has them, and copies of all networks for their bare passes."""

    method: str
    task: Task
    source: Any
    training: Training
    networks: dict[str, nn.Module]  # by the names of passes; teacher and student are the run's own
    device: torch.device
    dtype: torch.dtype
    share: float = 1.0  # iterations of the update that is timed, of those in the row

    def __post_init__(self) -> None:
        self._held: dict[Pass, tuple[nn.Module, list[Tensor]]] = {}

    @cached_property
    def update_floor(self) -> list[Pass]:
        return update_passes(self.method, self.source)

    @cached_property
    def step_floor(self) -> list[Pass]:
        return step_passes(self.method, self.source, self.batch)

    @property
    def iterations(self) -> int:
        """Of the update that is timed, on each image; 0 where images are not optimised in many."""
        stages = getattr(self.source, "stages", None)
        return sum(stage.iterations for stage in stages) if stages else getattr(self.source, "iterations", 0)

    @property
    def batch(self) -> int:
        """The student's."""
        assert isinstance(self.training.batch_size, int)
        return self.training.batch_size

    def attach(self) -> None:
        """Attach the source without a loop, in which it would be."""
        teacher = self.networks["teacher"]
        with modes.frozen(teacher):
            self.source.attach(
                self.training.source_context(self.task, teacher, self.device, self.dtype, say=lambda line: None)
            )
        state = self.source.state_dict()
        if "remembered" in state:  # CMI's, which an update's time depends on
            state["remembered"] = torch.rand(self.source.memory, state["remembered"].shape[1])
            self.source.load_state_dict(state)

    def update(self) -> None:
        """An update of the attached source, as in the student's second step. The teacher is to be frozen."""
        self.source.update(self.networks["student"], 1)

    def loop(self, before: Callable[[], str | None]) -> None:
        """Attach the source and train the student until `before`, asked before each step, gives a reason to stop."""
        with tempfile.TemporaryDirectory() as folder:
            run = Run(Path(folder), {"method": self.method})
            with contextlib.closing(run), contextlib.suppress(Interrupted):
                distill(
                    task=self.task,
                    teacher=self.networks["teacher"],
                    student=self.networks["student"],
                    source=self.source,
                    training=self.training,
                    run=run,
                    stop=before,
                )

    def floor(self, passes: Sequence[Pass]) -> None:
        """Run bare passes, one after another."""
        for one in passes:
            if one not in self._held:
                self._held[one] = self._copy(one), self._inputs(one)
            network, held = self._held[one]
            first, *rest = (tensor.detach() for tensor in held)
            first.requires_grad_(one.to in ("input", "both"))
            with torch.set_grad_enabled(one.to != "nothing"), modes.autocast(self.device, self.dtype):
                answer = network(first, *rest)
            if one.to != "nothing":
                outputs = list(answer.heads) if isinstance(answer, Predictions) else [answer]
                torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
                for parameter in network.parameters():
                    parameter.grad = None

    def _copy(self, one: Pass) -> nn.Module:
        network = copy.deepcopy(self.networks[one.network]).train(one.mode == "train")
        return network.requires_grad_(one.to in ("parameters", "both"))

    def _inputs(self, one: Pass) -> list[Tensor]:
        if one.network != "generator":
            images = torch.rand(one.images, 3, *self.task.image_size, device=self.device)
            return [images.to(memory_format=torch.channels_last)]
        latents = torch.randn(one.images, self.source.latent, device=self.device)
        if self.method != "cgdd":
            return [latents]
        return [latents, self.task.class_maps(self.task.sample_targets(one.images, self.device))]
