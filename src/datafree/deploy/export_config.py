"""config.json of an export: what a program needs to know of a student, and what was measured while exporting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from datafree.config import schema
from datafree.config.extras import versions
from datafree.deploy.export_record import Export, Int8
from datafree.deploy.formats import FORMATS
from datafree.deploy.formats.check import Made
from datafree.deploy.model_card import public
from datafree.deploy.written_names import CONFIG
from datafree.engine.artifacts import without_place
from datafree.evaluation.finished_run import Record, Student, mapping, number
from datafree.networks.instances import is_live
from datafree.recipe.recipe import FAMILIES
from datafree.storage import strict_json
from datafree.storage.environment import environment
from datafree.storage.run_files import ConfigForm, known
from datafree.tasks.base import Scores


def config(student: Student, record: Record, export: Export, sums: Mapping[str, str]) -> dict[str, Any]:
    """config.json: plain values. `sums`: SHA-256 of each file."""
    spec, (height, width) = student.spec, student.task.image_size
    own = spec.is_own_code or is_live(spec.network)
    return {
        "library": "own code" if own else spec.network.partition("/")[0],
        "network": without_place(spec),
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
        "compared_on": public(export.compared_on),
        "missing": public(export.missing),
        "files": {made.file: asdict(made) for made in export.made},
        "scores": {
            "run": {"on": public(record.scored_on), **{who: score.values for who, score in record.scores.items()}},
            "export": {"on": export.scored_on, **{name: score.values for name, score in export.scores.items()}},
        },
        "teacher": public(dict(student.taught_by)) or None,
        "sha256": dict(sums),
        "versions": export.versions,
    }


def versions_of(export: Export) -> dict[str, str]:
    """The versions of what wrote an export's files."""
    found: dict[str, str] = dict(environment()["versions"])
    used = [
        name
        for kind in FORMATS.values()
        if kind.name in {made.format for made in export.made} | {"onnx"}
        for name in kind.facts.modules
    ]
    return found | versions(used)


def read_export(folder: Path) -> Export | None:
    """What the config.json of an export says of its files; None where there is none.

    Raises Damaged for one that is not as it was written.
    """
    if not (folder / CONFIG).is_file():
        return None
    content = strict_json.read(folder / CONFIG, ConfigForm)
    form = ConfigForm.model_validate(content)
    scores = mapping(form.scores.get("export"))
    return Export(
        errors={} if form.onnx is None else {int(n): e for n, e in known(form.onnx.relative_error).items()},
        opset=None if form.onnx is None else form.onnx.opset,
        int8=None if form.int8 is None else Int8(**form.int8.model_dump()),
        scores={
            str(name): Scores(
                values={str(figure): found for figure, value in given.items() if (found := number(value)) is not None}
            )
            for name, given in scores.items()
            if isinstance(given, Mapping)
        },
        scored_on=on if isinstance(on := scores.get("on"), str) else None,
        versions=form.versions,
        missing=form.missing,
        compared_on=form.compared_on,
        made=[
            Made(file=name, **{field: getattr(given, field) for field in _FIELDS}) for name, given in form.files.items()
        ],
    )


_FIELDS = [field.name for field in fields(Made) if field.name != "file"]
