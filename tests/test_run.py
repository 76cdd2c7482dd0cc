"""A recipe carried out: exact resume, choice without data, files left behind, faults before any work."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from datafree import run as run_module
from datafree.engine.progress import Progress
from datafree.errors import DataError, DatafreeError, Interrupted, NetworkError, RunError, TrainingError
from datafree.evaluation.scoring import evaluate_run
from datafree.recipe.recipe import Recipe
from datafree.run import run_recipe
from datafree.sources import SOURCES
from recipes import load, sources, write_teacher
from small_runs import SMALL, assert_same, everything, labelled, recipe_for, stop_after
from thorough import some

BROKEN = some(
    [(method, select) for method in SOURCES for select in ("last", "agreement")],
    ("cgdd", "agreement"),
)
NOISE = {"method": "noise"}


@pytest.fixture(scope="session")
def noise_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the recipe of a run, which lies in it and is finished; tests change copies of that."""
    home = tmp_path_factory.mktemp("noise")
    run_recipe(recipe_for(home, NOISE), home / "run")
    return home


@pytest.fixture
def finished(noise_home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(noise_home / "run", tmp_path / "run"))


@pytest.mark.parametrize(("method", "select"), BROKEN)
def test_broken_and_resumed_run_equals_an_unbroken_one_bit_for_bit(
    method: str, select: str, tmp_path: Path, photos: Callable[..., Path]
) -> None:
    source = sources(labelled(tmp_path / "made") if method == "dataset" else photos(10))[method]
    run_recipe(recipe_for(tmp_path, source, select=select), tmp_path / "unbroken")
    for pieces in (3, 2, 4):  # stops in the warm-up (of those that have one), between saves, and at one
        with pytest.raises(Interrupted, match="enough"):
            run_recipe(recipe_for(tmp_path, source, select=select), tmp_path / "broken", stop=stop_after(pieces))
    run_recipe(recipe_for(tmp_path, source, select=select), tmp_path / "broken")
    assert_same(everything(tmp_path / "unbroken"), everything(tmp_path / "broken"))


@pytest.mark.parametrize("method", some(["noise", "degan", "dfad"]))
def test_bf16_run_learns_nearly_what_an_fp32_run_learns(
    method: str, tmp_path: Path, photos: Callable[..., Path]
) -> None:
    source = sources(labelled(tmp_path / "made") if method == "dataset" else photos(10))[method]
    losses: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for precision, seen in losses.items():

        def note(progress: Progress, seen: list[float] = seen) -> None:
            if progress.step > 0:
                seen.append(progress.values["loss"])

        outcome = run_recipe(recipe_for(tmp_path, source, precision=precision), tmp_path / precision, log=note)
        weights = load_file(outcome.run / "student.safetensors")
        assert all(w.dtype != torch.bfloat16 for w in weights.values())  # weights stay float32
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"][0] == pytest.approx(losses["fp32"][0], rel=0.1)


def test_scores_and_profile_of_a_bf16_run_are_of_float32_as_what_ships(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtypes: list[torch.dtype] = []

    def seen(act: Callable[..., Any], *networks: int) -> Callable[..., Any]:
        def noted(*args: Any, **more: Any) -> Any:
            dtypes.extend(args[index].dtype for index in networks)
            return act(*args, **more)

        return noted

    monkeypatch.setattr(run_module, "evaluate", seen(run_module.evaluate, 0))
    monkeypatch.setattr(run_module, "measure", seen(run_module.measure, 1, 2))
    recipe = replace(recipe_for(tmp_path, NOISE, precision="bf16"), data=labelled(tmp_path / "data"))
    outcome = run_recipe(recipe, tmp_path / "run")
    assert dtypes == [torch.float32] * 4
    assert outcome.student.dtype == torch.bfloat16  # as it was trained
    scored = evaluate_run(tmp_path / "run", tmp_path / "data")["student"]
    assert scored.values == outcome.scores["student"].values


@pytest.mark.thorough
def test_work_after_the_last_save_is_done_again_to_the_same_bits(tmp_path: Path, noise_home: Path) -> None:
    def die(progress: Progress) -> None:
        if progress.step == 8:
            raise KeyboardInterrupt  # as if killed: nothing is saved on the way out

    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe_for(tmp_path, NOISE), tmp_path / "killed", log=die)
    run_recipe(recipe_for(tmp_path, NOISE), tmp_path / "killed")
    assert_same(everything(noise_home / "run"), everything(tmp_path / "killed"))


