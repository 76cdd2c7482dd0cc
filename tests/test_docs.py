"""The pages for people: their recipes load, their commands parse, their tables are the code's, their links resolve."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from datafree.cli import main
from datafree.config import yaml
from datafree.config.paths import builtin_folder, expand
from datafree.config.schema import plain
from datafree.engine.stopping import parse_time
from datafree.networks.load import NetworkSpec
from datafree.recipe.files import packaged_recipes
from datafree.recipe.recipe import FAMILIES, Recipe, dump, load_recipe
from datafree.recipe.training import Training
from datafree.sources import SOURCES, ImageSource
from datafree.storage.run_directory import FREE_KEYS
from datafree.tasks import TASKS
from recipes import VALID, to_yaml

ROOT = Path(__file__).resolve().parent.parent
PAGES = [path for path in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))] if path.is_file()]
SECTIONS = ("name", "task", "teacher", "student", "source", "training", "data")
FOLDERS, FILES = ("path", "data"), ("weights", "generator")
OTHER_COMMANDS = ("pip", "pytest", "ruff", "mypy", "make", "export", ".")

pytestmark = pytest.mark.skipif(not (ROOT / "README.md").is_file(), reason="the pages are only in the repository")


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    line: int  # of its first line
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path, language: str) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(page, text.count("\n", 0, match.start(1)) + 1, match[1]) for match in found]


def is_complete(content: Mapping[str, Any]) -> bool:
    return "task" in content and "source" in content


def make_what_it_names(content: object, folder: Path) -> None:
    """Create the folders and files that a recipe names below `folder`."""
    for key, value in content.items() if isinstance(content, Mapping) else []:
        if key in (*FOLDERS, *FILES) and isinstance(value, str):
            path = expand(value)
            assert path.is_relative_to(folder) or path.is_relative_to(builtin_folder()), f"{value} is not relative"
            if key in FILES:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            else:
                path.mkdir(parents=True, exist_ok=True)
        make_what_it_names(value, folder)
    for item in content if isinstance(content, list) else []:
        make_what_it_names(item, folder)


def load_block(block: Block, *overrides: str, name: str = "page.yaml") -> Recipe:
    """The block's recipe in the current directory; sections that it leaves out are those of a small valid one."""
    content = yaml.parse(block.text, str(block))
    assert set(content) <= set(SECTIONS)
    text = block.text
    if not is_complete(content):
        text += yaml.render({key: value for key, value in VALID.items() if key not in content})
    make_what_it_names(yaml.parse(text, str(block)), Path.cwd())
    Path(name).write_text(text, encoding="utf-8")
    return load_recipe(name, overrides)


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory that also stands for the folder of data sets."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATAFREE_DATA", str(tmp_path / "sets"))
    return tmp_path


@pytest.mark.parametrize("block", [b for page in PAGES for b in blocks(page, "yaml")], ids=str)
def test_every_yaml_block_loads_as_a_recipe(block: Block, empty: Path) -> None:
    recipe = load_block(block)
    (empty / "resolved.yaml").write_text(to_yaml(recipe), encoding="utf-8")
    assert dump(load_recipe("resolved.yaml")) == dump(recipe)


@pytest.mark.parametrize("name", ["README.md", "docs/recipes.md"])
def test_the_page_holds_a_complete_recipe(name: str) -> None:
    assert any(is_complete(yaml.parse(b.text, str(b))) for b in blocks(ROOT / name, "yaml"))


def command_lines() -> list[tuple[Block, list[str]]]:
    """Every command in the `sh` blocks, `&&` taken apart."""
    found = []
    for block in (b for page in PAGES for b in blocks(page, "sh")):
        for line in block.text.splitlines():
            words: list[str] = []
            for word in [*shlex.split(line, comments=True), "&&"]:
                if word != "&&":
                    words.append(word)
                elif words:
                    found.append((block, words))
                    words = []
    return found


COMMANDS = command_lines()
OURS = [(block, words[1:]) for block, words in COMMANDS if words[0] == "datafree"]


def test_commands_in_the_pages_are_ones_this_file_checks() -> None:
    assert OURS
    for block, words in COMMANDS:
        known = words[0] in ("datafree", *OTHER_COMMANDS) or words[:3] == ["python", "-m", "venv"]
        assert known or check_script(words), f"{block}: {words}"


def check_script(words: list[str]) -> bool:
    """Whether `words` run a script of the repository with options that it names, or a module beside it that it uses."""
    script = ROOT / words[1]
    if words[0] != "python" or not script.is_file():
        return False
    text = script.read_text(encoding="utf-8")
    used = [script.parent / f"{name}.py" for name in re.findall(r"^from (\w+) import", text, re.MULTILINE)]
    text += "".join(file.read_text(encoding="utf-8") for file in used if file.is_file())
    return all(f'"{word}"' in text for word in words[2:] if word.startswith("--"))


