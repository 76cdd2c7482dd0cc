"""Outside text that is hostile: names of files and classes, values of files. No terminal, page or card gets it raw."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import datafree
from datafree import errors, text
from datafree.cli import main
from datafree.cli.display import display
from datafree.cli.inspect_text import group
from datafree.data.labelled import names_text, read_names
from datafree.deploy.export_run import export_run
from datafree.engine.progress import Progress
from datafree.errors import DataError, DatafreeError, RecipeError
from datafree.report.page import render, render_comparison
from datafree.report.run_reader import read_run
from datafree.text import first_line, one_line, readable, show, shown, table
from run_directories import write_run
from syntax import nodes_of

# An escape sequence, both ends of lines, the same as one C1 character, bells, a change of direction, invisible letters.
HOSTILE = "a\x1b[31mb\r\nc\x9bd\x07e\u202ef\u2028g\u200bh"
UNDECODED = os.fsdecode(b"i\xff\xfej")  # a file's name that is not UTF-8
ALONE = "k\ud800l"  # half of a pair, which JSON can hold
ALL = HOSTILE + UNDECODED + ALONE
NAME = (HOSTILE + UNDECODED).replace("\r", "")  # of a file


def raw(output: str, *, lines: bool = True) -> list[str]:
    """The characters of an output that no terminal and no page may get, told from Unicode's own table."""
    return [
        character
        for character in output
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and not (lines and character in "\n\t")
    ]


# The one function, and those that use it.


def test_what_is_shown_is_one_line_without_control_format_and_halves_of_characters() -> None:
    assert shown("plain, ä, 画像, 🙂 and 10.30\u202fPM") == "plain, ä, 画像, 🙂 and 10.30\u202fPM"
    assert shown(HOSTILE) == r"a\x1b[31mb\r\nc\x9bd\x07e\u202ef\u2028g\u200bh"
    assert shown(UNDECODED + ALONE) == r"i\udcff\udcfejk\ud800l"
    assert shown("a\n\tb\x1b\r", lines=True) == "a\n\tb\\x1b\\r"


def test_every_character_is_shown_or_escaped_as_unicode_says() -> None:
    every = [chr(code) for code in range(sys.maxunicode + 1)]
    hidden = set(raw("".join(every), lines=False))
    assert len(hidden) > 2000
    one = shown("".join(every))
    assert not raw(one, lines=False)
    assert one == "".join(repr(c)[1:-1] if c in hidden else c for c in every)


@pytest.mark.parametrize(
    "form",
    [show, readable, lambda t: first_line(ValueError(t)), lambda t: one_line(ValueError(t)), lambda t: table([[t, t]])],
)
def test_every_form_of_a_value_is_safe(form: Callable[[str], str]) -> None:
    assert not raw(form(ALL), lines=False)


def subclasses(kind: type[DatafreeError]) -> Iterator[type[DatafreeError]]:
    for each in kind.__subclasses__():
        yield each
        yield from subclasses(each)


