"""The `datafree` command: its verbs, each a function whose signature is its options; errors as lines and exit codes.

Results go to standard output, everything else to standard error. Exit codes: 0 done; 2 something the user can
mend; 3 training failed; 75 stopped before the end, the same command resumes; 1 a fault of ours (a traceback).
"""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from datafree.cli.convert_command import convert
from datafree.cli.inspect_commands import inspect, list_, plan
from datafree.cli.result_commands import evaluate, export, report, watch
from datafree.cli.run_commands import demo, distill, synthesize
from datafree.distributed.launch import first, let_the_first_speak
from datafree.errors import DatafreeError, Interrupted, RecipeError

app = typer.Typer(
    name="datafree",
    help="Distil a trained vision network into a small one without the data it was trained on.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """The entry point: runs a verb, turns every DatafreeError into its lines and its exit code."""
    if sys.platform == "win32":  # files are locked by flock, which Windows has not
        print("error: datafree runs on Linux and macOS; on Windows use WSL", file=sys.stderr)
        sys.exit(2)
    if not first():
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  # of several processes the first gives the results
    sys.path.append(str(Path.cwd()))  # "mymodule:thing" beside the user is found; last, so that it shadows nothing
    try:
        app()
    except DatafreeError as error:
        if isinstance(error, Interrupted) and not first():
            sys.exit(error.exit_code)  # all processes stop together, and the first says why
        let_the_first_speak()
        for line in error_lines(error):
            print(line, file=sys.stderr)
        sys.exit(error.exit_code)


def error_lines(error: DatafreeError) -> list[str]:
    """What a user is shown."""
    if isinstance(error, RecipeError) and len(error.problems) > 1:
        return [
            f"error: the recipe has {len(error.problems)} faults",
            *(f"  {line}" for line in error.problems),
        ]
    return [str(error) if isinstance(error, Interrupted) else f"error: {error}"]


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"datafree {metadata.version('datafree')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Distil a trained vision network into a small one without the data it was trained on."""


for verb in (distill, evaluate, synthesize, export, inspect, plan, report, watch, convert):
    app.command()(verb)
app.command(name="list")(list_)
app.command()(demo)
