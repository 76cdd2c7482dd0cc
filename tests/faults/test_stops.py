"""A stop in any phase leaves with its own exit code and loses nothing; a second one leaves at once."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from datafree.config import yaml
from datafree.errors import Interrupted
from datafree.recipe.recipe import Recipe, dump
from datafree.run import run_recipe
from small_runs import assert_same, everything, labelled, recipe_for, stop_after

WARMUP, STEPS = 4, 12  # of inversion in `recipe_for`


def recipe(tmp_path: Path) -> Recipe:
    made = recipe_for(tmp_path, {"method": "inversion"})
    data = tmp_path / "labelled"
    return Recipe(**{**made.__dict__, "data": data if data.exists() else labelled(data)})


@pytest.mark.parametrize(
    ("calls", "where"),
    [
        pytest.param(0, f"stopped in the warm-up, update 0 of {WARMUP}", marks=pytest.mark.thorough),
        pytest.param(2, "stopped in the warm-up, update 2 of 4", marks=pytest.mark.thorough),
        pytest.param(WARMUP, f"stopped at step 0 of {STEPS}", marks=pytest.mark.thorough),
        pytest.param(WARMUP + 5, f"stopped at step 5 of {STEPS}", marks=pytest.mark.thorough),
        pytest.param(WARMUP + STEPS, "stopped while scoring", marks=pytest.mark.thorough),
        (WARMUP + STEPS + 1, "stopped while scoring"),
    ],
)
def test_a_stop_in_any_phase_goes_on_to_the_same_bits(calls: int, where: str, tmp_path: Path, unbroken: Path) -> None:
    with pytest.raises(Interrupted, match=where) as error:
        run_recipe(recipe(tmp_path), tmp_path / "run", stop=stop_after(calls))
    assert error.value.exit_code == 75
    assert "the same command" in str(error.value)
    assert not (tmp_path / "run" / "result.json").exists()
    run_recipe(recipe(tmp_path), tmp_path / "run")
    wanted, found = everything(unbroken), everything(tmp_path / "run")
    assert wanted["result"].pop("scored_on") and found["result"].pop("scored_on")  # folders of their own
    assert_same(wanted, found)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    return run_recipe(recipe(folder), folder / "run").run


def handles(process: int, number: signal.Signals) -> bool:
    """Whether a process has a handler of its own for a signal: before it loads anything large."""
    caught = re.search(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    mask = 0 if caught is None else int(caught[1], 16)
    return all(mask >> (one - 1) & 1 for one in (number, signal.SIGTERM))  # Python itself has one for SIGINT


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 75)])
@pytest.mark.parametrize("moment", ["loading", "warm-up", "training", "scoring"])
def test_signals_to_the_command_save_and_leave_with_75_and_twice_at_once(
    moment: str, number: signal.Signals, code: int, tmp_path: Path
) -> None:
    made = recipe(tmp_path)
    values = dump(made)
    if moment != "scoring":  # long enough not to be through before the signal
        values["source"]["warmup"] = 400
        values["training"] |= {"steps": 400, "save_every": 100}
    file = tmp_path / "long.yaml"
    file.write_text(yaml.render(values))
    out = tmp_path / "run"
    seen: dict[str, Callable[[str], bool]] = {
        "loading": lambda text: True,
        "warm-up": lambda text: '"step": -3' in text,
        "training": lambda text: '"step": 5' in text,
        "scoring": lambda text: (out / "student.safetensors").exists(),
    }
    command = [sys.executable, "-m", "datafree", "distill", str(file), "--out", str(out), "--quiet"]

    def begin() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        while process.poll() is None and not handles(process.pid, number):
            time.sleep(0.005)
        metrics = out / "metrics.jsonl"
        while process.poll() is None and not seen[moment](metrics.read_text() if metrics.exists() else ""):
            time.sleep(0.005)
        return process

    process = begin()
    process.send_signal(number)
    _, said = process.communicate()
    if process.returncode == 0:
        assert moment == "scoring"  # it was through before it looked
        return
    assert process.returncode == code, said
    assert b"Traceback" not in said and b"the same command" in said
    if moment == "scoring":
        return
    process = begin()
    for _ in range(2):
        process.send_signal(number)
        time.sleep(0.05)
    process.communicate()
    gone = -number  # by the system, where it came while the process was leaving already
    assert process.returncode in (code, 128 + number, gone)
    assert subprocess.run([*command, "--max-time", "1s"], capture_output=True, check=False).returncode in (0, 75)
    assert os.path.getsize(out / "state" / "state.pt")  # noqa: PTH202
