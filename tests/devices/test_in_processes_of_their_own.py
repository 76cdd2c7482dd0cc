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


@pytest.mark.thorough
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", CASES)
def test_the_cases_pass(name: str) -> None:
    command = [sys.executable, "-m", "pytest", str(HERE / name), "-n", "0", "-q", "-m", "not slow and not gpu"]
    done = subprocess.run([*command, "-p", "no:cacheprovider"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
