"""The `datafree` command: one function for each verb; its signature is its options.

Results go to standard output, everything else to standard error. Exit codes: 0 done; 2 something the user can
mend; 3 training failed; 75 stopped before the end, the same command resumes; 1 a fault of ours (a traceback).
"""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from datafree.cli.demo import DEMO_TEXT, DEMOS, demo_table
from datafree.cli.inspect_commands import inspect, list_, plan
from datafree.cli.parameters import (
    Compress,
    MaxTime,
    Named,
    Overrides,
    Processes,
    Quiet,
    Student,
    StudentCode,
    TaskCode,
)
from datafree.cli.score_table import score_table
from datafree.config.overrides import student_overrides
from datafree.distributed.launch import first, launch, launched, let_the_first_speak
from datafree.engine.stopping import Stop, parse_time, stopping
from datafree.errors import DatafreeError, Interrupted, RecipeError
from datafree.storage import strict_json
from datafree.text import did_you_mean, percent, show, table

if TYPE_CHECKING:  # torch takes seconds to import: the verbs import what they need
    from datafree.recipe.recipe import Recipe
    from datafree.run import Outcome

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


@app.command()
def distill(
    recipe: Named,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="The run directory.", show_default="runs/NAME")] = None,
    student: Student = None,
    compress: Compress = None,
    max_time: MaxTime = None,
    processes: Processes = 1,
    quiet: Quiet = False,
) -> None:
    """Distil a student as a recipe says. The same command resumes a run that was stopped."""
    changes = [*(overrides or []), *student_overrides(student, compress)]
    _share(processes, recipe, changes)
    with stopping(None if max_time is None else parse_time(max_time)) as stop:
        from datafree.recipe.recipe import load_recipe

        loaded = load_recipe(recipe, changes)
        outcome = _run(loaded, Path("runs") / loaded.name if out is None else out, stop, quiet)
    if outcome.already_finished:
        print("this run had finished before; its result:", file=sys.stderr)
    print(f"run: {outcome.run}\npage: {outcome.run / 'report.html'}")
    if outcome.scores:
        print(score_table(outcome.scores))
    for note in outcome.notes:
        print(f"note: {note}")


def _share(processes: int, recipe: str, overrides: list[str]) -> None:
    """Leave the work to as many processes as the user wants, if this is none of them already."""
    if processes == 1 or launched():
        return
    from datafree.recipe.recipe import load_recipe

    load_recipe(recipe, overrides)  # what is wrong with it is said at once, and once
    raise typer.Exit(launch(processes, sys.argv[1:]))


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run directory with a finished student, or an exported .onnx file.")],
    data: Annotated[Path | None, typer.Option(help="A folder of labelled images.")] = None,
    images: Annotated[Path | None, typer.Option(help="A folder of any images: agreement with --teacher.")] = None,
    teacher: Annotated[str | None, typer.Option(metavar="RECIPE", help="The recipe that names the teacher.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    student: StudentCode = None,
    task: TaskCode = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, fractions instead of percent.")] = False,
) -> None:
    """Score a run's student on labelled data, or compare it with its teacher on images of any kind."""
    from datafree.evaluation.scoring import agreement_of_run, evaluate_run
    from datafree.recipe.recipe import load_recipe

    if (images is None) != (teacher is None) or (data is None and images is None):
        raise RecipeError(["evaluate needs --data DIR, or --images DIR and --teacher RECIPE, or all three"])
    code: dict[str, Any] = {"device": device, "student": student, "task": task}
    scores = {} if data is None else evaluate_run(run, data, **code)
    all_agree = (
        None if images is None or teacher is None else agreement_of_run(run, images, load_recipe(teacher), **code)
    )
    if as_json:
        content: dict[str, Any] = {who: {"values": s.values, "per_class": s.per_class} for who, s in scores.items()}
        print(strict_json.render(content if all_agree is None else {**content, "agreement": all_agree}))
        return
    if scores:
        print(score_table(scores))
    for who, score in scores.items():
        for figure, by_class in score.per_class.items():
            print(f"\n{figure} by class, {who}")
            print(table([[name, percent(value)] for name, value in by_class.items()]))
    if all_agree is not None:
        print(f"agreement with the teacher: {percent(all_agree)} on the images of {images}")


@app.command()
def synthesize(
    recipe: Named,
    out: Annotated[
        str, typer.Option(metavar="PATH", help="Where it goes: a directory, or a URL such as s3://bucket/folder.")
    ],
    overrides: Overrides = None,
    images: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="How many images at least; shards are whole.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Make nothing: compare every file with what was written.")
    ] = False,
    max_time: MaxTime = None,
    processes: Processes = 1,
    quiet: Quiet = False,
) -> None:
    """Make a data set from a recipe's source and teacher. The same command resumes; a larger N adds to it."""
    _share(processes, recipe, overrides or [])
    with stopping(None if max_time is None else parse_time(max_time)) as stop:
        from datafree.cli.display import display
        from datafree.config.paths import placed
        from datafree.recipe.recipe import load_recipe
        from datafree.synthesis.synthesize import synthesize as make
        from datafree.synthesis.synthesize import verify as check

        loaded = load_recipe(recipe, overrides or [])
        if verify:
            made = check(loaded, placed(out), say=print)
        elif images is None:
            raise RecipeError(["--images is missing; say how many, such as --images 1000"])
        else:
            with display(quiet=quiet) as shown:
                made = make(loaded, placed(out), images, stop=stop, log=shown.log, say=shown.say)
    sound = ", every file as it was written" if verify else ""
    print(f"data set: {made.path}, {made.images:,} images in {made.shards:,} shards{sound}")
    for note in made.notes:
        print(f"note: {note}")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run directory with a finished student.")],
    out: Annotated[Path | None, typer.Option(help="The folder to write.", show_default="RUN/export")] = None,
    onnx: Annotated[bool, typer.Option("--onnx/--no-onnx", help="Write student.onnx too.")] = True,
    opset: Annotated[int | None, typer.Option(help="Of ONNX.", show_default="torch's")] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Write student.int8.onnx too.")] = False,
    images: Annotated[
        Path | None, typer.Option(help="A folder of images to calibrate INT8 with.", show_default="the run's own")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="A folder of labelled images: scores what is exported.")] = None,
    student: StudentCode = None,
    task: TaskCode = None,
) -> None:
    """Write a run's student as files to ship: weights, ONNX, INT8, a description and a model card."""
    from datafree.deploy.export_run import export_run

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    done = export_run(
        run,
        out,
        onnx=onnx,
        opset=opset,
        int8=int8,
        images=images,
        data=data,
        student=student,
        task=task,
        say=say,
    )
    print(f"export: {done.folder}")
    print(table([[name, f"{size:,} bytes"] for name, size in done.sizes.items()]))
    for number, error in done.errors.items():
        print(f"student.onnx against torch, {number} at once: relative error {error:.1e}")
    if done.scores:
        print(score_table(done.scores))
    for note in done.notes:
        print(f"note: {note}")