def test_teacher_without_weights_is_refused(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, {"method": "noise"})
    recipe.teacher.weights = None
    with pytest.raises(NetworkError, match=r"nothing to teach; give teacher\.weights"):
        run_recipe(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_student_learns_what_the_teacher_says(tmp_path: Path, photos: Callable[..., Path]) -> None:
    recipe = recipe_for(tmp_path, {"method": "folder", "path": str(photos())}, steps=60, lr=1e-2, log_every=10)
    losses: list[float] = []
    outcome = run_recipe(recipe, tmp_path / "run", log=lambda progress: losses.append(progress.values["loss"]))
    assert losses[-1] < losses[0] / 3
    assert outcome.chosen.agreement > 0.9


@pytest.mark.thorough
def test_figures_of_a_source_that_works_now_and_then_are_logged(tmp_path: Path) -> None:
    run = run_recipe(recipe_for(tmp_path, {"method": "dfad"}), tmp_path / "run").run
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "disagreement" in line] == [2, 6, 12]  # updates at steps 0, 5 and 10


@pytest.mark.thorough
def test_agreement_keeps_the_best_student_not_the_last(tmp_path: Path, photos: Callable[..., Path]) -> None:
    source = {"method": "folder", "path": str(photos())}
    recipe = recipe_for(tmp_path, source, steps=30, save_every=5, lr=0.05, lr_schedule="none", select="agreement")
    outcome = run_recipe(recipe, tmp_path / "run")
    lines = [json.loads(line) for line in (outcome.run / "metrics.jsonl").read_text().splitlines()]
    seen = {line["step"]: line["agreement"] for line in lines if "agreement" in line}
    assert len(seen) == 6
    assert outcome.chosen.agreement == max(seen.values())
    assert seen[outcome.chosen.step] == outcome.chosen.agreement
    assert f"student of step {outcome.chosen.step}" in outcome.notes[0]
    assert "chosen without labelled data" in outcome.notes[0]


def test_labelled_data_scores_and_changes_nothing_else(tmp_path: Path, noise_home: Path) -> None:
    plain = run_recipe(recipe_for(noise_home, NOISE), noise_home / "run")
    recipe = recipe_for(tmp_path, NOISE)
    scored = run_recipe(Recipe(**{**recipe.__dict__, "data": labelled(tmp_path / "labelled")}), tmp_path / "scored")
    assert plain.scores == {}
    assert any("not verified on real data" in note for note in plain.notes)
    assert set(scored.scores) == {"teacher", "student"}
    assert_same(load_file(plain.run / "student.safetensors"), load_file(scored.run / "student.safetensors"))
    assert evaluate_run(scored.run, tmp_path / "labelled")["student"] == scored.scores["student"]


def test_finished_run_is_not_done_again(tmp_path: Path) -> None:
    outcome = run_recipe(recipe_for(tmp_path, NOISE), tmp_path / "run")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*")}
    again = run_recipe(recipe_for(tmp_path, NOISE), tmp_path / "run")
    assert again.already_finished
    assert again.chosen == replace(outcome.chosen, remarks=[])  # they are among the notes
    assert again.notes == outcome.notes
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*")} == before


def test_run_of_another_recipe_is_refused_with_the_differing_keys(noise_home: Path, finished: Path) -> None:
    with pytest.raises(RunError, match=r"training\.lr: 0\.5 here, 0\.001 in the run"):
        run_recipe(recipe_for(noise_home, NOISE, lr=0.5), finished)
    run_recipe(recipe_for(noise_home, NOISE, log_every=3), finished)  # changes no result


