"""What is said of a drafted recipe: a few lines of what was chosen and why, and a comment for each of its options."""

from __future__ import annotations

from typing import Any

from datafree.networks.foreign.file_teacher import count_parameters
from datafree.networks.load import NetworkSpec
from datafree.preflight.draft_text import Comments
from datafree.preflight.examination import Examined
from datafree.preflight.first_student import FirstStudent
from datafree.preflight.subject import Fact

_FAR = 2.0  # how many times less than wanted a student is smaller, from which that is said to be uncertain


def lines_of(
    seen: Examined,
    spec: NetworkSpec,
    origin: str,
    student: FirstStudent | None,
    sections: dict[str, Any],
    doubts: list[str],
) -> list[str]:
    """Some five lines: teacher, task, student, source, and what is uncertain. `spec`: the teacher as it was named."""
    height, width = seen.input_size.value
    weights = count_parameters(seen.network)
    training = sections["training"]
    lines = [
        f"teacher: {seen.subject.spec.called}, {weights:,} parameters" + (f" ({origin})" if origin else ""),
        f"task: {seen.kind.value} of {seen.task.num_classes} classes, images of {height} x {width} pixels "
        f"({seen.input_size.why}), {_normalised(seen.mean, seen.std)}",
        *_student_lines(student, weights, sections),
        f"source: {sections['source'].get('method')}; the run is planned to take {training.get('time') or 'any time'}, "
        f"in batches of {training.get('batch_size')} images (to change: --student, --compress, --source, --time)",
    ]
    uncertain = [*doubts, *([] if student is None else hardly_smaller(student, weights)), *uncertainties(seen, spec)]
    return [*lines, f"uncertain: {'; '.join(uncertain)}"] if uncertain else lines


def uncertainties(seen: Examined, spec: NetworkSpec) -> list[str]:
    """What was taken because it is likely, each with the option that says otherwise."""
    found = []
    own = spec.weights is not None  # a library's metadata are about its own weights
    if own and seen.input_size.provenance == "known":
        found.append("the image size is that of its library's own weights (--size)")
    if "suggested" in (seen.mean.provenance, seen.std.provenance):
        found.append("mean and std are likely, not known (--mean, --std)")
    elif own and seen.mean.provenance == "known":
        found.append("mean and std are those of its library's own weights (--mean, --std)")
    if seen.channel_order.value not in (None, seen.subject.spec.channel_order):
        found.append(f"the channels' order: {seen.channel_order.value} by {seen.channel_order.why} (--channel-order)")
    if spec.network in ("datafree/resnet", "datafree/unet") and "stride" not in seen.subject.spec.args:
        found.append("the first convolution's stride is 1, unless --args stride=2 says otherwise")
    return [*found, *seen.doubts]


def hardly_smaller(student: FirstStudent, teacher: int) -> list[str]:
    """A chosen student whose size is far from what was wanted."""
    times = teacher / student.parameters
    if student.wanted is None or times * _FAR >= student.wanted:
        return []
    than = f"only {times:.3g} times smaller than" if times > 1 else "not smaller than"
    return [
        f"the student is {than} its teacher, {student.wanted:.3g} times were wanted: nothing nearer is known for it "
        "(--student NAME gives another)"
    ]


def _student_lines(student: FirstStudent | None, teacher: int, sections: dict[str, Any]) -> list[str]:
    """What was chosen; of a student that overrides have put in its place no more than its name."""
    if student is None:
        said = sections.get("student")
        return [f"student: {said.get('network')}, as the overrides have it"] if isinstance(said, dict) else []
    return [
        f"student: {_short(student.spec)}, {student.parameters:,} parameters, {_times(teacher, student.parameters)} "
        f"({student.why}); it starts {student.start}"
    ]


def _times(teacher: int, student: int) -> str:
    return f"{teacher / student:.3g} times fewer" if teacher > student else f"the teacher has {teacher:,}"


def _short(spec: NetworkSpec) -> str:
    query = "&".join(f"{key}={value}" for key, value in spec.args.items())
    return f"{spec.network}?{query}" if query else spec.network


def _normalised(mean: Fact, std: Fact) -> str:
    if mean.why == std.why:
        return f"mean {_three(mean)} and std {_three(std)} ({mean.why})"
    return f"mean {_three(mean)} ({mean.why}) and std {_three(std)} ({std.why})"


def _three(fact: Fact) -> str:
    return ", ".join(f"{value:.3g}" for value in fact.value)


def comments_of(seen: Examined, student: FirstStudent | None) -> Comments:
    def how(fact: Fact) -> str:
        return fact.why if fact.provenance == "stated" else f"{fact.provenance}: {fact.why}"

    found = {
        ("task", "kind"): how(seen.kind),
        ("task", "num_classes"): how(seen.classes),
        ("task", "image_size"): f"(height, width), pixels; {how(seen.input_size)}",
        ("task", "temperature"): "of the teacher's answers",
        ("teacher", "mean"): f"R, G, B of images in [0, 1]; {how(seen.mean)}",
        ("teacher", "channel_order"): how(seen.channel_order),
        ("source", "method"): "where images come from; `datafree list` shows others",
        ("source", "photos"): "half of each batch",
        ("training", "time"): "steps and warm-up are planned to end with it; processor time on a CPU",
        ("training", "shift"): "pixels; 0 where a mirrored image is another class",
        ("training", "mixup"): "share of each batch",
    }
    if student is not None:
        found["student", "network"] = f"{student.parameters:,} parameters; {student.why}"
        found["student", "init"] = student.start
    return found
