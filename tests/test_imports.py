"""The packages in their order: each imports only what stands above it."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import datafree
from syntax import nodes_of

# From the ground up. `__init__`, `__main__` and what is data are not in it.
ORDER = [
    *("text", "errors", "config", "ops", "distributed", "data", "storage", "tasks", "networks", "health", "sources"),
    *("recipe", "engine", "synthesis", "evaluation", "deploy", "report", "preflight", "run", "api", "cli"),
]
ROOT = Path(datafree.__file__).parent


def imports_of(file: Path) -> set[str]:
    """The packages directly below `datafree` that a module imports, anywhere in it."""
    found = set()
    for node in nodes_of(file):
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


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports for the type checker alone, and those inside functions, count as any other."""
    files = {".".join(("datafree", *f.relative_to(ROOT).with_suffix("").parts)): f for f in ROOT.rglob("*.py")}
    graph: dict[str, set[str]] = {}
    for module, file in files.items():
        nodes = [node for node in nodes_of(file) if isinstance(node, ast.ImportFrom)]
        named = {f"{node.module}.{alias.name}" for node in nodes for alias in node.names}
        graph[module] = (named | {node.module or "" for node in nodes}) & files.keys()
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


def test_the_first_look_is_short_and_so_is_every_module() -> None:
    entries = [path for path in ROOT.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= 25, sorted(path.name for path in entries)
    long = {
        str(file.relative_to(ROOT)): n for file in ROOT.rglob("*.py") if (n := len(file.read_text().splitlines())) > 300
    }
    assert not long


# Only the task knows what an answer is: who else names one, and why.
ANSWERS = {"Predictions", "Detection", "Segmentation", "Classification", "MultiLabel"}
KNOWING = {"tasks", "ops", "networks", "data"}  # the tasks; the type itself; adapters that make it; files of boxes
EXCEPTIONS = {
    "__init__.py": "the public names",
    "sources/diode/source.py": "a method for detectors alone, as its paper has it",
    "sources/diode/verifier.py": "the same: it scores boxes",
}


def names_in(file: Path) -> set[str]:
    """Every name, attribute and import of a module; texts and comments are none."""
    found: set[str] = set()
    for node in nodes_of(file):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.alias):
            found.add(node.name.rpartition(".")[2])
    return found


def test_only_the_task_knows_what_an_answer_is() -> None:
    files = [file for file in sorted(ROOT.rglob("*.py")) if file.relative_to(ROOT).parts[0] not in KNOWING]
    knowing = {file.relative_to(ROOT).as_posix() for file in files if names_in(file) & ANSWERS}
    assert knowing == set(EXCEPTIONS)


def test_answers_are_not_told_apart_by_options_of_one_task() -> None:
    options = {"distill", "score_threshold", "nms_iou", "max_boxes", "ignore_index"}
    asked = []
    for file in sorted(ROOT.rglob("*.py")):
        place = file.relative_to(ROOT)
        if place.parts[0] in KNOWING or place.as_posix() in EXCEPTIONS:
            continue
        for node in nodes_of(file):
            read = isinstance(node, ast.Attribute) and node.attr in options and ast.unparse(node.value).endswith("task")
            if read or (isinstance(node, ast.Call) and ast.unparse(node).startswith("getattr(task,")):
                asked.append(f"{place}:{node.lineno}")
    assert not asked
