"""Formats of an export: asked for by name, compared with torch, named where they cannot take a network."""

from __future__ import annotations

import ctypes
import gc
import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datafree.deploy.bench_file import BENCH, Bench, Timed, read_bench
from datafree.deploy.bench_run import bench_run
from datafree.deploy.export_config import read_export
from datafree.deploy.export_record import Export
from datafree.deploy.export_run import Exported, export_run
from datafree.deploy.format_facts import FACTS, Facts, choose
from datafree.deploy.format_table import format_table
from datafree.deploy.formats import FORMATS
from datafree.deploy.formats.base import Format, Given, Runtime, operator_in
from datafree.deploy.formats.check import Made, make, make_all
from datafree.deploy.snippets import openvino_snippet
from datafree.deploy.written_names import EXPORTED
from datafree.errors import DatafreeError, NetworkError, RunError
from datafree.evaluation.finished_run import load_student
from datafree.networks.comparison import relative_error
from datafree.networks.onnx import answer_of
from datafree.ops.predictions import Predictions
from datafree.report.page import write_page
from datafree.report.run_reader import read_run
from deploy.test_export_run import LOOK, UNET, answers, write_run

CLASSES = {"kind": "classification", "num_classes": 4, "image_size": [32, 32]}
RESNET = {"network": "datafree/resnet", "args": {"depth": 8, "width": 8}, **LOOK}
SEGMENTATION = {"kind": "segmentation", "num_classes": 3, "image_size": [32, 48]}
DETECTION = {"kind": "detection", "num_classes": 3, "image_size": [64, 96]}
STUDENTS = {  # task -> network, task, the student's own code
    "classification": (RESNET, CLASSES, None),
    "segmentation": (UNET, SEGMENTATION, None),
    "detection": (
        {"network": "deploy.test_export_run:make_boxes", **LOOK},
        DETECTION,
        "deploy.test_export_run:make_boxes",
    ),
}


def has(*modules: str) -> bool:
    return all(find_spec(module) is not None for module in modules)


needs_openvino = pytest.mark.skipif(
    not has(*FACTS["openvino"].modules), reason="the packages of datafree[openvino] are not installed"
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Exported]:
    """A segmentation student in ONNX and OpenVINO, with INT8."""
    run = write_run(tmp_path_factory.mktemp("formats") / "run", UNET)
    return run, export_run(run, to="openvino,onnx", int8=True)


# What is asked for.


@pytest.mark.parametrize(
    ("to", "options", "said"),
    [
        ("liter", {}, "did you mean litert"),
        ("tensorrt", {}, "one or more of onnx, litert, openvino, coreml, executorch"),
        ("onnx,onnx", {}, "onnx twice"),
        ("", {}, "names no format: ''"),
        ("onnx,,litert", {}, "names no format: ''"),
        ("onnx", {"onnx": False}, "--no-onnx"),
        ("litert", {"opset": 18}, "--opset is of ONNX"),
        ("coreml", {"int8": True}, "on macOS alone"),
    ],
)
def test_formats_that_cannot_be_meant_are_refused_on_one_line(to: str, options: Any, said: str) -> None:
    with pytest.raises(NetworkError) as caught:
        choose(to, FORMATS, **options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_formats_may_have_blanks_and_capitals_and_come_in_one_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datafree.config.extras.find_spec", lambda name: name)
    assert [kind.name for kind in choose(" OpenVINO, onnx", FORMATS)] == ["onnx", "openvino"]  # which reads ONNX's INT8
    assert [kind.name for kind in choose(["executorch", "litert"], FORMATS)] == ["litert", "executorch"]


@pytest.mark.parametrize("name", FORMATS)
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "run", UNET)
    monkeypatch.setattr("datafree.config.extras.find_spec", lambda module: None)
    with pytest.raises(DatafreeError, match=rf"pip install 'datafree\[{name}\]'"):
        export_run(run, to=name)
    assert not (run / "export").exists()


def test_every_file_of_a_format_is_one_that_an_export_replaces() -> None:
    assert list(FORMATS) == list(FACTS)
    names = [name for kind in FORMATS.values() for int8 in (False, True) for name in kind.files(int8)]
    assert len(set(names)) == len(names)
    assert set(names) < set(EXPORTED)


# What is written.


