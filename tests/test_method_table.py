"""The table of methods on docs/methods.md: the classes' own facts, and rows worked out by hand."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from datafree.sources import SOURCES, Cgdd, Inversion, Noise

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "write_method_table.py"

pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="the script is only in the repository")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_method_table", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_has_the_table_that_the_classes_give(script: ModuleType) -> None:
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert re.findall(script.PLACE, text) == [script.table()], "run python scripts/write_method_table.py"


def test_writing_changes_the_table_and_nothing_else(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "methods.md"
    page.write_text("before\n<!-- methods -->\nold\n<!-- /methods -->\nafter\n")
    monkeypatch.setattr(script, "PAGE", page)
    script.main()
    assert page.read_text() == f"before\n<!-- methods -->\n{script.table()}<!-- /methods -->\nafter\n"
    page.write_text("before\nafter\n")
    with pytest.raises(SystemExit, match="has no lines"):
        script.main()


def test_a_row_says_what_a_method_needs_and_costs(script: ModuleType) -> None:
    assert script.row("cgdd", Cgdd(batch_size=7, bank_size=9, warmup=1000, update_every=5))[2:] == [
        "no",
        "helps",
        "yes",
        "1 G, 1 T, 1 S",
        "1,000 before, then one every 5 steps",
        "Yu et al., [2112.15358](https://arxiv.org/abs/2112.15358) (its abstracts; the rest is inferred)",
    ]
    assert script.row("inversion", Inversion(iterations=1500))[3:6] == ["required, or attention", "yes", "1,500 T"]
    assert script.row("noise", Noise())[2:] == ["no", "not used", "no", "nothing", "none", "–"]
    assert script.cost(SOURCES["cmi"](iterations=3)) == "3 × (1 G, 2 T, 1 S)"  # type: ignore[call-arg]
    assert script.cost(SOURCES["diode"]()) == "4,000 T"  # the published stages: 2,500 and 1,500 iterations
    assert script.rhythm(SOURCES["dafl"]()) == "one every step"


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_a_methods_paper_is_the_one_that_its_module_and_its_page_name(name: str) -> None:
    paper = SOURCES[name].paper
    if paper is None:
        assert name in ("auto", "dataset", "noise")
        return
    module = inspect.getdoc(sys.modules[SOURCES[name].__module__]) or ""
    page = (ROOT / "docs" / "methods" / f"{name}.md").read_text(encoding="utf-8")
    for author in re.findall(r"[A-Z]\w+", paper.authors):
        assert name in ("folder", "mixed") or author in module
    if name != "folder":
        assert paper.arxiv in module
    if name not in ("folder", "mixed", "degan"):  # these name it on the methods' common page
        assert paper.arxiv in page