@pytest.mark.parametrize(("block", "arguments"), OURS, ids=lambda value: " ".join(value) if type(value) is list else "")
@pytest.mark.usefixtures("empty")
def test_every_datafree_command_parses(block: Block, arguments: list[str]) -> None:
    commands: Any = typer.main.get_command(main.app)
    verb, *rest = arguments
    assert verb in commands.commands, f"{block}: no verb {verb}"
    given = commands.commands[verb].make_context(verb, rest).params  # raises what a user would be shown
    if given.get("max_time"):
        assert parse_time(given["max_time"]) > 0
    if verb != "distill":
        return
    if not given["teacher"].endswith(".yaml"):
        assert given["teacher"] in packaged_recipes() or given["teacher"] == "teacher.safetensors"
        return
    on_page = [b for b in blocks(block.page, "yaml") if is_complete(yaml.parse(b.text, str(b)))]
    load_block(on_page[0], *(given["overrides"] or []), name=given["teacher"])  # the page's own recipe


# The tables of options: `option` | `default` or required | what.

TABLES: list[tuple[str, str, type[Any]]] = [
    *(("docs/recipes.md", f"`kind: {name}`", kind) for name, kind in TASKS.items()),
    ("docs/recipes.md", "Options of `teacher` and `student`", NetworkSpec),
    ("docs/recipes.md", "Options of `source`", ImageSource),
    ("docs/recipes.md", "Options of `training`", Training),
    *((f"docs/methods/{name}.md", f"`{name}`", kind) for name, kind in SOURCES.items()),
]


def options_on(page: Path, heading: str) -> dict[str, str]:
    """The first two columns of the option table under a heading."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    parts = re.split(r"^#+ (.*)\n", text, flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert heading in sections, f"{page.name} has no section {heading}"
    table = re.search(r"^\| option \|.*\n\|---.*\n((?:\|.*\n)*)", sections[heading], re.MULTILINE)
    assert table is not None, f"{page.name}: no table of options under {heading}"
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in table[1].splitlines()]
    return {name.strip("`"): default for name, default in rows}


@pytest.mark.parametrize(("name", "heading", "kind"), TABLES, ids=[heading for _, heading, _ in TABLES])
def test_tables_of_options_are_those_of_the_code(name: str, heading: str, kind: type[Any]) -> None:
    shown = options_on(ROOT / name, heading)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    common = {field.name: field.default for field in dataclasses.fields(ImageSource)}
    own = {n for n, field in fields.items() if kind is ImageSource or n not in common or field.default != common[n]}
    assert own <= set(shown) <= set(fields)
    for option, cell in shown.items():
        field = fields[option]
        value = field.default_factory() if callable(field.default_factory) else field.default
        if value is dataclasses.MISSING:
            assert cell == "required", option
        else:
            if isinstance(value, list) and value and dataclasses.is_dataclass(value[0]):
                assert cell == ("two" if len(value) == 2 else str(len(value))), option
                continue
            expected = plain(value, FAMILIES)
            given = yaml.parse(cell.strip("`"), option)
            is_number = type(expected) in (float, int) or isinstance(value, tuple)
            assert given == (pytest.approx(expected, abs=1e-4) if is_number else expected), option


def test_every_method_and_task_is_named_where_one_is_chosen() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    for key, members in (("method", SOURCES), ("kind", TASKS)):
        named = re.search(rf"^`{key}` is (.*?), or a class", text, re.MULTILINE | re.DOTALL)
        assert named is not None
        assert set(re.findall(r"`([^`]+)`", named[1])) == set(members)


def test_keys_that_may_differ_when_a_run_goes_on_are_named() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    named = re.search(r"Only these keys may differ: ([^.]*(?:\.\w[^.]*)*)\.\s", text)
    assert named is not None
    assert set(re.findall(r"`([^`]+)`", named[1])) == set(FREE_KEYS)


# Links.


def prose(page: Path) -> str:
    """A page without its blocks, code and comments."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"<!--.*?-->|`[^`\n]*`", "", text, flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_resolves(page: Path) -> None:
    for target in re.findall(r"!?\[[^\]]*\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?://|mailto:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = (page.parent / file).resolve() if file else page
        assert linked.is_relative_to(ROOT), target
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def test_every_test_that_a_page_names_is_there() -> None:
    found = [*(ROOT / "tests").rglob("test_*.py"), *(ROOT / "tests").rglob("cases_*.py")]
    files = {file.name: file.read_text("utf-8") for file in found}
    tests = set(re.findall(r"^\s*def (test_\w+)", "\n".join(files.values()), re.MULTILINE))
    named = {
        page.name: set(re.findall(r"`(?:tests/(?:\w+/)*)?(test_\w+(?:\.py)?)`", page.read_text("utf-8")))
        for page in (ROOT / "docs").rglob("*.md")
    }
    assert len(named["reliability.md"]) > 20
    for page, names in named.items():
        assert names <= tests | set(files), f"{page}: {sorted(names - tests - set(files))}"
