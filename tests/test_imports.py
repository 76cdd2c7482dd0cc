"""The packages in their order: each imports only what stands above it."""

import ast
from pathlib import Path

import datafree

# From the ground up. `__init__`, `__main__` and what is data are not in it.
ORDER = [
    *("errors", "text", "config", "ops", "distributed", "data", "storage", "tasks", "networks", "health", "sources"),
    *("recipe", "engine", "synthesis", "evaluation", "deploy", "report", "preflight", "run", "api", "cli"),
]
ROOT = Path(datafree.__file__).parent


def imports_of(file: Path) -> set[str]:
    """The packages directly below `datafree` that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "datafree":
            found |= {alias.name for alias in node.names}
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {name.split(".")[1] for name in names if name.startswith("datafree.")}
    return found


def test_no_import_runs_backwards() -> None:
    backwards = []
    for file in sorted(ROOT.rglob("*.py")):
        place = file.relative_to(ROOT).with_suffix("").parts[0]
        if place in ("__init__", "__main__"):
            continue
        for name in imports_of(file) - {place}:
            if ORDER.index(name) > ORDER.index(place):
                backwards.append(f"{file.relative_to(ROOT)} imports datafree.{name}")
    assert not backwards


def test_the_first_look_is_short_and_so_is_every_module() -> None:
    entries = [path for path in ROOT.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= 25, sorted(path.name for path in entries)
    long = {
        str(file.relative_to(ROOT)): n for file in ROOT.rglob("*.py") if (n := len(file.read_text().splitlines())) > 300
    }
    assert not long
