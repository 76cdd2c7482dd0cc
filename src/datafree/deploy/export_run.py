"""Export of a finished run's student: weights, description, model card, ONNX, INT8.

    RUN/export/
      student.safetensors   the bare network's weights, for its own library
      student.onnx          `images` (B, 3, H, W) in [0, 1] -> `logits`, or a detector's `boxes` and `scores`
      student.int8.onnx     the same in 8-bit integers
      config.json           what a program needs to know: network, classes, input, checks, scores
      README.md             the model card

B images, C classes, L locations, N images to calibrate with, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datafree.config import schema
from datafree.data import images as image_files
from datafree.data.labelled import LabelledData
from datafree.data.unlabelled import read_fitted, unread
from datafree.deploy.model_card import Export, Int8, model_card, public
from datafree.deploy.quantize import quantize
from datafree.engine.artifacts import CALIBRATION
from datafree.engine.progress import Progress, Work
from datafree.errors import DataError, DatafreeError, NetworkError, RunError
from datafree.evaluation.finished_run import Record, Student, load_student, read_record
from datafree.evaluation.scoring import evaluate
from datafree.networks.checkpoints.weights import read_tensors, save_weights
from datafree.networks.instances import is_live
from datafree.networks.normalized import bare
from datafree.networks.onnx import OnnxNetwork, check_onnx, require, write_onnx
from datafree.recipe.recipe import FAMILIES
from datafree.storage import made_set, strict_json
from datafree.storage.atomic import require_ordinary, sha256_of, write_whole
from datafree.storage.environment import environment
from datafree.storage.whole_folder import made_whole
from datafree.tasks.base import Scores, Task, open_labelled
from datafree.text import one_line

CALIBRATED_ON = 256  # images at most

EXPORTED = ("student.safetensors", "student.onnx", "student.int8.onnx", "config.json", "README.md")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export came to."""

    folder: Path
    sizes: dict[str, int]  # file -> bytes
    errors: dict[int, float]  # images at once -> relative error of student.onnx
    scores: dict[str, Scores]  # file -> on labelled data; empty without
    notes: list[str]


def export_run(
    run: Path,
    out: Path | None = None,
    *,
    onnx: bool = True,
    opset: int | None = None,
    int8: bool = False,
    images: Path | None = None,
    data: Path | None = None,
    student: str | nn.Module | None = None,
    task: str | None = None,
    say: Callable[[str], None] = lambda line: None,
    log: Callable[[Progress], None] = lambda progress: None,
) -> Exported:
    """Write the student of a finished run into `out`, by default RUN/export, whole or not at all.

    `opset` is ONNX's, torch's choice by default. `int8` adds student.int8.onnx, calibrated on the images the run has
    kept of its source's, or on those in the folder `images`. `data`, labelled, scores what was exported. `student` and
    `task` as in `load_student`. An older export in `out` is replaced. Raises DatafreeError.
    """
    if int8 and not onnx:
        raise NetworkError("INT8 is made of the ONNX file: leave out --no-onnx, or --int8")
    notes: list[str] = []
    if onnx:
        try:
            require("exporting to ONNX", "onnx", "onnxscript", "onnxruntime")
        except DatafreeError as error:
            if int8 or opset is not None:
                raise
            onnx, notes = False, [f"student.onnx was not written: {error}, and export again; --no-onnx: not wanted"]
    out = run / "export" if out is None else out if out.name else out.absolute()
    loaded, record = load_student(run, student=student, task=task), read_record(run)
    _check_out(out)
    labelled = open_labelled(loaded.task, data) if data is not None else None
    if labelled is not None and not loaded.class_names:
        loaded = replace(loaded, class_names=labelled.class_names)
    calibration, origin = _calibration(run, images, loaded.task, notes) if int8 else (torch.empty(0), "")
    scores: dict[str, Scores] = {}
    errors: dict[int, float] = {}
    used_opset, quantised = None, None
    work = Work("export", 2 + onnx + int8, log)

    try:
        with made_whole(out, lambda: _check_out(out)) as stage:
            weights, float_file, int8_file = (stage / name for name in EXPORTED[:3])
            work.next("weights")
            save_weights(bare(loaded.network), weights)
            if labelled is not None:
                say(f"scoring on {data}")
                scores[weights.name] = _score(loaded.network, loaded.task, labelled)
            if onnx:
                say("exporting to ONNX")
                work.next("student.onnx")
                described = {"task": schema.plain(loaded.task, FAMILIES), "class_names": loaded.class_names}
                size = loaded.task.image_size
                used_opset = write_onnx(loaded.network, float_file, size, described, opset=opset)
                errors = check_onnx(loaded.network, float_file, size)
                if labelled is not None:
                    scores[float_file.name] = _score(OnnxNetwork(float_file), loaded.task, labelled)
            if int8:
                work.next("student.int8.onnx")
                say(f"quantising, with {len(calibration)} images: {origin}")
                quantised = _quantise(loaded, float_file, int8_file, calibration, origin)
                if labelled is not None:
                    scores[int8_file.name] = _score(OnnxNetwork(int8_file), loaded.task, labelled)
            if labelled is None:
                notes.append("not scored: no labelled data was given (--data DIR scores what is exported)")
            notes += dict.fromkeys(line for score in scores.values() for line in score.remarks)
            work.next("description and model card")
            export = Export(
                errors=errors,
                opset=used_opset,
                int8=quantised,
                scores=scores,
                scored_on=None if data is None else public(str(data.absolute())),
                versions=_versions(),
            )
            sums = {file.name: sha256_of(file) for file in sorted(stage.iterdir())}
            notes += record.faults
            write_whole(stage / "config.json", strict_json.sealed(config(loaded, record, export, sums)))
            write_whole(stage / "README.md", model_card(loaded, record, export).encode())
            sizes = {file.name: file.stat().st_size for file in sorted(stage.iterdir())}
        work.at(2 + onnx + int8)
    except OSError as error:
        raise RunError(f"cannot write {out}: {one_line(error)}; free some space, or choose another --out") from error
    return Exported(folder=out, sizes=sizes, errors=errors, scores=scores, notes=notes)