KINDS = sorted({*subclasses(DatafreeError)} - {RecipeError}, key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_is_one_safe_line(kind: type[DatafreeError]) -> None:
    try:
        error = kind(f"there is no file {ALL}")
    except TypeError:
        pytest.skip("made from other values")
    assert not raw(str(error), lines=False) and str(error).startswith("there is no file a\\x1b[31mb")
    assert main.error_lines(error)[0].endswith(str(error))


def test_every_fault_of_a_recipe_is_one_safe_line() -> None:
    error = RecipeError([f"a: {ALL}", f"b: {ALL}"])
    assert str(error).count("\n") == 1 and not raw(str(error))
    assert all(not raw(line, lines=False) for line in main.error_lines(error))


def test_errors_define_no_other_way_to_be_shown() -> None:
    changed = [kind.__name__ for kind in subclasses(DatafreeError) if "__str__" in vars(kind)]
    assert changed == ["RecipeError"]
    assert errors.shown is text.shown


# Who prints: the doors of the terminal, and no one else.
PRINTERS = {"cli/lines.py", "cli/display.py"}


def test_only_the_doors_print() -> None:
    root, found = Path(datafree.__file__).parent, set()
    for file in root.rglob("*.py"):
        for node in nodes_of(file):
            call = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if call == "print" or call.endswith(("stdout.write", "stderr.write", "typer.echo", "typer.secho")):
                found.add(file.relative_to(root).as_posix())
    assert found == PRINTERS


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_progress_is_shown_safely(stream: type[io.StringIO], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")  # no codes of rich's own
    output = stream()
    with display(stream=output) as shows:
        shows.say(f"note: {ALL}")
        shows.log(Progress(phase="training", step=4, first=0, last=4, rate=1.0, values={ALL: 0.5, "loss": 1.0}))
    assert "a\\x1b[31mb" in output.getvalue().replace("\n", "")
    assert not [c for c in raw(output.getvalue()) if c not in "\r"]


def test_groups_of_lines_are_shown_safely() -> None:
    lines = group(ALL, [(ALL, ALL, ALL), ("b", "c", "d")])
    assert len(lines) == 4 and not any(raw(line, lines=False) for line in lines)


# The page and the card of a directory whose every text is hostile.


def poisoned(value: Any) -> Any:
    """`value` with hostile text after each of its texts, and more such keys."""
    if isinstance(value, str):
        return value + ALL
    if isinstance(value, dict):
        return {**{key: poisoned(item) for key, item in value.items()}, f"more{ALL}": ALL, ALL: {ALL: [ALL]}}
    return [*map(poisoned, value), ALL] if isinstance(value, list) else value


def poison(run: Path) -> None:
    for name in ("environment.json", "measured.json", "result.json", "student.json"):
        content = json.loads((run / name).read_text())
        if name == "student.json":  # what builds the student stays
            content |= {"class_names": [f"{ALL}{index}" for index in range(3)]}
            content["teacher"] = poisoned(
                {"network": "timm/resnet18", "args": {"a": "b"}, "licence": "mine", "weights": "w"}
            )
        elif name == "result.json":
            score = {f"top1{ALL}": 0.5, "top1": 0.25}
            each = {"values": score, "per_class": {f"iou{ALL}": {f"{ALL}{index}": 0.5 for index in range(3)}}}
            content = poisoned(content) | {"scores": {"teacher": each, "student": each, ALL: each}}
        else:
            content = poisoned(content)
        (run / name).write_text(json.dumps(content))
    with (run / "metrics.jsonl").open("a") as file:
        for step in (41, 42):
            file.write(json.dumps({"index": step, "step": step, ALL: 0.5, "loss": 0.5}) + "\n")
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe.replace("method: cgdd", f"method: {json.dumps('cgdd' + HOSTILE)}"))


@pytest.mark.parametrize("kind", ["classification", "segmentation", "detection"])
def test_the_page_of_a_hostile_directory_is_safe(kind: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / NAME, kind)
    poison(run)
    page = render(read_run(run))
    assert "a\\x1b[31mb" in page and not raw(page)
    page.encode()  # no half of a character is left
    both = render_comparison([read_run(run), read_run(write_run(tmp_path / "other", kind))])
    assert not raw(both)
    both.encode()


@pytest.mark.parametrize("kind", ["classification", "segmentation"])
def test_the_card_of_a_hostile_directory_is_safe(kind: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / NAME, kind)
    poison(run)
    export_run(run, tmp_path / "out", onnx=False)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "a [31mb" in card and not raw(card)
    for line in card.splitlines():  # no name begins a line, a cell or a mark of its own
        assert not line.startswith(("c", "g", "h", "k")) or "`" in line or " " in line
    tables = [line for line in card.splitlines() if line.startswith("|")]
    assert all(re.fullmatch(r"(\|[^|\n]*)+\|", line) for line in tables)
    for name in ("config.json",):
        assert not raw((tmp_path / "out" / name).read_text(encoding="utf-8"))


# All verbs on hostile names.

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> Command:
    """The command, run in this process and in an empty folder; its exit code, and all that it says."""
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["datafree", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main.main()
        captured = capfd.readouterr()
        return int(left.value.code or 0), captured.out + captured.err

    return run


def hostile_photos(folder: Path) -> Path:
    """Two photos and what is none, all of hostile names."""
    folder.mkdir(parents=True)
    for index in range(2):
        Image.fromarray(np.full((32, 40, 3), 100 * index, np.uint8)).save(folder / f"{NAME}{index}.png")
    (folder / f"{NAME}.png").write_bytes(b"no photo")
    return folder


def hostile_classes(folder: Path) -> Path:
    for name in ("x", "y", NAME):
        hostile_photos(folder / name)
    return folder


LINES = [
    ["report", "{run}"],
    ["report", "{run}", "{run}", "--out", "{place}/page.html"],
    ["report", "{place}/nowhere"],
    ["report", "{run}", "--out", "{place}"],
    ["report", "{run}", "--out", "{photos}"],
    ["export", "{run}", "--no-onnx"],
    ["export", "{run}", "--no-onnx", "--out", "{place}/out"],
    ["export", "{run}", "--no-onnx", "--data", "{classes}"],
    ["export", "{run}", "--no-onnx", "--out", "{photos}"],
    ["export", "{run}", "--images", "{photos}"],
    ["evaluate", "{run}", "--data", "{classes}", "--device", "cpu"],
    ["evaluate", "{run}", "--data", "{photos}"],
    ["evaluate", "{run}", "--data", "{place}/nowhere"],
    ["evaluate", "{run}", "--images", "{photos}", "--teacher", "{place}/nowhere.yaml"],
    ["evaluate", "{place}/no.onnx", "--data", "{classes}"],
    ["watch", "{place}/nowhere"],
    ["distill", "{place}/nowhere.yaml"],
    ["distill", "{recipe}"],
    ["distill", "{recipe}", "{hostile}=1"],
    ["distill", "{recipe}", "training.steps={hostile}"],
    ["distill", "{recipe}", "--max-time", "{hostile}"],
    ["distill", "{hostile}"],
    ["synthesize", "{recipe}", "--out", "{place}/set", "--images", "4"],
    ["synthesize", "fashion-demo", "--out", "{hostile}://x", "--images", "4"],
    ["inspect", "{hostile}"],
    ["inspect", "datafree/resnet", "--weights", "{place}/nowhere.pt"],
    ["inspect", "datafree/{hostile}"],
    ["inspect", "datafree/resnet", "--args", "{hostile}"],
    ["inspect", "datafree/resnet", "--size", "{hostile}"],
    ["inspect", "datafree/resnet", "--task", "{hostile}"],
    ["plan", "{recipe}"],
    ["plan", "{hostile}"],
    ["plan", "fashion-demo", "--link", "{hostile}"],
    ["demo", "--task", "{hostile}"],
    ["{hostile}"],
    ["list", "{hostile}"],
    ["list", "--{hostile}"],
    ["watch", "{run}", "--port", "{hostile}"],
    ["evaluate", "{run}", "--{hostile}"],
]
FIRST = {words[0]: words for words in reversed(LINES)}  # of each verb: in the default run


@pytest.mark.parametrize(
    "arguments",
    [pytest.param(words, marks=[] if FIRST[words[0]] is words else [pytest.mark.thorough]) for words in LINES],
    ids=lambda arguments: " ".join(arguments),
)
def test_no_verb_says_a_hostile_name_raw(arguments: list[str], command: Command, tmp_path: Path) -> None:
    place = tmp_path / NAME
    run = write_run(place, "classification")
    recipe = place / f"{NAME}.yaml"
    recipe.write_bytes(b"task: {kind: classification, " + os.fsencode(NAME) + b"}\n")
    known = {"run": run, "place": place, "recipe": recipe, "hostile": NAME}
    known["photos"] = hostile_photos(tmp_path / f"photos{NAME}")
    known["classes"] = hostile_classes(tmp_path / f"classes{NAME}") if "{classes}" in arguments else place
    before = sorted(tmp_path.iterdir())
    code, said = command(*(argument.format_map(known) for argument in arguments))
    assert code in (0, 2), said
    assert not raw(said) and "Traceback" not in said
    assert sorted(tmp_path.iterdir()) == before
    if code == 2 and "Usage" not in said:
        assert said.count("\n") == 1 or said.startswith("error: the recipe has"), said


def test_a_class_whose_name_is_no_line_is_refused_and_not_written_as_two(tmp_path: Path) -> None:
    for name in ("a\nb", "a\u2028b", "a\x0bb", " a", "a ", "", UNDECODED, ALONE):
        with pytest.raises(DataError, match=r"is no line of a classes\.txt; rename it"):
            names_text(["x", name])
    names = ["x y", "ä", "a\\b", "#c"]
    (tmp_path / "classes.txt").write_text(names_text(names), encoding="utf-8")
    assert read_names(tmp_path / "classes.txt") == names


@pytest.mark.parametrize("encoding", ["ascii", "iso-8859-9"])
def test_a_letter_that_the_terminal_has_not_is_escaped(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "画像", "classification")
    shutil.rmtree(run / "samples")
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    monkeypatch.setattr(sys, "argv", ["datafree", "report", str(run)])
    with pytest.raises(SystemExit) as left:
        main.main()
    sys.stdout.flush()
    assert not left.value.code
    assert b"\\u753b\\u50cf" in written.getvalue()
