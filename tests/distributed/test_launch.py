"""The command on several processes: what it comes to, how it stops, what it does when one of them dies."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import load_file
from torch.distributed.launcher.api import LaunchConfig

from datafree.cli import run_commands
from datafree.config import yaml
from datafree.distributed.launch import launch
from datafree.distributed.replicas import PATIENCE
from datafree.recipe.recipe import dump
from datafree.sources.base import UpdateSize
from small_runs import recipe_for

SLOW = pytest.mark.slow


def written(tmp_path: Path, **training: object) -> Path:
    """A recipe's file: DFAD on a small U-Net, whose generator, teacher and student are all shared."""
    common = {"steps": 40, "batch_size": 4, "log_every": 1, "save_every": 5}
    recipe = recipe_for(tmp_path, {"method": "dfad"}, **{**common, **training})
    recipe.source.resize_updates(UpdateSize(images=4))
    file = tmp_path / "small.yaml"
    file.write_text(yaml.render({**dump(recipe), "name": "small"}))
    return file


def started(command: list[str], folder: Path) -> "subprocess.Popen[str]":
    # torch 2.14 keeps one store for all restarts of torchrun, in which new processes find the addresses of dead ones.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def datafree(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    return started([sys.executable, "-P", "-m", "datafree", *arguments], folder)


def waited_for(run: Path, step: int, process: "subprocess.Popen[str]") -> None:
    """Until the run has logged `step`."""
    log = run / "metrics.jsonl"
    while not (log.exists() and f'"step": {step},' in log.read_text()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def worker_of(launcher: int) -> int:
    """The process of rank 1 that a launcher started."""
    for folder in Path("/proc").iterdir():
        try:
            child = folder.name.isdigit() and f"\nPPid:\t{launcher}\n" in (folder / "status").read_text()
            if child and b"\0RANK=1\0" in b"\0" + (folder / "environ").read_bytes():
                return int(folder.name)
        except OSError:
            continue
    raise AssertionError("there is no worker")


def test_the_process_that_starts_others_looks_at_the_teacher_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would keep some memory of a GPU as long as they run."""
    places: list[str | None] = []
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(run_commands.options, "chosen", lambda teacher, more, wishes: places.append(wishes.device))
    monkeypatch.setattr(run_commands, "launch", lambda count, arguments: 0)
    for device in (None, "cuda"):
        with pytest.raises(typer.Exit):
            run_commands.distill("timm/resnet18", device=device, processes=2)
    assert places == ["cpu", "cpu"]


def test_after_a_signal_a_step_of_minutes_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's launcher kills its processes after 30 seconds, which no update of minutes has saved anything by."""
    waits: list[int | None] = []

    def elastic_launch(config: LaunchConfig, command: str) -> Callable[..., None]:
        waits.append(config.shutdown_timeout)
        return lambda *arguments: None

    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", elastic_launch)
    for name in ("OMP_NUM_THREADS", "TORCHELASTIC_ERROR_FILE", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"):
        monkeypatch.setenv(name, "")  # put back at the end
        monkeypatch.delenv(name)
    assert launch(2, []) == 0
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "7")
    launch(2, [])
    assert waits == [PATIENCE.total_seconds(), 7]  # who says otherwise is heard


@pytest.mark.thorough
def test_batches_that_two_processes_cannot_share_out_are_one_line(tmp_path: Path) -> None:
    words = [str(written(tmp_path)), "training.batch_size=5", "training.data_parallel=divided", "--processes", "2"]
    _, said = (process := datafree(tmp_path, "distill", *words)).communicate(timeout=120)
    assert process.returncode == 2, said
    assert said.count("training.batch_size is 5, which 2 processes cannot share out evenly") == 1, said


@pytest.mark.thorough
def test_a_fault_of_the_user_ends_all_with_its_own_exit_code(tmp_path: Path) -> None:
    (tmp_path / "torn.safetensors").write_bytes(b"torn")  # which is found by whoever reads it, not in the recipe
    torn = "teacher.weights=torn.safetensors"
    process = datafree(tmp_path, "distill", str(written(tmp_path)), torn, "--processes", "2")
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2 and said.count("torn.safetensors") == 1, said


@SLOW
@pytest.mark.parametrize("mode", ["exact", "divided"])
def test_two_processes_stop_at_a_signal_go_on_and_end_as_if_unbroken(mode: str, tmp_path: Path) -> None:
    recipe = written(tmp_path, data_parallel=mode)
    runs = {name: tmp_path / name for name in ("alone", "unbroken", "broken")}
    for name, more in (("alone", ()), ("unbroken", ("--processes", "2"))):
        process = datafree(tmp_path, "distill", str(recipe), "--out", str(runs[name]), *more)
        told, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
        assert told.count("run: ") == 1  # one of them speaks
    for turn in range(2):
        process = datafree(tmp_path, "distill", str(recipe), "--out", str(runs["broken"]), "--processes", "2")
        if turn == 0:
            waited_for(runs["broken"], 12, process)
            process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=300)
        assert process.returncode == (75 if turn == 0 else 0), said
        assert said.count("stopped at step") == (turn == 0), said  # one of them speaks
    students = {name: load_file(run / "student.safetensors") for name, run in runs.items()}
    for name, value in students["unbroken"].items():
        assert torch.equal(value, students["broken"][name])
        if mode == "exact":
            torch.testing.assert_close(value, students["alone"][name], rtol=1e-2, atol=1e-2)