def _quantise(student: Student, file: Path, out: Path, images: Tensor, origin: str) -> Int8:
    """Quantise on three quarters of `images`, compare on the last."""
    compared = max(1, len(images) // 4)
    learnt, fresh = images[:-compared], images[-compared:]
    exact = OnnxNetwork(file)
    quantize(file, out, map(_floats, torch.split(learnt, 8)), exact_ends=student.task.exact_ends)
    small, task = OnnxNetwork(out), student.task
    parts = [(small(_floats(part)), exact(_floats(part))) for part in torch.split(fresh, 8)]
    ours, theirs = task.join([one for one, _ in parts]), task.join([other for _, other in parts])
    return Int8(images=len(learnt), origin=origin, agreement=task.agreement(ours, theirs), compared=compared)


def _floats(images: Tensor) -> Tensor:
    return images.float() / 255


def _calibration(run: Path, folder: Path | None, task: Task, notes: list[str]) -> tuple[Tensor, str]:
    """Images (N, 3, H, W) uint8 to calibrate with, two or more, and what they are; `notes` is told of those left out.

    Raises DataError.
    """
    if folder is not None:
        folder = made_set.data_of(folder)
        inner = (folder / "data" / "images", folder / "images")  # of sets with masks or boxes beside the images
        files = image_files.list_images(next((place for place in inner if place.is_dir()), folder))
        chosen = files[:: -(-len(files) // CALIBRATED_ON)]  # spread over the folder
        skipped: list[str] = []
        read = read_fitted(chosen, task.image_size, skipped, folder)
        found = torch.stack([(pixels * 255).round().byte() for pixels in read])
        notes += [f"INT8: {unread(skipped)}"] if skipped else []
        origin = f"from the folder {public(str(folder.absolute()))}"
    else:
        file = run / CALIBRATION
        if not file.is_file():
            raise DataError(f"{run} holds no images of its source ({CALIBRATION}); give a folder of some with --images")
        found = read_tensors(file).get("images", torch.empty(0))
        origin = "that the run's source made"
        if found.dtype != torch.uint8 or found.ndim != 4 or tuple(found.shape[1:]) != (3, *task.image_size):
            raise DataError(
                f"{file} does not hold 8-bit images of the task's size; give a folder of some with --images"
            )
    if len(found) < 2:
        raise DataError("one image is too few to calibrate with; give a folder of some hundred with --images")
    return found[:CALIBRATED_ON], origin


def _score(network: nn.Module, task: Task, labelled: LabelledData) -> Scores:
    return evaluate(network, task, labelled, device=torch.device("cpu"))


def config(student: Student, record: Record, export: Export, sums: Mapping[str, str]) -> dict[str, Any]:
    """config.json: plain values. `sums`: SHA-256 of each file."""
    spec, (height, width) = student.spec, student.task.image_size
    own = spec.is_own_code or is_live(spec.network)
    return {
        "library": "own code" if own else spec.network.partition("/")[0],
        "network": spec.network,
        "args": dict(spec.args),
        "parameters": sum(parameter.numel() for parameter in student.network.parameters()),
        "task": schema.plain(student.task, FAMILIES),
        "num_classes": student.task.num_classes,
        "class_names": student.class_names or None,
        "image_size": [height, width],
        "input": {
            "name": "images",
            "shape": ["batch", 3, height, width],
            "values": "RGB, float32 in [0, 1]",
            "mean": list(spec.mean),  # of R, G, B, what the bare network's images are normalised with
            "std": list(spec.std),
            "channel_order": spec.channel_order,
            "channels": spec.channels,
            "resized_to": None if spec.input_size is None else list(spec.input_size),
        },
        "onnx": None
        if not export.errors
        else {"opset": export.opset, "relative_error": {str(n): error for n, error in export.errors.items()}},
        "int8": None if export.int8 is None else asdict(export.int8),
        "scores": {
            "run": {"on": public(record.scored_on), **{who: score.values for who, score in record.scores.items()}},
            "export": {"on": export.scored_on, **{name: score.values for name, score in export.scores.items()}},
        },
        "teacher": public(dict(student.taught_by)) or None,
        "sha256": dict(sums),
        "versions": export.versions,
    }


def _versions() -> dict[str, str]:
    found: dict[str, str] = dict(environment()["versions"])
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _check_out(out: Path) -> None:
    """Raise RunError if `out` holds anything that an export would not replace."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise RunError(f"{out} is not a folder; choose another --out")
    strange = sorted(entry.name for entry in out.iterdir() if entry.name not in EXPORTED) if out.exists() else []
    if strange:
        raise RunError(f"{out} holds {strange[0]!r}, which no export writes; move it away or choose another --out")
    try:
        for name in EXPORTED:
            require_ordinary(out / name)
    except OSError as error:
        raise RunError(f"{out}: {error.strerror}; move it away or choose another --out") from error
