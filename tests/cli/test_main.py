from __future__ import annotations

import json
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from datafree import __version__
from datafree.cli import main, run_commands
from datafree.evaluation import scoring
from datafree.tasks.base import Scores
from recipes import write_teacher
from run_directories import write_run

RECIPE = """\
task: {kind: segmentation, num_classes: 3, image_size: [16, 16]}
teacher: {network: datafree/unet, args: {width: 4, depth: 2}, weights: teacher.safetensors}
student: {network: datafree/unet, args: {width: 2, depth: 2}}
source: {method: noise}
training: {steps: 6, batch_size: 2, device: cpu, precision: fp32, log_every: 1}
"""


class Result(NamedTuple):
    code: int
    out: str
    err: str


Datafree = Callable[..., Result]


@pytest.fixture
def datafree(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Datafree:
    """The command, run in this process in an empty directory that holds tiny.yaml."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    write_teacher(tmp_path, width=4, depth=2)

    def run(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["datafree", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main.main()
        captured = capfd.readouterr()
        return Result(int(left.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Six labelled images: colour shows the class, but for the second class, which the masks never have."""
    folder = tmp_path / "labelled"
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(6):
        mask = rng.choice(np.array([0, 2], dtype=np.uint8), (16, 16))
        Image.fromarray(mask).save(folder / "masks" / f"{index}.png")
        Image.fromarray(np.stack([mask * 100] * 3, -1)).save(folder / "images" / f"{index}.png")
    (folder / "classes.txt").write_text("sky\nroad\ntree\n")
    return folder


# What the verbs print.


def test_version(datafree: Datafree) -> None:
    assert datafree("--version") == Result(0, f"datafree {__version__}\n", "")


def test_list_shows_methods_options_tasks_and_networks(datafree: Datafree) -> None:
    result = datafree("list")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert any(line.startswith("  degan: A GAN") for line in lines)
    assert any(line.startswith("    proxy (required)") for line in lines)
    assert any(line.split() == ["beta1", "=", "0.5", "Adam's"] for line in lines)
    assert any(line.startswith("    kind = uniform") and "uniform | gaussian" in line for line in lines)
    assert any(line.startswith("    update_every = 0 ") for line in lines)
    assert any(line.startswith("  segmentation: ") for line in lines)
    assert "  datafree/unet" in lines


def test_distill_makes_a_run_and_says_that_nothing_verified_it(datafree: Datafree) -> None:
    result = datafree("distill", "tiny.yaml", "training.steps=4")
    assert result.code == 0, result.err
    assert result.out.startswith(f"run: {Path('runs/tiny')}\npage: {Path('runs/tiny/report.html')}\nnote: ")
    assert "not verified on real data" in Path("runs/tiny/report.html").read_text()
    assert "not verified on real data" in result.out
    assert "student of step 4, chosen without labelled data: the last step" in result.out
    assert any(line.startswith("training 4/4") for line in result.err.splitlines())
    assert Path("runs/tiny/student.safetensors").is_file()


def test_distill_scores_teacher_and_student_on_labelled_data(datafree: Datafree, labelled: Path) -> None:
    result = datafree("distill", "tiny.yaml", f"data={labelled}", "--out", "here", "--quiet")
    assert result.code == 0, result.err
    (warned,) = result.err.splitlines()  # no progress; but that it has collapsed is told all the same
    assert warned.startswith("warning: step 6: health: collapsed: ")
    table = [line.split() for line in result.out.splitlines()[2:6]]
    assert table[0] == ["mIoU", "pixel", "accuracy"]
    assert [row[0] for row in table[1:]] == ["teacher", "student", "student"]  # the last: student / teacher
    written = json.loads(Path("here/result.json").read_text())["scores"]
    assert table[2][1] == f"{100 * written['student']['values']['miou']:.1f}"
    assert "not verified" not in result.out


def test_a_finished_run_is_shown_again_and_not_run_again(datafree: Datafree) -> None:
    first = datafree("distill", "tiny.yaml")
    before = Path("runs/tiny/student.safetensors").stat().st_mtime_ns
    again = datafree("distill", "tiny.yaml")
    assert (again.code, again.out) == (0, first.out)
    assert again.err == "this run had finished before; its result:\n"
    assert Path("runs/tiny/student.safetensors").stat().st_mtime_ns == before


def test_evaluate_equals_the_scores_of_the_run(datafree: Datafree, labelled: Path) -> None:
    assert datafree("distill", "tiny.yaml", f"data={labelled}").code == 0
    written = json.loads(Path("runs/tiny/result.json").read_text())["scores"]["student"]
    result = datafree("evaluate", "runs/tiny", "--data", str(labelled), "--device", "cpu", "--json")
    assert result.code == 0, result.err
    scored = json.loads(result.out)["student"]
    assert scored["values"] == pytest.approx(written["values"], abs=0.01)  # another batch size rounds otherwise
    assert set(scored["per_class"]["iou"]) == set(written["per_class"]["iou"])
    text = datafree("evaluate", "runs/tiny", "--data", str(labelled), "--device", "cpu")
    assert text.out.splitlines()[0].split() == ["mIoU", "pixel", "accuracy"]
    assert "iou by class, student" in text.out
    assert f"{100 * scored['per_class']['iou']['sky']:.1f} %" in text.out


def test_demo_compares_teacher_student_and_the_baseline(
    datafree: Datafree, labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The built-in example takes minutes: two tiny recipes stand in for it.
    tiny = RECIPE + f"data: {labelled}\n"
    Path("good.yaml").write_text(tiny)
    Path("plain.yaml").write_text(tiny.replace("noise", "noise, kind: gaussian"))
    monkeypatch.setattr(run_commands, "DEMOS", {"segmentation": {"good.yaml": [], "plain.yaml": []}})
    result = datafree("demo", "--out", "demos")
    assert result.code == 0, result.err
    assert result.err.startswith("A small student learns from a trained teacher")
    header, teacher, good, plain, *rest = result.out.splitlines()
    assert header.split() == ["parameters", "mIoU", "pixel", "accuracy"]
    assert teacher.startswith("teacher ")
    assert good.startswith("student, good ")
    assert plain.startswith("student, plain ")
    weights = load_file("demos/good/student.safetensors")
    names = {name for name in weights if "running_" not in name and "num_batches" not in name}
    assert f" {sum(weights[name].numel() for name in names):,} " in good
    places = [f"{what}: demos/{name}" for name in ("good", "plain") for what in ("run", "page")]
    assert rest == [place + "/report.html" * place.startswith("page") for place in places]


def test_a_quick_demo_has_run_directories_of_its_own_and_says_what_it_is_worth(
    datafree: Datafree, labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("good.yaml").write_text(RECIPE + f"data: {labelled}\n")
    monkeypatch.setattr(run_commands, "DEMOS", {"segmentation": {"good.yaml": ["training.steps=2"]}})
    result = datafree("demo", "--quick", "--quiet")
    assert result.code == 0, result.err
    assert "its scores say nothing" in result.out
    assert Path("runs/good-quick/result.json").is_file()
    assert not Path("runs/good").exists()


def test_a_dry_run_checks_everything_and_writes_nothing(datafree: Datafree) -> None:
    before = sorted(Path().rglob("*"))
    result = datafree("distill", "tiny.yaml", "training.steps=50", "--dry-run")
    assert (result.code, result.err) == (0, "")
    note, forecast, outline, said, sound = result.out.splitlines()
    assert note.startswith("note: what the teacher datafree/unet answers")
    assert forecast.startswith("about ") and "on this CPU" in forecast
    assert outline == "tiny: 50 steps, batches of 2"
    assert said == f"datafree/unet would be distilled into datafree/unet, in {Path('runs/tiny')}"
    assert sound.endswith("nothing was written (--dry-run)")
    assert sorted(Path().rglob("*")) == before
    wrong = datafree("distill", "tiny.yaml", "--device", "cpu", "--seed", "-1", "--dry-run")
    assert wrong.code == 2 and "--seed is -1" in wrong.err
    wrong = datafree("distill", "tiny.yaml", "teacher.args.width=8", "--dry-run")
    assert wrong.code == 2 and wrong.err.startswith("error: ")


def test_a_dry_run_knows_what_its_directory_holds(datafree: Datafree) -> None:
    assert datafree("distill", "tiny.yaml", "training.steps=2", "--device", "cpu").code == 0
    same = datafree("distill", "tiny.yaml", "training.steps=2", "--device", "cpu", "--dry-run")
    assert same.code == 0, same.err
    assert f"in {Path('runs/tiny')}, which holds this run: it has finished" in same.out
    assert "about " not in same.out
    other = datafree("distill", "tiny.yaml", "training.steps=3", "--device", "cpu", "--dry-run")
    assert (other.code, other.out) == (2, "")
    assert "runs/tiny holds a run of another recipe (training.steps: 3 here, 2 in the run)" in other.err


def test_a_dry_run_of_a_data_set_knows_what_its_directory_holds(datafree: Datafree) -> None:
    making = ("synthesize", "tiny.yaml", "--out", "made", "--images", "4", "--device", "cpu")
    assert datafree(*making).code == 0
    assert datafree(*making, "--dry-run").code == 0
    other = datafree(*making, "training.seed=5", "--dry-run")
    assert (other.code, other.out) == (2, "")
    assert "made holds the data set of another recipe (training.seed: 5 here" in other.err


def test_a_dry_run_is_refused_what_the_run_would_be(datafree: Datafree) -> None:
    """Found when the source is attached, which the forecast does."""
    Path("empty").mkdir()
    wrong = datafree("distill", "tiny.yaml", "source={method: folder, path: empty}", "--dry-run")
    assert (wrong.code, wrong.out) == (2, "")
    assert "holds no images" in wrong.err


def test_a_recipe_is_inspected_whatever_its_file_is_called(datafree: Datafree) -> None:
    Path("tiny.yaml").rename("mine")
    result = datafree("inspect", "mine", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["network"] == "datafree/unet"


def test_a_dry_run_finds_layers_that_are_not_there(datafree: Datafree) -> None:
    wrong = datafree("distill", "tiny.yaml", "training.attention_layers={down.9: down.1}", "--dry-run")
    assert (wrong.code, wrong.out) == (2, "")
    assert wrong.err.startswith("error: there is no layer 'down.9' in the teacher; did you mean down.0")


def test_a_home_that_the_shell_has_left_is_found_by_every_verb(
    datafree: Datafree, monkeypatch: pytest.MonkeyPatch, labelled: Path
) -> None:
    """A shell leaves the "~" of --out=~/runs as it is."""
    home = Path("home").absolute()
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    labelled.rename(home / "labelled")
    assert datafree("distill", "tiny.yaml", "--out=~/runs/mine").code == 0
    assert datafree("evaluate", "~/runs/mine", "--data=~/labelled").code == 0
    assert datafree("report", "~/runs/mine", "--out=~/page.html").code == 0
    assert (home / "page.html").is_file()
    assert datafree("convert", "~/../teacher.safetensors", "~/new.safetensors").code == 2  # no pickle, and looked at
    assert not Path("~").exists()


def test_a_dry_run_of_a_data_set_says_its_size_and_takes_device_and_seed(datafree: Datafree) -> None:
    source = "source={method: inversion, iterations: 2, batch_size: 4}"
    result = datafree(
        *("synthesize", "tiny.yaml", source, "--out", "made", "--images", "10", "--dry-run"),
        *("--device", "cpu", "--seed", "3"),
    )
    assert result.code == 0, result.err
    assert result.out.startswith("3 shards of tiny would be made in made: about ")
    assert not Path("made").exists()
    wrong = datafree("synthesize", "tiny.yaml", "--out", "made", "--images", "10", "--seed", "-1")
    assert (wrong.code, wrong.err) == (2, "error: --seed is -1: give 0 or more\n")


@pytest.mark.thorough
def test_plan_says_first_figures_before_the_rest_is_timed(datafree: Datafree) -> None:
    result = datafree("plan", "tiny.yaml", "source={method: inversion, iterations: 2, batch_size: 4, warmup: 5}")
    assert result.code == 0, result.err
    outline, first, *_ = result.err.splitlines()
    assert outline.startswith("tiny: 6 steps, batches of 2; inversion: 5 updates of 4 images; a bank of 60,000 images")
    assert first.startswith("first figures: about ") and " on this CPU, " in first
    assert result.out.startswith("run of tiny; ")
    assert datafree("plan", "tiny.yaml", "--quiet").err == ""


# What goes wrong.


def test_every_fault_of_a_recipe_is_a_line_and_nothing_is_written(datafree: Datafree) -> None:
    result = datafree("distill", "tiny.yaml", "training.steps=many", "source.method=nois")
    assert result.code == 2
    assert result.out == ""
    first, *rest = result.err.splitlines()
    assert first == "error: the recipe has 2 faults"
    assert rest[0].startswith("  source.method: 'nois' is not one of")
    assert rest[1] == "  training.steps: 'many' is not a whole number"
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["distill", "tyni.yaml"], "error: there is no file tyni.yaml"),
        (
            ["distill", "tiny.yaml", "training.stepps=3"],
            "error: training.stepps: no such option (did you mean steps?)",
        ),
        (
            ["distill", "tiny.yaml", "--max-time", "7"],
            "error: --max-time '7' is not a time; write it as 90s, 9m",
        ),
        (["distill", "tiny.yaml", "--out", "tiny.yaml"], "error: tiny.yaml is a file"),
        (["distill", "tiny.yaml", "teacher.args.width=x"], "error: "),
        (["evaluate", "nowhere", "--data", "."], "error: nowhere is not a run directory"),
        (["evaluate", "nowhere"], "error: evaluate needs --data DIR, or --images DIR and --teacher RECIPE"),
        (["demo", "--task", "segmentaton"], "did you mean segmentation?"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(datafree: Datafree, arguments: list[str], words: str) -> None:
    result = datafree(*arguments)
    assert result.code == 2
    assert words in result.err
    assert len(result.err.splitlines()) == 1
    assert result.out == ""


@pytest.mark.parametrize("arguments", [["distil", "x"], ["distill"], ["distill", "x", "--ouT", "y"], ["evaluate"]])
def test_a_wrong_command_line_is_exit_code_2(datafree: Datafree, arguments: list[str]) -> None:
    result = datafree(*arguments)
    assert result.code == 2
    assert "Usage: " in result.err


def test_a_loss_that_is_not_finite_is_exit_code_3(datafree: Datafree) -> None:
    result = datafree("distill", "tiny.yaml", "training.lr=1e30", "training.steps=50", "--quiet")
    assert result.code == 3, result.err
    *warned, last = result.err.splitlines()
    assert all(line.startswith("warning: not finite at step ") for line in warned)
    assert last.startswith("error: ")


# Stopping and going on.


def test_what_is_wrong_for_all_processes_the_first_says_at_once_and_others_only_if_it_has_not_ended_them(
    datafree: Datafree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # put back afterwards: the second's goes nowhere
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert datafree("distill", "nowhere.yaml").err.startswith("error: there is no file nowhere.yaml")
        assert len(waits) == int(rank)
    sys.stdout.close()


@pytest.mark.parametrize("verb", [["distill"], ["synthesize", "--out", "set", "--images", "8"]])
def test_a_recipes_fault_is_said_once_before_any_process_is_started(
    datafree: Datafree, monkeypatch: pytest.MonkeyPatch, verb: list[str]
) -> None:
    monkeypatch.setattr(run_commands, "launch", lambda count, arguments: pytest.fail("processes were started"))
    code, _, err = datafree(verb[0], "tiny.yaml", "training.steps=0", *verb[1:], "--processes", "2")
    assert code == 2 and err == "error: training.steps: 0 is too small; it must be 1 or more\n"


def test_max_time_stops_with_75_and_repeating_the_command_gets_there(datafree: Datafree) -> None:
    # The second is over before the first step or soon after it; each call does one step at least.
    arguments = ["distill", "tiny.yaml", "training.steps=100000", "--max-time", "1s", "--quiet"]
    done = []
    for result in (datafree(*arguments), datafree(*arguments)):
        assert result.code == 75
        # A fast machine comes to a look at the student, whose warning stands before the last line.
        stopped = re.fullmatch(
            r"stopped at step ([\d,]+) .*; run the same command to resume", result.err.splitlines()[-1]
        )
        assert stopped, result.err
        done.append(int(stopped[1].replace(",", "")))
    assert 0 < done[0] < done[1]


def test_an_interrupt_stops_cleanly_and_the_same_command_goes_on(datafree: Datafree) -> None:
    metrics = Path("runs/tiny/metrics.jsonl").absolute()

    def interrupt() -> None:
        while not (metrics.exists() and metrics.read_text().count("\n") > 3):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    result = datafree("distill", "tiny.yaml", "training.steps=1000000")
    thread.join()
    assert result.code == 75
    assert "stopping after this step, with a checkpoint saved; interrupt again to exit at once" in result.err
    assert "(SIGINT)" in result.err
    stopped_at = result.err.splitlines()[-1].split()[3]
    again = datafree("distill", "tiny.yaml", "training.steps=1000000", "--max-time", "1s")
    assert f"resuming {Path('runs') / 'tiny'} at step {stopped_at} of 1,000,000" in again.err


def test_json_has_null_where_a_score_is_not_a_number(
    datafree: Datafree, monkeypatch: pytest.MonkeyPatch, labelled: Path
) -> None:
    scores = {"student": Scores(values={"miou": math.nan}, per_class={"iou": {"sky": 0.25}})}
    monkeypatch.setattr(scoring, "evaluate_run", lambda *args, **options: scores)
    write_run(Path(), "segmentation")
    result = datafree("evaluate", "my-segmentation", "--data", str(labelled), "--json")
    expected = {"values": {"miou": None}, "per_class": {"iou": {"sky": 0.25}}, "remarks": []}
    assert json.loads(result.out) == {"student": expected}


# Data sets.


def test_synthesize_makes_a_set_adds_to_it_and_finds_what_is_damaged(datafree: Datafree) -> None:
    arguments = ["synthesize", "tiny.yaml", "source={method: inversion, iterations: 2, batch_size: 4}", "--out", "made"]
    result = datafree(*arguments, "--images", "6")
    assert result.code == 0, result.err
    first, means = result.out.splitlines()
    assert first == f"data set: {Path('made/data')}, 8 images in 2 shards"
    assert means.startswith("note: means over 2 of 2 shards: target ")
    assert result.err.splitlines()[-1].startswith("images 6/6")
    more = datafree(*arguments, "--images", "9", "--quiet")
    assert (more.code, more.err) == (0, "")
    first, means = more.out.splitlines()
    assert first == f"data set: {Path('made/data')}, 12 images in 3 shards"
    assert means.startswith("note: means over 3 of 3 shards: target ")
    checked = datafree(*arguments, "--verify")
    assert (checked.code, checked.err) == (0, "")
    assert checked.out == f"data set: {Path('made/data')}, 12 images in 3 shards, every file as it was written\n"
    mask = Path("made/data/masks/00001/00002.png")
    mask.unlink()
    damaged = datafree(*arguments, "--verify")
    assert (damaged.code, damaged.out) == (2, f"{mask}: missing\n")
    assert damaged.err.startswith("error: 1 of 25 files of made are damaged or missing; ")


def test_synthesize_without_images_or_with_another_recipes_set_is_exit_code_2(datafree: Datafree) -> None:
    missing = datafree("synthesize", "tiny.yaml", "--out", "made")
    assert missing == Result(2, "", "error: --images is missing; say how many, such as --images 1000\n")
    assert datafree("synthesize", "tiny.yaml", "--out", "made", "--images", "2", "-q").code == 0
    other = datafree("synthesize", "tiny.yaml", "training.seed=1", "--out", "made", "--images", "2")
    assert other.code == 2
    assert "made holds the data set of another recipe (training.seed: 1 here, 0" in other.err


@pytest.mark.thorough
def test_synthesize_stops_with_75_and_repeating_the_command_gets_there(datafree: Datafree) -> None:
    arguments = ["synthesize", "tiny.yaml", "--out", "made", "--images", "1000000", "--max-time", "1s", "--quiet"]
    first, second = datafree(*arguments), datafree(*arguments)
    assert (first.code, second.code) == (75, 75)
    assert first.err.endswith(" of 1,000,000 images (--max-time reached); run the same command to resume\n")
    done = [int(result.err.split()[2].replace(",", "")) for result in (first, second)]
    assert 0 < done[0] < done[1]
