"""The one form in which every benchmark writes what it measured."""

from __future__ import annotations

import json
import shutil
import subprocess
from datetime import date
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from datafree.storage.environment import environment

HERE = Path(__file__).resolve().parent


def write_results(
    benchmark: str,
    size: str,
    rows: dict[str, list[dict[str, Any]]],
    *,
    command: str,
    hardware: dict[str, Any] | None = None,
    folder: Path | None = None,
) -> Path:
    """Write BENCHMARK-SIZE.json into `folder`, by default benchmarks/results.

    `rows`: name -> one {metrics, seconds, peak_memory_mib} for each seed, with `seed`, `processor_seconds` and the
    `commit` that it was measured at where these are known; else the commit is the file's, that of the writing.
    `hardware`: what else is to be said of it. Cells that come from an earlier file say when and where they were
    `measured`, which the file then names under `earlier`.
    """
    here = environment()
    before: list[dict[str, Any]] = []
    for head in (cell["measured"] for cells in rows.values() for cell in cells if "measured" in cell):
        before += [] if head in before else [head]
    content = {
        "benchmark": benchmark,
        "size": size,
        "command": command,
        "commit": commit(),
        "hardware": {**here["hardware"], **(hardware or {})},
        "versions": here["versions"],
        "date": date.today().isoformat(),
        **({"earlier": before} if before else {}),
        "rows": [_row(name, cells) for name, cells in rows.items()],
    }
    path = (folder or HERE / "results") / f"{benchmark}-{size}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def _row(name: str, cells: list[dict[str, Any]]) -> dict[str, Any]:
    metrics = {}
    for metric in (key for key in cells[0]["metrics"] if all(key in cell["metrics"] for cell in cells)):
        values = [round(cell["metrics"][metric], 6) for cell in cells]
        spread = round(stdev(values), 6) if len(values) > 1 else None
        metrics[metric] = {"mean": round(mean(values), 6), "std": spread, "values": values}
    commits = [commit for cell in cells for commit in cell.get("commits", [cell["commit"]] if "commit" in cell else [])]
    counted = [cell.get("processor_seconds") for cell in cells]
    return {
        "name": name,
        **({"seeds": [cell["seed"] for cell in cells]} if all("seed" in cell for cell in cells) else {}),
        **({"commits": list(dict.fromkeys(commits))} if commits else {}),
        "metrics": metrics,
        "seconds": round(mean(cell["seconds"] for cell in cells), 1),
        **({"processor_seconds": [_rounded(value) for value in counted]} if any(counted) else {}),
        "peak_memory_mib": round(max(cell["peak_memory_mib"] for cell in cells), 1),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def write_table(page: str, name: str, table: str, *, section: str | None = None) -> None:
    """Put a Markdown table between the marks of `name` in docs/PAGE; `section` (its heading and text) is added
    with the marks at the page's end where they are missing."""
    path = HERE.parent / "docs" / page
    text = path.read_text(encoding="utf-8")
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    if section is not None and begin not in text and end not in text:
        text = f"{text.rstrip()}\n\n{section.strip()}\n\n{begin}{end}\n"
    if begin not in text or end not in text:
        raise SystemExit(f"error: docs/{page} has no marks {begin.strip()} and {end} to write the table between")
    before, rest = text.split(begin, 1)
    path.write_text(before + begin + table + end + rest.split(end, 1)[1], encoding="utf-8")


def commit() -> str:
    """The commit that is measured, marked if the tree differs from it; "unknown" outside a clone."""
    if shutil.which("git") is None:
        return "unknown"

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()

    dirty = git("status", "--porcelain", "--", "../src", "../benchmarks/*.py")
    return (git("rev-parse", "HEAD") or "unknown") + (" (changed)" if dirty else "")
