"""Bounds stand on the option: the same values pass as when a table bounded options by their names."""

import dataclasses
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field
from typing_extensions import Doc

from datafree.config import options, schema
from datafree.config.options import Count, Momentum, PositiveInt, Share, Weight
from datafree.config.schema import Invalid
from datafree.errors import DataError, NetworkError
from datafree.networks.load import NetworkSpec
from datafree.ops.performance import Speed
from datafree.recipe.recipe import FAMILIES, SOURCE, TASK, _Outline
from datafree.recipe.training import Training
from datafree.sources import SOURCES, Cmi, Fast, Folder, Inversion
from datafree.sources.diode.source import Diode
from datafree.sources.diode.stages import Stage
from datafree.tasks import TASKS, Classification
from datafree.text import show
from thorough import some

BY_NAME = [source for name, source in SOURCES.items() if name not in ("auto", "procedural")]  # younger ones
KINDS: list[type[Any]] = [*BY_NAME, *TASKS.values(), Stage, Training, NetworkSpec, Speed, _Outline]

# The reference: which numbers an option took by its name, and, below, what constructors said on their own.
AT_LEAST_1 = {
    *("num_classes", "image_size", "steps", "batch_size", "log_every", "save_every", "picture_every"),
    *("latent", "width", "iterations", "bank_size", "memory"),
}
AT_LEAST_0 = {
    *("warmup", "update_every", "weight_decay", "seed", "jitter", "shift", "negatives", "restarts", "max_rollbacks"),
    "lr_warmup",
    *("clip", "lr_end", "bn_clip", "bn_layers", "brightness", "contrast", "fp_sampling_every", "fp_sampling_from"),
}
ABOVE_0 = {"lr", "std"}
FROM_0_BELOW_1 = {"momentum", "ema", "bn_momentum", "beta1", "beta2", "generator_ema"}
FROM_0_TO_1 = {
    *("cutmix", "threshold"),
    *("replay", "mixup", "decay_at", "reset_at", "mosaic_share", "flip_probability", "erase_probability", "cutout"),
    *("box_sides", "fp_sampling_area", "fp_sampling_score", "fp_sampling_iou"),
    *("score_threshold", "nms_iou", "min_teacher_score"),  # once of any number: 50 for 50 % was taken
}
CONSTRUCTORS = {
    "limit": lambda x: x >= 1,
    "cache_mib": lambda x: x >= 0,
    "hold_out": lambda x: x >= 0,
    "bn_norm": lambda x: x >= 1,
    **dict.fromkeys(("scale", "least_crop", "drawn_crop"), lambda x: 0 < x <= 1),
    "temperature": lambda x: 1e-3 <= x <= 1e3,  # its square would leave float32 sooner or later
}
NUMBERS = (-(2**63), -1, -1e-9, 0, 1e-9, 1 - 1e-9, 1, 1 + 1e-9, 2, 2**63 - 1, 2**63)


def taken(name: str, number: float) -> bool:
    """Whether the option `name` took a number of the right type."""
    if name.endswith("_weight") or name in AT_LEAST_0:
        passes = number >= 0
    elif name in AT_LEAST_1:
        passes = number >= 1
    elif name in ABOVE_0 or name.endswith("_lr"):
        passes = number > 0
    elif name in FROM_0_BELOW_1:
        passes = 0 <= number < 1
    elif name in FROM_0_TO_1:
        passes = 0 <= number <= 1
    else:
        passes = CONSTRUCTORS.get(name, lambda x: True)(number)
    return passes and (isinstance(number, float) or abs(number) < 2**63)


