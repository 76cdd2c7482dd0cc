"""The network that `datafree inspect` examines, and what is known of it before it is built.

C classes, H x W pixels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from datafree.config import yaml
from datafree.errors import NetworkError
from datafree.networks.checks.class_count import classes_of, shapes_for
from datafree.networks.first_input import Three, distance
from datafree.networks.foreign.open_file import SUFFIXES
from datafree.networks.huggingface.directory import PREFIX, open_directory
from datafree.networks.instances import is_live
from datafree.networks.load import NetworkSpec, network_names
from datafree.networks.preprocessing import Preprocessing, Suggestion, known
from datafree.recipe.recipe import Recipe, load_recipe, packaged_recipes
from datafree.text import did_you_mean, show

Provenance = Literal["known", "stated", "default", "suggested", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A value and how it is known."""

    value: Any  # plain; None: unknown
    provenance: Provenance
    why: str  # who says so


@dataclass(frozen=True, kw_only=True)
class StatedImages:
    """What a user has said of the images a network wants; None where nothing."""

    channels: Literal[1, 3] | None = None
    mean: Three | None = None
    std: Three | None = None

    @classmethod
    def parse(cls, channels: int | None, mean: str | None, std: str | None) -> StatedImages:
        """From what options say. Raises NetworkError."""
        if channels not in (None, 1, 3):
            raise NetworkError(f"--channels is {channels}: give 3 for colour images, 1 for grey ones")
        made: Literal[1, 3] | None = None if channels is None else 1 if channels == 1 else 3
        return cls(channels=made, mean=_three("--mean", mean), std=_three("--std", std))


def _three(option: str, text: str | None) -> Three | None:
    """R, G and B of "0.485,0.456,0.406", or of one number for all three."""
    if text is None:
        return None
    try:
        found = [float(part) for part in text.strip(" []()").split(",")]
        red, green, blue = found * 3 if len(found) == 1 else found
    except ValueError as error:
        raise NetworkError(
            f"{option} {show(text)} is not three numbers; write R,G,B of images in [0, 1], 0.485,0.456,0.406"
        ) from error
    if option == "--mean" and max(red, green, blue) > 1:
        scaled = ",".join(f"{value / 255:.3f}" for value in (red, green, blue))
        raise NetworkError(
            f"--mean {text} is of pixels from 0 to 255, and images here are in [0, 1]: divide it and --std by 255 "
            f"(--mean {scaled}), or set pixel_range: 255 in a recipe"
        )
    return red, green, blue


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
    in_recipe = Path(teacher).suffix in (".yaml", ".yml") or teacher in packaged_recipes()
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
        args={**spec.args, **dict(map(_argument, args))},
        weights=weights or spec.weights,
        channels=images.channels or spec.channels,
        mean=images.mean or spec.mean,
        std=images.std or spec.std,
    )
    return Subject(
        spec=spec,
        plan=plan,
        in_recipe=in_recipe,
        classes=_classes(spec, classes, plan),
        size=_size(spec, size, plan),
        images=images,
    )


def hint(name: str) -> str:
    """Where a name that stands alone may belong."""
    import timm
    import torchvision

    models = {"torchvision": torchvision.models.list_models(), "timm": timm.list_models()}
    alike = [f"{library}/{name}" for library, names in models.items() if name in names]
    if alike:
        return f" (did you mean {' or '.join(alike)}?)"
    return did_you_mean(name, [*packaged_recipes(), *network_names()])


def _argument(text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    if not key.isidentifier() or not value:
        raise NetworkError(f"--args {show(text)} is not of the form KEY=VALUE (encoder=resnet50)")
    try:
        return key, yaml.parse(value, f"--args {key}")
    except ValueError as error:
        raise NetworkError(str(error).partition("\n")[0]) from error


def _size(spec: NetworkSpec, stated: str | None, plan: Recipe | None) -> Fact:
    if stated is not None:
        return Fact(value=pixels(stated), provenance="stated", why="--size")
    if plan is not None:
        return Fact(value=plan.task.image_size, provenance="stated", why=f"the recipe {plan.name}")
    metadata = known(spec)
    if metadata is not None and metadata.input_size is not None:
        return Fact(value=metadata.input_size, provenance="known", why=metadata.origin)
    return Fact(value=None, provenance="unknown", why="nobody says")


def pixels(stated: str) -> tuple[int, int]:
    """Height and width of "224x320", or of one number for both. Raises NetworkError."""
    match = re.fullmatch(r"(\d{1,5})(?:[xX](\d{1,5}))?", stated.strip(), re.ASCII)
    if match is None or 0 in (pair := (int(match[1]), int(match[2] or match[1]))):
        raise NetworkError(f"--size {show(stated)} is not a size in pixels; write it as HEIGHTxWIDTH, 224x320")
    return pair


def _classes(spec: NetworkSpec, stated: int | None, plan: Recipe | None) -> Fact:
    given = next((spec.args[key] for key in ("classes", "num_classes") if key in spec.args), None)
    if stated is not None:
        if stated < 1:
            raise NetworkError(f"--classes is {stated}: give a number of at least 1")
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
    way = "; its weights do not tell, so give --classes N" if spec.weights else ": give --classes N, or --weights FILE"
    raise NetworkError(f"nobody says how many classes {spec.network} tells apart{way}")


def input_facts(subject: Subject, metadata: Preprocessing | None, suggestion: Suggestion) -> tuple[Fact, Fact, Fact]:
    """Mean, std and order of the channels that a network wants, and how each is known."""
    mean, std, order = _found_facts(subject, metadata, suggestion)
    if subject.images.mean is not None:
        mean = Fact(value=subject.images.mean, provenance="stated", why="--mean")
    if subject.images.std is not None:
        std = Fact(value=subject.images.std, provenance="stated", why="--std")
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
