"""One recipe from end to end: networks built and checked, the student distilled, scored and written."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from datafree.distributed import divided, replicas
from datafree.engine import shared_batches, validation
from datafree.engine.artifacts import CALIBRATION, class_names, describe_teacher, save_artefacts, save_calibration
from datafree.engine.build_networks import (
    NOTHING_GIVEN,
    Given,
    build_networks,
    require_weights,
    with_source,
    with_student,
)
from datafree.engine.loop import Chosen, distill
from datafree.engine.progress import Progress, place
from datafree.errors import RunError
from datafree.evaluation.scoring import evaluate
from datafree.networks.checkpoints.weights import load_weights, save_weights
from datafree.networks.normalized import Normalized, bare, in_float32
from datafree.ops import modes
from datafree.preflight.cost.batch_size import with_batch_size
from datafree.preflight.cost.forecast import foretold
from datafree.preflight.cost.time_budget import with_time
from datafree.recipe.recipe import Recipe, dump
from datafree.recipe.training import Training
from datafree.report.live_writer import is_behind, page_kept
from datafree.report.profile import measure
from datafree.report.run_reader import MEASURED
from datafree.sources.base import require_outside
from datafree.storage import strict_json, written
from datafree.storage.places import is_run, require_for_run
from datafree.storage.run_directory import NOTED
from datafree.storage.run_files import ResultForm, known
from datafree.storage.shared_run import RunDirectory, open_run
from datafree.storage.trackers import require
from datafree.tasks.base import Scores, relative
from datafree.tasks.labelled import names_of, open_labelled


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run came to."""

    run: Path
    scores: dict[str, Scores]  # "teacher" and "student"; empty without labelled data
    chosen: Chosen
    notes: list[str]
    student: Normalized  # with the weights of student.safetensors, on the run's device
    already_finished: bool = False


def run_recipe(
    recipe: Recipe,
    out: Path,
    *,
    given: Given = NOTHING_GIVEN,
    stop: Callable[[], str | None] = lambda: None,
    log: Callable[[Progress], None] = lambda progress: None,
    say: Callable[[str], None] = lambda line: None,
    drafted: str | None = None,
) -> Outcome:
    """Run a recipe into the run directory `out`, or resume it. Raises DatafreeError; nothing is half-written.

    `given` holds networks that are objects; the recipe then says what they are called and what their images must be.
    Labelled data, where the recipe names some, only scores the teacher and the chosen student at the end.
    `drafted`: the text of a recipe that datafree has chosen, which is kept in the directory for whoever edits it.
    """
    require_for_run(out)  # before any work; whoever opens the run looks again
    if not is_run(out):
        require_outside(recipe.source, out)
    recipe, chosen = with_student(recipe, given.teacher)
    with contextlib.ExitStack() as held:
        device = modes.choose_device(held.enter_context(replicas.joined(recipe.training.device)))
        dtype = modes.choose_precision(recipe.training.precision, device)
        shared_batches.require_alike(dump(recipe))
        recipe, sourced = with_source(recipe, device, dtype, given)
        recipe, training, sized = with_batch_size(recipe, out, given, device, dtype)
        recipe, training, timed = with_time(recipe, training, out, given, device, dtype)
        whole = dump(recipe)
        held.enter_context(divided.sharing(training.data_parallel == "divided"))
        training, source = shared_batches.part_of(training, recipe.source)
        recipe = replace(recipe, source=source)
        run = held.enter_context(contextlib.closing(open_run(out, whole, drafted)))
        if replicas.is_first() and (not run.finished or is_behind(out)):
            log = held.enter_context(page_kept(out, log, say))
        elif not replicas.is_first():
            log, say = (lambda progress: None), (lambda line: None)
        for line in (*chosen, *sourced, *sized, *timed):
            say(line)
        return _carry_out(
            recipe,
            training,
            run,
            given,
            device=device,
            dtype=dtype,
            stop=lambda: replicas.all_agree(stop()),
            log=log,
            say=say,
        )


