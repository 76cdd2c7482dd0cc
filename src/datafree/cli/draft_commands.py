"""The command `init`: the recipe that `distill` would choose, without running it."""

from __future__ import annotations

from datafree.cli import teacher_options as options
from datafree.cli.lines import remark, result_block
from datafree.cli.parameters import Compress, Device, Overrides, Seed, Student
from datafree.engine.stopping import ending
from datafree.errors import RecipeError
from datafree.preflight.wishes import Wishes


def init(
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
) -> None:
    """Print the recipe that `distill` would choose for a teacher, with comments, to be edited: init FILE > my.yaml"""
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
    with ending("it writes nothing; run the same command to begin again"):
        made = options.chosen(teacher, overrides or [], wishes)
    if made.drafted is None:
        raise RecipeError([f"{teacher} is a recipe already: init writes one for a teacher"])
    for line in made.lines:
        remark(line)
    result_block((made.drafted or "").rstrip("\n"))
