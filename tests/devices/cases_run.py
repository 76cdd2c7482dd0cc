"""A run from end to end on a device that is not the CPU, and how often its loop makes the host wait."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import datafree
from datafree.engine.loop import distill
from datafree.errors import Interrupted
from datafree.ops import modes
from datafree.preflight.inspection import inspect_teacher
from datafree.preflight.plan import plan
from datafree.recipe.training import Training
from datafree.run import run_recipe
from datafree.sources import Cgdd
from datafree.storage.run_directory import Run
from datafree.tasks import TASKS
from pretended_device import pretended
from pretended_log import LOG, waited
from small_runs import assert_same, everything, labelled, recipe_for, stop_after
from test_contract import make_network, make_task
from thorough import some

# Where the student's step may wait for the device, beside a detector's own loss.
MAY_WAIT = {
    "ops/detections.py:detect": "how many boxes the teacher sees is known when it has seen them",
    "tasks/detection.py:Detection.distill_loss": "how many of these are drawn",
    "tasks/detection.py:Detection._class_loss": "how many of the student's fit them",
    "ops/boxes.py:unpack": "the boxes of an image are counted before they are assigned to anchors",
    "networks/darknet/yolov3.py:YoloDetector.loss": "which anchors fit which box decides how many terms the loss has",
}
TWO_MIXTURES = {
    "engine/student_step.py:_varied": "which images are in no mixture of two kinds",
    "engine/student_step.py:StudentStep._losses": "how many of these there are",
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": {
        "shift": 2, "mixup": 0.25, "label_weight": 0.1, "attention_weight": 1.0, "ema": 0.9, "optimizer": "adam"
    },
    "two mixtures": {"cutmix": 0.25, "mixup": 0.25, "label_weight": 0.1},
    "started": {},  # from its teacher
}  # fmt: skip
CASES = [(kind, options) for kind in TASKS for options in OPTIONS]


@pytest.mark.parametrize(("kind", "options"), some(CASES, ("classification", "everything")))
def test_between_two_lines_of_the_log_the_loop_does_not_wait_for_the_device(
    kind: str, options: str, tmp_path: Path
) -> None:
    """Updates of the source, samples, the student's step and the watch over numbers that are not finite."""
    training = Training(
        steps=1000, batch_size=4, precision="fp32", log_every=900, save_every=900, picture_every=900, **OPTIONS[options]
    )
    steps: list[list[str]] = []

    def stop() -> str | None:
        steps.append(waited({**MAY_WAIT, **(TWO_MIXTURES if options == "two mixtures" else {})}))
        LOG.clear()
        return "seen enough" if len(steps) == 10 else None

    with pretended() as device, contextlib.closing(Run(tmp_path / "run", {"method": "cgdd"})) as run:
        task = make_task(kind)
        teacher = make_network(task, 1).to(device)
        student = make_network(task, 2).to(device)
        if kind == "detection":
            training = Training(**{**vars(training), "attention_weight": 0.0})
        with contextlib.suppress(Interrupted):
            distill(
                task=task,
                teacher=teacher,
                student=student,
                source=Cgdd(width=4, latent=6, batch_size=4, bank_size=32, warmup=2, update_every=3),
                training=training,
                run=run,
                init="teacher" if options == "started" else "random",
                stop=stop,
            )
    assert len(steps) == 10
    assert steps[4:] == [[]] * 6  # after the first lines, which are written when the student begins


@pytest.mark.thorough
@pytest.mark.timeout(600)
def test_a_run_stops_resumes_and_is_scored_exported_and_inspected_on_a_device(
    tmp_path: Path, photos: Callable[..., Path]
) -> None:
    """It resumes to the same bits, and what is left behind is of the host."""
    with pretended() as device:
        recipe = recipe_for(tmp_path, {"method": "cgdd"}, device=str(device), precision="fp32", save_every=4)
        whole = run_recipe(recipe, tmp_path / "whole")
        assert {value.device for value in whole.student.state_dict().values()} == {device}
        recipe = recipe_for(tmp_path, {"method": "cgdd"}, device=str(device), precision="fp32", save_every=4)
        with contextlib.suppress(Interrupted):
            run_recipe(recipe, tmp_path / "parts", stop=stop_after(9))
        modes.seed_everything(5)
        run_recipe(recipe, tmp_path / "parts")
        assert_same(everything(tmp_path / "parts"), everything(tmp_path / "whole"))

        data = labelled(tmp_path / "labelled")
        scores = datafree.evaluate(tmp_path / "whole", data, device=str(device))
        weights = tmp_path / "teacher.safetensors"
        found = inspect_teacher(
            "datafree/unet", weights=weights, args=["width=2", "depth=2"], size="32x32", device=str(device)
        )
        assert found.device.startswith(device.type)
        assert found.problem is None
        planned = plan(recipe_for(tmp_path, {"method": "cgdd"}, device=str(device), precision="fp32"))
        assert planned.device.startswith(device.type)
    # The files know nothing of the device: the CPU, where there is none, gives the same answers.
    assert not torch.accelerator.is_available()
    assert datafree.evaluate(tmp_path / "whole", data, device="cpu").values == pytest.approx(scores.values)
