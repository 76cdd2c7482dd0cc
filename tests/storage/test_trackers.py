"""Trackers get the metrics of metrics.jsonl, go on with a resumed run, and stop none."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from datafree.errors import Interrupted, RecipeError
from datafree.recipe.recipe import Recipe
from datafree.run import Outcome, run_recipe
from datafree.storage import trackers
from datafree.storage.atomic import Growing
from datafree.storage.run_directory import Run
from small_runs import recipe_for

PINNED = {"device": "cpu", "precision": "fp32", "steps": 6, "log_every": 2, "picture_every": 6}


class Recorder:
    """A tracker that keeps what it is told."""

    told: ClassVar[list[tuple[int, dict[str, float]]]] = []
    pictures: ClassVar[list[tuple[str, int, tuple[int, ...]]]] = []
    names: ClassVar[list[str]] = []
    closed: ClassVar[int] = 0

    def __init__(self, folder: Path, recipe: Mapping[str, Any], names: dict[str, str]) -> None:
        torch.rand(3)  # a package may draw numbers
        print("* initialised")
        self.names.append(names.setdefault("wandb", f"run {len(self.names)}"))

    def scalars(self, values: dict[str, float], index: int) -> None:
        self.told.append((index, dict(values)))

    def image(self, name: str, picture: Tensor, index: int) -> None:
        self.pictures.append((name, index, tuple(picture.shape)))

    def close(self) -> None:
        type(self).closed += 1


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    for name in ("told", "pictures", "names"):
        monkeypatch.setattr(Recorder, name, [])
    monkeypatch.setattr(Recorder, "closed", 0)
    monkeypatch.setitem(trackers.KINDS, "wandb", Recorder)
    monkeypatch.setattr(trackers, "find_spec", lambda name: name)
    return Recorder


def tracked(tmp_path: Path, *kinds: str, **training: Any) -> Recipe:
    return recipe_for(tmp_path, {"method": "noise"}, **{**PINNED, "track": list(kinds), **training})


def lines(run: Path) -> list[tuple[int, dict[str, float]]]:
    content = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line.pop("index"), {k: v for k, v in line.items() if k != "step"}) for line in content]


def weights(outcome: Outcome) -> list[Tensor]:
    return list(outcome.student.state_dict().values())


def test_a_tracker_gets_what_the_log_has_and_changes_no_bit(
    tmp_path: Path, recorder: type[Recorder], capsys: pytest.CaptureFixture[str]
) -> None:
    plain = run_recipe(tracked(tmp_path), tmp_path / "plain")
    outcome = run_recipe(tracked(tmp_path, "wandb"), tmp_path / "run")
    assert recorder.told == lines(tmp_path / "run") == lines(tmp_path / "plain")
    assert [(name, index) for name, index, _ in recorder.pictures] == [("samples", 6)]
    assert recorder.closed == 1
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(weights(plain), weights(outcome), strict=True))
    assert capsys.readouterr().out == ""  # standard output is for results


def test_tensorboard_is_on_unless_track_leaves_it_out(tmp_path: Path) -> None:
    run_recipe(recipe_for(tmp_path, {"method": "noise"}, **PINNED), tmp_path / "default")
    assert list((tmp_path / "default" / "tensorboard").iterdir())
    run_recipe(tracked(tmp_path), tmp_path / "none")
    assert not (tmp_path / "none" / "tensorboard").exists()


def test_tensorboard_has_each_line_of_the_log_once_also_of_a_run_that_was_resumed_or_went_back(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def shown(run: Path) -> list[tuple[int, float]]:
        events = EventAccumulator(str(run / "tensorboard"))
        events.Reload()
        return [(event.step, event.value) for event in events.Scalars("loss")]

    def logged(run: Path) -> list[tuple[int, float]]:
        return [(index, pytest.approx(values["loss"])) for index, values in lines(run) if "loss" in values]

    asked = iter([None, None, "enough"])
    recipe = tracked(tmp_path, "tensorboard", log_every=1)
    with pytest.raises(Interrupted):
        run_recipe(recipe, tmp_path / "run", stop=lambda: next(asked))
    run_recipe(tracked(tmp_path, "tensorboard", log_every=1), tmp_path / "run")
    assert shown(tmp_path / "run") == logged(tmp_path / "run") and len(logged(tmp_path / "run")) == 6

    run = Run(tmp_path / "back", {})
    for start in (0, 0, 2):  # back to its first step, then to its second
        run.start(start)
        for index in range(start + 1, start + 4):
            run.log(index, index, {"loss": start + index / 10})
    run.close()
    assert shown(run.path) == logged(run.path) and len(logged(run.path)) == 5


def test_what_is_logged_while_a_disk_is_full_is_in_tensorboard_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, full, flush = Run(tmp_path / "run", {}), False, Growing.flush

    def flushed(file: Growing, *, to_disk: bool = False) -> None:
        if full:
            raise OSError(28, "No space left on device")
        flush(file, to_disk=to_disk)

    monkeypatch.setattr(Growing, "flush", flushed)
    run.start(0)
    for index in range(1, 6):
        full = index in (2, 3)
        run.log(index, index, {"loss": index / 10, "accuracy": index / 5, "rate": 1.0})
    run.close()
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    for name in ("loss", "accuracy", "rate"):
        wanted = [(index, pytest.approx(values[name])) for index, values in lines(run.path)]
        assert [(event.step, event.value) for event in events.Scalars(name)] == wanted and len(wanted) == 5


def test_a_resumed_run_goes_on_under_its_name_and_another_track_is_no_other_recipe(
    tmp_path: Path, recorder: type[Recorder]
) -> None:
    asked = iter([None, None, "enough"])
    with pytest.raises(Interrupted):
        run_recipe(tracked(tmp_path, "wandb", log_every=1), tmp_path / "run", stop=lambda: next(asked))
    run_recipe(tracked(tmp_path, "tensorboard", "wandb", log_every=1), tmp_path / "run")
    assert recorder.names == ["run 0", "run 0"]
    assert json.loads((tmp_path / "run" / "trackers.json").read_text()) == {"wandb": "run 0"}
    assert [index for index, _ in recorder.told] == [index for index, _ in lines(tmp_path / "run")]


def test_a_tracker_that_fails_is_told_once_and_stops_nothing(
    tmp_path: Path, recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Recorder, values: dict[str, float], index: int) -> None:
        raise ConnectionError("the server is away\nfor long")

    monkeypatch.setattr(recorder, "scalars", fail)
    said: list[str] = []
    run_recipe(tracked(tmp_path, "wandb"), tmp_path / "run", say=said.append)
    assert [line for line in said if "wandb" in line] == [
        "warning: wandb does not take the run's metrics: ConnectionError: the server is away for long; "
        "the run continues without"
    ]
    assert (tmp_path / "run" / "result.json").exists()


def test_a_tracker_that_is_not_installed_is_said_with_its_command_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(RecipeError) as caught:
        run_recipe(tracked(tmp_path, "trackio", "mlflow"), tmp_path / "run")
    assert caught.value.problems == [
        f"training.track names {name}, which is not installed: pip install 'datafree[{name}]'"
        for name in ("trackio", "mlflow")
    ]
    assert not (tmp_path / "run").exists()


# The packages themselves, where they are installed; all of them write into a folder.


def test_mlflow_has_the_metrics_and_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run_recipe(tracked(tmp_path, "mlflow"), tmp_path / "run")
    name = json.loads((tmp_path / "run" / "trackers.json").read_text())["mlflow"]
    kept = mlflow.MlflowClient().get_run(name)
    assert kept.data.params["training.steps"] == "6" and kept.info.status == "FINISHED"
    history = {m.step: m.value for m in mlflow.MlflowClient().get_metric_history(name, "loss")}
    assert history == pytest.approx({index: line["loss"] for index, line in lines(tmp_path / "run") if "loss" in line})
    assert [file.path for file in mlflow.MlflowClient().list_artifacts(name, "samples")] == ["samples/000006.png"]


def test_wandb_offline_keeps_the_run_in_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run_recipe(tracked(tmp_path, "wandb"), tmp_path / "run")
    name = json.loads((tmp_path / "run" / "trackers.json").read_text())["wandb"]
    (file,) = (tmp_path / "run" / "wandb").glob(f"offline-run-*-{name}/run-{name}.wandb")
    keys = {key for _, line in lines(tmp_path / "run") for key in line}

    def missing() -> set[str]:
        return {key for key in keys if key.encode() not in file.read_bytes()}

    for _ in range(100):  # a process of its own writes it, and may do so after its answer that all is finished
        if len(missing()) > 1:
            time.sleep(0.1)
    assert len(missing()) <= 1  # one may lie across two blocks of the file


def test_trackio_has_the_metrics_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    run_recipe(tracked(tmp_path, "trackio"), tmp_path / "run")
    with sqlite3.connect(tmp_path / "trackio" / "datafree.db") as base:
        rows = base.execute("select step, metrics from metrics order by step").fetchall()
    found = {step: line for step, text in rows if "loss" in (line := json.loads(text))}
    wanted = {index: line for index, line in lines(tmp_path / "run") if "loss" in line}
    assert {step: line["loss"] for step, line in found.items()} == pytest.approx(
        {index: line["loss"] for index, line in wanted.items()}
    )
