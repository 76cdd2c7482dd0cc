"""Export of a finished run's student: weights, description, model card, ONNX and other formats, INT8.

    RUN/export/
      student.safetensors   the bare network's weights, for its own library
      student.onnx          `images` (B, 3, H, W) in [0, 1] -> `logits`, or a detector's `boxes` and `scores`
      student.int8.onnx     the same in 8-bit integers
      student.tflite, ...   the same for other runtimes (deploy/formats)
      config.json           what a program needs to know: network, classes, input, checks, scores
      README.md             the model card

B images, C classes, L locations, N images to calibrate with, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from datafree.config import schema
from datafree.data.labelled import LabelledData
from datafree.deploy.bench_file import read_bench
from datafree.deploy.export_config import config, versions_of
from datafree.deploy.export_record import Export, Int8
from datafree.deploy.format_facts import wanted
from datafree.deploy.formats import FORMATS
from datafree.deploy.formats.base import Given
from datafree.deploy.formats.check import Made, make_all
from datafree.deploy.made_images import apart, calibration_images, images_to_compare
from datafree.deploy.model_card import model_card, public
from datafree.deploy.qat import train_for_int8
from datafree.deploy.written_names import CARD, CONFIG, WEIGHTS, require_export, require_int8_options
from datafree.engine.progress import Progress, Work
from datafree.errors import RunError
from datafree.evaluation.finished_run import load_student, read_record
from datafree.evaluation.scoring import evaluate
from datafree.networks.checkpoints.weights import save_weights
from datafree.networks.normalized import bare
from datafree.networks.onnx import check_onnx, opset_of
from datafree.recipe.recipe import FAMILIES
from datafree.storage import strict_json
from datafree.storage.atomic import cannot_write, sha256_of, write_whole
from datafree.storage.whole_folder import made_whole
from datafree.tasks.base import Scores, Task
from datafree.tasks.labelled import names_of, open_labelled
from datafree.text import counted


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export came to."""

    folder: Path
    sizes: dict[str, int]  # file -> bytes
    errors: dict[int, float]  # images at once -> relative error of student.onnx
    scores: dict[str, Scores]  # file -> on labelled data; empty without
    notes: list[str]
    made: list[Made] = field(default_factory=list)  # files of formats, and what was found when they were opened again
    failed: list[str] = field(default_factory=list)  # a line for each file that was asked for and is not there


