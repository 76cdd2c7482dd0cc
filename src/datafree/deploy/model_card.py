"""The model card of an exported student: README.md, from what the run's directory says and nothing else.

What a directory does not say is "not recorded" here, and what nobody measured stands under "Not verified". A directory
is not trusted: its texts stand in code marks, cleaned, without the folders of the machine that made it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from datafree.config import yaml
from datafree.deploy.bench_file import Bench
from datafree.deploy.export_record import Export
from datafree.deploy.format_table import format_table
from datafree.deploy.snippets import load_snippet, onnx_snippet, openvino_snippet
from datafree.engine.artifacts import without_place
from datafree.evaluation.finished_run import Record, Student, mapping, number
from datafree.health.verdict import ENOUGH_STEPS, FEW_STEPS, SELDOM, SELDOM_SAID, little
from datafree.text import shown


def model_card(student: Student, record: Record, export: Export, bench: Bench | None = None) -> str:
    """The card as Markdown, with the front matter of the Hugging Face Hub. `bench`: times, where there are any."""
    parts = [
        _front(student),
        f"# {public(without_place(student.spec))}, distilled by datafree",
        _summary(student, record),
        "## Teacher",
        _teacher(student),
        "## How it was made",
        _making(record),
        "## Scores",
        _scored(record, export),
        *_formats(export, bench),
        "## Not verified",
        _not_verified(record, export),
        "## Intended use and limits",
        _use(student),
        "## Loading it",
        _loading(student, export),
        "## Versions and cost",
        _versions(record, export),
    ]
    return shown("\n\n".join(parts) + "\n", lines=True)


_PATH = re.compile(r"[/~\\]|[A-Za-z]:[/\\]")  # the beginning of a text that is one
_PATH_INSIDE = re.compile(r"(?<![\w.:/\\])(?:~?/|[A-Za-z]:[/\\])[^\s'\"();,/\\]+[/\\][^\s'\"();,]*")


def _ends_of_path(text: str) -> str:
    return "/".join(["...", *[part for part in re.split(r"[/\\]+", text) if part][-2:]])


def public(value: Any) -> Any:
    """`value` as it may be published: texts on one line without code marks, of each path only its last two parts."""
    if isinstance(value, str):
        text = shown(re.sub(r"[`\x00-\x1f\x7f<>]+", " ", value))[:200]
        if _PATH.match(text):
            return _ends_of_path(text)
        return _PATH_INSIDE.sub(lambda found: _ends_of_path(found[0]), text)
    if isinstance(value, Mapping):
        return {public(str(key)): public(item) for key, item in value.items()}
    return [public(item) for item in value] if isinstance(value, (list, tuple)) else value


def _front(student: Student) -> str:
    library = student.spec.network.partition("/")[0]
    known = {"timm": "timm", "torchvision": "torchvision", "smp": "segmentation-models-pytorch"}
    lines = ["---", f"library_name: {known.get(library, 'datafree' if library == 'datafree' else 'pytorch')}"]
    lines += [f"pipeline_tag: {student.task.hub_name}"] if student.task.hub_name else []
    return "\n".join([*lines, "tags: [datafree, knowledge-distillation]", "---"])


def _summary(student: Student, record: Record) -> str:
    height, width = student.task.image_size
    teacher = _code(student.taught_by.get("network"), "a teacher that was not recorded")
    method = _code(record.source.get("method"), "a method that was not recorded")
    parameters = sum(parameter.numel() for parameter in student.network.parameters())
    names = student.class_names
    listed = f": {', '.join(map(_code, names[:8]))}{', ...' if len(names) > 8 else ''} (all in `config.json`)"
    return (
        f"{student.task.noun} of {parameters:,} parameters that learnt the answers of {teacher}. The images it learnt "
        f"from came from {method}; the run was given no labelled image to learn from, and chose this student without "
        "any.\n\n"
        f"It takes RGB images of {height} x {width} pixels in [0, 1] and knows {student.task.num_classes} classes"
        f"{listed if names else '; their names were not recorded'}."
    )


def _teacher(student: Student) -> str:
    about = student.taught_by
    unknown = "not recorded"
    of = "" if about.get("sha256_of") != "tensors" else " (of its tensors as a safetensors file)"
    count = number(about.get("parameters"))
    licence = about.get("licence")
    rows = [
        ("network", _code(about.get("network"), unknown)),
        ("arguments", _code(json.dumps(public(about["args"]))) if about.get("args") else "none" if about else unknown),
        ("parameters", unknown if count is None else f"{int(count):,}"),
        ("weights", _code(about.get("weights"), unknown if not about else "its library's or its code's own")),
        ("SHA-256", _code(about.get("sha256"), unknown) + of),
        ("declared licence", _code(licence, "not declared" if about else unknown)),
    ]
    text = (
        "A student is made from its teacher's answers. Whatever its teacher's licence says about works made with it "
        "applies here; distilling does not remove it."
    )
    if not licence:
        text += " No licence was declared for this teacher: ask its owner before you use or pass on this student."
    return f"{_table(['', 'teacher'], rows)}\n\n{text}"


def _making(record: Record) -> str:
    if not record.source or not record.training:
        return "Not recorded."
    steps, batch = number(record.training.get("steps")), number(record.training.get("batch_size"))
    lines = []
    if steps is not None and batch is not None:
        updates = _updates(record.source, int(steps))
        made = f" The source was updated {updates:,} times." if updates else " The source learns nothing itself."
        lines.append(f"{int(steps):,} steps on {int(batch)} images each, {int(steps * batch):,} images shown.{made}")
    seed = number(record.training.get("seed"))
    lines.append(f"Seed {'not recorded' if seed is None else int(seed)}.")
    if record.step is not None:
        lines.append(f"Kept: the student of step {record.step:,}, chosen without labels.")
    sections = yaml.render({"source": public(record.source), "training": public(record.training)})
    return f"{' '.join(lines)}\n\n```yaml\n{sections.rstrip()}\n```"


def _updates(source: Mapping[str, Any], steps: int) -> int:
    """Updates that a source and its parts were due."""
    every, warmup = number(source.get("update_every")) or 0, number(source.get("warmup")) or 0
    parts = source.get("parts")
    nested = [mapping(part) for part in parts] if isinstance(parts, list) else []
    own = int(warmup) + (-(-steps // int(every)) if every >= 1 else 0)
    return own + sum(_updates(part, steps) for part in nested)


def _scored(record: Record, export: Export) -> str:
    rows = [(who, public(record.scored_on) or "not recorded", scores) for who, scores in record.scores.items()]
    rows += [(who, export.scored_on or "not recorded", scores) for who, scores in export.scores.items()]
    if not rows:
        return "None: no labelled data was given, neither to the run nor to the export."
    figures = list(dict.fromkeys(name for _, _, scores in rows for name in scores.values))
    table = [
        [_word(who), _code(data), *(f"{100 * s.values[f]:.2f} %" if f in s.values else "-" for f in figures)]
        for who, data, s in rows
    ]
    return _table(["network", "measured on", *(_word(name.replace("_", " ")) for name in figures)], table)


def _formats(export: Export, bench: Bench | None) -> list[str]:
    """The section of formats; none where there is nothing to say."""
    if not export.made and not export.missing:
        return []
    found = format_table(export, bench)
    rows = [[f"`{name}`", *map(public, cells)] for name, *cells in found.rows]
    return ["## Formats", _table(found.heads, rows), "\n".join(f"- {public(note)}" for note in found.notes)]


def _not_verified(record: Record, export: Export) -> str:
    lines = []
    if not record.scores and not export.scores:
        lines.append(
            "How well this network does on real images is unknown: no labelled data was given, so nothing here "
            "was measured on any. Score it on labelled images of your own before you rely on it."
        )
    else:
        lines.append("The scores above hold for the data they name; no other data was tried.")
    if record.agreement is not None:
        lines.append(
            f"It gives its teacher's answer in {100 * record.agreement:.1f} % of cases on images of the source that "
            "it did not learn from. This says little about real images."
        )
        if record.agreement < SELDOM:
            lines.append(f"{SELDOM_SAID[0].upper()}{SELDOM_SAID[1:]}.")
    steps = number(record.training.get("steps"))
    if steps is not None and steps < FEW_STEPS:
        lines.append(f"It was given {little(int(steps))}: {ENOUGH_STEPS:,} are worth a look.")
    lines.append("Whether the teacher was any good, what it was trained on, and whether its mistakes and biases are "
                 "fewer or more in this student: not looked at.")  # fmt: skip
    lines.append("Robustness to noise, attacks, other cameras or other image sizes, and whether its probabilities can "
                 "be taken at their word: not measured.")  # fmt: skip
    if export.int8 is not None and not export.scores:
        lines.append(f"`{public(export.int8.file)}` was compared with the float network only, not scored.")
    lines += [f"`{public(made.file)}`: {public(made.unverified)}." for made in export.made if made.unverified]
    others = [made for made in export.made if not made.unverified and not made.int8 and made.file not in export.scores]
    if others:
        names = ", ".join(f"`{public(made.file)}`" for made in others)
        known = f"compared with PyTorch on {others[0].compared} images {public(export.compared_on)}, not scored"
        lines.append(f"{names}: {known}.")
    return "\n".join(f"- {line}" for line in lines)


def _use(student: Student) -> str:
    height, width = student.task.image_size
    return (
        "It stands in for its teacher where that is too large or too slow, on the same kind of images, at "
        f"{height} x {width} pixels. It knows nothing its teacher does not: no new classes, no images unlike those the "
        "teacher was trained for. Where a wrong answer can harm someone, verify it on data of your own first."
    )


def _loading(student: Student, export: Export) -> str:
    code = load_snippet(student)
    needs = "it needs `datafree`" if "import NetworkSpec" in code else "`datafree` is not needed"
    parts = [f"In PyTorch ({needs}):\n\n```python\n{code}```"]
    if export.errors:
        worst = ", ".join(f"{error:.1e} with {images} at once" for images, error in export.errors.items())
        parts.append(
            f"As ONNX (opset {export.opset}, any number of images at once), which gives the answers of the PyTorch "
            f"network to a relative error of {worst}. Mean, standard deviation and channel order are inside."
            f"\n\n```python\n{onnx_snippet(student)}```"
        )
    if any(made.file == "student.xml" for made in export.made):
        parts.append(f"In OpenVINO, with the same inside:\n\n```python\n{openvino_snippet(student)}```")
    if (export.errors or export.made) and student.task.numpy_decoding():
        parts.append(
            "The network answers a box in pixels and the scores of all classes at each of its locations; "
            "`detections` keeps the surest of those that overlap, as `datafree` does when it scores detectors."
        )
    if export.int8 is not None:
        int8 = export.int8
        parts.append(
            f"`{int8.file}` is the same in 8-bit integers, calibrated on {int8.images} images {int8.origin}. "
            + (f"Its weights were trained for that in {int8.qat_steps:,} steps. " if int8.qat_steps else "")
            + (
                f"On {int8.compared} more of these neither it nor the float network finds anything: nothing to compare."
                if int8.agreement is None
                else f"On {int8.compared} more of these it agrees with the float network in "
                f"{100 * int8.agreement:.1f} % of cases."
            )
        )
    return "\n\n".join(parts)


def _versions(record: Record, export: Export) -> str:
    made, hardware = mapping(record.environment.get("versions")), mapping(record.environment.get("hardware"))
    names = list(dict.fromkeys([*map(str, made), *export.versions]))
    rows = [
        [_code(name), _code(made.get(name), "not recorded"), _code(export.versions.get(name), "-")] for name in names
    ]
    where = _code(hardware.get("accelerator") or hardware.get("processor"), "a machine that was not recorded")
    seconds = "not recorded" if record.seconds is None else f"{record.seconds:,.0f} s"
    seconds += " since it was last resumed" if record.resumed else ""
    return f"Time of the run: {seconds}, on {where}.\n\n{_table(['', 'the run', 'the export'], rows)}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', ' ') for cell in line)} |" for line in lines)


def _code(value: object, missing: str = "not recorded") -> str:
    """A text in code marks, or `missing` where there is none."""
    text = public(value).strip() if isinstance(value, str) else ""
    return f"`{text}`" if text else missing


def _word(name: str) -> str:
    """A name from a file that is not trusted: as it is where it has letters and digits alone, else in code marks."""
    return name[:60] if re.fullmatch(r"[\w .-]+", name, re.ASCII) else _code(name)
