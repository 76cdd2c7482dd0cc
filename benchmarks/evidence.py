"""The papers' claims beside what was measured: docs/evidence.md, whose every figure comes from benchmarks/results/.

    python benchmarks/evidence.py            # write the tables of docs/evidence.md
    python benchmarks/evidence.py --check    # exit status 1 where page and results files differ

A claim (claims.py) is decided by its differences in the seeds that both rows have: their mean, and Student's t interval
of 95 %. Of several tables the one with most such seeds counts, of equals the one nearer to the paper.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from statistics import mean, stdev
from typing import Any, final

import results
from cells import minutes
from claims import PAPERS, Claim
from measured import measured_rows
from pairs import Results

PAGE = "evidence.md"
SEEDS = (0, 1, 2)  # that a claim is to be decided with
T_95 = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
)  # two-sided, 1 to 9 degrees of freedom; beyond, the last
HOLDS, FAILS, LEVEL, OPEN = "holds", "does not at this size", "level", "not decided"


@final
@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a table says of a claim."""

    claim: Claim
    table: str  # BENCHMARK-SIZE, or empty: there is no such row
    rows: Results  # of that table

    @property
    def names(self) -> list[str]:
        """The rows that decide."""
        return [name for name in (self.claim.row, self.claim.than) if name]

    @cached_property
    def seeds(self) -> list[int]:
        """That all these rows were measured for."""
        metric = self.claim.metric
        known = [{int(c["seed"]) for c in self.rows.get(name, []) if metric in c["metrics"]} for name in self.names]
        return sorted(set.intersection(*known)) if known else []

    def values(self, name: str) -> list[float]:
        """A row's figures in percent, in the order of `seeds`."""
        found = {cell["seed"]: 100 * cell["metrics"][self.claim.metric] for cell in self.rows[name]}
        return [found[seed] for seed in self.seeds]

    @property
    def differences(self) -> list[float]:
        """In percentage points, by seed: from the other row, or from the published figure."""
        if not self.seeds:
            return []
        ours = self.values(self.claim.row)
        theirs = self.values(self.claim.than) if self.claim.than else [self.claim.published[0]] * len(ours)
        return [a - b for a, b in zip(ours, theirs, strict=True)]

    @property
    def interval(self) -> tuple[float, float] | None:
        return interval(self.differences)

    @property
    def verdict(self) -> str:
        """holds, does not at this size, level (the interval includes zero), or not decided (fewer than two seeds)."""
        if self.interval is None:
            return OPEN
        low, high = self.interval if not self.claim.less else (-self.interval[1], -self.interval[0])
        return HOLDS if low > 0 else FAILS if high < 0 else LEVEL

    @property
    def is_published_possible(self) -> bool:
        """Whether the paper's own difference lies in the interval."""
        if self.interval is None or len(self.claim.published) != 2:
            return False
        return self.interval[0] <= self.claim.published[0] - self.claim.published[1] <= self.interval[1]


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Student's t interval of 95 % of their mean; None of fewer than two."""
    if len(values) < 2:
        return None
    half = T_95[min(len(values) - 2, len(T_95) - 1)] * stdev(values) / sqrt(len(values))
    return mean(values) - half, mean(values) + half


def findings(claim: Claim) -> list[Finding]:
    """What each of a claim's tables says, the cheapest first."""
    return [Finding(claim=claim, table=table, rows=rows_of_table(table)) for table in claim.tables]


def find(claim: Claim) -> Finding:
    """What is known of a claim: by the table with most seeds, of equals the one nearer to the paper."""
    found = findings(claim)
    most = max((len(finding.seeds) for finding in found), default=0)
    if most == 0:
        return found[0] if found else Finding(claim=claim, table="", rows={})
    return [finding for finding in found if len(finding.seeds) == most][-1]


def rows_of_table(table: str) -> Results:
    benchmark, _, size = table.rpartition("-")
    return measured_rows(benchmark, size)


# The page.


def line(finding: Finding) -> str:
    """A claim's line of the table."""
    claim = finding.claim
    cells = [
        claim.text,
        _claimed(claim),
        _here(finding),
        ", ".join(map(str, finding.seeds)) or "–",
        " to ".join(map(_signed, finding.interval)) if finding.interval else "–",
        finding.verdict
        + ("; the paper's is within" if finding.verdict == LEVEL and finding.is_published_possible else ""),
        _minutes(finding),
        f"`{command(finding)}`" if finding.table else "–",
    ]
    return f"| {' | '.join(cells)} |"


def _claimed(claim: Claim) -> str:
    if claim.than is None:
        return f"{claim.published[0]:.2f} %; {claim.source}"
    if not claim.published:
        return f"{'not more' if claim.less else 'more'}, no figure; {claim.source}"
    ours, theirs = claim.published
    return f"{ours - theirs:+.2f} ({ours:.2f}, {theirs:.2f}); {claim.source}"


def _here(finding: Finding) -> str:
    if not finding.table:
        return "no such row"
    if not finding.seeds:
        return "not run"
    means = [mean(finding.values(name)) for name in finding.names]
    if len(means) == 1:
        return f"{means[0]:.1f} %"
    return f"{_signed(mean(finding.differences))} ({means[0]:.1f}, {means[1]:.1f})"


def _signed(difference: float) -> str:
    return f"{round(difference, 1) + 0.0:+.1f}"  # -0.0 becomes +0.0


def _minutes(finding: Finding) -> str:
    """Of all runs of the line, without their teachers."""
    used = [_of_seeds(finding.rows[name], finding.seeds) for name in finding.names] if finding.seeds else []
    cells: list[dict[str, Any]] = [cell for row in used for cell in row]
    if not cells:
        return "–"
    each, *mark = minutes(cells).split()
    return " ".join([f"{float(each) * len(cells):.0f}", *mark])


def _of_seeds(cells: Sequence[dict[str, Any]], seeds: Sequence[int]) -> list[dict[str, Any]]:
    return [cell for cell in cells if cell["seed"] in seeds]


def command(finding: Finding) -> str:
    """What measures the rows of a line."""
    benchmark, _, size = finding.table.rpartition("-")
    seeds = " ".join(map(str, SEEDS))
    return f"python benchmarks/{benchmark}.py --size {size} --rows {' '.join(finding.names)} --seeds {seeds}"


def table(claims: Sequence[Claim]) -> str:
    """Markdown: a line for each claim, and how many have which verdict."""
    found = [find(claim) for claim in claims]
    counts = {word: sum(finding.verdict == word for finding in found) for word in (HOLDS, FAILS, LEVEL, OPEN)}
    heads = ["claim", "claimed", "here", "seeds", "95 % interval", "verdict", "minutes", "command"]
    lines = [
        f"{len(found)} claims: {', '.join(f'{count} {word}' for word, count in counts.items())}.",
        "",
        f"| {' | '.join(heads)} |",
        "|---" * len(heads) + "|",
    ]
    return "\n".join([*lines, *map(line, found)]) + "\n"


def is_current() -> bool:
    """Whether the page says what the results files do."""
    text = (results.HERE.parent / "docs" / PAGE).read_text(encoding="utf-8")
    return all(f"<!-- {name} -->\n{table(claims)}<!-- /{name} -->" in text for name, claims in PAPERS.items())


def write() -> None:
    """Write the page's tables."""
    for name, claims in PAPERS.items():
        results.write_table(PAGE, name, table(claims))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only compare page and results files")
    if parser.parse_args().check:
        if is_current():
            return 0
        print(f"error: docs/{PAGE} differs from benchmarks/results; python benchmarks/evidence.py", file=sys.stderr)
        return 1
    write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