def test_directory_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="holds no run"):
        run_recipe(recipe_for(tmp_path, {"method": "noise"}), tmp_path / "mine")
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_damaged_state_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run_recipe(recipe_for(tmp_path, {"method": "noise"}), tmp_path / "run", stop=stop_after(3))
    for name in ("state.pt", "previous.pt"):
        (tmp_path / "run" / "state" / name).write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(RunError, match=r"state\.pt is damaged"):
        run_recipe(recipe_for(tmp_path, {"method": "noise"}), tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"teacher": {"network": "datafree/unet", "args": {"num_classes": 7}, "weights": __file__}}, NetworkError, "7"),
        pytest.param(
            {"student": {"network": "smp/deeplabv3plus", "args": {"encoder": "mobilenet_v2"}}},
            *(None, ""),
            marks=pytest.mark.thorough,
        ),
        ({"student": {"network": "torchvision/no_such_net"}}, NetworkError, "no_such_net"),
        ({"source": {"method": "dfad", "width": 2}, "size": [36, 45]}, NetworkError, "36 x 45"),
    ],
)
def test_fault_in_a_network_is_found_before_anything_is_written(
    change: dict[str, Any], error: type[DatafreeError] | None, said: str, tmp_path: Path
) -> None:
    content = {
        "task": {"kind": "segmentation", "num_classes": 3, "image_size": change.pop("size", [32, 32])},
        "teacher": {"network": "datafree/unet", "args": SMALL, "weights": str(write_teacher(tmp_path, **SMALL))},
        "student": {"network": "datafree/unet", "args": SMALL},
        "source": {"method": "noise"},
        "training": {"steps": 1, "batch_size": 2},
        **change,
    }
    recipe = load(tmp_path, content)
    if error is None:
        run_recipe(recipe, tmp_path / "run")
        return
    with pytest.raises(error, match=said) as caught:
        run_recipe(recipe, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_masks_of_another_number_of_classes_are_refused(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, {"method": "noise"})
    data = labelled(tmp_path / "labelled", classes=5)
    (data / "classes.txt").write_text("a\nb\nc\nd\ne\n")
    with pytest.raises(DataError, match="5"):
        run_recipe(Recipe(**{**recipe.__dict__, "data": data}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_source_with_nothing_to_hold_out_still_works(tmp_path: Path, photos: Callable[..., Path]) -> None:
    source = {"method": "folder", "path": str(photos(1))}
    outcome = run_recipe(recipe_for(tmp_path, source), tmp_path / "run")
    assert outcome.chosen.agreement is None
    assert outcome.notes[0] == "student of step 12, chosen without labelled data: the last step"
    with pytest.raises(DataError, match=r"training\.select=agreement"):
        run_recipe(recipe_for(tmp_path, source, select="agreement"), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_corrupt_images_are_skipped_counted_and_named_at_the_end(tmp_path: Path, photos: Callable[..., Path]) -> None:
    folder = photos(10)
    (folder / "broken.png").write_bytes(b"no image")
    outcome = run_recipe(recipe_for(tmp_path, {"method": "folder", "path": str(folder)}), tmp_path / "run")
    assert any("1 of 11 images" in note and "broken.png" in note for note in outcome.notes)


def test_diverging_run_stops_and_keeps_the_last_good_state(tmp_path: Path, photos: Callable[..., Path]) -> None:
    source = {"method": "folder", "path": str(photos())}
    recipe = recipe_for(tmp_path, source, optimizer="sgd", lr=1e30, steps=40, log_every=1, save_every=1)
    with pytest.raises(TrainingError, match="at step") as caught:
        run_recipe(recipe, tmp_path / "run")
    assert caught.value.exit_code == 3
    assert not (tmp_path / "run" / "student.safetensors").exists()
    state = tmp_path / "run" / "state" / "state.pt"
    if state.exists():
        saved = torch.load(state, weights_only=True)["student"]
        assert all(torch.isfinite(v).all() for v in saved.values() if v.is_floating_point())


@pytest.mark.thorough
def test_memory_of_a_run_does_not_grow_with_its_steps(tmp_path: Path, photos: Callable[..., Path]) -> None:
    """Tensors alive at a late step are those alive at an early one."""
    import gc

    alive: dict[int, int] = {}

    def count(progress: Progress) -> None:
        gc.collect()
        alive[progress.step] = sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())

    source = sources(photos())["degan"]
    run_recipe(recipe_for(tmp_path, source, steps=60, save_every=100, log_every=10), tmp_path / "run", log=count)
    assert alive[50] == alive[20]