def export_run(
    run: Path,
    out: Path | None = None,
    *,
    to: str | Sequence[str] | None = None,
    onnx: bool = True,
    opset: int | None = None,
    int8: bool = False,
    qat_steps: int = 0,
    images: Path | None = None,
    data: Path | None = None,
    student: str | nn.Module | None = None,
    task: str | None = None,
    say: Callable[[str], None] = lambda line: None,
    log: Callable[[Progress], None] = lambda progress: None,
) -> Exported:
    """Write the student of a finished run into `out`, by default RUN/export, whole or not at all.

    `to` names formats ("onnx,litert", or a list); by default ONNX, where its packages are installed. Each file is
    opened again and compared with torch. Of several formats those that cannot be written are named in `failed`; a
    single one raises. `opset` is ONNX's, torch's choice by default. `int8` adds each format in 8-bit integers,
    calibrated on the images the run has kept of its source's, or on those in the folder `images`, and trained for it
    in `qat_steps` steps on the same (`train_for_int8`). `data`, labelled, scores what was exported. `student` and
    `task` as in `load_student`. An older export in `out` is replaced. Raises
    DatafreeError.
    """
    notes: list[str] = []
    require_int8_options(qat_steps, images, int8)
    kinds = wanted(to, FORMATS, notes, onnx=onnx, opset=opset, int8=int8)
    out = run / "export" if out is None else out if out.name else out.absolute()
    require_export(out)
    loaded, record = load_student(run, student=student, task=task), read_record(run)
    labelled = open_labelled(loaded.task, data, loaded.class_names) if data is not None else None
    if labelled is not None and not loaded.class_names:
        loaded = replace(loaded, class_names=names_of(labelled))
    if int8:
        found, origin = calibration_images(run, images, loaded.task, notes)
        learnt, fresh = apart(found)
    else:
        learnt, (fresh, origin) = None, images_to_compare(run, loaded.task)
    scores: dict[str, Scores] = {}
    parts = 2 + (qat_steps > 0) + sum(1 + (int8 and not kind.no_int8) for kind in kinds)
    work = Work("export", parts, log)

    try:
        with made_whole(out, lambda: require_export(out)) as stage:
            given = Given(
                network=loaded.network,
                task=loaded.task,
                description={"task": schema.plain(loaded.task, FAMILIES), "class_names": loaded.class_names},
                folder=stage,
                opset=opset,
                calibration=learnt,
            )
            work.next("weights")
            save_weights(bare(loaded.network), stage / WEIGHTS)
            if labelled is not None:
                say(f"scoring on {data}")
                scores[WEIGHTS] = _score(loaded.network, loaded.task, labelled)
            if learnt is not None and qat_steps:
                work.next("training for INT8")
                say(f"training for INT8, {counted(qat_steps, 'step')} with {len(learnt)} images: {origin}")
                trained = train_for_int8(
                    loaded.network,
                    loaded.task,
                    learnt,
                    qat_steps,
                    log=lambda step: work.at(1, f"training for INT8, step {step:,} of {qat_steps:,}"),
                )
                notes.append(trained.line)
                given = replace(given, trained=trained.network if trained.helped else None)
            if learnt is not None:
                say(f"quantising, with {len(learnt)} images: {origin}")
            made, failed = make_all(kinds, given, fresh, _teller(work, say))
            float_file = stage / "student.onnx"
            errors = check_onnx(loaded.network, float_file, given.size) if float_file.is_file() else {}
            if labelled is not None:
                opened = {one.file: FORMATS[one.format].open(stage / one.file) for one in made if not one.unverified}
                scores |= {name: _score(network, loaded.task, labelled) for name, network in opened.items()}
            else:
                notes.append("not scored: no labelled data was given (--data DIR scores what is exported)")
            notes += dict.fromkeys(line for score in scores.values() for line in score.remarks)
            notes += [kind.no_int8 for kind in kinds if int8 and kind.no_int8]
            notes += [f"{one.file} is not verified here: {one.unverified}" for one in made if one.unverified]
            notes += [one.warning for one in made if one.warning]
            work.next("description and model card")
            small = next((one for one in made if one.int8), None)
            export = Export(
                errors=errors,
                opset=opset_of(float_file) if errors else None,
                int8=None
                if small is None or learnt is None
                else Int8(
                    file=small.file,
                    images=len(learnt),
                    origin=origin,
                    agreement=small.agreement,
                    compared=len(fresh),
                    qat_steps=0 if given.trained is None else qat_steps,
                ),
                scores=scores,
                scored_on=None if data is None else public(str(data.absolute())),
                made=made,
                missing=failed,
                compared_on=origin,
            )
            export = replace(export, versions=versions_of(export))
            sums = {file.name: sha256_of(file) for file in sorted(stage.iterdir())}
            notes += record.faults
            write_whole(stage / CONFIG, strict_json.sealed(config(loaded, record, export, sums)))
            write_whole(stage / CARD, model_card(loaded, record, export, read_bench(run)).encode())
            sizes = {file.name: file.stat().st_size for file in sorted(stage.iterdir())}
        work.at(parts)
    except OSError as error:
        raise RunError(cannot_write(out, error, "choose another --out")) from error
    return Exported(folder=out, sizes=sizes, errors=errors, scores=scores, notes=notes, made=made, failed=failed)


def _teller(work: Work, say: Callable[[str], None]) -> Callable[[str], None]:
    """Tells both displays that a file is being written."""

    def tell(name: str) -> None:
        work.next(name)
        say(f"writing {name}")

    return tell


def _score(network: nn.Module, task: Task, labelled: LabelledData) -> Scores:
    return evaluate(network, task, labelled, device=torch.device("cpu"))
