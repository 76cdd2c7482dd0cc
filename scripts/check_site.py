"""Check a built documentation site: links, pictures and anchors lead somewhere in it, and no page loads from elsewhere.

    python scripts/check_site.py build/site

Every page must be reachable by links from index.html. 404.html is left out: its links are relative to a server's root.
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

LOADED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src"}  # by the browser, unasked


class Page(HTMLParser):
    """What a page links to and loads, and the anchors that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value}
        self.anchors.update(given[name] for name in ("id", "name") if name in given)
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in LOADED and LOADED[tag] in given:
            self.loads.append(given[LOADED[tag]])


def read_site(site: Path) -> dict[Path, Page]:
    pages = {}
    for path in sorted(site.resolve().rglob("*.html")):
        if path.name != "404.html":
            pages[path] = Page()
            pages[path].feed(path.read_text(encoding="utf-8"))
    return pages


def fault(path: Path, target: str, pages: dict[Path, Page]) -> str | None:
    """What is wrong with a link on the page at `path`."""
    place, anchor = (unquote(part) for part in urldefrag(target))
    if re.match(r"[a-z]+:|//", target):
        return None
    linked = (path.parent / place).resolve() if place else path
    if place.startswith("/"):
        return "begins at the server's root"
    if not linked.is_file():
        return "there is no such file"
    if anchor and linked in pages and anchor not in pages[linked].anchors:
        return "there is no such anchor"
    return None


def reached(pages: dict[Path, Page], start: Path) -> set[Path]:
    """The pages that links lead to from `start`, itself included."""
    found, waiting = {start}, [start]
    while waiting:
        path = waiting.pop()
        linked = {(path.parent / unquote(urldefrag(link).url)).resolve() for link in pages[path].links}
        waiting += (linked & set(pages)) - found
        found |= linked & set(pages)
    return found


def faults(site: Path) -> list[str]:
    """A line for everything that is wrong with a site."""
    pages, root = read_site(site), site.resolve()
    if root / "index.html" not in pages:
        return [f"{site} holds no index.html; build the site first: make docs"]
    lines = []
    for path, page in pages.items():
        for target in dict.fromkeys([*page.links, *page.loads]):
            if reason := fault(path, target, pages):
                lines.append(f"{path.relative_to(root)}: {target}: {reason}")
        outside = (target for target in page.loads if re.match(r"https?:|//", target))
        lines += [f"{path.relative_to(root)}: {target}: is loaded from elsewhere" for target in outside]
    lost = set(pages) - reached(pages, root / "index.html")
    return lines + [f"{path.relative_to(root)}: no link leads there from index.html; add it to nav" for path in lost]


def main() -> int:
    site = Path(sys.argv[1] if len(sys.argv) > 1 else "build/site")
    found = faults(site)
    print("\n".join(sorted(found)) or f"{site}: {len(read_site(site))} pages, every link leads somewhere")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
