"""The cases on a pretended accelerator, each file in a process of its own.

A registered accelerator stays registered, and once gradients have gone through it torch refuses gradients in forked
processes, which other tests start.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CASES = sorted(file.name for file in HERE.glob("cases_*.py"))
NONE_CHOSEN = 5  # pytest's exit status


def run_cases(name: str, marked: str) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(HERE / name),
        "-n",
        "0",
        "-q",
        "-m",
        marked,
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, NONE_CHOSEN), done.stdout[-8000:] + done.stderr[-2000:]
    assert "passed" in done.stdout or "deselected" in done.stdout, done.stdout


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", CASES)
def test_the_cases_pass(name: str) -> None:
    run_cases(name, "not slow and not thorough and not gpu")


@pytest.mark.thorough
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", CASES)
def test_the_thorough_cases_pass(name: str) -> None:
    run_cases(name, "thorough")
