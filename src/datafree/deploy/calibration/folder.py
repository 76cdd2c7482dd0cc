"""The calibration folder, written whole or not at all: images, files for other tools, the network in INT8, the page.

    OUT/
      images/00000.png, ...   the images; images.txt lists them, data.yaml describes them to ultralytics
      images.npy              the same, (N, H, W, 3) uint8, RGB
      inputs/0000.npy, ...    as the network itself takes them, (B, channels, H, W) float32
      readers/                a script for each tool that reads them
      teacher.onnx            the float network, where it was no ONNX file: RGB in [0, 1] -> its answers
      teacher.int8.onnx       the same in 8-bit integers
      calibration.json        names, preprocessing, figures
      calibration.html        the page: whether the images are any good

N images, B of a batch, C classes, H x W pixels.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datafree.config import schema
from datafree.config.extras import versions
from datafree.deploy.calibration.judgement import judge
from datafree.deploy.calibration.made_images import Made, make_images
from datafree.deploy.calibration.measures import Sets, measure
from datafree.deploy.calibration.real_images import Real, photos, read_real
from datafree.deploy.calibration.written_images import bytes_needed, write_images
from datafree.deploy.format_facts import FACTS
from datafree.deploy.written_names import (
    FOLDERS,
    JSON,
    PAGE,
    require_calibration,
    require_count,
    require_int8,
)
from datafree.engine.artifacts import describe_teacher
from datafree.engine.build_networks import prepare, require_weights
from datafree.engine.progress import Progress
from datafree.errors import RunError
from datafree.networks.foreign.file_teacher import FileTeacher
from datafree.networks.load import NetworkSpec
from datafree.networks.normalized import Normalized, bare, size_of
from datafree.ops import modes
from datafree.recipe.recipe import FAMILIES
from datafree.sources.base import ImageSource, SourceContext
from datafree.storage import strict_json
from datafree.storage.atomic import cannot_write, room_for, sha256_of, sync, write_whole
from datafree.storage.environment import environment
from datafree.storage.whole_folder import made_whole
from datafree.tasks.base import Task, synthetic_batch

IMAGES = 256  # where nobody says how many
TIME = "10m"
IMAGES = 256  # where nobody says how many
TIME = "10m"
_NOISE = 64  # images: noise is alike everywhere
_HELD_OUT = 5  # of so many images made one is kept back, to compare on


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A trained network, and where its calibration images come from."""

    name: str
    task: Task
    spec: NetworkSpec
    source: ImageSource
    network: Normalized | None = None  # where it stands ready: a run's student, an object
    taught_by: dict[str, Any] = field(default_factory=dict)  # of a student
    class_names: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)  # what was found out of it, and what is uncertain


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was written, and what it is worth."""

    folder: Path
    images: int
    source: str
    seconds: float  # of the processor on a CPU, for the images alone
    within: dict[str, float]  # of the images made, of noise, of real ones: the share of BatchNorm layers that fit
    agreement: dict[str, dict[str, float | None]]  # compared on -> calibrated with -> INT8 with the float network
    compared: dict[str, int]  # compared on -> of how many images
    warnings: list[str]  # a line each for what makes the images or the INT8 file doubtful
    notes: list[str]

    @property
    def int8(self) -> Path | None:
        """The network in INT8, where it was wanted."""
        file = self.folder / "teacher.int8.onnx"
        return file if file.is_file() else None


def calibrate(
    wanted: Wanted,
    out: Path,
    *,
    page: Callable[[dict[str, Any], Tensor], str],
    images: int = IMAGES,
    seconds: float,
    photos_of: Path | None = None,
    data: Path | None = None,
    int8: bool = True,
    device: torch.device,
    seed: int = 0,
    stop: Callable[[], str | None] = lambda: None,
    log: Callable[[Progress], None] = lambda progress: None,
    say: Callable[[str], None] = lambda line: None,
) -> Calibration:
    """Make `images` calibration images of a trained network in about `seconds`, and write them into the folder `out`.

    `photos_of`: unlabelled photos of a related kind, half of the images. `data`: real images, labelled or not, to
    compare with. `int8`: the network in INT8 too, and how it agrees with the float one. `page` makes the page of what
    calibration.json says and of some images. An older calibration in `out` is replaced. Raises DatafreeError.
    """
    require_count(images)
    out = out if out.name else out.absolute()
    require_calibration(out)
    if int8:
        require_int8()
    task = wanted.task
    network = _prepared(wanted, device, say)
    _check_room(out, network, task, images)
    real = None if data is None else read_real(task, data, images, wanted.class_names)
    notes = [] if real is None else list(real.notes)
    others, left_out = (torch.empty(0), []) if photos_of is None else photos(task, photos_of, images // 2)
    notes += left_out

    # What is made: the images themselves, and some that nothing is calibrated with.
    modes.seed_everything(seed)
    context = SourceContext(
        task=task, teacher=network, steps=1, batch_size=min(32, images), seed=seed, device=device, say=say
    )
    count = images - len(others)
    with modes.frozen(network):
        made = make_images(wanted.source, context, count + -(-count // (_HELD_OUT - 1)), seconds, stop=stop, log=log)
    sets = _sets(made, others, real, task, seed)
    notes += made.notes
    say(f"{len(sets.made):,} images were made in {made.seconds:.0f} s; measuring what they are worth")

    with _one_line(out), made_whole(out, lambda: require_calibration(out)) as stage:
        names = class_names(wanted, real)
        measured = measure(network, wanted.spec, task, sets, real, stage if int8 else None, names, say)
        write_images(stage, network, sets.made, names)
        warnings = judge(measured)
        content = {
            "name": wanted.name,
            "teacher": wanted.taught_by or describe_teacher(wanted.spec, network),
            "task": schema.plain(task, FAMILIES),
            "class_names": names,
            "images": _images(made, sets, others, wanted.source, seed),
            "input": _input(wanted.spec, task),
            **measured.plain(),
            "warnings": warnings,
            "notes": notes,
            "versions": environment()["versions"] | (versions(FACTS["onnx"].modules) if int8 else {}),
        }
        write_whole(stage / PAGE, page(content, sets.made).encode())
        content["sha256"] = {
            file.relative_to(stage).as_posix(): sha256_of(file) for file in sorted(stage.rglob("*")) if file.is_file()
        }
        write_whole(stage / JSON, strict_json.sealed(content))
        for folder in (stage / name for name in FOLDERS):
            sync(folder)
    return Calibration(
        folder=out,
        images=len(sets.made),
        source=str(content["images"]["source"]),
        seconds=made.seconds,
        within=measured.within,
        agreement=measured.agreement,
        compared=measured.compared,
        warnings=warnings,
        notes=notes,
    )


def _prepared(wanted: Wanted, device: torch.device, say: Callable[[str], None]) -> Normalized:
    """The network on the device, after a look whether it answers as its task needs."""
    if wanted.network is not None:
        wanted.network.to(device).eval()
        with torch.no_grad(), modes.frozen(wanted.network):
            wanted.task.check(wanted.network(synthetic_batch(wanted.task.image_size, device)), wanted.name)
        return wanted.network
    require_weights(wanted.spec, wanted.task)
    return prepare(wanted.spec, wanted.task, "teacher", device, torch.float32, say=say)


def _sets(made: Made, others: Tensor, real: Real | None, task: Task, seed: int) -> Sets:
    """Images that calibrate, and images to compare on, which nothing was calibrated with."""
    kept_back = torch.arange(len(made.images)) % _HELD_OUT == _HELD_OUT - 1
    learnt = made.images[~kept_back]
    learnt = torch.cat([learnt, others]) if len(others) else learnt
    draw = torch.Generator().manual_seed(seed)
    noise = torch.rand(min(len(learnt), _NOISE), 3, *task.image_size, generator=draw)
    return Sets(
        made=learnt,
        held_out=made.images[kept_back],
        noise=(noise * 255).round().byte(),
        real=None if real is None else real.learnt,
    )


def class_names(wanted: Wanted, real: Real | None) -> list[str]:
    """A name for each class, of the network's own or of labelled images; numbers where nobody has said."""
    count = wanted.task.num_classes
    labelled = [] if real is None or real.labelled is None else real.labelled.class_names
    found = next((names for names in (wanted.class_names, labelled) if len(names) == count), None)
    return found or [f"class {index}" for index in range(count)]


