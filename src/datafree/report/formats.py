"""The page's table of an export's formats: what RUN/export/config.json and RUN/bench.json say of them."""

from __future__ import annotations

from datafree.deploy.bench_file import read_bench
from datafree.deploy.export_config import read_export
from datafree.deploy.export_record import Export
from datafree.deploy.format_table import FormatTable, format_table
from datafree.deploy.written_names import CONFIG
from datafree.errors import RunError
from datafree.report.run_reader import Seen
from datafree.storage.strict_json import Damaged

EXPORT = "export"  # in a run directory
LONGEST = 300  # letters of a text that is shown


def formats(seen: Seen) -> FormatTable | None:
    """The table, its texts short; None where nothing was exported in a format or timed. `seen.missing` is told."""
    export, bench = Export(), None
    try:
        export = read_export(seen.path / EXPORT) or export
    except (Damaged, OSError) as error:
        seen.missing.append(f"{EXPORT}/{CONFIG}: damaged ({error})"[:LONGEST])
    try:
        bench = read_bench(seen.path)
    except (RunError, OSError) as error:
        seen.missing.append(f"{error}"[:LONGEST])
    if not export.made and not export.missing and bench is None:
        return None
    found = format_table(export, bench)
    return FormatTable(
        heads=[head[:LONGEST] for head in found.heads],
        rows=[[cell[:LONGEST] for cell in row] for row in found.rows[:40]],
        notes=[note[:LONGEST] for note in found.notes[:40]],
    )
