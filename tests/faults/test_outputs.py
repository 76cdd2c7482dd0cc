"""What lies where a file is to be written: only an ordinary file is replaced, its permissions are kept."""

from __future__ import annotations

import ast
import contextlib
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import datafree
from datafree.deploy.export_run import export_run
from datafree.deploy.written_names import EXPORTED
from datafree.engine.artifacts import CALIBRATION, save_calibration
from datafree.errors import RunError
from datafree.networks.checkpoints.weights import save_weights
from datafree.preflight.rehearsal import rehearse
from datafree.report.page import save, write_page
from datafree.run import run_recipe
from datafree.storage import checkpoint
from datafree.storage.atomic import Growing, NoFile, write_pieces, write_whole
from datafree.storage.lock import Lock
from datafree.storage.run_directory import Run
from datafree.synthesis.shards import Shards
from datafree.synthesis.synthesize import synthesize
from run_directories import write_run
from small_runs import labelled, recipe_for
from small_shards import DETECTION, RECIPE, batch_of
from syntax import nodes_of
from thorough import some

# Every way by which the package writes a file that may be there already.
WRITERS: dict[str, Callable[[Path], object]] = {
    "whole": lambda place: write_whole(place, b"new"),
    "pieces": lambda place: write_pieces(place, ["new"]),
    "page": lambda place: save("new", place),
    "weights": lambda place: save_weights(nn.Linear(1, 1), place),
    "calibration": lambda place: save_calibration(torch.rand(2, 3, 4, 4), place.parent),
    "state": lambda place: checkpoint.write(place, {"step": 1}),
    "state before": lambda place: checkpoint.write(place.with_name("other.pt"), {"step": 1}, place),
    "log": lambda place: Growing(place).add(b"new"),
    "lock": lambda place: Lock(place.parent, place.name).take(),
}


@pytest.mark.parametrize("kind", ["folder", "mixed", "degan", "dataset"])
def test_a_place_within_the_images_that_are_learnt_from_is_refused(tmp_path: Path, kind: str) -> None:
    """Else the next run learns from the pictures of this one."""
    photos = labelled(tmp_path / "photos")
    folder = {"method": "folder", "path": str(photos / "images")}
    source = {
        "folder": folder,
        "mixed": {"method": "mixed", "parts": [{"method": "noise"}, folder]},
        "degan": {"method": "degan", "proxy": {"path": str(photos / "images")}, "warmup": 1},
        "dataset": {"method": "dataset", "path": str(photos)},
    }[kind]
    recipe, place = recipe_for(tmp_path, source), photos / "images" / "runs" / "one"
    (tmp_path / "link").symlink_to(photos, target_is_directory=True)
    for use in (
        lambda out: run_recipe(recipe, out),
        lambda out: synthesize(recipe, out, 1),
        lambda out: rehearse(recipe, out),
        lambda out: rehearse(recipe, out, 1),
    ):
        for out in (place, tmp_path / "link" / "images" / "runs"):
            with pytest.raises(RunError, match=r"lies in .*photos.*, of which every image is learnt from: .* another"):
                use(out)
    assert not (photos / "images" / "runs").exists()


def to_a_file(place: Path) -> None:
    (place.parent / "precious").write_text("precious")
    place.symlink_to("precious")


