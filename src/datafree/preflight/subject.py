"""The network that `datafree inspect` examines, and what is known of it before it is built.

C classes, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from datafree.errors import NetworkError
from datafree.networks.checks.class_count import classes_of, shapes_for
from datafree.networks.first_input import distance
from datafree.networks.foreign.open_file import SUFFIXES
from datafree.networks.huggingface.directory import PREFIX, open_directory
from datafree.networks.instances import is_live
from datafree.networks.load import NetworkSpec
from datafree.networks.preprocessing import Preprocessing, Suggestion, known
from datafree.preflight.alike import hint
from datafree.preflight.option_values import StatedImages, argument, pixels, require_classes
from datafree.preflight.teacher_file import RECIPES, kind_of
from datafree.recipe.files import packaged_recipes
from datafree.recipe.recipe import Recipe, load_recipe
from datafree.text import show

Provenance = Literal["known", "stated", "default", "suggested", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A value and how it is known."""

    value: Any  # plain; None: unknown
    provenance: Provenance
    why: str  # who says so


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network to look at."""

    spec: NetworkSpec
    plan: Recipe | None  # what a run's cost is wanted for
    in_recipe: bool  # whether `spec` is the plan's teacher, whose images are as the recipe says
    classes: Fact  # an int; None: to be seen from the answers
    size: Fact  # (height, width), pixels; None: to be tried
    images: StatedImages  # beside what `spec` says


def find_subject(
    teacher: str,
    *,
    weights: Path | None,
    args: Sequence[str],
    size: str | None,
    classes: int | None,
    recipe: str | None,
    images: StatedImages,
) -> Subject:
    """Read what the user has written, as `inspection.inspect_teacher` has it. Raises DatafreeError."""
    in_recipe = Path(teacher).suffix in RECIPES or teacher in packaged_recipes()
    in_recipe = in_recipe or (Path(teacher).is_file() and kind_of(teacher) == "recipe")
    if in_recipe and recipe is not None:
        raise NetworkError(f"{teacher} is a recipe itself: leave --recipe out, or give a network's name before it")
    if not in_recipe and (Path(teacher) / "config.json").is_file():
        teacher = f"{PREFIX}{teacher}"
    if not in_recipe and "/" not in teacher and ":" not in teacher and not teacher.endswith(SUFFIXES):
        raise NetworkError(f"there is no network or recipe {show(teacher)}{hint(teacher)}; `datafree list` shows some")
    wanted = teacher if in_recipe else recipe
    plan = None if wanted is None else load_recipe(wanted)
    spec = plan.teacher if plan is not None and in_recipe else NetworkSpec(network=teacher)
    spec = replace(
        spec,
        args={**spec.args, **dict(map(argument, args))},
        weights=weights or spec.weights,
        channels=images.channels or spec.channels,
        mean=images.mean or spec.mean,
        std=images.std or spec.std,
        channel_order=images.channel_order or spec.channel_order,
    )
    return Subject(
        spec=spec,
        plan=plan,
        in_recipe=in_recipe,
        classes=_classes(spec, classes, plan),
        size=_size(spec, size, plan),
        images=images,
    )


def _size(spec: NetworkSpec, stated: str | None, plan: Recipe | None) -> Fact:
    if stated is not None:
        return Fact(value=pixels(stated), provenance="stated", why="--size")
    if plan is not None:
        return Fact(value=plan.task.image_size, provenance="stated", why=f"the recipe {plan.name}")
    metadata = known(spec)
    if metadata is not None and metadata.input_size is not None:
        return Fact(value=metadata.input_size, provenance="known", why=metadata.origin)
    return Fact(value=None, provenance="unknown", why="nobody says")


def _classes(spec: NetworkSpec, stated: int | None, plan: Recipe | None) -> Fact:
    given = next((spec.args[key] for key in ("classes", "num_classes") if key in spec.args), None)
    require_classes(stated)
    if stated is not None:
        _require_rows(spec, stated)
        return Fact(value=stated, provenance="stated", why="--classes")
    if plan is not None:
        return Fact(value=plan.task.num_classes, provenance="stated", why=f"the recipe {plan.name}")
    if spec.is_own_code or spec.is_program or is_live(spec.network):  # it knows itself
        return Fact(value=None, provenance="unknown", why="to be seen")
    if isinstance(given, int):
        return Fact(value=given, provenance="stated", why="args")
    if spec.is_directory:
        return Fact(value=open_directory(spec.network).classes, provenance="known", why="its config.json")
    if spec.weights is not None and (count := classes_of(spec)) is not None:
        return Fact(value=count, provenance="suggested", why=f"the last layers in {spec.weights.name}")
    metadata = known(spec)
    if metadata is not None and metadata.classes is not None:
        return Fact(value=metadata.classes, provenance="known", why=metadata.origin)
    shapes_for(spec, 2)  # a wrong name is to be said first
    way = "; its weights do not tell (`datafree inspect FILE` does, if they are another's), so give --classes N"
    way = way if spec.weights else ": give --classes N, or --weights FILE"
    raise NetworkError(f"nobody says how many classes {spec.network} tells apart{way}")


def _require_rows(spec: NetworkSpec, classes: int) -> None:
    """Raise NetworkError where the last layers of a weights file are of another number of classes."""
    if spec.weights is None or spec.is_own_code or spec.is_program or is_live(spec.network):
        return
    count = classes_of(spec)
    if count not in (None, classes):
        raise NetworkError(
            f"--classes is {classes}, but the last layers in {spec.weights.name} are of {count}: leave --classes out, "
            f"or give the weights of a network of {classes}"
        )


def input_facts(subject: Subject, metadata: Preprocessing | None, suggestion: Suggestion) -> tuple[Fact, Fact, Fact]:
    """Mean, std and order of the channels that a network wants, and how each is known."""
    mean, std, order = _found_facts(subject, metadata, suggestion)
    if subject.images.mean is not None:
        mean = Fact(value=subject.images.mean, provenance="stated", why="--mean")
    if subject.images.std is not None:
        std = Fact(value=subject.images.std, provenance="stated", why="--std")
    if subject.images.channel_order is not None:
        order = Fact(value=subject.images.channel_order, provenance="stated", why="--channel-order")
    return mean, std, order


def _found_facts(subject: Subject, metadata: Preprocessing | None, suggestion: Suggestion) -> tuple[Fact, Fact, Fact]:
    """The same without what options have said."""
    spec, seen = subject.spec, suggestion.seen
    if subject.in_recipe:
        name = subject.plan.name if subject.plan else ""
        mean, std, order = _facts(spec, "stated", f"the recipe {name}")
        return _or_default(mean, spec), _or_default(std, spec), order
    if metadata is not None:
        if spec.weights is None:
            return _facts(metadata, "known", metadata.origin)
        if seen is not None and distance(seen, metadata.mean, metadata.std) <= 1:
            return _facts(metadata, "known", f"{metadata.origin}, and its first BatchNorm agrees")
        return _facts(metadata, "suggested", f"{metadata.origin}, for the library's own weights")
    guess = suggestion.preprocessing
    if guess is None:
        unknown = Fact(value=None, provenance="unknown", why=suggestion.why)
        return unknown, unknown, unknown
    mean, std, order = _facts(guess, "suggested", guess.origin)
    if guess.channel_order is None:
        return mean, std, Fact(value=None, provenance="unknown", why="its first BatchNorm does not tell")
    return (
        mean,
        std,
        replace(order, why=f"{guess.origin}, red being the channel of the highest mean in most photographs"),
    )


def _or_default(fact: Fact, spec: NetworkSpec) -> Fact:
    """The same, called a default where mean and std are what a recipe that says nothing has."""
    plain = (spec.mean, spec.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return replace(fact, provenance="default", why=f"{fact.why} has no other") if plain else fact


def _facts(of: NetworkSpec | Preprocessing, provenance: Provenance, why: str) -> tuple[Fact, Fact, Fact]:
    mean, std, order = (
        Fact(value=value, provenance=provenance, why=why) for value in (of.mean, of.std, of.channel_order)
    )
    return mean, std, order