@needs_openvino
def test_the_cards_code_for_openvino_answers_as_torch(
    exported: tuple[Path, Exported], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, done = exported
    monkeypatch.chdir(done.folder)
    space: dict[str, Any] = {}
    exec(openvino_snippet(load_student(run)), space)
    images = torch.from_numpy(space["images"])
    torch.testing.assert_close(
        torch.from_numpy(space["logits"]), answers(load_student(run).network, images), rtol=1e-3, atol=1e-4
    )


@needs_openvino
def test_openvino_answers_as_torch_for_any_number_of_images(exported: tuple[Path, Exported]) -> None:
    run, done = exported
    network, opened = load_student(run).network, FORMATS["openvino"].open(done.folder / "student.xml")
    for count in (1, 3):
        images = torch.rand(count, 3, 32, 48)
        torch.testing.assert_close(opened(images), answers(network, images), rtol=1e-3, atol=1e-4)


@needs_openvino
def test_int8_of_openvino_is_that_of_onnx(exported: tuple[Path, Exported]) -> None:
    _, done = exported
    images = torch.rand(4, 3, 32, 48)
    theirs, ours = (FORMATS[name].open(done.folder / file)(images) for name, file in INT8)
    assert relative_error(theirs, ours) < 0.05  # their kernels round where they like
    exact = FORMATS["onnx"].open(done.folder / "student.onnx")(images)
    assert 0 < relative_error(exact, ours) < 0.3


INT8 = (("onnx", "student.int8.onnx"), ("openvino", "student.int8.xml"))


@needs_openvino
def test_each_file_is_recorded_with_its_size_and_how_it_answers(exported: tuple[Path, Exported]) -> None:
    _, done = exported
    assert [made.file for made in done.made] == ["student.onnx", "student.int8.onnx", "student.xml", "student.int8.xml"]
    assert done.failed == []
    for made in done.made:
        files = FORMATS[made.format].files(made.int8)
        assert made.bytes == sum(done.sizes[name] for name in files)
        assert made.compared == 3  # a quarter of the run's twelve images, which none was calibrated with
        assert (made.error is None) == made.int8
        assert made.error is None or made.error < 1e-4
        assert made.agreement is not None and made.agreement > 0.8
    found = read_export(done.folder)
    assert found is not None
    assert found.made == done.made
    assert found.errors == done.errors
    content = b"".join((done.folder / name).read_bytes() for name in ("student.xml", "student.int8.xml"))
    assert str(done.folder.parent).encode() not in content and str(Path.cwd()).encode() not in content


@needs_openvino
def test_the_card_and_the_page_show_the_formats_side_by_side(exported: tuple[Path, Exported]) -> None:
    run, done = exported
    card = (done.folder / "README.md").read_text()
    assert "## Formats" in card
    for made in done.made:
        assert f"| `{made.file}` | " in card
    page = write_page(run, done.folder.parent / "page.html").read_text()
    assert all(f'<th scope="row">{made.file}</th>' in page for made in done.made)


@needs_openvino
@pytest.mark.thorough
def test_a_detector_is_written_with_boxes_and_scores(tmp_path: Path) -> None:
    network, task, code = STUDENTS["detection"]
    run = write_run(tmp_path / "run", network, task)
    done = export_run(run, to="openvino", student=code)
    assert [made.file for made in done.made] == ["student.xml"]
    images = torch.rand(2, 3, 64, 96)
    theirs = answers(load_student(run, student=code).network, images)
    ours = FORMATS["openvino"].open(done.folder / "student.xml")(images)
    assert isinstance(ours, Predictions)
    torch.testing.assert_close(ours.boxes, theirs.boxes, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-3, atol=1e-4)


# What cannot be written, with formats of the test's own.


class Copy(Format):
    """A format whose file is a text, and whose network answers as it is told."""

    facts = Facts(name="copy", runtime="Copy", modules=(), suffixes=(".copy",))

    def __init__(self, answer: Callable[[Tensor], Tensor], fault: Exception | None = None) -> None:
        self.answer, self.fault = answer, fault

    def write(self, given: Given, file: Path) -> None:
        file.write_text("half")
        if self.fault is not None:
            raise self.fault

    def open(self, file: Path) -> nn.Module:
        return Runtime(file, lambda images: [self.answer(images)])


@pytest.fixture
def given(tmp_path: Path) -> Given:
    student = load_student(write_run(tmp_path / "run", RESNET, CLASSES))
    (tmp_path / "made").mkdir()
    return Given(network=student.network, task=student.task, description={}, folder=tmp_path / "made")


def images_of(count: int = 4) -> Tensor:
    return (torch.rand(count, 3, 32, 32) * 255).byte()


def test_a_file_that_answers_otherwise_is_refused_and_gone(given: Given) -> None:
    kind = Copy(lambda images: answers(given.network, images) * 1.01)
    with pytest.raises(NetworkError, match=r"Copy's file does not answer as the network: a relative error of 1\.0e-02"):
        make(kind, given, images_of())
    assert not list(given.folder.iterdir())


def test_relative_error_and_agreement_are_those_of_the_answers(given: Given) -> None:
    def shifted(images: Tensor) -> Tensor:
        logits: Tensor = answers(given.network, images)
        return logits + 5e-4 * logits.abs().max()

    made = make(Copy(shifted), given, images_of(4))
    assert made.error == pytest.approx(5e-4, rel=1e-2)
    assert (made.agreement, made.compared) == (1.0, 4)


def test_an_operator_that_a_format_cannot_take_is_named_with_the_formats_that_can(given: Given) -> None:
    fault = RuntimeError("Missing out variants: {'aten::grid_sampler_2d'}")
    good = Copy(lambda images: answers(given.network, images))
    bad = Copy(good.answer, fault)
    bad.facts = replace(Copy.facts, suffixes=(".bad",))  # type: ignore[misc]
    told: list[str] = []
    made, failed = make_all([bad, good], given, images_of(), told.append)
    assert [one.file for one in made] == ["student.copy"]
    (line,) = failed
    assert line.startswith("student.bad was not written: Copy cannot take the operator aten.grid_sampler_2d")
    assert line.endswith("; student.copy could be written")
    assert told == ["student.bad", "student.copy"]
    assert [file.name for file in given.folder.iterdir()] == ["student.copy"]
    with pytest.raises(NetworkError, match="cannot take the operator"):
        make_all([bad], given, images_of(), told.append)


def test_an_operator_is_found_in_what_caused_an_error() -> None:
    try:
        try:
            raise ValueError("no lowering of aten._upsample_bilinear2d_aa.default")
        except ValueError as error:
            raise RuntimeError("failed") from error
    except RuntimeError as error:
        assert operator_in(error) == "aten._upsample_bilinear2d_aa.default"
    assert operator_in(RuntimeError("failed")) == ""


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run", UNET)
    full = Copy(lambda images: images, RuntimeError("basic_filebuf::xsputn error"))
    monkeypatch.setitem(FORMATS, "copy", full)
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("Usage", (), {"free": 0})())
    with pytest.raises(RunError, match=r"cannot write .*No space left on device.*free some space") as caught:
        export_run(run, to="copy")
    assert "\n" not in str(caught.value)
    assert not (run / "export").exists()


