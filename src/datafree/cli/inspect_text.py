"""The text that `datafree inspect` prints: groups of aligned lines."""

from __future__ import annotations

from collections.abc import Sequence

from datafree.preflight.inspection import Inspection
from datafree.preflight.recommendation import BATCH, STEPS
from datafree.preflight.subject import Fact
from datafree.preflight.suitability import BatchNorm
from datafree.text import counted, shown, size, time

Rows = list[tuple[str, str, str]]  # what, its value, a remark


def inspection_text(found: Inspection) -> str:
    """The whole text."""
    args = "&".join(f"{key}={value}" for key, value in found.args.items())
    height, width = found.input_size.value
    teacher: Rows = [
        ("weights", found.weights or ("its library's or its own" if found.trained else "none"), ""),
        _row("task", found.task),
        *([("", f"but does not fit: {found.problem}", "")] if found.problem else []),
        _row("classes", found.classes),
        ("output", found.output, ""),
        ("parameters", f"{found.parameters:,}", f"{size(found.bytes)} with its buffers"),
        ("MACs", "not told" if found.macs is None else f"{found.macs:,}", f"an image of {height} x {width}"),
        ("BatchNorm", _layers(found.batchnorm), found.batchnorm.note),
    ]
    images: Rows = [
        ("input size", f"{height} x {width}", _how(found.input_size) + "; such images pass"),
        _row("mean", found.mean),
        _row("std", found.std),
        _row("order", found.channel_order),
        *(("note", note, "") for note in found.notes),
    ]
    cost = found.cost
    here: Rows = [
        ("answer", f"{time(cost.forward)} an image", f"{cost.images} at once"),
        ("answer and gradient to the image", f"{time(cost.backward)} an image", f"{size(cost.kept)} an image"),
    ]
    parts = [
        shown(f"{found.network}{f'?{args}' if args else ''}"),
        *group("teacher", teacher),
        *group("its images", images),
        *_recommended(found),
        *group(
            "methods",
            [(name, "yes" if method.applies else "no", method.note) for name, method in found.sources.items()],
        ),
        *group(f"on this machine ({found.device})", here),
    ]
    if found.run is not None:
        run = found.run
        rows: Rows = [
            ("source", counted(run.updates, "update"), f"{time(run.update)} each"),
            ("student", counted(run.steps, "step"), f"{time(run.step)} each"),
            ("whole run", f"about {time(run.seconds)}", ""),
            ("memory", f"about {size(run.memory)}", "beside Python and torch"),
            *(("assumed", assumption, "") for assumption in run.assumed),
        ]
        parts += group(f"the recipe {found.recipe} on this machine", rows)
    return "\n".join(parts)


def _recommended(found: Inspection) -> list[str]:
    """What to take, in order, and the time it takes."""
    if not found.recommended:
        return []
    title = f"take, in this order (the teacher's part of {STEPS:,} steps of {BATCH} images, on this machine)"
    rows = [
        (f"source.method={each.method}", "-" if each.seconds is None else f"about {time(each.seconds)}", each.why)
        for each in found.recommended
    ]
    return group(title, rows)


def group(title: str, rows: Rows) -> list[str]:
    """A title and its rows; the values of short ones are aligned, so that their remarks are."""
    rows = [(shown(name), shown(value), shown(remark)) for name, value, remark in rows]
    first = max(len(name) for name, _, _ in rows)
    second = max((len(value) for _, value, remark in rows if remark), default=0)
    lines, before = ["", shown(title)], ""
    for name, value, remark in rows:
        said, before = ("" if name == before else name), name
        lines.append(f"  {said:<{first}}  {f'{value:<{second}}  {remark}' if remark else value}".rstrip())
    return lines


def _row(name: str, fact: Fact) -> tuple[str, str, str]:
    return name, "-" if fact.value is None else _shown(fact.value), _how(fact)


def _how(fact: Fact) -> str:
    return "unknown" if fact.value is None else f"{fact.provenance}: {fact.why}"


def _shown(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(f'{item:.4g}' for item in value)}]"  # as a recipe takes it
    return f"{value:,}" if isinstance(value, int) else str(value)


def _layers(norms: BatchNorm) -> str:
    kinds = {
        "live": norms.live,
        "frozen": norms.frozen,
        "without running statistics": norms.without_statistics,
        "as new": norms.as_new,
    }
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count) or "-"
