"""What a run or an export wrote, changed afterwards: seen at the next use, and one line says what differs."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from datafree.deploy.export_run import export_run
from datafree.errors import DatafreeError, RunError
from datafree.evaluation.finished_run import load_student, read_record
from datafree.networks.checkpoints.weights import read_tensors
from datafree.networks.onnx import open_session
from datafree.recipe.recipe import Recipe
from datafree.report.page import write_page
from datafree.report.run_reader import read_run
from datafree.run import run_recipe
from datafree.storage import strict_json, written
from datafree.storage.run_files import ResultForm, StudentForm
from datafree.text import show
from run_directories import forge
from small_runs import labelled, recipe_for
from thorough import some

WEIGHTS = ("student.safetensors", "calibration.safetensors")
NOTED = ("recipe.yaml", "environment.json", "metrics.jsonl", "student.json", "measured.json")
FILES = ("student.json", "result.json", "measured.json", "environment.json")
ODD = [None, True, -1, 1.5, 10**400, 1e300, "x", "\ud800", [], [1], {}, {"a": [None]}, float("nan")]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("recipe")
    made = recipe_for(folder, {"method": "noise"}, steps=2, save_every=1, log_every=1)
    return replace(made, data=labelled(folder / "data"))


@pytest.fixture(scope="module")
def finished(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_recipe(recipe, tmp_path_factory.mktemp("run") / "run").run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def flip(file: Path, at: float = 0.5, bit: int = 0) -> None:
    """Another bit in a file, `at` of its length."""
    content = bytearray(file.read_bytes())
    content[int(at * len(content))] ^= 1 << bit
    file.write_bytes(bytes(content))


def flips(count: int) -> Iterator[tuple[float, int]]:
    draw = random.Random(0)
    return iter([(draw.random(), draw.randrange(8)) for _ in range(count)])


def refused(call: Callable[[], object], name: str) -> str:
    with pytest.raises(DatafreeError) as caught:
        call()
    line = str(caught.value)
    assert name in line and "\n" not in line
    return line


@pytest.mark.parametrize("name", [*WEIGHTS, "student.json"])
def test_every_flipped_bit_of_a_student_is_seen(run: Path, name: str) -> None:
    sound = (run / name).read_bytes()
    for at, bit in flips(25):
        flip(run / name, at, bit)
        use = (lambda: load_student(run)) if name != "calibration.safetensors" else (lambda: read_tensors(run / name))
        assert "has changed since it was written: its SHA-256 is" in refused(use, name)
        (run / name).write_bytes(sound)
    load_student(run)


def test_an_export_is_made_of_no_changed_student_and_takes_no_changed_score(run: Path) -> None:
    flip(run / "student.safetensors", 0.9)
    refused(lambda: export_run(run, onnx=False), "student.safetensors")
    assert not (run / "export").exists()
    flip(run / "student.safetensors", 0.9)
    scores = json.loads((run / "result.json").read_text())
    scores["scores"]["student"]["values"]["miou"] = 0.99
    (run / "result.json").write_text(json.dumps(scores))
    done = export_run(run, onnx=False)
    assert any("result.json is left out, it has changed" in note for note in done.notes)
    assert "99.0" not in (done.folder / "README.md").read_text()


def test_a_finished_run_says_what_else_was_changed(run: Path, recipe: Recipe) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"index": 3, "step": 3, "loss": 0.0}\n')
    assert any(
        note.startswith("metrics.jsonl has changed since it was written") for note in run_recipe(recipe, run).notes
    )
    (run / "student.json").write_bytes((run / "student.json").read_bytes().replace(b"0.0", b"0.1", 1) + b" ")
    refused(lambda: run_recipe(recipe, run), "student.json has changed since it was written")


def test_a_finished_run_is_not_answered_from_changed_files(run: Path, recipe: Recipe) -> None:
    flip(run / "student.safetensors", 0.9)
    line = refused(lambda: run_recipe(recipe, run), "student.safetensors")
    assert "remove its result.json and run the same `datafree distill`" in line
    sound = (run / "metrics.jsonl").read_bytes()
    (run / "result.json").unlink()  # the way out that is named
    again = run_recipe(recipe, run)
    assert again.scores["student"].values and (run / "metrics.jsonl").read_bytes() == sound
    load_student(run)
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps({**result, "notes": ["another"]}))
    assert "its checksum does not match" in refused(lambda: run_recipe(recipe, run), "result.json")


@pytest.mark.parametrize("name", [*NOTED, *WEIGHTS, "result.json"])
def test_a_page_names_every_file_that_was_changed(run: Path, name: str) -> None:
    assert not [line for line in read_run(run).missing if "changed" in line]
    if name == "result.json":
        content = json.loads((run / name).read_text())
        (run / name).write_text(json.dumps({**content, "scored_on": "elsewhere"}))
    else:
        (run / name).write_bytes((run / name).read_bytes() + b"\n")
    assert [line for line in read_run(run).missing if line.startswith(f"{name}: changed since it was written")]
    assert f"{name}: changed since" in write_page(run).read_text()


def test_an_exported_file_is_compared_with_its_description(tmp_path: Path) -> None:
    (tmp_path / "student.onnx").write_bytes(b"a graph")
    digest = written.digests(tmp_path, ["student.onnx"])
    (tmp_path / "config.json").write_bytes(strict_json.sealed({"sha256": digest}))
    written.check(tmp_path / "student.onnx")
    flip(tmp_path / "student.onnx")
    refused(lambda: open_session(tmp_path / "student.onnx"), "student.onnx has changed since it was written")


def test_runs_of_versions_without_digests_are_read_as_before(run: Path) -> None:
    for name in FILES:
        forge(run / name, json.loads((run / name).read_text()))
    (run / "student.json").write_text(
        json.dumps({key: v for key, v in json.loads((run / "student.json").read_text()).items() if key != "sha256"})
    )
    load_student(run)
    assert read_record(run).faults == [] and read_record(run).scores["student"].values
    assert not [line for line in read_run(run).missing if "changed" in line]


def spoilt(value: Any) -> Iterator[Any]:
    """`value` with each of its parts replaced, left out or renamed, one at a time."""
    if isinstance(value, dict):
        for key, old in value.items():
            rest = {name: other for name, other in value.items() if name != key}
            yield rest
            yield {**rest, f"{key[:-1]}~": old}  # a letter changed
            yield from ({**value, key: odd} for odd in ODD)
            yield from ({**value, key: one} for one in spoilt(old))
    elif isinstance(value, list) and value:
        yield from ([odd, *value[1:]] for odd in ODD)


@pytest.mark.parametrize("name", some(FILES, "result.json"))
def test_json_of_any_shape_is_its_content_or_one_line(run: Path, name: str) -> None:
    good, count = json.loads((run / name).read_text()), 0
    for number, content in enumerate(spoilt(good)):
        forge(run / name, content)
        count += 1
        if number % 4:  # each part has a dozen cases, and some ten parts are of one kind
            continue
        seen, record = read_run(run), read_record(run)
        if name == "student.json" and number % 20 == 0:
            try:
                load_student(run)
            except DatafreeError as error:
                assert "\n" not in str(error)
        if number % 80 == 0:
            write_page(run)
        if name in ("student.json", "result.json"):  # what a command takes whole is in its form to the last part
            form = StudentForm if name == "student.json" else ResultForm
            try:
                strict_json.read(run / name, form)
            except strict_json.Damaged as error:
                assert str(error) and "\n" not in str(error)
                assert any(name in line for line in seen.missing + record.faults)
    assert count > 100


def test_a_line_says_where_a_file_is_not_in_its_form(run: Path, recipe: Recipe) -> None:
    result = json.loads((run / "result.json").read_text())
    result["scores"]["student"]["values"]["miou"] = "0.5"
    forge(run / "result.json", result)
    line = refused(lambda: run_recipe(recipe, run), "result.json")
    assert "scores.student.values.miou is '0.5': input should be a valid number" in line
    assert "remove it and run the same command again" in line
    forge(run / "result.json", {key: v for key, v in result.items() if key != "chosen"})
    assert "chosen is missing" in refused(lambda: run_recipe(recipe, run), "result.json")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000, b'"\\ud800"', b"null", b'{"a": 1'])
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_such_file_is_one_line(run: Path, name: str, content: bytes) -> None:
    (run / name).write_bytes(content)
    assert any(line.startswith(name) for line in read_run(run).missing)
    read_record(run)
    write_page(run)


def test_halves_of_characters_are_read_escaped_and_break_no_seal(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    file.write_bytes(strict_json.sealed({"notes": ["not scored: caf\udce9.png"]}))
    assert strict_json.look_at(file, ResultForm) == strict_json.Read(
        content={"notes": [r"not scored: caf\udce9.png"]}, faults=strict_json.look_at(file, ResultForm).faults
    )
    assert strict_json.parse(rb'{"\ud800": ["\u00e9"]}') == {r"\ud800": ["é"]}


def test_values_are_shown_short(run: Path) -> None:
    with pytest.raises(strict_json.Damaged) as caught:
        strict_json.read(_file(run, {"notes": ["\x1b[2J" * 99, 3]}), ResultForm)
    assert len(str(caught.value)) < 500 and "\x1b" not in str(caught.value)
    assert show("a") == "'a'"


def _file(run: Path, content: dict[str, Any]) -> Path:
    forge(run / "result.json", content)
    return run / "result.json"


def test_a_directory_that_is_no_run_is_told_apart_from_a_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run directory"):
        load_student(tmp_path / "none")
