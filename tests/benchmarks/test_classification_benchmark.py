"""The classification benchmark: its rows, its cells, its tables; every row, in miniature."""

import importlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from datafree.recipe.training import Training
from datafree.sources import SOURCES, Noise
from datafree.sources.base import SourceContext
from datafree.tasks.classification import Classification
from thorough import some

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
ROWS = [  # of the CPU size, as its table has them
    *("teacher", "student_labels", "kd_real", "kd_proxy", "noise", "cgdd"),
    *("dafl", "dfad", "zskt", "inversion", "cmi", "fast"),
    *("cgdd_no_target", "cgdd_no_labels", "cgdd_no_attention", "cgdd_no_adversarial"),
    *("cgdd_no_bn", "cgdd_no_balance"),
    "cgdd_no_activation",
]

pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the benchmarks are only in the repository")


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    """benchmarks/classification.py."""
    return importlib.import_module("classification")


@pytest.fixture(scope="module")
def trained(benchmark: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder in which the smoke size's teacher is trained."""
    work = tmp_path_factory.mktemp("work")
    assert benchmark.run_one(("example/teacher", 0), "smoke", Path("nowhere"), work, 1000.0) == 0
    return work


# The rows.


def test_every_size_has_the_rows_that_it_promises(benchmark: ModuleType) -> None:
    assert list(benchmark.SIZES["cpu"].pairs["fashion-mnist"].rows) == ROWS
    assert list(benchmark.SIZES["long"].pairs["fashion-mnist"].rows) == ["teacher", "kd_real", "cgdd", "fast"]
    assert list(benchmark.SIZES["cifar"].pairs["cifar10"].rows) == ["teacher", "kd_real", "cgdd", "fast", "noise"]
    paper = benchmark.SIZES["paper"].pairs
    assert list(paper) == ["cifar10-resnet56-20", "cifar10-resnet34-18"]
    for pair in paper.values():
        assert set(pair.rows) == set(ROWS)
    assert set(benchmark.SIZES["smoke"].pairs["example"].rows) == set(ROWS)


def test_every_row_sets_options_that_its_method_and_training_have(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DATAFREE_DATA", str(tmp_path))
    for size in benchmark.SIZES.values():
        for pair in size.pairs.values():
            for row in pair.rows.values():
                Training(**{**pair.training, **row.training})
                Classification(num_classes=10, image_size=(28, 28), **{**pair.task, **row.task})
                if row.method in SOURCES:
                    benchmark.make_source(row, pair, tmp_path)


@pytest.mark.parametrize(
    ("row", "option"),
    [
        ("cgdd_no_target", "target_weight"),
        ("cgdd_no_adversarial", "adversarial_weight"),
        ("cgdd_no_bn", "bn_weight"),
        ("cgdd_no_balance", "balance_weight"),
        ("cgdd_no_activation", "activation_weight"),
        ("cgdd_no_attention", "attention_weight"),
    ],
)
@pytest.mark.parametrize(("size", "pair"), [("cpu", "fashion-mnist"), ("paper", "cifar10-resnet34-18")])
def test_an_ablation_sets_one_weight_to_zero(
    benchmark: ModuleType, size: str, pair: str, row: str, option: str
) -> None:
    rows = benchmark.SIZES[size].pairs[pair].rows
    whole, part = rows["cgdd"], rows[row]
    if option == "attention_weight":
        assert (part.source, part.training) == (whole.source, {**whole.training, option: 0.0})
    else:
        assert option in {field.name for field in fields(SOURCES["cgdd"])}
        assert (part.source, part.training) == ({**whole.source, option: 0.0}, whole.training)


def test_rows_are_chosen_by_either_name_and_come_with_their_teacher(benchmark: ModuleType) -> None:
    paper = benchmark.SIZES["paper"]
    assert benchmark.chosen_rows(paper, ["noise"]) == [
        *("cifar10-resnet56-20/teacher", "cifar10-resnet56-20/noise"),
        *("cifar10-resnet34-18/teacher", "cifar10-resnet34-18/noise"),
    ]
    only = benchmark.chosen_rows(paper, ["cifar10-resnet34-18/cgdd"])
    assert only == ["cifar10-resnet34-18/teacher", "cifar10-resnet34-18/cgdd"]
    assert len(benchmark.chosen_rows(benchmark.SIZES["cpu"], [])) == len(ROWS)
    with pytest.raises(ValueError, match="there is no row 'cgd'; known: fashion-mnist/teacher"):
        benchmark.chosen_rows(benchmark.SIZES["cpu"], ["noise", "cgd"])


def test_missing_data_is_named_with_a_way_out(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cpu, cifar, smoke = (benchmark.SIZES[name] for name in ("cpu", "cifar", "smoke"))
    monkeypatch.setenv("DATAFREE_DATA", str(tmp_path))
    assert "apt-get install dataset-fashion-mnist" in benchmark.missing_data(cpu, ["fashion-mnist/noise"], tmp_path)
    assert "test.tar.xz does not exist" in benchmark.missing_data(cifar, ["cifar10/noise"], tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").touch()
    assert benchmark.missing_data(cpu, ["fashion-mnist/noise"], tmp_path) is None
    assert "road-proxy/images does not exist" in benchmark.missing_data(cpu, ["fashion-mnist/kd_proxy"], tmp_path)
    monkeypatch.delenv("DATAFREE_DATA")
    assert "DATAFREE_DATA is not set" in benchmark.missing_data(cpu, ["fashion-mnist/kd_proxy"], tmp_path)
    assert benchmark.missing_data(smoke, [f"example/{row}" for row in ROWS], tmp_path) is None


# One cell.


@pytest.mark.parametrize("row", some([row for row in ROWS if row != "teacher"], "student_labels", "cgdd", "cmi"))
def test_every_row_runs_and_is_scored(benchmark: ModuleType, trained: Path, row: str) -> None:
    if not benchmark.is_known(benchmark.SIZES["smoke"].pairs["example"].rows[row]):
        pytest.skip("this version has no such method")
    assert benchmark.run_one((f"example/{row}", 0), "smoke", Path("nowhere"), trained, 1000.0) == 0
    cell = json.loads((trained / "seed0" / "example" / row / "cell.json").read_text())
    assert 0 <= cell["metrics"]["top1"] <= 1
    assert ("agreement" in cell["metrics"]) == (row != "student_labels")
    assert cell["metrics"]["images"] >= 8  # two steps of four
    assert cell["seconds"] > 0 and cell["peak_memory_mib"] > 0
    assert not (trained / "seed0" / "example" / row / "state").exists()


def test_a_cell_whose_time_is_up_goes_on_and_keeps_its_clock(
    benchmark: ModuleType, trained: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained / "seed0" / "example" / "teacher", tmp_path / "seed0" / "example" / "teacher")
    folder = tmp_path / "seed0" / "example" / "noise"
    cell = ("example/noise", 0)
    assert benchmark.run_one(cell, "smoke", Path("nowhere"), tmp_path, -1.0) == 75
    assert (folder / "state" / "state.pt").is_file() and not (folder / "cell.json").exists()
    (folder / "seconds.json").write_text("600.0")  # what earlier pieces took
    assert benchmark.run_one(cell, "smoke", Path("nowhere"), tmp_path, 1000.0) == 0
    assert json.loads((folder / "cell.json").read_text())["seconds"] > 600


def test_images_are_those_of_samples_and_of_updates(benchmark: ModuleType) -> None:
    training = Training(steps=10, batch_size=8)
    assert benchmark.images_made(Noise(), training) == 80
    made = SOURCES["cgdd"](batch_size=5, warmup=3, update_every=4)  # updates before steps 0, 4 and 8, and three first
    assert benchmark.images_made(made, training) == 80 + 5 * 6


def test_pictures_in_memory_are_handed_out_without_those_held_out(benchmark: ModuleType) -> None:
    shades = torch.arange(40, dtype=torch.uint8)[:, None, None, None].expand(40, 1, 4, 4)
    source = benchmark.Pictures(images=shades)
    source.attach(
        SourceContext(
            task=Classification(num_classes=2, image_size=(4, 4)), teacher=nn.Identity(), steps=1, batch_size=4
        )
    )
    torch.manual_seed(0)
    drawn = source.sample(400).images
    assert drawn.shape == (400, 3, 4, 4)
    assert set((drawn[:, 1, 2, 3] * 255).round().int().tolist()) == set(range(40)) - {0, 13, 26, 39}
    assert (source.validation_images(9)[:, 0, 0, 0] * 255).round().int().tolist() == [0, 13, 26, 39]


def test_a_packed_folder_is_read_with_classes_in_order_of_their_names(benchmark: ModuleType, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "test.tar.xz", "w:xz") as archive:
        for name, value in (("test/frog/1.jpg", 200), ("test/bird/1.jpg", 50), ("test/frog/0.jpg", 120)):
            content = io.BytesIO()
            Image.new("RGB", (6, 4), (value, value, value)).save(content, "JPEG")
            member = tarfile.TarInfo(name)
            member.size = content.tell()
            content.seek(0)
            archive.addfile(member, content)
    data = benchmark.load_tar(tmp_path / "test.tar.xz")
    assert data.class_names == ["bird", "frog"]
    assert data.labels.tolist() == [1, 0, 1]
    assert data.images.shape == (3, 3, 4, 6)
    assert (data.images.float().mean((1, 2, 3)) - torch.tensor([200.0, 50, 120])).abs().max() < 3


def test_the_papers_stem_keeps_small_images_large(benchmark: ModuleType) -> None:
    import classification_rows

    network = classification_rows.small_stem("resnet18", num_classes=10)
    sizes = {}
    for name in ("conv1", "layer1", "layer4"):
        getattr(network, name).register_forward_hook(lambda m, i, out, n=name: sizes.update({n: tuple(out.shape)}))
    with torch.no_grad():
        assert network.eval()(torch.rand(1, 3, 32, 32)).shape == (1, 10)
    assert sizes == {"conv1": (1, 64, 32, 32), "layer1": (1, 64, 32, 32), "layer4": (1, 512, 4, 4)}


# All of them.

FAKE = """
import argparse, json, pathlib, sys, time
p = argparse.ArgumentParser()
p.add_argument("--work", type=pathlib.Path); p.add_argument("--one", nargs=2); p.add_argument("--max-time")
a = p.parse_args()
row, seed = a.one
log = a.work / "log"
with log.open("a") as f: f.write(f"begin {row} {seed}\\n")
time.sleep(0.2)
if row == "broken": sys.exit(3)
if row == "slow": sys.exit(75)
folder = a.work / f"seed{seed}" / row
folder.mkdir(parents=True)
(folder / "cell.json").write_text(json.dumps({"metrics": {}}))
with log.open("a") as f: f.write(f"end {row} {seed}\\n")
"""


def run_fakes(tmp_path: Path, cells: list[tuple[str, int]], **options: Any) -> tuple[int, list[str]]:
    """Run cells of a script that only notes that it was called; the status, and what was noted."""
    from cells import run_cells

    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    (tmp_path / "log").write_text("")
    command = [sys.executable, "-S", str(script), "--work", str(tmp_path)]
    code = run_cells(command, cells, tmp_path, **{"max_time": 1000.0, **options})
    return code, (tmp_path / "log").read_text().splitlines()


def needs_teacher(cell: tuple[str, int]) -> list[tuple[str, int]]:
    return [] if cell[0] == "teacher" else [("teacher", cell[1])]


def test_cells_run_once_in_order_one_at_a_time(benchmark: ModuleType, tmp_path: Path) -> None:
    cells = [("teacher", 0), ("a", 0), ("a", 1)]
    expected = ["begin teacher 0", "end teacher 0", "begin a 0", "end a 0", "begin a 1", "end a 1"]
    assert run_fakes(tmp_path, cells) == (0, expected)
    assert run_fakes(tmp_path, cells) == (0, [])


def test_cells_run_together_but_after_what_they_need(benchmark: ModuleType, tmp_path: Path) -> None:
    cells = [("teacher", 0), ("a", 0), ("b", 0), ("teacher", 1)]
    code, log = run_fakes(tmp_path, cells, jobs=2, needs=needs_teacher)
    assert code == 0
    assert sorted(log[:2]) == ["begin teacher 0", "begin teacher 1"]  # both can start at once, a and b cannot
    for row in "ab":
        assert log.index(f"begin {row} 0") > log.index("end teacher 0")


def test_a_cell_that_fails_stops_the_rest_unless_they_are_to_go_on(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [("broken", 0), ("a", 0), ("b", 0)]
    assert run_fakes(tmp_path, cells) == (3, ["begin broken 0"])
    needs_broken = {"a": [("broken", 0)]}
    code, log = run_fakes(tmp_path, cells, keep_going=True, needs=lambda cell: needs_broken.get(cell[0], []))
    assert (code, log) == (3, ["begin broken 0", "begin b 0", "end b 0"])
    assert "broken seed 0: failed with exit status 3" in capsys.readouterr().out


def test_when_time_is_up_nothing_more_is_started(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_fakes(tmp_path, [("slow", 0), ("a", 0)], keep_going=True) == (75, ["begin slow 0"])
    assert run_fakes(tmp_path, [("a", 0)], max_time=1.0) == (75, [])
    assert "time is up; the same command resumes" in capsys.readouterr().out


def cells_of(top1: list[float], **more: float) -> list[dict[str, Any]]:
    return [
        {"seed": seed, "metrics": {"top1": value, "images": 2e6, **more}, "seconds": 90.0, "peak_memory_mib": 1000.0}
        for seed, value in enumerate(top1)
    ]


def test_what_only_the_whole_knows_is_added_to_each_cell(benchmark: ModuleType) -> None:
    rows = {"p/teacher": cells_of([0.8, 0.5]), "p/noise": cells_of([0.4, 0.4]), "q/noise": cells_of([0.4])}
    found = benchmark.finished(rows)
    assert [cell["metrics"]["relative"] for cell in found["p/noise"]] == pytest.approx([0.5, 0.8])
    assert "relative" not in found["q/noise"][0]["metrics"]  # its teacher is not there
    assert found["p/noise"][0]["metrics"]["minutes"] == 1.5
    assert found["p/noise"][0]["metrics"]["peak_memory_mb"] == pytest.approx(1048.576)


def test_the_table_shows_means_spreads_and_what_was_not_run(benchmark: ModuleType) -> None:
    rows = {
        "fashion-mnist/teacher": cells_of([0.9, 0.9]),
        "fashion-mnist/cgdd": cells_of([0.72, 0.81], agreement=0.5),
    }
    table = benchmark.table("fashion-mnist", benchmark.SIZES["cpu"], benchmark.finished(rows))
    assert "| teacher | 90.0 ± 0.0 | 100.0 ± 0.0 | – | 2 | 1.5 wall | 2.00 | 1049 |" in table
    assert "| cgdd | 76.5 ± 6.4 | 85.0 ± 7.1 | 50.0 ± 0.0 | 2 | 1.5 wall | 2.00 | 1049 |" in table
    assert "| dafl | not run | – | – | 0 | – | – | – |" in table


def test_cifars_tables_say_that_their_figures_are_not_cifars(benchmark: ModuleType) -> None:
    rows = {"cifar10-resnet34-18/cmi": cells_of([0.8], top1_exact100=0.9)}
    table = benchmark.table("cifar10-resnet34-18", benchmark.SIZES["paper"], benchmark.finished(rows))
    assert "JPEG copies" in table and "no figure here is CIFAR-10's own" in table
    assert "| cmi | 80.0 | – | – | 1 | 1.5 wall | 2.00 | 1049 | 90.0 | 94.8 |" in table


def test_a_table_gets_a_section_where_it_has_none(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import results

    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "page.md"
    page.write_text("# Page\n\n<!-- a -->\nold\n<!-- /a -->\n", encoding="utf-8")
    monkeypatch.setattr(results, "HERE", tmp_path / "benchmarks")
    results.write_table("page.md", "b", "| new |\n", section="## B\n\nText.")
    results.write_table("page.md", "b", "| newer |\n", section="## B\n\nText.")
    results.write_table("page.md", "a", "| a |\n")
    expected = "# Page\n\n<!-- a -->\n| a |\n<!-- /a -->\n\n## B\n\nText.\n\n<!-- b -->\n| newer |\n<!-- /b -->\n"
    assert page.read_text(encoding="utf-8") == expected


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_command_runs_cells_together_and_shows_the_table(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "classification.py"), "--size", "smoke", "--work", str(tmp_path)]
    command += ["--seeds", "0", "--jobs", "2", "--rows", "example/noise", "example/kd_real", "example-stem/cgdd"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {path.parent.name for path in tmp_path.rglob("cell.json")} == {"teacher", "noise", "kd_real", "cgdd"}
    assert "| dafl | not run |" in done.stdout
    assert "| noise | not run |" not in done.stdout
