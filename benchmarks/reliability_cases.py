"""The tests of `tests/faults` that have a long form, run by pytest in processes of their own, and their figures."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from results import HERE

KINDS = 9  # tests of tests/faults/test_cases.py that draw cases


def run_tests(folder: Path, file: str, **environment: str) -> dict[str, Any]:
    """Run tests/faults/`file`; how many passed, failed and were skipped, and the lines of those that failed."""
    folder.mkdir(parents=True, exist_ok=True)
    marks = "" if torch.cuda.is_available() else "not gpu"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        "0",
        "--timeout=0",
        "-m",
        marks,
        "-rfE",
        f"tests/faults/{file}",
    ]
    done = subprocess.run(
        command, cwd=HERE.parent, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    (folder / f"{file}.txt").write_text(done.stdout + done.stderr)
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-200:]
    counts = {what: int(number) for number, what in re.findall(r"(\d+) (passed|failed|skipped|error)", last)}
    broken = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    print(f"{file}: {last}", flush=True)
    return {**counts, "broken": broken if done.returncode in (0, 1) else [*broken, last]}


def cases(folder: Path, least: int) -> dict[str, Any]:
    """Files of every kind with anything in them: at least `least` in all."""
    counted = folder / "counted.json"
    each = -(-least // (KINDS - 1))
    found = run_tests(folder, "test_cases.py", DATAFREE_CASES=str(each), DATAFREE_CASES_COUNTED=str(counted))
    done: dict[str, int] = json.loads(counted.read_text()) if counted.exists() else {}
    if sum(done.values()) < least:
        found["broken"].append(f"{sum(done.values())} cases only, not {least}")
    return {"cases": sum(done.values()), "by_kind": done, **found}


def numbers(folder: Path) -> dict[str, Any]:
    """Numbers that are not finite, put into every place of every source's run."""
    return run_tests(folder, "test_numbers.py")


def memory(folder: Path) -> dict[str, Any]:
    """Memory that runs out."""
    return run_tests(folder, "test_memory.py")


def stops(folder: Path) -> dict[str, Any]:
    """Signals and time limits in every phase, sent to the command itself."""
    return run_tests(folder, "test_stops.py")