def test_int8_that_agrees_badly_is_warned_of_with_its_figure() -> None:
    made = Made(file="student.int8.onnx", format="onnx", int8=True, bytes=1, sha256="", agreement=0.712, compared=64)
    assert "student.int8.onnx gives the float network's answer in only 71.2 % of cases" in made.warning
    assert replace(made, agreement=0.99).warning == ""
    assert "not compared" in replace(made, agreement=None).warning


def test_a_file_of_one_image_at_once_is_given_one_at_a_time(tmp_path: Path) -> None:
    seen: list[int] = []

    def compute(images: Tensor) -> list[Tensor]:
        seen.append(len(images))
        return [images.mean((2, 3))]

    answer = Runtime(tmp_path / "x", compute, at_once=1)(torch.rand(3, 3, 4, 4))
    assert seen == [1, 1, 1]
    assert answer.shape == (3, 3)
    assert isinstance(answer_of([torch.zeros(1, 5, 4), torch.rand(1, 5, 2)]), Predictions)


# Times.


def timed(milliseconds: float, **more: Any) -> Timed:
    return Timed(runtime="torch", seconds=milliseconds / 1e3, low=0.001, high=0.009, **more)


def test_times_stand_beside_the_file_that_was_timed_alone() -> None:
    made = Made(file="student.onnx", format="onnx", int8=False, bytes=2000, sha256="a", error=1e-6, compared=4)
    export = Export(made=[made], compared_on="of noise")
    bench = Bench(threads=1, rounds=2, hardware={"processor": "P"}, rows={}, notes=["not timed: x"])
    new = format_table(export, replace(bench, rows={"student.onnx": timed(2, sha256="a"), "student": timed(5)}))
    assert [row[0] for row in new.rows] == ["student", "student.onnx"]
    assert new.rows[1] == ["student.onnx", "ONNX", "2.0 kB", "relative error 1.0e-06", "–", "2.00 ms (1.00 to 9.00)"]
    assert "not timed: x" in new.notes and any("on P, 1 thread, 2 rounds" in note for note in new.notes)
    old = format_table(export, replace(bench, rows={"student.onnx": timed(2, sha256="b")}))
    assert old.rows[0][-1] == "–"


