"""The command `calibrate`: calibration images made from a network, and the network in INT8."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from datafree.cli import teacher_options as options
from datafree.cli.lines import remark, result, result_block
from datafree.cli.parameters import AsJson, Device, Overrides, Quiet, Seed, StudentCode
from datafree.config.duration import seconds_of
from datafree.deploy.written_names import require_calibration, require_count, require_int8
from datafree.engine.stopping import ending
from datafree.preflight.alike import require_known
from datafree.preflight.option_values import require_there, require_time
from datafree.preflight.teacher_file import kind_of
from datafree.preflight.wishes import NEEDS_PHOTOS, Wishes
from datafree.storage.places import is_run, require_student
from datafree.text import percent, table

if TYPE_CHECKING:  # torch takes seconds to import
    from datafree.deploy.calibration.folder import Calibration

_TIME = "10m"
_WITH = {"made": "these images", "noise": "noise", "real": "real images"}
_ON = {"made": "held-out images of the source", "real": "real images"}


def calibrate(
    teacher: Annotated[
        str,
        typer.Argument(
            metavar="TEACHER",
            help="As for `distill`: a network's name, a weights file, a .pt2, an ONNX file, a recipe. Or a finished "
            "run: its student.",
        ),
    ],
    overrides: Overrides = None,
    images: Annotated[int, typer.Option("--images", metavar="N", help="How many to make.")] = 256,
    out: Annotated[Path, typer.Option(help="The folder to write.")] = Path("calib"),
    source: options.Source = None,
    time: Annotated[str, typer.Option(metavar="TIME", help="For the images at most; on a CPU processor time.")] = _TIME,
    photos: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Unlabelled photos of a related kind: half of the images.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Real images, labelled or not: only to compare with.")
    ] = None,
    int8: Annotated[bool, typer.Option("--int8/--no-int8", help="Write the network in INT8, too.")] = True,
    weights: options.Weights = None,
    args: options.Args = None,
    size: options.Size = None,
    task: options.Task = None,
    student: StudentCode = None,
    classes: options.Classes = None,
    mean: options.Mean = None,
    std: options.Std = None,
    channels: options.Channels = None,
    channel_order: options.Order = None,
    device: Device = None,
    seed: Seed = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make calibration images for INT8 from a network itself, and its INT8 form; say whether they are any good."""
    require_time(time)
    wishes = Wishes(
        weights=weights,
        args=tuple(args or ()),
        source=source,
        size=size,
        task=task,
        student=student,
        classes=classes,
        mean=mean,
        std=std,
        channels=channels,
        channel_order=channel_order,
        photos=photos,
        device=device,
        seed=seed,
    )
    require_count(images)
    require_there("--data", data, "either")
    require_calibration(out)
    if int8:
        require_int8()
    if is_run(place := Path(teacher).expanduser()):
        require_student(place)
    elif kind_of(teacher) == "recipe":
        require_known(teacher)
    with ending(f"nothing was written, and what {out} held before is as it was; run the same command to begin again"):
        from datafree.cli.display import display
        from datafree.deploy.calibration.folder import calibrate as make
        from datafree.ops import modes
        from datafree.preflight.calibration_subject import calibration_subject
        from datafree.report.calibration_page import calibration_page

        with display(quiet=quiet) as shown:
            wanted = calibration_subject(teacher, wishes, overrides or [])
            if not quiet:
                for line in wanted.lines:
                    remark(line)
            done = make(
                wanted,
                out,
                page=calibration_page,
                images=images,
                seconds=seconds_of(time) or 0,
                photos_of=None if source in NEEDS_PHOTOS else photos,
                data=data,
                int8=int8,
                device=modes.choose_device(device or "auto"),
                seed=seed or 0,
                log=shown.log,
                say=shown.say,
            )
    _print(done, as_json)


def _print(done: Calibration, as_json: bool) -> None:
    if as_json:
        result_block((done.folder / "calibration.json").read_text("utf-8").rstrip("\n"))
    else:
        result(f"images: {done.folder}, {done.images:,} by {done.source} in {done.seconds:.0f} s")
        if done.within:
            shares = ", ".join(f"{percent(share)} with {_WITH[name]}" for name, share in done.within.items())
            result(f"BatchNorm layers that see what their statistics say: {shares}")
        if done.agreement:
            result_block(table(_rows(done)))
            result(f"INT8: {done.int8}")
        for note in done.notes:
            result(f"note: {note}")
        result(f"page: {done.folder / 'calibration.html'}")
    for line in done.warnings:
        remark(f"warning: {line}")


def _rows(done: Calibration) -> list[list[str]]:
    heads = (f"agreement on {done.compared[on]} {_ON[on]}" for on in done.agreement)
    found: list[list[Any]] = [["INT8 calibrated with", *heads]]
    for name in done.agreement["made"]:
        shares = [by[name] for by in done.agreement.values()]
        found.append([_WITH[name], *("nothing found" if share is None else percent(share) for share in shares)])
    return found
