"""Verbs whose work cannot be gone on with: a signal ends them at once, in one line that says what is kept."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from datafree.cli import main
from run_directories import write_run
from thorough import some

AGAIN = "run the same command to begin again"
ENDS = {  # what is typed -> where the signal comes, what is said
    "evaluate my-segmentation --data images": (
        "datafree.evaluation.scoring.load_student",
        f"nothing was kept; {AGAIN}",
    ),
    "export my-segmentation": (
        "datafree.deploy.export_run.save_weights",
        f"nothing was written, and an export that was there is as it was; {AGAIN}",
    ),
    "bench my-segmentation": (
        "datafree.deploy.bench_run._rounds",
        f"nothing was written, and what my-segmentation held is as it was; {AGAIN}",
    ),
    "calibrate my-segmentation --images 8": (
        "datafree.deploy.calibration.folder.measure",
        f"nothing was written, and what calib held before is as it was; {AGAIN}",
    ),
    "push my-segmentation me/it": (
        "datafree.deploy.export_run.save_weights",
        "what was uploaded stays in me/it; run the same command to upload the rest",
    ),
    "plan fashion-demo": (
        "datafree.preflight.plan.build_networks",
        "it writes nothing; run the same command to plan again",
    ),
}


@pytest.mark.parametrize("line", ENDS)
@pytest.mark.parametrize("number", some([(signal.SIGINT,), (signal.SIGTERM,)], (signal.SIGINT,)))
def test_a_signal_ends_a_verb_in_one_line_and_leaves_all_as_it_was(
    line: str,
    number: signal.Signals,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    place, kept = ENDS[line]

    def interrupted(*arguments: object, **options: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(60)

    write_run(tmp_path)
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["datafree", *line.split()])
    monkeypatch.setattr(place, interrupted)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as left:
        main.main()
    said = capfd.readouterr()
    assert (left.value.code, said.out) == (75, "")
    assert said.err.splitlines()[-1] == f"stopped ({number.name}): {kept}"
    assert sorted(tmp_path.rglob("*")) == before
