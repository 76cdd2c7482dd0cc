"""The CamVid benchmark: its rows, its tables and its one form of results; the whole of it, in miniature."""

import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_rows_are_the_papers_and_the_two_more() -> None:
    import camvid

    assert camvid.MAIN == [
        "teacher", "student_labels", "kd_true", "kd_proxy", "dcgan", "degan", "degan_weighted", "degan_mixed",
        "degan_weighted_mixed", "dfad", "noise",
    ]  # fmt: skip
    assert set(camvid.PUBLISHED) == set(camvid.MAIN)


def test_each_setting_of_table_2_and_each_ratio_has_a_row_and_those_of_table_1_are_not_run_twice() -> None:
    import camvid

    assert camvid.table_2_row(0, 0, "plain") == camvid.table_2_row(0, 0, "weighted") == "dcgan"
    assert camvid.table_2_row(10, 0, "plain") == camvid.table_2_row(10, 0, "weighted") == "degan"
    assert camvid.table_2_row(0, 10, "weighted") == "degan_weighted"
    assert camvid.ratio_row("degan_weighted", 1, 1) == "degan_weighted_mixed"
    assert (camvid.ratio_row("dcgan", 1, 0), camvid.ratio_row("dcgan", 0, 1)) == ("kd_proxy", "dcgan")
    named = {camvid.table_2_row(e, d, kind) for e, d in camvid.TABLE_2 for kind in ("plain", "weighted")}
    named |= {camvid.ratio_row(gan, *ratio) for gan in ("dcgan", "degan_weighted") for ratio in camvid.RATIOS}
    assert named <= set(camvid.SOURCES)
    assert len(camvid.EXTRA) == len(set(camvid.EXTRA)) == 10


def test_tables_show_mean_and_spread_beside_the_paper() -> None:
    import camvid

    cells = [{"metrics": {"miou": m, "pixel_accuracy": 0.5}, "seconds": 60.0} for m in (0.2, 0.3, 0.4)]
    table = camvid.tables({"kd_proxy": cells}, camvid.SIZES["cpu"])
    assert "| kd_proxy | 30.0 ± 10.0 | 50.0 ± 0.0 | 3 | 1.0 wall | 29.4 | 70.5 |" in table
    assert "| dcgan | not run | not run | 0 | – | 22.7 | 66.9 |" in table
    assert "| degan_weighted | 30.0 ± 10.0 | not run | not run | not run | not run |" in table  # 1:0 is the proxy row


def test_results_are_written_in_the_one_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import results

    (tmp_path / "results").mkdir()
    monkeypatch.setattr(results, "HERE", tmp_path)
    cells = [{"metrics": {"miou": m}, "seconds": 2.0, "peak_memory_mib": 100.0 * m} for m in (1.0, 3.0)]
    measured = [{**cell, "commit": "12ab"} for cell in cells]
    rows = {"noise": cells, "gan": measured}
    path = results.write_results("camvid", "cpu", rows, command="python benchmarks/camvid.py")
    content = json.loads(path.read_text())
    assert path.name == "camvid-cpu.json"
    assert {"benchmark", "size", "command", "commit", "hardware", "versions", "date", "rows"} == set(content)
    row = {
        "metrics": {"miou": {"mean": 2.0, "std": 1.414214, "values": [1.0, 3.0]}},
        "seconds": 2.0,
        "peak_memory_mib": 300.0,
    }
    assert content["rows"] == [{"name": "noise", **row}, {"name": "gan", "commits": ["12ab"], **row}]


def test_the_long_size_differs_in_schedules_alone_and_has_the_papers_own_number_of_updates() -> None:
    import camvid

    cpu, long = camvid.SIZES["cpu"], camvid.SIZES["long"]
    changed = {field.name for field in fields(cpu) if getattr(cpu, field.name) != getattr(long, field.name)}
    assert changed == {"student_steps", "gan_updates", "schedules", "dfad_steps"}
    assert sorted({*long.schedules, long.gan_updates}) == [1000, 3000, 9400]
    assert long.gan_updates * long.gan_batch == pytest.approx(150_000, rel=0.01)
    schedules = [f"schedule/{gan}_{n}" for n in (1000, 3000) for gan in ("degan_weighted", "degan_weighted_mixed")]
    assert camvid.extra_rows(long) == [*camvid.EXTRA, *schedules]
    assert camvid.extra_rows(cpu) == camvid.EXTRA


