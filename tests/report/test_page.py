"""The page of a run: what it says, and what it makes of a directory that is incomplete, damaged or made to harm."""

from __future__ import annotations

import json
import re
import shutil
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from datafree.config import yaml
from datafree.errors import RunError
from datafree.networks.unet import unet
from datafree.report import run_reader
from datafree.report.live_writer import page_kept
from datafree.report.page import PAGE, write_page, write_report
from datafree.report.run_reader import read_run
from datafree.run import run_recipe
from recipes import changed, load, write_teacher
from run_directories import NAMES, write_json, write_run

KINDS = ("classification", "segmentation", "detection")


class Page(HTMLParser):
    """The text that people read, the elements, and the addresses that a browser would ask for."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.source = file.read_text(encoding="utf-8")
        self.words: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._hidden = False
        self.feed(self.source)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._hidden = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.words.append(data)

    def addresses(self) -> list[str]:
        return [attrs[key] or "" for _, attrs in self.tags for key in ("src", "href", "action", "data") if key in attrs]


def page_of(run: Path) -> Page:
    return Page(write_page(run))


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_says_what_its_run_came_to(tmp_path: Path, kind: str) -> None:
    page = page_of(write_run(tmp_path, kind))
    for words in ("my-" + kind, "cgdd", "1,000,000", "100,000", "10.0 %", "0.40 MB", "80.0 %", "60.0 %", "75.0 %"):
        assert words in page.text, words
    assert "scored on real data" in page.text and "not verified" not in page.text
    assert "health: healthy" in page.text and "90.0 %" in page.text
    assert "seed 3" in page.text and "1 min 15 s" in page.text and "torch 2.15.0" in page.text
    assert ("Student beside teacher" in page.text) == (kind != "classification")
    titles = [words for tag, words in re.findall(r"<(title)>([^<]*)</title>", page.source)]
    assert {"Agreement", "Class balance", "loss", "adversarial"} <= set(titles)


def test_a_page_is_one_file_that_asks_for_nothing(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path))
    assert page.addresses() and all(address.startswith("data:") for address in page.addresses())
    assert "://" not in page.source
    assert len(page.source) < 1_000_000
    pictures = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(pictures) == 3 + 4 * 3 and all(attrs["alt"] for attrs in pictures)


def test_a_student_that_nobody_scored_is_called_so(tmp_path: Path) -> None:
    text = page_of(write_run(tmp_path, scored=False)).text
    assert "not verified on real data" in text and "Not verified on real data." in text
    assert "scored on real data" not in text


def test_a_student_of_few_steps_or_seldom_of_its_teachers_mind_is_told_at_the_top(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    top = page_of(run).text.partition("Teacher and student")[0]
    assert "health: healthy" in top and "Look closer" not in top
    recipe = yaml.parse((run / "recipe.yaml").read_text(), "recipe")
    recipe["training"]["steps"] = 56
    (run / "recipe.yaml").write_text(yaml.render(recipe))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1000000, "agreement": 0.44}\n')
    top = page_of(run).text.partition("Teacher and student")[0]
    assert "health: watch" in top and "Look closer before relying on this student." in top
    assert "56 steps, which teach next to nothing" in top
    assert "another answer than the teacher in most cases (agreement 44.0 %)" in top


def test_names_from_files_are_words_and_never_elements(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path))
    assert NAMES[1] in page.text and "<b>teacher</b>" in page.text and "photos of <i>mine</i>" in page.text
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "<script>alert" not in page.source


def test_the_code_that_loads_the_student_is_on_the_page_and_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path)
    source = write_page(run).read_text(encoding="utf-8")
    found = re.search(r'<pre id="snippet"[^>]*>(.*?)</pre>', source, re.DOTALL)
    assert found is not None
    monkeypatch.chdir(run)
    names: dict[str, Any] = {}
    exec(unescape(found[1]), names)
    assert names["logits"].shape == (1, 3, 32, 40)


def test_a_run_in_progress_has_a_page_that_says_where_it_is(tmp_path: Path) -> None:
    text = page_of(write_run(tmp_path, finished=False)).text
    assert "in progress or stopped at step 40 of 400" in text
    assert "result.json: the run has not finished" in text
    assert "Use the student" not in text


def test_a_run_in_its_warm_up_is_placed_as_the_command_places_it(tmp_path: Path) -> None:
    run = write_run(tmp_path, finished=False)
    recipe = yaml.parse((run / "recipe.yaml").read_text(), "recipe")
    (run / "recipe.yaml").write_text(yaml.render({**recipe, "source": {**recipe["source"], "warmup": 50}}))
    (run / "metrics.jsonl").write_text('{"index": 29, "step": -20, "loss": 1.5}\n')
    assert "in progress or stopped in the warm-up, update 30 of 50" in page_of(run).text


FILES = ("recipe.yaml", "environment.json", "metrics.jsonl", "result.json", "student.json", "measured.json")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [None, b"{", b"\xff\xfe\x00[1, 2]"])
def test_a_file_that_is_missing_or_damaged_leaves_the_rest(tmp_path: Path, name: str, content: bytes | None) -> None:
    run = write_run(tmp_path)
    if content is None:
        (run / name).unlink()
    else:
        (run / name).write_bytes(content)
    page = page_of(run)
    assert "What it learnt from" in page.text
    if content is None or content == b"{":
        assert f"{name}:" in page.text, page.text[:500]
    assert ("90.0 %" in page.text) == (name != "metrics.jsonl")


@pytest.mark.parametrize("name", FILES)
def test_values_of_any_form_are_left_out_and_nothing_raises(tmp_path: Path, name: str) -> None:
    odd = [None, True, -1, 1e300, "x" * 5000, [], {}, [[1]], {"a": {"b": [None]}}, json.loads("[" * 200 + "]" * 200)]

    def spoilt(value: Any, with_: Any) -> list[Any]:
        """`value` with each of its parts, one at a time, replaced."""
        if isinstance(value, dict):
            return [{**value, key: one} for key, old in value.items() for one in [with_, *spoilt(old, with_)]]
        return []

    run = write_run(tmp_path)
    shutil.rmtree(run / "samples")  # what is slow to show
    (run / "student.safetensors").unlink()
    if name == "metrics.jsonl":
        cases = [json.dumps({"step": value, "loss": value}) + "\n" for value in odd]
    else:
        text = (run / name).read_text()
        content = yaml.parse(text, name) if name.endswith("yaml") else json.loads(text)
        cases = [json.dumps(one) for index, value in enumerate(odd) for one in spoilt(content, value)[index::10]]
    for case in cases:
        (run / name).write_text(case)
        assert "Made by datafree" in write_page(run).read_text(encoding="utf-8"), case[:200]


def test_large_files_are_left_out_and_long_logs_thinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path)
    monkeypatch.setattr(run_reader, "MAX_BYTES", 100)
    assert "recipe.yaml: left out, it has" in page_of(run).text
    monkeypatch.undo()
    many = "".join(json.dumps({"step": step, **{f"f{i}": step * i for i in range(70)}}) + "\n" for step in range(300))
    (run / "metrics.jsonl").write_text(many)
    seen = read_run(run)
    assert len(seen.series) == run_reader.MAX_SERIES
    assert len(page_of(run).source) < 1_000_000


def test_no_more_of_a_log_is_read_than_its_limit_whatever_its_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path)
    line = '{"index": 1, "step": 1, "loss": 0.5}\n'
    monkeypatch.setattr(run_reader, "MAX_LOG", 2 * len(line))
    (run / "metrics.jsonl").write_text(2 * line)
    assert not [said for said in read_run(run).missing if "left out" in said]
    (run / "metrics.jsonl").write_text(line + 5 * line.replace("\n", " "))  # a line beyond the limit
    seen = read_run(run)
    assert seen.series["loss"].points == [(1, 0.5)]
    assert f"metrics.jsonl: what comes after its first {2 * len(line)} letters is left out" in seen.missing


def test_pictures_are_opened_with_care_and_take_a_bounded_room(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    (run / "samples" / "000010.png").write_bytes(b"<svg onload=alert(1)>")
    Image.effect_noise((700, 600), 90).convert("RGB").save(run / "samples" / "000030.png")
    Image.new("RGB", (9000, 10)).save(run / "samples" / "000050.png")
    (run / "samples" / "notes.png").write_bytes(b"")
    page = page_of(run)
    assert "samples/000010.png: cannot be shown" in page.text and "samples/000050.png: cannot be shown" in page.text
    assert "onload" not in page.source
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 1
    assert len(page.source) < 1_000_000


def test_pictures_are_called_by_the_students_steps_and_by_updates_of_the_warm_up(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    recipe = yaml.parse((run / "recipe.yaml").read_text(), "recipe")
    recipe["source"]["warmup"] = 25
    (run / "recipe.yaml").write_text(yaml.render(recipe))
    for index in (25, 26, 1025):  # as the run numbers them: from the first update on
        Image.new("RGB", (40, 32)).save(run / "samples" / f"{index:06d}.png")
    text = page_of(run).text
    assert all(words in text for words in ("update 25 of the warm-up", "step 1", "step 1,000"))
    assert "update 26" not in text and "update 1,025" not in text


def test_a_network_that_a_directory_names_is_never_imported(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    described = json.loads((run / "student.json").read_text())
    described["network"]["network"] = "this:that"
    write_json(run / "student.json", described)
    page = page_of(run)
    assert "how to load the student" in page.text and "never done for a name found in a file" in page.text


def test_what_is_no_run_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run directory"):
        write_page(tmp_path / "nowhere")
    with pytest.raises(RunError, match="holds no run: none of"):
        write_page(tmp_path)
    run = write_run(tmp_path)
    with pytest.raises(RunError, match="cannot write"):
        write_page(run, tmp_path)


def test_a_page_replaces_a_page_and_nothing_else(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    before = (run / "recipe.yaml").read_bytes()
    with pytest.raises(RunError, match=r"recipe\.yaml is there, and no page"):
        write_report([run], run / "recipe.yaml")
    assert (run / "recipe.yaml").read_bytes() == before
    place = tmp_path / "page.html"
    place.touch()
    assert [write_report([run], place) for _ in range(2)] == [place, place]


def test_runs_are_compared_on_one_page(tmp_path: Path) -> None:
    one, other = write_run(tmp_path / "a"), write_run(tmp_path / "b", finished=False)
    text = (other / "recipe.yaml").read_text().replace("seed: 3", "seed: 4").replace("cgdd", "fast")
    (other / "recipe.yaml").write_text(text)
    page = Page(write_report([one, other], tmp_path / "both.html"))
    assert str(one) in page.text and str(other) in page.text  # their names alone are the same
    assert "training.seed 3 4" in page.text and "source.method cgdd fast" in page.text
    assert "training.steps" not in page.text
    lines = re.findall(r'<polyline class="line c(\d)" stroke-dasharray="([^"]*)"', page.source)
    assert {("0", "none"), ("1", "6 3")} == set(lines)
    assert "60.0 %" in page.text and "health: healthy" not in page.text


# While a run goes on.


def test_a_run_keeps_its_page_fresh_at_little_cost(tmp_path: Path) -> None:
    run, now, told = write_run(tmp_path, finished=False), [0.0], []
    with page_kept(run, told.append, print, clock=lambda: now[0]) as log:
        for second in range(31):
            now[0] = second
            (run / PAGE).unlink(missing_ok=True)
            log(second)  # type: ignore[arg-type]
            if (run / PAGE).exists():
                told.append("page")
    assert [second for second, after in pairwise(told) if after == "page"] == [1, 11, 21]
    assert (run / PAGE).exists()


def test_a_page_that_cannot_be_made_is_told_once_and_stops_nothing(tmp_path: Path) -> None:
    run, said = write_run(tmp_path, finished=False), []
    (run / PAGE).mkdir()
    with page_kept(run, lambda progress: None, said.append, clock=iter(range(0, 9000, 100)).__next__) as log:
        for _ in range(3):
            log(None)  # type: ignore[arg-type]
    assert len(said) == 1 and said[0].startswith("note: the page of the run was not written: RunError: cannot write")


def test_a_finished_run_has_measured_its_networks(tmp_path: Path) -> None:
    teacher = {"network": "datafree/unet", "args": {"width": 4}, "weights": str(write_teacher(tmp_path, width=4))}
    recipe = load(tmp_path, changed(teacher=teacher, training={"steps": 2, "batch_size": 2, "save_every": 1}))
    run_recipe(recipe, tmp_path / "run")
    found = json.loads((tmp_path / "run" / "measured.json").read_text())
    ours, theirs = found["networks"]["student"], found["networks"]["teacher"]
    weights = unet(3, width=4).state_dict()
    assert theirs["bytes"] == sum(value.numel() * value.element_size() for value in weights.values())
    assert theirs["multiply_adds"] < ours["multiply_adds"]  # the student's width is 8
    assert 0 < theirs["seconds"] < 10
    assert len(found["class_agreement"]) == 3
    text = Page(tmp_path / "run" / "report.html").text
    assert "finished" in text and "not verified on real data" in text and "Not everything is here" not in text