@SLOW
@pytest.mark.parametrize("mode", ["exact", "divided"])
def test_torchrun_starts_a_run_again_whose_worker_was_killed(mode: str, tmp_path: Path) -> None:
    recipe = written(tmp_path, data_parallel=mode)
    runs = {name: tmp_path / name for name in ("unbroken", "killed")}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launcher += ["--max-restarts", "2", "--monitor-interval", "0.2"]
    for name, run in runs.items():
        process = started([*launcher, "-m", "datafree", "distill", str(recipe), "--out", str(run)], tmp_path)
        if name == "killed":
            waited_for(run, 12, process)
            os.kill(worker_of(process.pid), signal.SIGKILL)
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
        assert ("resuming " in said) == (name == "killed")
    students = [load_file(run / "student.safetensors") for run in runs.values()]
    assert all(torch.equal(students[0][name], students[1][name]) for name in students[0])


def machine(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """The command on a machine of its own, as far as a network goes: it shares nothing but the files."""
    return started(["unshare", "--net", sys.executable, "-P", "-m", "datafree", *arguments], folder)


@SLOW
@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run(["unshare", "--net", "true"], check=False).returncode != 0,
    reason="networks of their own need Linux, unshare and root",
)
def test_two_machines_make_one_set_and_one_ends_what_the_other_was_killed_at(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, {"method": "inversion", "iterations": 60, "batch_size": 4, "warmup": 1})
    (tmp_path / "small.yaml").write_text(yaml.render({**dump(recipe), "name": "small"}))
    sets = {name: tmp_path / name for name in ("alone", "together")}
    words = {name: ["synthesize", "small.yaml", "--out", str(out), "--images", "60"] for name, out in sets.items()}
    _, said = (alone := datafree(tmp_path, *words["alone"])).communicate(timeout=300)
    assert alone.returncode == 0, said

    killed, other = machine(tmp_path, *words["together"]), machine(tmp_path, *words["together"])
    while len(claimed := [file.name for file in (sets["together"] / ".claims").glob("0*")]) < 2:
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)  # each is at a shard
    killed.communicate(timeout=60)
    _, said = other.communicate(timeout=300)
    assert (killed.returncode, other.returncode) == (-signal.SIGKILL, 0), (claimed, said)
    _, said = (verified := datafree(tmp_path, *words["together"], "--verify")).communicate(timeout=120)
    assert verified.returncode == 0, said
    files = {
        name: {
            str(file.relative_to(out)): file.read_bytes()
            for folder in ("data", "shards")
            for file in (out / folder).rglob("*")
            if file.is_file()
        }
        for name, out in sets.items()
    }
    assert files["together"] == files["alone"] and len(files["alone"]) > 120