def listening(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(place.parent):
        made.bind(place.name)  # a socket's path may have 107 bytes


def device(place: Path) -> None:
    try:
        os.mknod(place, stat.S_IFCHR | 0o666, os.makedev(1, 3))  # a second /dev/null
    except PermissionError:
        pytest.skip("no device can be made here")


STRANGE: dict[str, Callable[[Path], object]] = {
    "link": to_a_file,
    "link to nothing": lambda place: place.symlink_to("nowhere"),
    "link to a device": lambda place: place.symlink_to("/dev/null"),
    "FIFO": os.mkfifo,
    "socket": listening,
    "device": device,
    "folder": lambda place: place.mkdir(),
}


@pytest.mark.parametrize("strange", some(STRANGE, "link", "socket"))
@pytest.mark.parametrize("writer", WRITERS)
def test_what_is_no_ordinary_file_stays_as_it_was(writer: str, strange: str, tmp_path: Path) -> None:
    place = tmp_path / (CALIBRATION if writer == "calibration" else "place.pt")
    STRANGE[strange](place)
    (tmp_path / "other.pt").touch()
    before = seen(tmp_path)
    with pytest.raises((OSError, datafree.errors.DatafreeError)) as caught:
        WRITERS[writer](place)
    assert "\n" not in str(caught.value)
    assert seen(tmp_path) == before


def seen(folder: Path) -> dict[str, Any]:
    """What lies in a folder, with what tells whether it was replaced; of files the content."""
    found = {}
    for entry in folder.iterdir():
        about = entry.lstat()
        content = entry.read_bytes() if stat.S_ISREG(about.st_mode) else None
        found[entry.name] = (about.st_ino, about.st_mode, about.st_mtime_ns, content)
    return found


def test_a_page_on_a_device_is_one_line_that_names_it(tmp_path: Path) -> None:
    run, place = write_run(tmp_path), tmp_path / "null"
    device(place)
    with pytest.raises(RunError, match=r"cannot write .*/null: null is a device, and no ordinary file; choose another"):
        write_page(run, place)


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "student.safetensors", "result.json", "state/state.pt", "report.html"]
)
def test_a_run_whose_files_are_links_is_refused_before_any_work(name: str, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", {"name": "a"})
    run.start(0)
    run.save_state({"step": 1, "recovery": {}})
    run.close()
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "run" / name).unlink(missing_ok=True)
    (tmp_path / "run" / name).symlink_to(tmp_path / "nowhere" if name == "result.json" else tmp_path / "precious")
    with pytest.raises(RunError, match="is a symbolic link, and no ordinary file; move it away, or choose another"):
        Run(tmp_path / "run", {"name": "a"})
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize("name", ["index.json", "data/annotations.json", "data/classes.txt", "shards/preview.png"])
def test_a_set_whose_files_are_links_is_refused_before_any_work(name: str, tmp_path: Path) -> None:
    made = Shards(tmp_path / "set", RECIPE)
    made.begin(["cat", "dog"])
    made.write(0, DETECTION, batch_of(DETECTION, 2))
    made.close()
    (tmp_path / "precious").write_text("cat\ndog\n")
    (tmp_path / "set" / name).unlink(missing_ok=True)
    (tmp_path / "set" / name).symlink_to(tmp_path / "precious")
    with pytest.raises(RunError, match="is a symbolic link, and no ordinary file"):
        Shards(tmp_path / "set", RECIPE).begin(["cat", "dog"])
    assert (tmp_path / "precious").read_text() == "cat\ndog\n"


def test_a_shards_folder_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    made = Shards(tmp_path / "set", RECIPE)
    made.begin(["cat", "dog"])
    (tmp_path / "precious").mkdir()
    (tmp_path / "set" / ".00000.part").symlink_to(tmp_path / "precious")
    made.write(0, DETECTION, batch_of(DETECTION, 2))
    made.close()
    assert not list((tmp_path / "precious").iterdir())
    assert not list(made.damages())


@pytest.mark.parametrize("strange", [name for name in STRANGE if name != "socket"])
@pytest.mark.parametrize("inside", [False, True])
def test_an_export_replaces_folders_of_ordinary_files_alone(strange: str, inside: bool, tmp_path: Path) -> None:
    run, out = write_run(tmp_path, "classification"), tmp_path / "out"
    if strange == "folder" and not inside:
        out.mkdir()
        (out / "mine.txt").touch()
    else:
        place = out / EXPORTED[-1] if inside else out
        place.parent.mkdir(exist_ok=True)
        STRANGE[strange](place)
    before = seen(out) if inside else seen(tmp_path)
    with pytest.raises(RunError) as caught:
        export_run(run, out, onnx=False)
    assert "\n" not in str(caught.value) and "choose another --out" in str(caught.value)
    assert (seen(out) if inside else seen(tmp_path)) == before