@needs_openvino
def test_bench_times_both_networks_and_each_runtime_and_keeps_it(exported: tuple[Path, Exported]) -> None:
    run, done = exported
    (run / "recipe.yaml").write_text("teacher: {network: datafree/unet, args: {width: 4, depth: 2}}\n")
    before = torch.get_num_threads()
    bench, _ = bench_run(run, threads=1, rounds=1)
    assert torch.get_num_threads() == before
    assert list(bench.rows) == ["teacher", "student", *(made.file for made in done.made)]
    assert all(0 < row.low <= row.seconds <= row.high < 60 for row in bench.rows.values())
    assert bench.rows["teacher"].bytes > bench.rows["student"].bytes  # type: ignore[operator]
    assert read_bench(run) == bench
    card = (done.folder / "README.md").read_text()
    assert "| `teacher` |" in card and "Time: median" in card
    assert "Time: median" in write_page(run, run / "page.html").read_text()
    (run / BENCH).write_text((run / BENCH).read_text().replace('"threads": 1', '"threads": 2'))
    with pytest.raises(RunError, match="checksum does not match"):
        read_bench(run)
    write_page(run, run / "page.html")  # which names it
    assert "checksum" in (run / "page.html").read_text()
    assert read_run(run).path == run
    (run / BENCH).unlink()


def test_bench_says_what_it_could_not_time(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", UNET)
    (run / "recipe.yaml").write_text("teacher: {network: mine.nets:make}\n")
    bench, export = bench_run(run, threads=1, rounds=1)
    assert list(bench.rows) == ["student"]
    assert export.made == []
    assert any("name its recipe with --teacher" in note for note in bench.notes)
    assert any("datafree export --to" in note for note in bench.notes)


@pytest.mark.thorough
def test_bench_opens_no_file_but_the_one_that_was_exported(tmp_path: Path, given: Given) -> None:
    run = given.folder.parent / "run"
    export_run(run, to="onnx")
    (run / "export" / "student.onnx").write_bytes(b"another")
    bench, _ = bench_run(run, threads=1, rounds=1)
    assert list(bench.rows) == ["student"]
    assert any("it is not the file that was exported" in note for note in bench.notes)


@pytest.mark.thorough
def test_signals_have_a_stack_after_two_networks_of_openvino_are_gone(exported: tuple[Path, Exported]) -> None:
    """The first word of C's stack_t is the place of the stack that signals are handled on."""
    before, after = (ctypes.create_string_buffer(24) for _ in range(2))
    folder = exported[1].folder
    assert ctypes.CDLL(None).sigaltstack(None, before) == 0
    opened = [FORMATS["openvino"].open(folder / name) for name in ("student.xml", "student.int8.xml")]
    answers = [network(torch.rand(1, 3, 32, 48)).shape for network in opened]
    assert len(set(answers)) == 1
    while opened:
        del opened[0]
        gc.collect()
    assert ctypes.CDLL(None).sigaltstack(None, after) == 0
    assert after.raw[:8] in (before.raw[:8], bytes(8))  # none of its own: the thread's
    seen = list[int]()
    handler = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    signal.raise_signal(signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, handler)
    assert seen == [signal.SIGUSR1]


# The heavy runtimes.


@pytest.fixture
def silent() -> Iterator[None]:
    """Their packages warn of their own affairs."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("kind", STUDENTS)
@pytest.mark.parametrize("name", ["litert", "openvino", "executorch"])
def test_a_student_of_each_task_answers_as_torch_does(name: str, kind: str, tmp_path: Path) -> None:
    for module in FACTS[name].modules:
        pytest.importorskip(module)
    network, task, code = STUDENTS[kind]
    done = export_run(write_run(tmp_path / "run", network, task), to=name, int8=True, student=code)
    exact, small = done.made
    assert exact.error is not None and exact.error <= 1e-3
    assert small.agreement is None or small.agreement > 0.7  # of random networks, whose classes are close


@pytest.mark.slow
@pytest.mark.usefixtures("silent")
def test_core_ml_is_written_and_says_that_it_was_not_verified(tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    done = export_run(write_run(tmp_path / "run", UNET), to="coreml")
    (made,) = done.made
    assert made.file == "student.mlpackage.zip"
    if made.unverified:
        assert "not verified" in (done.folder / "README.md").read_text()
        assert json.loads((done.folder / "config.json").read_text())["files"][made.file]["compared"] == 0
    else:
        assert made.error is not None and made.error <= 1e-3
