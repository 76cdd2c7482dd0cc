from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest

from datafree.cli.main import error_lines
from datafree.cli.score_table import score_table
from datafree.errors import DataError, Interrupted, RecipeError, TrainingError
from datafree.tasks.base import Scores


def test_help_names_every_verb_without_importing_torch() -> None:
    code = (
        "import sys; from datafree.cli.main import main\n"
        "sys.argv = ['datafree', '--help']\n"
        "try: main()\nfinally: print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(verb in done.stdout for verb in ("distill", "evaluate", "list", "demo"))
    assert done.stderr == "False\n"


def test_error_lines() -> None:
    assert error_lines(DataError("no images")) == ["error: no images"]
    assert error_lines(TrainingError("loss is nan")) == ["error: loss is nan"]
    assert error_lines(RecipeError(["a: x"])) == ["error: a: x"]
    assert error_lines(RecipeError(["a: x", "b: y"])) == [
        "error: the recipe has 2 faults",
        "  a: x",
        "  b: y",
    ]
    assert error_lines(Interrupted("stopped at step 3")) == ["stopped at step 3"]


@pytest.mark.thorough
def test_a_reader_that_leaves_early_causes_no_traceback() -> None:
    code = "import sys; from datafree.cli.main import main; sys.argv = ['datafree', 'list']; main()"
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert done.stderr == ""


def test_score_table_shows_percent_and_the_students_share() -> None:
    scores = {
        "teacher": Scores(values={"miou": 0.5, "pixel_accuracy": 0.8}),
        "student": Scores(values={"miou": 0.4, "pixel_accuracy": math.nan}),
    }
    assert score_table(scores).splitlines() == [
        "                     mIoU  pixel accuracy",
        "teacher            50.0 %          80.0 %",
        "student            40.0 %               -",
        "student / teacher  80.0 %               -",
    ]
