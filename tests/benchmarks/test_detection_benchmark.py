"""The detection benchmark: its rows, its cells, its tables; every row, in miniature."""

import importlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from datafree.config import schema
from datafree.recipe.recipe import FAMILIES
from datafree.recipe.training import Training
from datafree.sources import SOURCES
from datafree.tasks.detection import Detection
from thorough import some

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
DIODE = ["onebox", "onebox_fp", "onebox_tiles", "no_bn", "no_augment", "no_tv", "multibox"]
ROWS = {
    "bccd": [
        *("teacher", "student_labels", "kd_real", "kd_proxy", "noise"),
        *DIODE,
        *("fast", "cgdd", "cross"),
    ],
    "coco": ["teacher", "kd_proxy", "noise", "onebox_fp", "fast"],
}
CELLS = [
    *(f"example/{row}" for row in ROWS["bccd"] if row != "teacher"),
    *(f"example-fastestdet/{row}" for row in ROWS["coco"] if row != "teacher"),
]

pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the benchmarks are only in the repository")


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    """benchmarks/detection.py."""
    return importlib.import_module("detection")


@pytest.fixture(scope="module")
def trained(benchmark: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder in which the smoke size's teachers are trained."""
    work = tmp_path_factory.mktemp("work")
    for pair in ("example", "example-fastestdet"):
        assert benchmark.run_one((f"{pair}/teacher", 0), "smoke", work, 1000.0) == 0
    return work


def command_line(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["detection.py", *words])


# The rows.


def test_every_size_has_the_rows_that_it_promises(benchmark: ModuleType) -> None:
    for size in ("cpu", "paper"):
        assert {name: list(pair.rows) for name, pair in benchmark.SIZES[size].pairs.items()} == ROWS
    smoke = benchmark.SIZES["smoke"].pairs
    assert {name: list(pair.rows) for name, pair in smoke.items()} == {
        "example": ROWS["bccd"],
        "example-fastestdet": ROWS["coco"],
    }


def test_every_row_sets_options_that_its_method_its_task_and_its_training_have(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "road-proxy" / "images").mkdir(parents=True)
    monkeypatch.setenv("DATAFREE_DATA", str(tmp_path))
    for size in benchmark.SIZES.values():
        for pair in size.pairs.values():
            for row in pair.rows.values():
                training = schema.build(Training, {**pair.training, **row.training})
                task = benchmark.make_task(pair, row)
                assert schema.build(Detection, schema.plain(task)) == task
                if row.method in SOURCES:
                    made = schema.build(SOURCES[row.method], schema.plain(row.source), FAMILIES)
                    assert made == benchmark.make_source(row, pair, task)
                    assert any(made.due(step) for step in range(-made.warmup, training.steps)) == (
                        row.method not in ("folder", "noise")
                    )


def test_teacher_and_student_have_the_same_heads_but_in_the_row_that_crosses_them(benchmark: ModuleType) -> None:
    for size in ("cpu", "paper"):
        for pair in benchmark.SIZES[size].pairs.values():
            assert pair.teacher.network == pair.student.network
            assert pair.teacher.args.get("anchors") == pair.student.args.get("anchors")
            assert pair.task["distill"] == "heads"
            for name, row in pair.rows.items():
                assert (row.student is not None) == (row.task.get("distill") == "boxes") == (name == "cross")


def test_every_cell_of_the_training_split_finds_an_anchor_and_few_share_one(
    benchmark: ModuleType, shared_data: Path
) -> None:
    """By the loss's rule: an anchor is positive in the cell of a box's centre where their sides' IoU is > 0.225."""
    for size in ("cpu", "paper"):
        pair = benchmark.SIZES[size].pairs["bccd"]
        annotations = shared_data / "bccd" / "annotations" / "instances_train.json"
        items = benchmark.make_task(pair, pair.rows["teacher"]).open_dataset(annotations)._items
        image = torch.tensor([index for index, item in enumerate(items) for _ in item.rows])
        corners = torch.from_numpy(np.concatenate([item.rows for item in items]))[:, 1:]
        sides, middle = corners[:, 2:] - corners[:, :2], (corners[:, 2:] + corners[:, :2]) / 2
        anchors = torch.tensor(pair.teacher.args["anchors"])
        shared = torch.minimum(sides[:, None], anchors).prod(-1)
        fits = shared / (sides.prod(-1)[:, None] + anchors.prod(-1) - shared) > 0.225  # (N, 6)
        assert fits.any(1).all()
        for stride, scale in ((16, slice(0, 3)), (32, slice(3, 6))):
            n, anchor = torch.nonzero(fits[:, scale], as_tuple=True)
            cells = torch.cat([image[n, None], (middle[n] / stride).long(), anchor[:, None]], 1)
            counts = torch.unique(cells, dim=0, return_counts=True)[1]
            assert float(counts[counts > 1].sum() / counts.sum()) < 0.06


@pytest.mark.parametrize("size", ["cpu", "paper"])
def test_a_diode_row_differs_from_onebox_fp_in_what_its_name_says(benchmark: ModuleType, size: str) -> None:
    rows = benchmark.SIZES[size].pairs["bccd"].rows
    whole = rows["onebox_fp"]
    changes: dict[str, dict[str, Any]] = {
        "onebox": {"fp_sampling_every": 0},
        "onebox_tiles": {"mosaic_share": 0.5},
        "no_bn": {"bn_weight": 0.0, "first_bn_weight": 0.0},
        "no_augment": {
            "jitter": 0,
            "flip_probability": 0.0,
            "brightness": 0.0,
            "contrast": 0.0,
            "erase_probability": 0.0,
        },
        "no_tv": {"tv_l1_weight": 0.0},
    }
    for name, changed in changes.items():
        of_stage = {key: changed[key] for key in changed.keys() & {"first_bn_weight", "jitter"}}
        expected = {**whole.source, **{key: value for key, value in changed.items() if key not in of_stage}}
        expected["stages"] = [replace(stage, **of_stage) for stage in whole.source["stages"]]
        assert rows[name] == replace(whole, source=expected)
    assert whole.source["fp_sampling_every"] > 0 and not whole.task
    assert rows["multibox"] == replace(whole, task={"boxes_per_image": (3, 10), "box_sides": (0.08, 0.35)})


def test_every_stage_has_sides_that_the_teacher_takes(benchmark: ModuleType) -> None:
    for size in ("cpu", "paper"):
        for pair in benchmark.SIZES[size].pairs.values():
            stages = [stage for row in pair.rows.values() for stage in row.source.get("stages", [])]
            sizes = [pair.teacher.input_size or [s.scale * side for side in pair.image_size] for s in stages]
            assert sizes and all(side % 32 == 0 for size in sizes for side in size)


def test_missing_data_is_one_line_and_exit_status_2(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cpu, smoke = benchmark.SIZES["cpu"], benchmark.SIZES["smoke"]
    command_line(monkeypatch, "--work", str(tmp_path / "work"))
    monkeypatch.delenv("DATAFREE_DATA", raising=False)
    assert benchmark.main() == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and "DATAFREE_DATA is not set" in said
    assert not (tmp_path / "work").exists()

    monkeypatch.setenv("DATAFREE_DATA", str(tmp_path))
    assert "instances_test.json does not exist" in benchmark.missing_data(cpu, ["bccd/noise"])
    for part in ("train", "test"):
        file = tmp_path / "bccd" / "annotations" / f"instances_{part}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert benchmark.missing_data(cpu, ["bccd/teacher", "bccd/noise"]) is None
    assert "road-proxy/images does not exist" in benchmark.missing_data(cpu, ["bccd/kd_proxy"])
    (tmp_path / "coco-val128").mkdir()
    (tmp_path / "coco-val128" / "instances_val128.json").touch()
    assert "fastestdet-coco.safetensors does not exist" in benchmark.missing_data(cpu, ["coco/noise"])
    assert benchmark.missing_data(smoke, CELLS) is None


# One cell.


def test_labelled_images_are_in_memory_at_the_tasks_size(benchmark: ModuleType) -> None:
    pair = benchmark.SIZES["smoke"].pairs["example"]
    task = replace(benchmark.make_task(pair, pair.rows["noise"]), image_size=(32, 64))
    data = benchmark.load_boxes(pair.test, task, 3)
    whole = task.open_dataset(benchmark.expand(pair.test))
    assert data.images.shape == (3, 3, 32, 64) and data.images.dtype == torch.uint8
    assert torch.equal(data.labels, torch.stack([whole[index][1] for index in range(3)]))
    images, targets = next(data.batches(2))
    assert images.shape == (2, 3, 32, 64) and torch.equal(targets, data.labels[:2])
    assert len(benchmark.load_boxes(pair.test, task, None)) == len(whole)


@pytest.mark.parametrize("cell", some(CELLS, "example/onebox_fp"))
def test_every_row_runs_and_is_scored(benchmark: ModuleType, trained: Path, cell: str) -> None:
    assert benchmark.run_one((cell, 0), "smoke", trained, 1000.0) == 0
    found = json.loads((trained / "seed0" / cell / "cell.json").read_text())
    assert 0 <= found["metrics"]["ap"] <= found["metrics"]["ap50"] <= 1
    if cell.endswith("labels"):  # learnt from no teacher; elsewhere none where neither network sees a box
        assert "agreement" not in found["metrics"]
    assert found["metrics"]["images"] >= 8  # two steps of four
    assert found["seconds"] > 0 and found["peak_memory_mib"] > 0 and found["commit"]
    assert not (trained / "seed0" / cell / "state").exists()


@pytest.mark.parametrize("row", some(["student_labels", "onebox_fp"], "student_labels"))
def test_a_cell_whose_time_is_up_goes_on_and_keeps_its_clock(
    benchmark: ModuleType, trained: Path, tmp_path: Path, row: str
) -> None:
    shutil.copytree(trained / "seed0" / "example" / "teacher", tmp_path / "seed0" / "example" / "teacher")
    folder = tmp_path / "seed0" / "example" / row
    cell = (f"example/{row}", 0)
    assert benchmark.run_one(cell, "smoke", tmp_path, -1.0) == 75
    assert (folder / "state" / "state.pt").is_file() and not (folder / "cell.json").exists()
    (folder / "seconds.json").write_text("600.0")  # what earlier pieces took
    assert benchmark.run_one(cell, "smoke", tmp_path, 1000.0) == 0
    assert json.loads((folder / "cell.json").read_text())["seconds"] > 600


@pytest.mark.thorough
def test_a_row_goes_on_from_what_its_run_directory_keeps_of_it(
    benchmark: ModuleType, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stages, pairs of numbers and another student are read back as the same."""
    smoke = benchmark.SIZES["smoke"]
    pair = smoke.pairs["example"]
    row = replace(pair.rows["cross"], method="diode", source=pair.rows["multibox"].source)
    changed = replace(pair, rows={**pair.rows, "cross": replace(row, task={**pair.rows["multibox"].task, **row.task})})
    monkeypatch.setitem(smoke.pairs, "example", changed)
    shutil.copytree(trained / "seed0" / "example" / "teacher", tmp_path / "seed0" / "example" / "teacher")
    assert benchmark.run_one(("example/cross", 0), "smoke", tmp_path, -1.0) == 75
    assert benchmark.run_one(("example/cross", 0), "smoke", tmp_path, 1000.0) == 0


# All of them.


def cells_of(ap50: list[float], **more: float) -> list[dict[str, Any]]:
    return [
        {"seed": s, "metrics": {"ap50": v, "ap": v / 2, "images": 4e4, **more}, "seconds": 90.0, "peak_memory_mib": 1e3}
        for s, v in enumerate(ap50)
    ]


def test_what_only_the_whole_knows_is_added_to_each_cell(benchmark: ModuleType) -> None:
    rows = {"p/teacher": cells_of([0.8, 0.5]), "p/noise": cells_of([0.4, 0.4]), "q/noise": cells_of([0.4])}
    found = benchmark.finished({**rows, "r/teacher": cells_of([0.0])})
    assert [cell["metrics"]["relative_ap50"] for cell in found["p/noise"]] == pytest.approx([0.5, 0.8])
    assert "relative_ap50" not in found["q/noise"][0]["metrics"]  # its teacher is not there
    assert "relative_ap50" not in found["r/teacher"][0]["metrics"]  # it finds nothing
    assert found["p/noise"][0]["metrics"]["minutes"] == 1.5
    assert found["p/noise"][0]["metrics"]["peak_memory_mb"] == pytest.approx(1048.576)


def test_the_table_shows_means_spreads_and_what_was_not_run(benchmark: ModuleType) -> None:
    rows = {"bccd/teacher": cells_of([0.9, 0.9]), "bccd/fast": cells_of([0.36, 0.45], agreement=0.5)}
    table = benchmark.table("bccd", benchmark.SIZES["cpu"], benchmark.finished(rows))
    assert "| teacher | 90.0 ± 0.0 | 45.0 ± 0.0 | 100.0 ± 0.0 | – | 2 | 1.5 wall | 40.0 | 1049 |" in table
    assert "| fast | 40.5 ± 6.4 | 20.2 ± 3.2 | 45.0 ± 7.1 | 50.0 ± 0.0 | 2 | 1.5 wall | 40.0 | 1049 |" in table
    assert "| no_tv | not run | – | – | – | 0 | – | – | – |" in table
    assert "Cut against the paper" in table


def test_cells_become_a_results_file_and_a_table(
    benchmark: ModuleType, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import results

    (tmp_path / "docs").mkdir()
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    page = tmp_path / "docs" / "results.md"
    page.write_text("# Results\n", encoding="utf-8")
    monkeypatch.setattr(results, "HERE", tmp_path / "benchmarks")
    monkeypatch.setitem(benchmark.SIZES, "tiny", replace(benchmark.SIZES["smoke"], heading="Tiny"))
    command_line(monkeypatch, "--size", "tiny", "--seeds", "0", "--collect-only", "--work", str(trained))
    assert benchmark.main() == 0

    written = json.loads((tmp_path / "benchmarks" / "results" / "detection-tiny.json").read_text())
    assert (written["benchmark"], written["size"]) == ("detection", "tiny")
    assert written["command"] == "python benchmarks/detection.py --size tiny --seeds 0"
    names = [row["name"] for row in written["rows"]]
    assert names[0] == "example/teacher" and "example-fastestdet/teacher" in names
    assert {"ap50", "ap", "images", "minutes", "peak_memory_mb"} <= written["rows"][0]["metrics"].keys()
    text = page.read_text(encoding="utf-8")
    assert "## Tiny\n\n`python benchmarks/detection.py --size tiny`.\n\n<!-- detection-tiny -->\nexample:\n" in text
    assert text.endswith("<!-- /detection-tiny -->\n")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_command_runs_cells_together_and_shows_the_table(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "detection.py"), "--size", "smoke", "--work", str(tmp_path)]
    command += ["--seeds", "0", "--jobs", "2", "--rows", "example/noise", "example-fastestdet/onebox_fp"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {path.parent.name for path in tmp_path.rglob("cell.json")} == {"teacher", "noise", "onebox_fp"}
    assert "| no_tv | not run |" in done.stdout
