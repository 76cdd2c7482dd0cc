"""A recipe carried out: networks built and looked at, the student distilled, scored and written."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from datafree import held_out, modes
from datafree.distill import Chosen, Progress, distill
from datafree.errors import NetworkError, RunError
from datafree.evaluate import evaluate
from datafree.networks.load import NetworkSpec, build_network, has_weights
from datafree.networks.normalized import Normalized, bare
from datafree.networks.weights import save_weights
from datafree.recipe import Recipe, dump
from datafree.runs import Run
from datafree.sources.base import ImageSource
from datafree.student import describe_teacher, save_calibration
from datafree.tasks.base import Scores, Task, synthetic_batch
from datafree.training import Training


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run came to."""

    run: Path
    scores: dict[str, Scores]  # "teacher" and "student"; empty without labelled data
    chosen: Chosen
    notes: list[str]
    already_finished: bool = False


def run_recipe(
    recipe: Recipe,
    out: Path,
    *,
    stop: Callable[[], str | None] = lambda: None,
    log: Callable[[Progress], None] = lambda progress: None,
    say: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Run a recipe into the run directory `out`, or go on with it. Raises DatafreeError; nothing is half-written.

    Labelled data, where the recipe names some, only scores the teacher and the chosen student at the end.
    """
    began = time.monotonic()
    task, training = recipe.task, recipe.training
    device = modes.choose_device(training.device)
    dtype = modes.choose_precision(training.precision, device)
    run = Run(out, dump(recipe))

    # Everything that can be wrong is looked at before the first file is written.
    labelled = task.open_labelled(recipe.data) if recipe.data else None
    if not has_weights(recipe.teacher):
        raise NetworkError(
            f"the teacher {recipe.teacher.network} has no weights, so it has nothing to teach; "
            "give teacher.weights=FILE (.safetensors, or a tensors-only .pt)"
        )
    teacher = prepare(recipe.teacher, task, "teacher", device, dtype)
    modes.seed_everything(training.seed)  # here, so that the student's first weights depend on the seed alone
    student = prepare(recipe.student, task, "student", device, dtype)
    if run.finished:
        return _read_outcome(run)
    if run.saved is not None:
        say(f"going on with {out} at step {run.saved['step']}")
    try:
        chosen = distill(
            task=task,
            teacher=teacher,
            student=student,
            source=recipe.source,
            training=training,
            run=run,
            stop=stop,
            log=log,
            say=say,
        )
    finally:
        run.close()

    # The student, then its scores, then the word that it is done.
    save_weights(bare(student), run.path / "student.safetensors")
    save_artefacts(recipe.source, run.path)
    if len(images := recipe.source.held_out(held_out.COMPARED)):
        save_calibration(images, run.path)
    described = dump(recipe)
    run.save_json(
        "student.json",
        {
            "network": {**described["student"], "weights": None},
            "task": described["task"],
            "class_names": None if labelled is None else labelled.class_names,
            "teacher": describe_teacher(recipe.teacher, teacher),
            "cost": {"seconds": round(time.monotonic() - began, 1), "resumed": run.saved is not None},
        },
    )
    scores: dict[str, Scores] = {}
    notes = [_how_chosen(chosen, training), *recipe.source.notes()]
    if labelled is not None:
        scores = {
            who: evaluate(network, task, labelled, device=device)
            for who, network in (("teacher", teacher), ("student", student))
        }
        if labelled.skipped:
            notes.append(f"not scored: {'; '.join(dict.fromkeys(labelled.skipped))}")
    else:
        notes.append("not verified on real data: no labelled data was given (data: DIR scores it)")
    run.save_json(
        "result.json",
        {
            "chosen": asdict(chosen),
            "scored_on": str(described["data"]) if labelled is not None else None,
            "relative": relative(scores),
            "scores": {who: asdict(score) for who, score in scores.items()},
            "notes": notes,
        },
    )
    return Outcome(run=run.path, scores=scores, chosen=chosen, notes=notes)


def relative(scores: Mapping[str, Scores]) -> dict[str, float]:
    """The student's share of each of the teacher's figures, CGDD's "relative accuracy"; empty without both."""
    if not {"teacher", "student"} <= scores.keys():
        return {}
    ours, theirs = scores["student"].values, scores["teacher"].values
    return {name: ours[name] / theirs[name] for name in ours if theirs.get(name)}


def prepare(spec: NetworkSpec, task: Task, what: str, device: torch.device, dtype: torch.dtype) -> Normalized:
    """Build the network of a recipe's `what` section and look whether it answers as the task needs it to.

    Raises NetworkError if it cannot take the task's image size or answers in another form.
    """
    network = spec.wrap(build_network(spec, num_classes=task.num_classes), dtype)
    network.to(device).to(memory_format=torch.channels_last)
    look = synthetic_batch(task.image_size, device)
    try:
        with torch.no_grad(), modes.frozen(network):
            outputs = network(look)
        if what == "student":  # some networks answer otherwise while they train
            with torch.no_grad(), modes.looked_through(network, "train"):
                network(look)
    except NetworkError as error:
        raise NetworkError(f"{what} {spec.network}: {error}") from error
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        height, width = task.image_size
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise NetworkError(
            f"the {what} {spec.network} cannot take images of {height} x {width} pixels: {reason}"
        ) from error
    task.check(outputs, f"{what} {spec.network}")
    return network


def save_artefacts(source: ImageSource, folder: Path) -> None:
    """Write the networks that `source` has trained, such as generator.safetensors, into `folder`."""
    for name, network in source.artefacts().items():
        save_weights(network, folder / f"{name}.safetensors")


def _how_chosen(chosen: Chosen, training: Training) -> str:
    rule = "the last step" if training.select == "last" else "the best agreement with the teacher"
    known = (
        "" if chosen.agreement is None else f"; they agree on {chosen.agreement:.1%} of the source's held-out images"
    )
    return f"student of step {chosen.step}, chosen without labelled data: {rule}{known}"


def _read_outcome(run: Run) -> Outcome:
    try:
        result = json.loads((run.path / "result.json").read_text(encoding="utf-8"))
        scores = {who: Scores(**score) for who, score in result["scores"].items()}
        chosen, notes = Chosen(**result["chosen"]), list(result["notes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{run.path / 'result.json'} is damaged; remove it and run the same command again") from error
    return Outcome(run=run.path, scores=scores, chosen=chosen, notes=notes, already_finished=True)