def _carry_out(
    recipe: Recipe,
    training: Training,
    run: RunDirectory,
    given: Given,
    *,
    device: torch.device,
    dtype: torch.dtype,
    stop: Callable[[], str | None],
    log: Callable[[Progress], None],
    say: Callable[[str], None],
) -> Outcome:
    began = time.monotonic()
    task = recipe.task

    # Everything that can be wrong is checked before the first file is written.
    require(training.track)
    known = class_names(recipe.teacher, task) or []
    labelled = open_labelled(task, recipe.data, known) if recipe.data else None
    require_weights(recipe.teacher, task)
    remarks: list[str] = []
    networks = build_networks(recipe, device, dtype, given, learns=not run.finished, say=remarks.append)
    teacher, student = networks.teacher, networks.student
    for network in (teacher, student):
        replicas.share(network)
    if run.finished:
        written.check(run.path / "student.json")  # which has the digest of the weights
        load_weights(bare(student), run.path / "student.safetensors")
        return _read_outcome(run, student)
    if run.saved is not None:
        say(f"resuming {run.path} {place(run.saved['step'], -recipe.source.warmup, training.steps)}")
    elif training.time is None:
        remarks += foretold(recipe, training, networks, device, dtype, labelled)
    for line in (*remarks, *run.warnings):
        say(line)
    chosen = distill(
        task=task,
        teacher=teacher,
        student=student,
        source=recipe.source,
        training=training,
        run=run,
        init="teacher" if recipe.student.init == "teacher" else "random",
        class_names=known or ([] if labelled is None else names_of(labelled)),
        stop=stop,
        log=log,
        say=say,
    )

    # The student, then its scores, then the word that it is done.
    images = recipe.source.validation_images(validation.COMPARED)
    digests: dict[str, str] = {}
    if replicas.is_first():
        save_weights(bare(student), run.path / "student.safetensors")
        save_artefacts(recipe.source, run.path)
        if len(images):
            save_calibration(images, run.path)
        artefacts = (f"{name}.safetensors" for name in recipe.source.artefacts())
        digests = written.digests(run.path, ("student.safetensors", CALIBRATION, *artefacts))
    described = dump(recipe)
    run.save_json(
        "student.json",
        {
            "network": {**described["student"], "weights": None},
            "task": described["task"],
            "class_names": ([] if labelled is None else names_of(labelled)) or known or None,
            "teacher": describe_teacher(recipe.teacher, teacher),
            "cost": {"seconds": round(time.monotonic() - began, 1), "resumed": run.saved is not None},
            "sha256": digests,
        },
    )
    scores: dict[str, Scores] = {}
    notes = [
        _how_chosen(chosen, training, len(images)),
        *chosen.start,
        *chosen.history,
        *chosen.remarks,
        *recipe.source.notes(),
    ]
    if labelled is not None:
        # All have the same data: passes are divided, answers collected. In float32, as what ships answers.
        with divided.sharing(False), in_float32(teacher, student):
            scores = {
                who: evaluate(network, task, labelled, device=device, stop=stop, log=log)
                for who, network in (("teacher", teacher), ("student", student))
            }
        notes += dict.fromkeys(line for score in scores.values() for line in score.remarks)
    else:
        notes.append("not verified on real data: no labelled data was given (data: DIR scores it)")
    with in_float32(teacher, student):
        run.save_json(MEASURED, measure(task, teacher, student, images))
    run.finish(
        {
            "chosen": {"step": chosen.step, "agreement": chosen.agreement},
            "faults": chosen.history,
            "scored_on": str(described["data"]) if labelled is not None else None,
            "relative": relative(scores),
            "scores": {who: asdict(score) for who, score in scores.items()},
            "notes": notes,
        },
    )
    return Outcome(run=run.path, scores=scores, chosen=chosen, notes=notes, student=student)


def _how_chosen(chosen: Chosen, training: Training, compared: int) -> str:
    rule = "the last step" if training.select == "last" else "the best agreement with the teacher"
    if chosen.agreement is not None:
        known = f"; student and teacher agree on {chosen.agreement:.1%} of the source's validation images"
    elif compared:
        known = "; nothing to compare: neither student nor teacher finds anything in the source's validation images"
    else:
        known = ""
    return f"student of step {chosen.step}, chosen without labelled data: {rule}{known}"


def _read_outcome(run: RunDirectory, student: Normalized) -> Outcome:
    file = run.path / "result.json"
    try:
        result = ResultForm.model_validate(strict_json.read(file, ResultForm))
    except strict_json.Damaged as error:
        raise RunError(f"{file} is damaged ({error}); remove it and run the same command again") from error
    scores = {
        who: Scores(
            values=known(score.values),
            per_class={name: known(figures) for name, figures in score.per_class.items()},
            remarks=score.remarks,
        )
        for who, score in result.scores.items()
    }
    chosen = Chosen(step=result.chosen.step, agreement=result.chosen.agreement, history=result.faults)
    differing = {name: written.difference(run.path / name) for name in NOTED if (run.path / name).is_file()}
    changed = [f"{name} has changed since it was written: {why}" for name, why in differing.items() if why]
    notes = [*result.notes, *changed]
    return Outcome(run=run.path, scores=scores, chosen=chosen, notes=notes, student=student, already_finished=True)
