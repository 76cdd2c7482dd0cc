"""Commands that only report: `inspect`, `plan`, `list`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from datafree.cli.lines import result_block
from datafree.cli.parameters import AsJson, Compress, Named, Overrides, Quiet, Student
from datafree.cli.teacher_options import Order
from datafree.config.overrides import require_overrides, student_overrides
from datafree.engine.stopping import ending
from datafree.errors import RecipeError
from datafree.preflight.alike import require_known
from datafree.preflight.option_values import parse_link, require_one_file
from datafree.preflight.teacher_file import kind_of
from datafree.preflight.wishes import Wishes
from datafree.recipe.files import require_recipe
from datafree.storage import strict_json


def inspect(
    teacher: Annotated[
        str, typer.Argument(help="A network's name as in recipes, a weights file, or a recipe: then its teacher.")
    ],
    weights: Annotated[Path | None, typer.Option(help="A file of its weights.")] = None,
    args: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Of its constructor; may be repeated.")
    ] = None,
    size: Annotated[str | None, typer.Option(metavar="HxW", help="Of images, in pixels, such as 224x320.")] = None,
    task: Annotated[
        str | None, typer.Option(metavar="KIND", help="classification, detection, multilabel, segmentation.")
    ] = None,
    classes: Annotated[int | None, typer.Option(help="How many it tells apart.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Estimate what a run of it costs with this teacher.")] = None,
    channels: Annotated[int | None, typer.Option(metavar="1|3", help="Of its images: grey or colour.")] = None,
    mean: Annotated[str | None, typer.Option(metavar="R,G,B", help="Of images in [0, 1].")] = None,
    std: Annotated[str | None, typer.Option(metavar="R,G,B", help="The same.")] = None,
    channel_order: Order = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...", show_default="auto")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Say what a teacher is, what images it wants, which methods suit it and what they cost on this machine."""
    said: dict[str, Any] = {
        "size": size,
        "task": task,
        "classes": classes,
        "mean": mean,
        "std": std,
        "channel_order": channel_order,
    }
    Wishes(weights=weights, args=tuple(args or ()), channels=channels, device=device, **said)  # before torch
    if recipe is not None:
        require_recipe(recipe)
    if (kind := kind_of(teacher)) == "recipe":
        require_known(teacher)
    elif kind == "weights":
        from datafree.preflight.identify import identify

        require_one_file(teacher, weights)
        told = identify(Path(teacher))
        teacher, weights, channels = told.called, told.spec.weights, channels or told.spec.channels
    with ending("it writes nothing; run the same command to look again"):
        from datafree.cli.display import display
        from datafree.cli.inspect_text import inspection_text
        from datafree.preflight.inspection import inspect_teacher

        with display(quiet=quiet) as shown:
            found = inspect_teacher(
                teacher,
                weights=weights,
                args=args or [],
                channels=channels,
                **said,
                recipe=recipe,
                device=device,
                log=shown.log,
            )
    result_block(strict_json.render(asdict(found)) if as_json else inspection_text(found))


def plan(
    recipe: Named,
    overrides: Overrides = None,
    student: Student = None,
    compress: Compress = None,
    synthesize: Annotated[bool, typer.Option("--synthesize", help="Of the data set, not of a run.")] = False,
    images: Annotated[int | None, typer.Option(min=1, metavar="N", help="Of the data set.")] = None,
    link: Annotated[str, typer.Option(metavar="SPEED", help="Of each device to the others.")] = "10GB/s",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Say what a run or a data set will cost on 1, 8 and 64 devices like this one: time, memory, disk, device-hours."""
    if synthesize and images is None:
        raise RecipeError(["--images is missing; say how many, such as --images 1000"])
    if images is not None and not synthesize:
        raise RecipeError([f"--images {images} is about a data set; give --synthesize with it"])
    speed, changes = parse_link(link), [*(overrides or []), *student_overrides(student, compress)]
    require_overrides(changes)
    require_recipe(recipe)
    with ending("it writes nothing; run the same command to plan again"):
        from datafree.cli.display import display
        from datafree.cli.plan_text import plan_text
        from datafree.preflight.plan import plan as make
        from datafree.recipe.recipe import load_recipe

        loaded = load_recipe(recipe, changes)
        with display(quiet=quiet) as shown:
            made = make(loaded, images, speed, log=shown.log, say=shown.say)
    result_block(strict_json.render(asdict(made)) if as_json else plan_text(made))


def list_() -> None:
    """Show the methods and their options, the tasks, the networks and the packaged recipes."""
    from datafree.cli.catalog import listing

    result_block(listing())