@pytest.mark.parametrize(("umask", "wanted"), [(0o022, 0o755), (0o077, 0o700), (0o027, 0o750)])
def test_permissions_are_those_of_the_umask(umask: int, wanted: int, tmp_path: Path) -> None:
    run, old = write_run(tmp_path, "classification"), os.umask(umask)
    try:
        export_run(run, tmp_path / "out", onnx=False)
        write_page(run)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == wanted
    for file in (*(tmp_path / "out").iterdir(), run / "report.html"):
        assert stat.S_IMODE(file.stat().st_mode) == wanted & 0o666


def test_permissions_of_what_is_replaced_are_kept(tmp_path: Path) -> None:
    run = write_run(tmp_path, "classification")
    export_run(run, tmp_path / "out", onnx=False)
    write_page(run)
    (tmp_path / "out").chmod(0o710)
    (run / "report.html").chmod(0o604)
    export_run(run, tmp_path / "out", onnx=False)
    write_page(run)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o710
    assert stat.S_IMODE((run / "report.html").stat().st_mode) == 0o604


@pytest.mark.parametrize("name", ["a" * 250 + ".html", "ü" * 125 + ".html", "\udcff" * 250])
def test_a_name_as_long_as_the_system_takes_it_is_written(name: str, tmp_path: Path) -> None:
    write_whole(tmp_path / name, b"old")
    write_whole(tmp_path / name, b"new")
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"new"]


def test_a_file_aside_of_another_writer_is_left_alone(tmp_path: Path) -> None:
    from datafree.storage.atomic import written_whole

    with written_whole(tmp_path / "a.json") as first:
        first.write(b"first")
        write_whole(tmp_path / "a.json", b"second")
        assert (tmp_path / "a.json").read_bytes() == b"second"
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"first"]


def test_what_is_no_file_says_what_it_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a")
    with pytest.raises(NoFile) as caught:
        write_whole(tmp_path / "a", b"")
    assert caught.value.strerror == "a is a FIFO, and no ordinary file"


# Who writes files without the door, and why it need not look.
OTHERS = {
    "storage/atomic.py": "the door",
    "storage/lock.py": "looks itself: a lock is not replaced",
    "data/labelled.py": "images of a shard, in a new folder aside",
    "tasks/detection.py": "labels of a shard, in a new folder aside",
    "networks/onnx.py": "into the new folder of an export",
    "deploy/formats/executorch.py": "the same",
    "deploy/calibration/written_images.py": "into the new folder of a calibration set",
    "synthesis/object_store/shards.py": "into a temporary folder of its own",
    "synthesis/object_store/bucket.py": "the same",
    "synthesis/shard_index.py": "opens to sync what it has written",
    "cli/main.py": "os.devnull",
}


def test_every_writer_of_the_package_goes_through_the_door() -> None:
    root = Path(datafree.__file__).parent
    found = set()
    for file in root.rglob("*.py"):
        for node in nodes_of(file):
            if isinstance(node, ast.Call) and _writes(node):
                found.add(file.relative_to(root).as_posix())
    assert found - OTHERS.keys() == set()


def _writes(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name in ("write_text", "write_bytes", "save_file", "NamedTemporaryFile", "copyfile", "copytree", "symlink_to"):
        return True
    if name == "save" and ast.unparse(call.func) in ("torch.save", "image.save", "made.save"):
        return not (call.args and ast.unparse(call.args[-1]) in ("content", "cast(BinaryIO, sealing)")) and not any(
            ast.unparse(argument) == "content" for argument in call.args
        )
    modes = [a.value for a in (*call.args, *(k.value for k in call.keywords)) if isinstance(a, ast.Constant)]
    return name == "open" and any(isinstance(mode, str) and mode.strip("b+t") in ("w", "a", "x") for mode in modes)
