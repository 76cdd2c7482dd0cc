"""Options that several verbs of the command share."""

from typing import Annotated

import typer

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