app.command()(inspect)
app.command()(plan)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="A run directory; several are compared.")],
    out: Annotated[Path | None, typer.Option(help="Instead of RUN/report.html or comparison.html.")] = None,
) -> None:
    """Write the page of a run, or one that compares several."""
    from datafree.report.page import write_report

    print(f"page: {write_report(runs, out)}")


@app.command()
def watch(
    run: Annotated[Path, typer.Argument(help="A run directory, in progress or finished.")],
    port: Annotated[int, typer.Option(help="0: any that is free.", min=0, max=65535)] = 0,
) -> None:
    """Serve a run's page on this machine alone; it loads itself again as the run goes on. Ctrl-C ends it."""
    from datafree.report.server import serve

    serve(run, port, tell=print)


app.command(name="list")(list_)


@app.command()
def demo(
    task: Annotated[str, typer.Option(help=f"One of: {', '.join(DEMOS)}.")] = "segmentation",
    out: Annotated[Path, typer.Option(help="Where its run directories go.")] = Path("runs"),
    quick: Annotated[bool, typer.Option("--quick", help="A few steps only: to see that all works.")] = False,
    quiet: Quiet = False,
) -> None:
    """Distil the built-in example and the noise baseline, and compare."""
    if task not in DEMOS:
        hint = f"{did_you_mean(task, DEMOS)}; one of: {', '.join(DEMOS)}"
        raise RecipeError([f"there is no demo for the task {show(task)}{hint}"])
    print(DEMO_TEXT, file=sys.stderr)
    with stopping(None) as stop:
        from datafree.recipe.recipe import load_recipe

        recipes = [load_recipe(name, short if quick else []) for name, short in DEMOS[task].items()]
        outcomes = []
        for recipe in recipes:
            if not quiet:
                print(f"\n{recipe.name}: distilling", file=sys.stderr)
            outcomes.append(_run(recipe, out / f"{recipe.name}{'-quick' if quick else ''}", stop, quiet))
    print(demo_table(recipes, outcomes))
    if quick:
        print("note: --quick trains for a few steps only; its scores say nothing about the method")
    print("\n".join(f"run: {outcome.run}\npage: {outcome.run / 'report.html'}" for outcome in outcomes))


def _run(recipe: Recipe, out: Path, stop: Stop, quiet: bool) -> Outcome:
    from datafree.cli.display import display
    from datafree.run import run_recipe

    with display(quiet=quiet) as shown:
        return run_recipe(recipe, out, stop=stop, log=shown.log, say=shown.say)