def _images(made: Made, sets: Sets, others: Tensor, source: ImageSource, seed: int) -> dict[str, Any]:
    height, width = sets.made.shape[-2:]
    return {
        "count": len(sets.made),
        "photos": len(others),
        "held_out": len(sets.held_out),
        "size": [height, width],
        "values": "RGB, 8 bits a channel",
        "source": made.source,
        "updates": made.updates,
        "seconds": round(made.seconds, 1),
        "seed": seed,
    }


def _input(spec: NetworkSpec, task: Task) -> dict[str, Any]:
    """What the network itself takes: the arrays of inputs/."""
    height, width = task.image_size if spec.input_size is None else spec.input_size
    return {
        "shape": ["batch", spec.channels, height, width],
        "mean": list(spec.mean),  # of R, G, B in [0, 1]
        "std": list(spec.std),
        "channel_order": spec.channel_order if spec.channels == 3 else "grey",
    }


def _check_room(out: Path, network: Normalized, task: Task, count: int) -> None:
    """Raise RunError where the disk cannot hold what is to be written."""
    inner = bare(network)
    own = sum(file.stat().st_size for file in inner.files) if isinstance(inner, FileTeacher) else size_of(network)
    needed = bytes_needed(network, task.image_size, count) + 2 * own
    place = next((folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir()), Path("/"))
    if shutil.disk_usage(place).free < needed:
        raise RunError(
            f"there is no room for {out}: it {room_for(out.absolute(), needed)}; free some, choose another --out, or "
            "give fewer --images"
        )


@contextmanager
def _one_line(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(cannot_write(out, error, "choose another --out")) from error