def given(hint: Any, number: float) -> Iterator[Any]:
    """`number` as a recipe gives it to an option of the type `hint`, in each place that takes one."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is float:
        yield float(number)
    elif hint is int and isinstance(number, int):
        yield number
    elif origin is tuple:
        usual = 1 if int in inner else 0.5
        size = 2 if inner[-1] is Ellipsis else len(inner)
        for at in range(size):
            for value in given(inner[0], number):
                yield [value if place == at else usual for place in range(size)]
    elif origin is not None and origin is not Literal:
        for branch in inner:
            if branch in (int, float) or typing.get_origin(branch) is tuple:
                yield from given(branch, number)


def refused(kind: type[Any], name: str, value: Any) -> list[str]:
    """What a section of `kind` whose option `name` is `value` is told about that option alone."""
    alone = dataclasses.make_dataclass("Alone", [(name, options.hints(kind)[name])])
    try:
        schema.build(alone, {name: value}, FAMILIES)
    except Invalid as error:
        return [fault.text for fault in error.faults]
    return []


@pytest.mark.parametrize(
    "name", some([kind.__name__ for kind in KINDS], "Cgdd", "Folder", "Detection", "Stage", "Training")
)
def test_options_take_the_numbers_that_they_took_by_name(name: str) -> None:
    (kind,) = (kind for kind in KINDS if kind.__name__ == name)
    plain = typing.get_type_hints(kind)  # without bounds
    different = []
    for field in dataclasses.fields(kind):
        for number in NUMBERS:
            for value in given(plain[field.name], number) if field.init else ():
                number = float(number) if "float" in str(plain[field.name]) else number
                faults = refused(kind, field.name, value)
                if bool(faults) == taken(field.name, number):
                    different.append((field.name, value, faults))
    assert not different


def test_the_reference_bounds_options_of_every_kind() -> None:
    names = {field.name for kind in KINDS for field in dataclasses.fields(kind)}
    assert names >= {*AT_LEAST_1, *AT_LEAST_0, *ABOVE_0, *FROM_0_BELOW_1, *FROM_0_TO_1, *CONSTRUCTORS}


PLACES = [(Folder, "path"), (SOURCES["dataset"], "path"), (NetworkSpec, "weights"), (SOURCES["degan"], "generator")]


@pytest.mark.parametrize(("kind", "name"), [*PLACES, (_Outline, "data")])
def test_a_path_is_there_when_the_recipe_is_read(kind: type[Any], name: str, tmp_path: Path) -> None:
    folder, file, gone = tmp_path, tmp_path / "file", tmp_path / "gone"
    file.touch()
    faults = {path.name: refused(kind, name, str(path)) for path in (file, gone)}
    faults["folder"] = refused(kind, name, str(folder))
    expected: dict[str, dict[str, list[str]]] = {
        "path": {
            "file": [f"{show(str(file))} is a file, not a folder (looked for {file})"],
            "gone": [f"{show(str(gone))} is no folder here (looked for {gone})"],
        },
        "data": {"gone": [f"{show(str(gone))} is not here (looked for {gone})"]},
        "weights": {
            "folder": [f"{show(str(folder))} is a folder, not a file (looked for {folder})"],
            "gone": [f"{show(str(gone))} is no file here (looked for {gone})"],
        },
    }
    expected["generator"] = expected["weights"]
    assert {where: texts for where, texts in faults.items() if texts} == expected[name]


def test_no_option_is_a_path_that_nobody_looks_for() -> None:
    paths = {
        (k, f.name) for k in KINDS for f in dataclasses.fields(k) if "Path" in str(typing.get_type_hints(k)[f.name])
    }
    assert paths == {*PLACES, (_Outline, "data")}


@dataclass(frozen=True, kw_only=True)
class Own:
    """Options that others have, and bounds of its own kinds."""

    tiles: float = 0.5
    clip: float = 1.0
    std: float = 1.0
    path: Path = Path()
    some: Annotated[int, Field(ge=2, lt=5), Doc("of them")] = 2
    even: Annotated[Count, Field(multiple_of=2)] = 0
    between: Annotated[float, Field(gt=-1, le=1)] = 0.0
    sizes: list[Count] = dataclasses.field(default_factory=list)
    many: PositiveInt | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        options.check(self)


def test_a_class_of_ones_own_has_the_bounds_that_it_writes_and_no_others(tmp_path: Path) -> None:
    free = {"tiles": -3.0, "clip": -1.0, "std": 0.0, "path": str(tmp_path / "gone")}
    assert schema.build(Own, free).clip == -1
    outside = {"some": 5, "even": 3, "between": -1.0, "sizes": [1, -1], "many": 0}
    with pytest.raises(Invalid) as caught:
        schema.build(Own, outside)
    assert [str(fault) for fault in caught.value.faults] == [
        "some: 5 is out of range; it must be 2 or more, and below 5",
        "even: 3 is refused: input should be a multiple of 2",
        "between: -1.0 is out of range; it must be above -1, and 1 or less",
        "sizes.1: -1 is too small; it must be 0 or more",
        "many: 0 is too small; it must be 1 or more",
    ]
    with pytest.raises(Invalid, match=r"^many: 'car' is not a whole number or is not one of: auto$"):
        schema.build(Own, {"many": "car"})


def test_the_text_of_an_option_is_that_of_its_doc() -> None:
    hints = options.hints(Own)
    assert (options.text_of(hints["some"]), options.text_of(hints["even"]), options.text_of(hints["tiles"])) == (
        "of them",
        "",
        "",
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Fast(iterations=0), "iterations is 0; it must be 1 or more"),
        (lambda: Fast(bn_momentum=1.0), "bn_momentum is 1.0; it must be 0 or more, and below 1"),
        (lambda: Fast(warmup=0, update_every=0), "warmup and update_every are both 0"),
        (lambda: Cmi(memory=0), "memory is 0; it must be 1 or more"),
        (lambda: Cmi(negatives=-1), "negatives is -1; it must be 0 or more"),
        (lambda: Inversion(iterations=0), "iterations is 0; it must be 1 or more"),
        (lambda: Folder(path=Path(), limit=0), "limit is 0; it must be 1 or more"),
        (lambda: Folder(path=Path(), hold_out=-1), "hold_out is -1; it must be 0 or more"),
        (lambda: Folder(path=Path(), crop="whole"), "crop is 'whole'; it must be one of: centre, random"),
        (lambda: Diode(bn_norm=0.5), "bn_norm is 0.5; it must be 1 or more"),
        (lambda: Diode(fp_sampling_area=(0.1, 2.0)), r"fp_sampling_area is \(0.1, 2.0\); it must be from 0 to 1"),
        (lambda: Diode(zoom=(2.0, 1.0)), "give 0 < least <= most"),
        (lambda: Stage(scale=0.0), "scale is 0.0; it must be above 0, and 1 or less"),
        (lambda: Stage(iterations=0), "iterations is 0; it must be 1 or more"),
        (lambda: Training(steps=0), "steps is 0; it must be 1 or more"),
        (lambda: Training(batch_size=0), "batch_size is 0; it must be 1 or more"),
        (lambda: Training(lr=float("nan")), "lr is nan; it must be above 0"),
        (lambda: Classification(num_classes=1, image_size=(8, 8)), "num_classes is 1; it must be 2 or more"),
        (lambda: Classification(num_classes=3, image_size=(8, 0)), r"image_size is \(8, 0\); it must be 1 or more"),
        (lambda: Own(sizes=[1, -1]), r"sizes is \[1, -1\]; it must be 0 or more"),
        (lambda: Own(many=0), "many is 0; it must be 1 or more"),
    ],
)
def test_a_constructor_refuses_what_a_recipe_refuses(make: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        make()


def test_a_networks_options_are_refused_as_a_networks() -> None:
    with pytest.raises(NetworkError, match=r"std is \(1.0, 1.0, 0.0\); it must be above 0"):
        NetworkSpec(network="datafree/unet", std=(1.0, 1.0, 0.0))


def test_every_number_of_every_default_is_inside_its_bounds() -> None:
    for kind in (*SOURCE.members.values(), *TASK.members.values(), Training):
        for field in dataclasses.fields(kind):
            if field.default is not dataclasses.MISSING and field.init:
                assert not refused(kind, field.name, schema.plain(field.default))


def test_aliases_are_what_their_names_say() -> None:
    bounds = [(Count, 0, -1), (PositiveInt, 1, 0), (Weight, 0.0, -0.1), (Share, 1.0, 1.1), (Momentum, 0.0, 1.0)]
    for hint, inside, outside in bounds:
        kind = dataclasses.make_dataclass("Kind", [("option", hint)], frozen=True)
        assert schema.build(kind, {"option": inside}).option == inside
        with pytest.raises(Invalid):
            schema.build(kind, {"option": outside})
