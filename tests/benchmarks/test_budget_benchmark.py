"""The benchmark of students by processor minutes: its rows are recipes, its table is of their cells."""

import importlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor, nn

from datafree.networks.load import NetworkSpec
from datafree.report.charts import SHOWN

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SVG = "{http://www.w3.org/2000/svg}"
TEACHER = NetworkSpec(network="datafree/resnet", weights=Path("builtin:fashion/teacher.safetensors"))


@pytest.fixture(scope="module")
def budget() -> ModuleType:
    """benchmarks/budget.py."""
    return importlib.import_module("budget")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """DATAFREE_DATA with the folders that recipes name, empty."""
    for folder in ("camvid/train/images", "road-proxy/images", "bccd/images/train"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    monkeypatch.setenv("DATAFREE_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("row", "init"),
    [
        *(("fashion-groupnorm/auto/20", "teacher"), ("fashion-vit/auto/20", "teacher")),
        ("fashion-onnx/auto-random/20", "random"),
        *(("fashion/auto/20", "teacher"), ("fashion/auto-random/20", "random"), ("cifar10/procedural/20", "teacher")),
        *(("fashion-nobn/procedural/20", "teacher"), ("camvid/auto/20", "teacher"), ("bccd/auto/20", "teacher")),
        ("coco/auto/20", "teacher"),
    ],
)
def test_a_row_is_a_recipe_of_its_time_and_start(budget: ModuleType, row: str, init: str, tmp_path: Path) -> None:
    recipe = budget.recipe_of(row, 3, tmp_path, TEACHER)
    assert (recipe.training.time, recipe.training.seed, recipe.student.init) == ("20m", 3, init)
    assert recipe.data is None  # what is scored on is not known to the run


def test_photos_are_half_of_auto_and_a_method_of_their_own(budget: ModuleType, data: Path, tmp_path: Path) -> None:
    auto, alone = (budget.recipe_of(f"camvid-photos/{method}/5", 0, tmp_path, TEACHER) for method in ("auto", "photos"))
    assert auto.source.photos == alone.source.path == data / "road-proxy" / "images"


@pytest.mark.parametrize(("problem", "folder"), [("camvid", "camvid/train/images"), ("bccd", "bccd/images/train")])
def test_the_upper_line_learns_from_the_training_split(
    budget: ModuleType, problem: str, folder: str, data: Path, tmp_path: Path
) -> None:
    assert budget.recipe_of(f"{problem}/real/5", 0, tmp_path, TEACHER).source.path == data / folder


def test_rows_are_every_problem_method_start_and_budget_once(budget: ModuleType) -> None:
    assert len(set(budget.ROWS)) == len(budget.ROWS)
    three = {"auto", "procedural", "real"}
    fashion = ("fashion", "fashion-nobn", "fashion-groupnorm", "fashion-vit", "fashion-onnx")
    expected = dict.fromkeys((*fashion, "cifar10", "cifar10-deep", "camvid", "bccd"), three)
    without_real = {"auto", "procedural"}  # of COCO no other images are had
    expected |= {"camvid-photos": {"auto", "photos"}, "coco": without_real, "coco-wide": without_real}
    rows = {
        f"{n}/{m}{start}/{t}"
        for n, ms in expected.items()
        for m in ms
        for start in (("-random",) if n == "fashion-onnx" else ("", "-random"))  # a file has no weights to start from
        for t in (5, 20, 60)
    }
    assert set(budget.ROWS) == rows


def test_a_teacher_is_trained_once_and_kept_in_the_work_folder(budget: ModuleType, tmp_path: Path) -> None:
    trained: list[Path] = []

    def train(folder: Path, stop: Any) -> None:
        trained.append(folder)
        (folder / "teacher").mkdir(parents=True)
        (folder / "teacher" / "teacher.safetensors").touch()

    problem = replace(budget.PROBLEMS["camvid"], train=train)
    specs = [budget.trained(problem, "camvid", tmp_path, lambda: None) for _ in range(2)]
    assert trained == [tmp_path / "teachers" / "camvid"]
    assert specs[0] == specs[1] == replace(problem.teacher, weights=trained[0] / "teacher" / "teacher.safetensors")


@pytest.mark.thorough
def test_the_file_that_only_answers_is_the_fashion_teacher_with_batchnorm_folded(
    budget: ModuleType, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    task = budget.PROBLEMS["fashion"].task
    file = budget.trained(budget.PROBLEMS["fashion-onnx"], "fashion-onnx", tmp_path, lambda: None)
    assert file.network == str(tmp_path / "teachers" / "fashion-onnx" / "teacher" / "teacher.onnx")
    specs = (file, budget.trained(budget.PROBLEMS["fashion"], "fashion", tmp_path, lambda: None))
    answers, network = (
        budget.prepare(spec, task, "teacher", torch.device("cpu"), torch.float32).eval() for spec in specs
    )
    images = torch.rand(3, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(answers(images), network(images), atol=1e-4, rtol=0)
    assert not answers(images.requires_grad_()).requires_grad


@pytest.mark.parametrize("name", ["fashion-groupnorm", "fashion-vit"])
def test_teachers_without_batchnorm_have_none_and_their_students_start_from_them(budget: ModuleType, name: str) -> None:
    from datafree.networks.load import build_network
    from datafree.networks.pruning.start import StartOptions, start_from_teacher

    problem = budget.PROBLEMS[name]
    teacher, student = (build_network(spec, num_classes=10).eval() for spec in (problem.teacher, problem.student))
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in teacher.modules())
    assert start_from_teacher(teacher, student, torch.rand(2, 1, 28, 28), StartOptions(refit=None)).copied.new == 0


class Answers(nn.Module):
    """The first `right` of ten images get their class, the others the next."""

    def __init__(self, right: int) -> None:
        super().__init__()
        self.right = right

    def forward(self, images: Tensor) -> Tensor:
        classes = torch.arange(10)
        return nn.functional.one_hot((classes + (classes >= self.right)) % 10, 10).float() * 4


class Labelled:
    def __init__(self) -> None:
        self.class_names = [str(label) for label in range(10)]
        self.skipped: list[str] = []

    def __len__(self) -> int:
        return 10

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield torch.zeros(10, 3, 28, 28), torch.arange(10)


def test_relative_is_the_students_score_over_its_teachers_on_test_images(
    budget: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = SimpleNamespace(student=Answers(right=6), chosen=SimpleNamespace(step=40))
    monkeypatch.setattr(budget, "run_recipe", lambda *args, **kwargs: outcome)
    monkeypatch.setattr(budget, "prepare", lambda *args: Answers(right=8))
    monkeypatch.setitem(budget.PROBLEMS, "fashion", replace(budget.PROBLEMS["fashion"], test=Labelled))
    metrics = budget.run_cell(("fashion/auto/5", 0), tmp_path, lambda: None)
    assert metrics == pytest.approx({"relative": 0.75, "top1": 0.6, "steps": 40.0, "minutes": metrics["minutes"]})


def test_the_table_has_mean_and_spread_of_the_share_in_percent(budget: ModuleType) -> None:
    cells = [{"metrics": {"relative": share}} for share in (0.5, 0.6)]
    table = budget.table({"cifar10/auto/5": cells, "cifar10/auto/60": cells[:1]})
    assert table.splitlines()[2:] == ["| cifar10 | auto | 55.0 ± 7.1 | not run | 50.0 |"]


def test_curves_are_means_over_seeds_at_the_time_that_was_spent(budget: ModuleType, tmp_path: Path) -> None:
    from pictures import write_chart

    def cells(*pairs: tuple[float, float]) -> list[dict[str, Any]]:
        return [{"metrics": {"relative": relative, "minutes": minutes}} for minutes, relative in pairs]

    rows = {"cifar10/auto/20": cells((19.0, 0.8), (21.0, 0.7)), "cifar10/auto/5": cells((4.04, 0.5))}
    lines = budget.curves({**rows, "camvid/auto/5": cells((4.5, 0.9)), "camvid/real/5": cells((5.0, 1.0))})
    assert [line.name for line in lines] == ["cifar10", "camvid"]
    assert [x for line in lines for point in line.points for x in point] == pytest.approx([4, 50, 20, 75, 4.5, 90])
    write_chart(tmp_path / "a.svg", "shares", lines, unit="%", x_unit="minutes")
    texts = [text.text for text in ElementTree.parse(tmp_path / "a.svg").getroot().iter(f"{SVG}text")]
    assert {"cifar10", "camvid", "minutes", "4", "20", "0", "100"} <= {*texts}


def test_a_chart_has_no_more_curves_than_can_be_told_apart(budget: ModuleType) -> None:
    cells = [{"metrics": {"relative": 0.5, "minutes": 5.0}}]
    found = budget.charts({f"{name}/auto/5": cells for name in budget.PROBLEMS})
    assert all(len(lines) <= SHOWN for lines in found.values())
    assert sorted(line.name for lines in found.values() for line in lines) == sorted(budget.PROBLEMS)


def test_the_teacher_without_normalisation_has_none_and_its_student_starts_from_it(
    budget: ModuleType,
) -> None:
    from datafree.networks.pruning.start import StartOptions, start_from_teacher
    from plain_network import plain

    torch.manual_seed(0)
    teacher, student = plain(10, width=4, channels=3), plain(10, width=2, channels=3)
    assert {type(layer) for layer in teacher.modules()} == {type(teacher), nn.Conv2d, nn.Linear}
    images = torch.rand(4, 3, 28, 28)
    assert teacher(images).shape == (4, 10)
    assert start_from_teacher(teacher, student, images, StartOptions(refit=None)).copied.new == 0
