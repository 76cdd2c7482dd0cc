"""The page in headless Chromium: it is whole, asks for nothing, fits a phone and a desk, and its button works."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from datafree.report.page import write_page, write_report
from datafree.report.server import make_server
from run_directories import write_run
from thorough import some

CHROMIUM = shutil.which("chromium")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
KINDS = ("classification", "segmentation", "detection")
WIDTHS = (390, 1440)  # pixels: a phone, a desk

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@dataclass
class Visit:
    """A page in a tab, and what happened there."""

    tab: Any
    complaints: list[str] = field(default_factory=list)  # of the console, errors
    asked: list[str] = field(default_factory=list)  # addresses, but data: ones

    def open(self, address: str) -> None:
        self.tab.on("console", lambda message: self.complaints.append(message.text))
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.tab.goto(address)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser for all tests."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    """Open an address with a width and a colour scheme."""
    contexts = []

    def open_(address: str, width: int = 1440, scheme: str = "light") -> Visit:
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme))
        visited = Visit(tab=contexts[-1].new_page())
        visited.open(address)
        return visited

    yield open_
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of each task, and one that compares them."""
    folder = tmp_path_factory.mktemp("pages")
    runs = [write_run(folder, kind) for kind in KINDS]
    written = {kind: write_page(run) for kind, run in zip(KINDS, runs, strict=True)}
    return {**written, "comparison": write_report(runs, folder / "comparison.html")}


@pytest.mark.parametrize("name", some([*KINDS, "comparison"], "classification", "comparison"))
def test_a_page_is_whole_and_fits(pages: dict[str, Path], visit: Any, name: str) -> None:
    for width, scheme in zip(WIDTHS, ("dark", "light"), strict=True):
        visited = visit(pages[name].as_uri(), width, scheme)
        tab = visited.tab
        assert visited.complaints == []
        assert [address for address in visited.asked if not address.startswith("data:")] == [pages[name].as_uri()]
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.evaluate("[...document.images].length") >= 3
        assert tab.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        wide = "[...document.querySelectorAll('h1, h2, p, li, img, svg.chart, section')]"
        out = f"{wide}.filter(one => one.getBoundingClientRect().right > {width} + 1).map(one => one.outerHTML)"
        assert tab.evaluate(out) == []


def test_a_name_from_a_file_is_shown_and_not_run(pages: dict[str, Path], visit: Any) -> None:
    visited = visit(pages["segmentation"].as_uri())
    assert "<script>alert(1)</script>" in visited.tab.inner_text("main")
    assert visited.tab.evaluate("document.scripts.length") == 1


def test_the_button_copies_the_code(pages: dict[str, Path], visit: Any) -> None:
    visited = visit(pages["segmentation"].as_uri())
    visited.tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    button = visited.tab.get_by_role("button", name="Copy")
    button.click()
    visited.tab.get_by_role("button", name="Copied").wait_for(timeout=5000)
    assert visited.tab.evaluate("navigator.clipboard.readText()") == visited.tab.inner_text("#snippet")
    assert "load" in visited.tab.inner_text("#snippet")
    assert visited.complaints == []


@pytest.mark.parametrize("scheme", some(["light", "dark"], "dark"))
def test_words_stand_out_from_their_ground(pages: dict[str, Path], visit: Any, scheme: str) -> None:
    """WCAG 2.1's contrast of at least 4.5 to 1, for every element that has words of its own."""
    tab = visit(pages["segmentation"].as_uri(), 1440, scheme).tab
    found = tab.evaluate(
        """() => {
          const light = (colour) => {
            const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(Number).map((v) => v / 255)
              .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const ground = (one) => {
            for (; one; one = one.parentElement) {
              const colour = getComputedStyle(one).backgroundColor;
              if (!/, 0\\)$/.test(colour)) return colour;
            }
            return "rgb(255, 255, 255)";
          };
          return [...document.body.querySelectorAll("*")]
            .filter((one) => [...one.childNodes].some((n) => n.nodeType === 3 && n.data.trim()))
            .filter((one) => one.checkVisibility() && !one.matches("script, style, title"))
            .map((one) => {
              const style = getComputedStyle(one);
              const words = one instanceof SVGElement ? style.fill : style.color;
              const pair = [light(words), light(ground(one))].sort((a, b) => a - b);
              return [(pair[1] + 0.05) / (pair[0] + 0.05), one.outerHTML.slice(0, 80)];
            }).filter(([ratio]) => ratio < 4.5);
        }"""
    )
    assert found == []


def test_the_page_can_be_walked_without_seeing_it(pages: dict[str, Path], visit: Any) -> None:
    tab = visit(pages["detection"].as_uri()).tab
    assert [tab.locator(landmark).count() for landmark in ("header", "main", "footer")] == [1, 1, 1]
    labels = tab.evaluate("[...document.querySelectorAll('section')].map(s => s.getAttribute('aria-labelledby'))")
    assert len(labels) > 5 and all(tab.locator(f"h2#{label}").count() == 1 for label in labels)
    assert tab.evaluate("[...document.images].every(image => image.alt.length > 5)")
    assert tab.evaluate(
        "[...document.querySelectorAll('svg.chart')].every(s => s.getAttribute('aria-label').length > 10)"
    )
    levels = tab.evaluate("[...document.querySelectorAll('h1, h2, h3')].map(h => Number(h.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


@pytest.mark.thorough
def test_the_live_page_loads_itself_again(tmp_path: Path, visit: Any) -> None:
    run = write_run(tmp_path, finished=False)
    server = make_server(run, 0)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        visited = visit(f"http://127.0.0.1:{server.server_port}/")
        visited.tab.get_by_text("live: this page loads itself again").wait_for(timeout=10_000)
        with (run / "metrics.jsonl").open("a") as file:
            file.write('{"index": 51, "step": 41, "loss": 0.1}\n')
        visited.tab.get_by_text("stopped at step 41 of 400").wait_for(timeout=10_000)
        assert visited.complaints == []
        assert {address.split("/")[2] for address in visited.asked if not address.startswith("data:")} == {
            f"127.0.0.1:{server.server_port}"
        }
    finally:
        server.shutdown()
        server.server_close()
