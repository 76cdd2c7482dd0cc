"""The .cfg files of Darknet, the program that the YOLO detectors were published with: sections of key=value lines.

They are not trusted, and what is not understood is refused, not skipped: a skipped option would be another network.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from datafree.errors import NetworkError
from datafree.text import did_you_mean, one_line, show

MOST_CHARACTERS = 1_000_000  # of a cfg; the largest published ones have 40,000
MOST_LAYERS = 1000

# Options that make a network; and those that only matter to Darknet's own training, which are left unread.
_OPTIONS = {
    "convolutional": {"batch_normalize", "filters", "size", "stride", "pad", "padding", "activation", "groups"},
    "maxpool": {"size", "stride"},
    "upsample": {"stride"},
    "route": {"layers", "groups", "group_id"},
    "shortcut": {"from", "activation"},
    "yolo": {"mask", "anchors", "classes", "num", "scale_x_y"},
}
_TRAINING = {
    "convolutional": {"stopbackward"},
    "yolo": {
        *("beta_nms", "cls_normalizer", "counters_per_class", "delta_normalizer", "focal_loss", "ignore_thresh"),
        *(
            "iou_loss",
            "iou_normalizer",
            "iou_thresh",
            "jitter",
            "label_smooth_eps",
            "map",
            "max",
            "max_delta",
            "nms_kind",
        ),
        *("obj_normalizer", "objectness_smooth", "random", "resize", "truth_thresh"),
    },
}


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of a cfg: its kind, its options as they are written, and the lines they stand in (from 1)."""

    kind: str
    line: int
    options: dict[str, str] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)

    def fault(self, what: str, key: str = "") -> NetworkError:
        return NetworkError(f"line {self.lines.get(key, self.line)}: [{self.kind}] {what}")

    def whole(self, key: str, default: int | None, least: int, most: int) -> int:
        """The whole number under `key`. Raises NetworkError for anything else, or where it is missing."""
        numbers = self.numbers(key, default, least, most, whole=True)
        if len(numbers) != 1:
            raise self.fault(f"needs one number for {key}, not {show(self.options[key])}", key)
        return int(numbers[0])

    def numbers(
        self, key: str, default: float | None, least: float, most: float, *, whole: bool = False
    ) -> list[float]:
        """The numbers under `key`, between commas. Raises NetworkError."""
        if key not in self.options:
            if default is None:
                raise self.fault(f"has no {key}")
            return [default]
        form = r"[+-]?[0-9]{1,9}" if whole else r"[+-]?([0-9]{1,9}(\.[0-9]{0,9})?|\.[0-9]{1,9})"
        parts = [part.strip() for part in self.options[key].split(",")]
        for part in parts:
            if not re.fullmatch(form, part) or not least <= float(part) <= most:
                kind = "whole numbers" if whole else "numbers"
                raise self.fault(f"has {key}={show(part)}; {kind} from {least:g} to {most:g} are understood", key)
        return [float(part) for part in parts]


def read_cfg(path: Path) -> list[Section]:
    """The sections of a cfg file. Raises NetworkError, naming file and line."""
    if not path.is_file():
        raise NetworkError(f"cfg {path}: {'not a file' if path.exists() else 'no such file'}")
    try:
        if path.stat().st_size > 4 * MOST_CHARACTERS:
            raise NetworkError(f"longer than {MOST_CHARACTERS} characters; is it the .weights file?")
        return parse_cfg(path.read_text(encoding="utf-8-sig", errors="replace"))
    except (OSError, NetworkError) as error:
        raise NetworkError(f"cfg {path}: {error if isinstance(error, NetworkError) else one_line(error)}") from error


def parse_cfg(text: str) -> list[Section]:
    """The sections of a cfg, [net] first. Raises NetworkError, naming the line, for what is not understood."""
    if len(text) > MOST_CHARACTERS:
        raise NetworkError(f"longer than {MOST_CHARACTERS} characters; is it the .weights file?")
    sections: list[Section] = []
    for number, raw in enumerate(text.splitlines(), 1):
        line = re.split("[#;]", raw, maxsplit=1)[0].strip()
        if not line:
            continue
        if line.startswith("[") and line.endswith("]"):
            kind = line[1:-1].strip()
            known = ["net", *_OPTIONS]
            if kind not in known:
                hint = did_you_mean(kind, known) or f"; known: {', '.join(known)}"
                raise NetworkError(f"line {number}: there is no section {show(kind)}{hint}")
            if (kind == "net") != (not sections):
                raise NetworkError(f"line {number}: [{kind}]; a cfg starts with [net] and has no other")
            sections.append(Section(kind=kind, line=number))
            if len(sections) > MOST_LAYERS + 1:
                raise NetworkError(f"line {number}: more than {MOST_LAYERS} layers")
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not key or not sections:
            raise NetworkError(f"line {number}: {show(line)} is neither [section] nor key=value within one")
        _add(sections[-1], key, value, number)
    if len(sections) < 2:
        raise NetworkError("there are no layers: a cfg has a [net] section, then one for each layer")
    return sections


def _add(section: Section, key: str, value: str, line: int) -> None:
    known = _OPTIONS.get(section.kind)  # [net] holds training options of any name
    training = _TRAINING.get(section.kind, set())
    if known is not None and key not in known | training:
        hint = did_you_mean(key, known) or f"; known: {', '.join(sorted(known))}"
        raise NetworkError(f"line {line}: [{section.kind}] has no option {show(key)} here{hint}")
    if key in section.options:
        raise NetworkError(f"line {line}: {show(key)} stands in line {section.lines[key]} already; leave one out")
    section.options[key] = value
    section.lines[key] = line