def test_a_schedules_rows_differ_from_the_main_ones_in_their_number_of_updates(tmp_path: Path) -> None:
    import camvid

    cell = camvid.Cell(size=camvid.SIZES["long"], seed=0, data=tmp_path, folder=tmp_path, stop=lambda: None)
    for folder in ("camvid/train/images", "road-proxy/images"):
        (tmp_path / folder).mkdir(parents=True)
    main, short = (camvid.SOURCES[row](cell) for row in ("degan_weighted", "schedule/degan_weighted_3000"))
    assert (main.warmup, short) == (9400, replace(main, warmup=3000))
    mixed = camvid.SOURCES["schedule/degan_weighted_mixed_3000"](cell)
    assert mixed.parts[1].generator == tmp_path / "schedule" / "degan_weighted_3000" / "generator.safetensors"
    assert camvid.schedule_row("degan_weighted", 9400, camvid.SIZES["long"]) == "degan_weighted"


def test_every_row_comes_after_the_rows_whose_networks_it_uses() -> None:
    import camvid

    assert camvid.with_needs(["degan_weighted_mixed", "kd_proxy"]) == [
        *("teacher", "degan_weighted", "degan_weighted_mixed", "kd_proxy"),
    ]
    assert camvid.needs("ratio/dcgan_1_3") == ["teacher", "dcgan"]
    assert camvid.needs("schedule/degan_weighted_mixed_1000") == ["teacher", "schedule/degan_weighted_1000"]
    assert camvid.needs("table2/plain_e0_d10") == ["teacher"] and camvid.needs("student_labels") == []
    rows = [*camvid.MAIN, *camvid.extra_rows(camvid.SIZES["long"])]
    assert camvid.with_needs(rows) == rows  # as they are written down


def test_a_schedule_has_its_line_beside_the_proxy_photos() -> None:
    import camvid

    one = {
        row: [{"metrics": {"miou": value, "pixel_accuracy": 0.5}, "seconds": 60.0, "processor_seconds": 30.0}]
        for row, value in [("kd_proxy", 0.28), ("degan_weighted", 0.25), ("schedule/degan_weighted_mixed_1000", 0.29)]
    }
    table = camvid.tables(one, camvid.SIZES["long"])
    assert "| 1,000 | not run | 29.0 | 28.0 |" in table and "| 9,400 | 25.0 | not run | 28.0 |" in table
    assert "| degan_weighted | 25.0 | 50.0 | 1 | 0.5 |" in table  # processor minutes, where they were counted


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_schedules_rows_run_with_what_they_use(shared_data: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "camvid.py"), "--size", "smoke", "--data", str(shared_data)]
    command += ["--work", str(tmp_path), "--rows", "schedule/degan_weighted_mixed_1", "--seeds", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = {str(path.parent.relative_to(tmp_path / "seed0")) for path in tmp_path.rglob("cell.json")}
    assert rows == {"teacher", "schedule/degan_weighted_1", "schedule/degan_weighted_mixed_1"}
    assert "| 1 | not run |" not in done.stdout and "| GAN updates | generated |" in done.stdout
    cell = json.loads((tmp_path / "seed0" / "teacher" / "cell.json").read_text())
    assert cell["processor_seconds"] > 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_row_runs_is_resumed_and_is_not_run_again(shared_data: Path, tmp_path: Path) -> None:
    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(BENCHMARKS / "camvid.py"), "--size", "smoke", "--data", str(shared_data)]
        command += ["--work", str(tmp_path), *options]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert run("--one", "teacher", "0").returncode == 0
    stopped = run("--one", "degan", "0", "--max-time", "0s")
    assert (stopped.returncode, "goes on" in stopped.stdout) == (75, True)
    done = run("--one", "degan", "0")
    assert done.returncode == 0, done.stderr
    cell = json.loads((tmp_path / "seed0" / "degan" / "cell.json").read_text())
    assert set(cell["metrics"]) == {"miou", "pixel_accuracy"}
    assert (tmp_path / "seed0" / "degan" / "generator.safetensors").is_file()
