"""Long-running commands that can be resumed: `distill`, `synthesize`, `demo`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from datafree.cli import teacher_options as options
from datafree.cli.demo import DEMO_TEXT, DEMOS, demo_table
from datafree.cli.lines import remark, remark_block, result, result_block
from datafree.cli.parameters import (
    Compress,
    Device,
    DryRun,
    MaxTime,
    Named,
    Overrides,
    Processes,
    Quiet,
    Seed,
    Student,
    Verbose,
)
from datafree.cli.score_table import print_outcome
from datafree.config.overrides import require_overrides, training_overrides
from datafree.config.paths import placed
from datafree.distributed.launch import launch, launched
from datafree.engine.stopping import Stop, parse_time, stopping
from datafree.errors import RecipeError
from datafree.preflight.option_values import require_device, require_seed
from datafree.preflight.wishes import Wishes
from datafree.recipe.files import require_recipe
from datafree.storage.places import require_for_run, require_for_set
from datafree.text import counted, did_you_mean, show

if TYPE_CHECKING:  # torch takes seconds to import: the verbs import what they need
    from datafree.recipe.recipe import Recipe
    from datafree.run import Outcome


def distill(
    teacher: options.Teacher,
    overrides: Overrides = None,
    weights: options.Weights = None,
    args: options.Args = None,
    student: Student = None,
    compress: Compress = None,
    size: options.Size = None,
    task: options.Task = None,
    classes: options.Classes = None,
    mean: options.Mean = None,
    std: options.Std = None,
    channels: options.Channels = None,
    channel_order: options.Order = None,
    time: options.Time = None,
    photos: options.Photos = None,
    data: options.Data = None,
    device: Device = None,
    seed: Seed = None,
    source: options.Source = None,
    out: Annotated[Path | None, typer.Option(help="The run directory.", show_default="runs/NAME")] = None,
    max_time: MaxTime = None,
    processes: Processes = 1,
    quiet: Quiet = False,
    verbose: Verbose = False,
    dry_run: DryRun = False,
) -> None:
    """Distil a student from a teacher, or as a recipe says. The same command resumes a run that was stopped."""
    wishes = Wishes(
        weights=weights,
        args=tuple(args or ()),
        student=student,
        compress=compress,
        size=size,
        task=task,
        classes=classes,
        mean=mean,
        std=std,
        channels=channels,
        channel_order=channel_order,
        time=time,
        photos=photos,
        data=data,
        device=device,
        seed=seed,
        source=source,
    )
    if out is not None:
        require_for_run(out)
    if processes > 1 and not launched():
        # What is wrong is said at once, and once; on the CPU, since this process would hold a GPU's memory to the end.
        options.chosen(teacher, overrides or [], replace(wishes, device="cpu"))
        raise typer.Exit(launch(processes, sys.argv[1:]))
    with stopping(None if max_time is None else parse_time(max_time)) as stop:
        made = options.chosen(teacher, overrides or [], wishes)
        if not quiet:
            for line in made.lines:
                remark(line)
        place = Path("runs") / made.recipe.name if out is None else out
        if dry_run:
            _rehearse(made.recipe, place)
            return
        outcome = _run(made.recipe, place, stop, quiet, verbose, made.drafted)
    if outcome.already_finished:
        remark("this run had finished before; its result:")
    _print_places(outcome)
    if made.drafted is not None:
        result(f"recipe: {outcome.run / 'chosen.yaml'}")
    print_outcome(outcome.scores, outcome.notes)


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
    device: Device = None,
    seed: Seed = None,
    max_time: MaxTime = None,
    processes: Processes = 1,
    quiet: Quiet = False,
    verbose: Verbose = False,
    dry_run: DryRun = False,
) -> None:
    """Make a data set from a recipe's source and teacher. The same command resumes; a larger N adds to it."""
    changes = [*(overrides or []), *training_overrides(device, seed)]
    require_device(device)
    require_seed(seed)
    require_overrides(changes)
    require_recipe(recipe)
    if images is None and not verify:
        raise RecipeError(["--images is missing; say how many, such as --images 1000"])
    if isinstance(place := placed(out), Path):
        require_for_set(place)
    _share(processes, recipe, changes)
    whole = "after this update, with all whole shards kept"
    with stopping(None if max_time is None else parse_time(max_time), kept=whole) as stop:
        from datafree.cli.display import display
        from datafree.recipe.recipe import load_recipe
        from datafree.synthesis.synthesize import synthesize as make
        from datafree.synthesis.synthesize import verify as check

        loaded = load_recipe(recipe, changes)
        if verify:
            made = check(loaded, place, say=result)
        elif dry_run:
            _rehearse(loaded, place, images)
            return
        else:
            with display(quiet=quiet, verbose=verbose) as shown:
                made = make(loaded, place, images or 0, stop=stop, log=shown.log, say=shown.say)
    sound = ", every file as it was written" if verify else ""
    result(f"data set: {made.path}, {counted(made.images, 'image')} in {counted(made.shards, 'shard')}{sound}")
    for note in made.notes:
        result(f"note: {note}")


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
    places = [out / f"{Path(name).stem}{'-quick' if quick else ''}" for name in DEMOS[task]]
    for place in places:
        require_for_run(place)
    remark_block(DEMO_TEXT)
    with stopping(None) as stop:
        from datafree.recipe.recipe import load_recipe

        recipes = [load_recipe(name, short if quick else []) for name, short in DEMOS[task].items()]
        outcomes = []
        for recipe, place in zip(recipes, places, strict=True):
            if not quiet:
                remark("")
                remark(f"{recipe.name}: distilling")
            outcomes.append(_run(recipe, place, stop, quiet))
    result_block(demo_table(recipes, outcomes))
    if quick:
        result("note: --quick trains for a few steps only; its scores say nothing about the method")
    for outcome in outcomes:
        _print_places(outcome)


def _print_places(outcome: Outcome) -> None:
    result(f"run: {outcome.run}")
    result(f"page: {outcome.run / 'report.html'}")


def _share(processes: int, recipe: str, overrides: list[str]) -> None:
    """Leave the work to as many processes as the user wants, if this is none of them already."""
    if processes == 1 or launched():
        return
    from datafree.recipe.recipe import load_recipe

    load_recipe(recipe, overrides)  # what is wrong with it is said at once, and once
    raise typer.Exit(launch(processes, sys.argv[1:]))


def _rehearse(recipe: Recipe, out: Path | str, images: int | None = None) -> None:
    """Do all that comes before the first step, and say what would follow."""
    from datafree.preflight.rehearsal import rehearse

    for line in rehearse(recipe, out, images):
        result(line)


def _run(
    recipe: Recipe, out: Path, stop: Stop, quiet: bool, verbose: bool = False, drafted: str | None = None
) -> Outcome:
    from datafree.cli.display import display
    from datafree.run import run_recipe

    with display(quiet=quiet, verbose=verbose) as shown:
        return run_recipe(recipe, out, stop=stop, log=shown.log, say=shown.say, drafted=drafted)
