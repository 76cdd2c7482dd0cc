"""The papers' claims: intervals, verdicts, and a page that says what the results files do."""

import importlib
import json
import math
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"

pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the benchmarks are only in the repository")


@pytest.fixture(scope="module")
def evidence() -> ModuleType:
    """benchmarks/evidence.py."""
    return importlib.import_module("evidence")


@pytest.fixture
def copy(evidence: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page and the results files, copied."""
    shutil.copytree(BENCHMARKS / "results", tmp_path / "benchmarks" / "results")
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "evidence.md", tmp_path / "docs")
    monkeypatch.setattr(importlib.import_module("results"), "HERE", tmp_path / "benchmarks")
    return tmp_path


def cells(values: dict[int, float], metric: str = "miou", **more: float) -> list[dict[str, Any]]:
    return [{"seed": seed, "metrics": {metric: v / 100}, "seconds": 60.0, **more} for seed, v in values.items()]


def finding(evidence: ModuleType, rows: dict[str, Any], **changes: Any) -> Any:
    claims = importlib.import_module("claims")
    options = {
        "text": "a is better",
        "source": "Table 1",
        "tables": ("t-cpu",),
        "metric": "miou",
        "row": "a",
        "than": "b",
    }
    return evidence.Finding(claim=claims.Claim(**{**options, **changes}), table="t-cpu", rows=rows)


# The page and the files.


def test_the_page_is_what_the_results_files_say(evidence: ModuleType) -> None:
    assert evidence.is_current(), "python benchmarks/evidence.py"


def test_a_number_changed_by_hand_in_a_results_file_is_noticed(evidence: ModuleType, copy: Path) -> None:
    assert evidence.is_current()
    file = copy / "benchmarks" / "results" / "camvid-cpu.json"
    content = json.loads(file.read_text())
    row = next(row for row in content["rows"] if row["name"] == "degan_weighted_mixed")
    row["metrics"]["miou"]["values"][0] += 0.01
    file.write_text(json.dumps(content))
    assert not evidence.is_current()


def test_a_number_or_a_verdict_changed_by_hand_on_the_page_is_noticed_and_written_again(
    evidence: ModuleType, copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = copy / "docs" / "evidence.md"
    right = page.read_text(encoding="utf-8")
    number = next(line for line in right.splitlines() if line.startswith("| both are better")).split("|")[3].strip()
    for old, new in ((number, number.replace("(", "(9")), ("| level", "| holds")):
        page.write_text(right.replace(old, new, 1), encoding="utf-8")
        monkeypatch.setattr(sys, "argv", ["evidence.py", "--check"])
        assert evidence.main() == 1
        assert capsys.readouterr().err.startswith("error: docs/evidence.md differs from benchmarks/results")
    monkeypatch.setattr(sys, "argv", ["evidence.py"])
    assert evidence.main() == 0
    assert page.read_text(encoding="utf-8") == right


def test_every_claim_names_rows_that_its_benchmarks_have(evidence: ModuleType) -> None:
    claims, plan = importlib.import_module("claims"), importlib.import_module("pairs")
    camvid = importlib.import_module("camvid_rows")
    sizes = {name: importlib.import_module(f"{name}_rows").SIZES for name in ("classification", "detection")}
    for claim in claims.CLAIMS:
        for table in claim.tables:
            benchmark, _, size = table.rpartition("-")
            known = [*camvid.MAIN, *camvid.EXTRA] if benchmark == "camvid" else plan.rows_of(sizes[benchmark][size])
            assert claim.row in known and (claim.than is None or claim.than in known), claim.text


def test_the_published_figures_of_claims_are_those_of_the_tables(evidence: ModuleType) -> None:
    claims, camvid = importlib.import_module("claims"), importlib.import_module("camvid_rows")
    known = dict(camvid.PUBLISHED)
    for kind, figures in camvid.PUBLISHED_2.items():
        for (entropy, diversity), pair in zip(camvid.TABLE_2, figures, strict=True):
            known.setdefault(camvid.table_2_row(entropy, diversity, kind), pair)
    for claim in claims.DEGAN:
        index = ("miou", "pixel_accuracy").index(claim.metric)
        assert not claim.published or claim.published == (known[claim.row][index], known[claim.than][index])


# Intervals and verdicts.


def test_the_interval_is_students(evidence: ModuleType) -> None:
    """Mean 2 and standard deviation 1 of three: 2 ± 4.303 / sqrt 3."""
    low, high = evidence.interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 2.4843, 2 + 2.4843), abs=1e-3)
    assert evidence.interval([1.0]) is None
    many = [1.0, 2.0, 3.0] * 10  # wider than it need be, never narrower
    assert evidence.interval(many)[1] - 2 > 2.045 * 0.8305 / math.sqrt(30)


@pytest.mark.parametrize("degrees", range(1, 10))
def test_95_percent_of_students_t_lie_within_each_limit(evidence: ModuleType, degrees: int) -> None:
    t = torch.linspace(0, evidence.T_95[degrees - 1], 200_001, dtype=torch.float64)
    scale = math.gamma((degrees + 1) / 2) / math.sqrt(degrees * math.pi) / math.gamma(degrees / 2)
    density = scale * (1 + t**2 / degrees) ** (-(degrees + 1) / 2)
    assert float(2 * torch.trapezoid(density, t)) == pytest.approx(0.95, abs=1e-4)


@pytest.mark.parametrize(
    ("differences", "less", "verdict"),
    [
        ([1.0, 1.5, 2.0], False, "holds"),  # 0.3 to 2.7
        ([1.0, 2.0, 3.0], False, "level"),  # -0.5 to 4.5
        ([-10.0, -9.9, -9.8], False, "does not at this size"),
        ([-10.0, -9.9, -9.8], True, "holds"),
        ([60.0], False, "not decided"),  # one seed decides nothing
        ([], False, "not decided"),
    ],
)
def test_a_verdict_is_where_the_interval_lies(
    evidence: ModuleType, differences: list[float], less: bool, verdict: str
) -> None:
    ours = {seed: 30.0 + difference for seed, difference in enumerate(differences)}
    found = finding(evidence, {"a": cells(ours), "b": cells({0: 30.0, 1: 30.0, 2: 30.0})}, less=less)
    assert found.verdict == verdict


def test_differences_are_of_the_seeds_that_both_have(evidence: ModuleType) -> None:
    found = finding(evidence, {"a": cells({0: 31.0, 2: 33.0}), "b": cells({0: 30.0, 1: 1.0, 2: 30.0})})
    assert found.seeds == [0, 2] and found.differences == pytest.approx([1.0, 3.0])
    assert evidence.line(found).startswith(
        "| a is better | more, no figure; Table 1 | +2.0 (32.0, 30.0) | 0, 2 | -10.7 to +14.7 | level | 4 wall |"
    )


def test_a_level_claim_says_where_the_published_difference_is_possible(evidence: ModuleType) -> None:
    rows = {"a": cells({0: 31.0, 1: 30.0, 2: 29.0}, processor_seconds=30.0), "b": cells({0: 30.0, 1: 30.0, 2: 30.0})}
    assert "| level; the paper's is within |" in evidence.line(finding(evidence, rows, published=(30.0, 29.0)))
    assert "| level |" in evidence.line(finding(evidence, rows, published=(40.0, 29.0)))


def test_a_share_is_compared_with_the_published_one(evidence: ModuleType) -> None:
    rows = {"a": cells({0: 95.0, 1: 96.0, 2: 97.0})}
    found = finding(evidence, rows, than=None, published=(99.0,))
    assert found.differences == pytest.approx([-4, -3, -2])
    assert found.verdict == "does not at this size"
    assert "| 99.00 %; Table 1 | 96.0 % | 0, 1, 2 | -5.5 to -0.5 |" in evidence.line(found)


def test_the_table_with_most_seeds_counts_and_of_equals_the_last(
    evidence: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = importlib.import_module("claims")
    both = {n: {"a": cells(dict.fromkeys(range(n), 1.0)), "b": cells(dict.fromkeys(range(n), 2.0))} for n in (0, 1, 3)}
    claim = claims.Claim(text="", source="", tables=("t-cpu", "t-long"), metric="miou", row="a", than="b")
    for counts, expected in [((3, 1), "t-cpu"), ((1, 3), "t-long"), ((3, 3), "t-long"), ((0, 0), "t-cpu")]:
        known = dict(zip(claim.tables, counts, strict=True))
        monkeypatch.setattr(evidence, "rows_of_table", lambda table, known=known: both[known[table]])
        assert evidence.find(claim).table == expected


# The tables of docs/results.md.


@pytest.mark.parametrize(
    ("benchmark", "size"),
    [("camvid", "cpu"), ("classification", "cpu"), ("classification", "long"), ("classification", "cifar"),
     ("detection", "cpu")],
)  # fmt: skip
def test_tables_of_the_results_page_are_those_of_the_results_files(
    evidence: ModuleType, benchmark: str, size: str
) -> None:
    script, rows = (
        importlib.import_module(benchmark),
        importlib.import_module("measured").measured_rows(benchmark, size),
    )
    chosen = script.SIZES[size]
    if benchmark == "camvid":
        expected = script.tables(rows, chosen)
    else:
        expected = "\n".join(script.table(pair, chosen, rows) for pair in chosen.pairs)
    name, text = f"{benchmark}-{size}", (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert f"<!-- {name} -->\n{expected}<!-- /{name} -->" in text
