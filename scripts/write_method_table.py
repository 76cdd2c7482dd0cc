"""Write the table of methods in docs/methods.md from what the classes of sources declare.

    python scripts/write_method_table.py

It stands between `<!-- methods -->` and `<!-- /methods -->`; a test compares the page with the classes.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any, Final

from datafree.sources import SOURCES, Folder, ImageSource, Noise

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "methods.md"
PLACE: Final = re.compile(r"(?<=<!-- methods -->\n).*?(?=<!-- /methods -->)", re.DOTALL)
LETTERS: Final = {"generator": "G", "discriminator": "D", "teacher": "T", "student": "S"}
PHOTOS: Final = Path("photos")  # is not opened
REQUIRED: Final[dict[str, dict[str, Any]]] = {  # options without a default
    "dataset": {"path": PHOTOS},
    "degan": {"proxy": Folder(path=PHOTOS)},
    "folder": {"path": PHOTOS},
    "mixed": {"parts": [Noise(), Noise()]},
}
HEAD: Final = (
    "| method | images | your images? | BatchNorm in the teacher? | bank? | an update costs | updates | paper |\n"
    "|---|---|---|---|---|---|---|---|\n"
)


def table() -> str:
    """The whole table, a row for each method."""
    rows = [row(name, SOURCES[name](**REQUIRED.get(name, {}))) for name in sorted(SOURCES)]
    return HEAD + "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def row(name: str, source: ImageSource) -> list[str]:
    """A method's cells; `source` has every default."""
    line = (inspect.getdoc(type(source)) or "").partition("\n")[0].rstrip(".").replace("|", "\\|")
    facts = [
        "yes" if source.needs_images else "no",
        batchnorm(source),
        "yes" if source.bank_images() else "no",
        cost(source),
        rhythm(source),
    ]
    return [
        f"[`{name}`](methods/{name}.md)",
        line,
        *(["its parts'"] * 5 if source.forwards_updates else facts),
        paper(source),
    ]


def batchnorm(source: ImageSource) -> str:
    """What BatchNorm in the teacher is to a method."""
    if source.needs_batchnorm:
        return "required, or attention" if source.or_attention else "required"
    return "helps" if source.uses_batchnorm else "not used"


def cost(source: ImageSource) -> str:
    """Passes of one update, such as "10 × (1 G, 1 T)"; those of all its iterations."""
    size = source.update_size()
    times = sum(size.iterations) if size is not None and size.iterations else 1
    passes = [(count, LETTERS[network]) for network, count in source.passes.items()]
    if len(passes) == 1:
        return f"{times * passes[0][0]:,} {passes[0][1]}"
    listed = ", ".join(f"{count} {letter}" for count, letter in passes)
    if not listed:
        return "no backward pass" if source.warmup or source.update_every else "nothing"
    return f"{times:,} × ({listed})" if times > 1 else listed


def rhythm(source: ImageSource) -> str:
    """When updates are due: before the student's first step, and between its steps."""
    every = {0: "", 1: "one every step"}.get(source.update_every, f"one every {source.update_every:,} steps")
    if not source.warmup:
        return every or "none"
    return f"{source.warmup:,} before, then {every}" if every else f"{source.warmup:,} before the student"


def paper(source: ImageSource) -> str:
    """Authors, a link, and what else is to be said."""
    found = source.paper
    if found is None:
        return "–"
    link = f", [{found.arxiv}](https://arxiv.org/abs/{found.arxiv})" if found.arxiv else ""
    remark = f" ({found.remark})" if found.remark else ""
    return f"{found.authors}{link}{remark}"


def main() -> None:
    """Write the page, and nothing else of it than the table."""
    text = PAGE.read_text(encoding="utf-8")
    if not PLACE.search(text):
        raise SystemExit(f"{PAGE} has no lines <!-- methods --> and <!-- /methods -->; put them where the table stands")
    PAGE.write_text(PLACE.sub(lambda match: table(), text), encoding="utf-8")


if __name__ == "__main__":
    main()
