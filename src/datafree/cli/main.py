"""The `datafree` command: its verbs, each a function whose signature is its options; errors as lines and exit codes.

Results go to standard output, everything else to standard error. Exit codes: 0 done; 2 something the user can
mend; 3 training failed; 75 stopped before the end, the same command resumes; 1 a fault of ours (a traceback).
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from datafree.cli.calibrate_command import calibrate
from datafree.cli.convert_command import convert
from datafree.cli.draft_commands import init
from datafree.cli.help import example, write_verbs
from datafree.cli.inspect_commands import inspect, list_, plan
from datafree.cli.lines import remark, result
from datafree.cli.parameters import with_paths
from datafree.cli.result_commands import bench, evaluate, export, push, report, watch
from datafree.cli.run_commands import demo, distill, synthesize
from datafree.distributed.launch import first, let_the_first_speak
from datafree.errors import DatafreeError, Interrupted, RecipeError
from datafree.text import one_line, shown


class Verbs(typer.core.TyperGroup):
    """The verbs, grouped in the help; an error of the command line shows its words safely."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        write_verbs(self, ctx, formatter)

    def make_context(self, *args: Any, **options: Any) -> Any:
        with _said_safely():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        with _said_safely():
            return super().invoke(ctx)


@contextmanager
def _said_safely() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        message, ctx = (getattr(error, name, None) for name in ("message", "ctx"))  # its errors have no public name
        if isinstance(message, str) and (ctx is None or message != ctx.get_help()):  # the help of a bare `datafree`
            vars(error)["message"] = shown(message)
        raise


app = typer.Typer(
    name="datafree",
    cls=Verbs,
    help="Distil a trained vision network into a small one without the data it was trained on.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """The entry point: runs a verb, turns every DatafreeError into its lines and its exit code."""
    if sys.platform == "win32":  # files are locked by flock, which Windows has not
        remark("error: datafree runs on Linux and macOS; on Windows use WSL")
        sys.exit(2)
    if not first():
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  # of several processes the first gives the results
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a letter that the locale has not is escaped
            stream.reconfigure(errors="backslashreplace")
    sys.path.append(str(Path.cwd()))  # "mymodule:thing" beside the user is found; last, so that it shadows nothing
    try:
        app()
    except DatafreeError as error:
        if isinstance(error, Interrupted) and not first():
            sys.exit(error.exit_code)  # all processes stop together, and the first says why
        let_the_first_speak()
        for line in error_lines(error):
            remark(line)
        sys.exit(error.exit_code)
    except OSError as error:  # of a place that nobody has looked at: too long a name, a folder that is not the user's
        let_the_first_speak()
        remark(f"error: the system refused: {one_line(error)}; name a place that can be read and written")
        sys.exit(2)


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
        result(f"datafree {metadata.version('datafree')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Distil a trained vision network into a small one without the data it was trained on."""


for verb in (
    *(distill, init, evaluate, synthesize, calibrate, export, bench, push),
    *(inspect, plan, report, watch, convert),
):
    app.command(epilog=example(verb.__name__))(with_paths(verb))
app.command(name="list", epilog=example("list"))(list_)
app.command(epilog=example("demo"))(with_paths(demo))
