"""Options of `distill` and `init` that say what a teacher is and what is wanted of it, and the recipe they make."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from datafree.config.overrides import require_overrides
from datafree.preflight.alike import require_known
from datafree.preflight.option_values import pixels
from datafree.preflight.teacher_file import kind_of
from datafree.preflight.wishes import Wishes, recipe_overrides

if TYPE_CHECKING:  # torch takes seconds to import
    from datafree.recipe.recipe import Recipe

Teacher = Annotated[
    str,
    typer.Argument(
        metavar="TEACHER",
        help="A network's name (timm/resnet18), a weights file, .pt2, ONNX, a Hugging Face directory: a recipe is "
        "chosen. Or a recipe: YAML, or a packaged one's name.",
    ),
]
Weights = Annotated[Path | None, typer.Option(metavar="FILE", help="The teacher's weights, where it is a name.")]
Args = Annotated[
    list[str] | None, typer.Option(metavar="KEY=VALUE", help="Of the teacher's constructor; may be repeated.")
]
Size = Annotated[str | None, typer.Option(metavar="HxW", help="Of images, in pixels, such as 224x320.")]
Task = Annotated[str | None, typer.Option(metavar="KIND", help="classification, multilabel, detection, segmentation.")]
Classes = Annotated[int | None, typer.Option(metavar="N", help="How many the teacher tells apart.")]
Mean = Annotated[str | None, typer.Option(metavar="R,G,B", help="Of images in [0, 1], as the teacher has it.")]
Std = Annotated[str | None, typer.Option(metavar="R,G,B", help="The same.")]
Channels = Annotated[int | None, typer.Option(metavar="1|3", help="Of the teacher's images: grey or colour.")]
Order = Annotated[str | None, typer.Option("--channel-order", metavar="rgb|bgr", help="Of the teacher's images.")]
Time = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Planned; processor time on a CPU.", show_default="30m"),
]
Photos = Annotated[Path | None, typer.Option(metavar="DIR", help="Unlabelled photos of a related kind to learn from.")]
Data = Annotated[Path | None, typer.Option(metavar="DIR", help="Labelled images: only score at the end.")]
Source = Annotated[str | None, typer.Option(metavar="METHOD", help="Where images come from.", show_default="auto")]


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A recipe to run; the text and the lines of one that was chosen here."""

    recipe: Recipe
    drafted: str | None = None
    lines: tuple[str, ...] = ()


def chosen(teacher: str, overrides: list[str], wishes: Wishes) -> Chosen:
    """The user's recipe with the options as overrides, or one that is chosen for the teacher. Raises DatafreeError.

    What cannot be a teacher is refused by its first bytes, before torch is imported.
    """
    require_overrides(overrides)
    kind = kind_of(teacher)
    if kind == "recipe":
        require_known(teacher)
        from datafree.recipe.recipe import load_recipe

        size = None if wishes.size is None else pixels(wishes.size)
        return Chosen(recipe=load_recipe(teacher, [*recipe_overrides(wishes, size), *overrides]))
    from datafree.preflight.draft import draft
    from datafree.recipe.recipe import read_recipe

    made = draft(teacher, wishes, overrides)
    recipe = read_recipe(made.text, "the recipe that was chosen", made.sections["name"])
    return Chosen(recipe=recipe, drafted=made.text, lines=tuple(made.lines))
