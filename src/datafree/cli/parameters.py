"""Options that several verbs of the command share, and how a verb reads its paths."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from datafree.config.paths import as_written

Named = Annotated[str, typer.Argument(help="A YAML file, or a packaged recipe's name (`datafree list`).")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Such as training.seed=1.")]
MaxTime = Annotated[str | None, typer.Option(metavar="TIME", help="Stop cleanly after it, such as 90s, 9m or 1h30m.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show only warnings and the result.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show every logged line, with every figure.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check all of it, say what it would do, write nothing.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...", show_default="auto")]
Seed = Annotated[int | None, typer.Option(help="Of everything random.", show_default="0")]
Student = Annotated[str | None, typer.Option(metavar="NETWORK", help="A network; auto: a small one like the teacher.")]
Compress = Annotated[str | None, typer.Option(metavar="4x", help="With auto: how many times fewer parameters.")]
StudentCode = Annotated[
    str | None, typer.Option(metavar="MODULE:CALLABLE", help="The student's own code, if it is not a library's.")
]
TaskCode = Annotated[
    str | None, typer.Option(metavar="MODULE:CLASS", help="The task's own class, if it is not datafree's.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Processes = Annotated[
    int, typer.Option(min=1, metavar="N", help="Share the work among N processes of this machine (torchrun: of many).")
]


def with_paths(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb, its paths read as in recipes: a shell leaves the `~` of `--out=~/runs` as it is."""

    @functools.wraps(verb)
    def called(**given: Any) -> None:
        verb(**{name: _as_written(value) for name, value in given.items()})

    return called


def _as_written(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_written(item) for item in value]
    return as_written(value) if isinstance(value, Path) else value
