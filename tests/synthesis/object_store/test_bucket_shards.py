"""Data sets in buckets: the files of one on a disk, whatever fails or dies."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from datafree.errors import DataError, Interrupted, RunError
from datafree.recipe.recipe import Recipe
from datafree.synthesis import worker
from datafree.synthesis.object_store import leases as leases_module
from datafree.synthesis.object_store.bucket import Bucket
from datafree.synthesis.object_store.leases import Leases
from datafree.synthesis.object_store.shards import BucketShards
from datafree.synthesis.synthesize import Made, synthesize, verify
from folder_store import FolderStore
from recipes import to_yaml
from set_recipes import CGDD, CMI, DIODE, INVERSION, everything, recipe_for, stop_after
from small_shards import DETECTION, RECIPE, batch_of
from thorough import some

METHODS: dict[str, tuple[dict[str, Any], str]] = {
    "inversion": (INVERSION, "classification"),
    "cmi": (CMI, "segmentation"),  # carries its bank from shard to shard
    "cgdd": (CGDD, "segmentation"),  # is trained first
    "diode": (DIODE, "detection"),  # has annotations about all images
}


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "SAMPLED", 6)


@pytest.fixture
def memory() -> Iterator[str]:
    """The URL of a folder of fsspec's store in memory, empty."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pseudo_dirs[:] = [""]
    yield "memory://bucket/set"
    store.store.clear()
    store.pseudo_dirs[:] = [""]


def fetched(url: str, folder: Path) -> dict[str, str]:
    """What `everything` says of a set in a bucket."""
    store, root = fsspec.core.url_to_fs(url)
    store.invalidate_cache()
    for path in store.find(root):
        file = folder / path.removeprefix(root).lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(store.cat_file(path))
    return everything(folder)


# The same files.


@pytest.mark.parametrize(
    "method",
    some(["diode", "inversion", "cmi", "cgdd"], "diode"),
)
def test_a_set_made_in_a_bucket_in_pieces_has_the_files_of_one_on_a_disk(
    method: str, tmp_path: Path, memory: str
) -> None:
    source, kind = METHODS[method]
    synthesize(recipe_for(tmp_path, source, kind), tmp_path / "disk", 12)
    for calls in (1, 1):
        with pytest.raises(Interrupted, match="run the same command to resume"):
            synthesize(recipe_for(tmp_path, source, kind), memory, 12, stop=stop_after(calls))
    made = synthesize(recipe_for(tmp_path, source, kind), memory, 12)
    on_disk = verify(recipe_for(tmp_path, source, kind), tmp_path / "disk")
    assert fetched(memory, tmp_path / "fetched") == everything(tmp_path / "disk")
    assert (made.path, made.images, made.shards) == (f"{memory}/data", on_disk.images, on_disk.shards)
    assert verify(recipe_for(tmp_path, source, kind), tmp_path / "fetched").notes == []  # a copy is a set on a disk
    assert verify(recipe_for(tmp_path, source, kind), memory) == Made(
        path=f"{memory}/data", images=on_disk.images, shards=on_disk.shards, notes=[]
    )


@pytest.mark.thorough
def test_images_are_added_to_a_set_in_a_bucket(tmp_path: Path, memory: str) -> None:
    for images in (5, 3, 15):
        synthesize(recipe_for(tmp_path, INVERSION), memory, images)
    synthesize(recipe_for(tmp_path, INVERSION), tmp_path / "once", 15)
    assert fetched(memory, tmp_path / "fetched") == everything(tmp_path / "once")


def test_nothing_is_left_on_this_machine(tmp_path: Path, memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    synthesize(recipe_for(tmp_path, INVERSION), memory, 5)
    verify(recipe_for(tmp_path, INVERSION), memory)
    with pytest.raises(RunError):
        synthesize(recipe_for(tmp_path, INVERSION, training={"seed": 1}), memory, 5)
    assert not list(scratch.iterdir())


# Faults.


@pytest.mark.parametrize("method", some(["inversion", "cmi", "cgdd"], "inversion"))
def test_a_store_that_fails_now_and_then_costs_one_line_each_time_and_nothing_else(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, kind = METHODS[method]
    drawn, lines = random.Random(0), []

    def fails(path: str) -> None:
        if drawn.random() < 0.08:
            raise OSError(f"slow down: https://store/{path}?Signature=secret, or ask https://me:secret@store/help")

    monkeypatch.setattr(FolderStore, "before_put", staticmethod(fails))
    url = f"folder://{tmp_path}/bucket/set"
    for _ in range(30):
        try:
            synthesize(recipe_for(tmp_path, source, kind), url, 17)
            break
        except RunError as error:
            assert error.exit_code == 2
            lines.append(str(error))
    assert 1 < len(lines) < 30
    for line in lines:
        assert line.startswith(f"cannot read or write {url}: OSError: slow down: https://store/")
        assert line.endswith("its complete shards are intact: fix that and run the same command to resume")
        assert "secret" not in line and "\n" not in line
    synthesize(recipe_for(tmp_path, source, kind), tmp_path / "disk", 17)
    assert everything(tmp_path / "bucket" / "set") == everything(tmp_path / "disk")


def test_a_shard_whose_put_was_cut_off_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "set"

    def fails(path: str) -> None:
        if path.endswith("shards/00001.json"):
            raise OSError("cut off")

    with monkeypatch.context() as patched, pytest.raises(RunError, match="cut off"):
        patched.setattr(FolderStore, "before_put", staticmethod(fails))
        synthesize(recipe_for(tmp_path, INVERSION), f"folder://{out}", 10)
    assert len(list((out / "data" / "images" / "00001").iterdir())) == 5
    assert not list((out / ".claims").iterdir())
    made = verify(recipe_for(tmp_path, INVERSION), f"folder://{out}")
    assert (made.images, made.notes) == (5, ["the data set is incomplete; run the command without --verify to resume"])


def test_verify_finds_an_added_object(tmp_path: Path, memory: str) -> None:
    recipe = recipe_for(tmp_path, INVERSION)
    synthesize(recipe, memory, 5)
    fsspec.filesystem("memory").pipe_file(f"{memory}/data/images/00000/more.png", b"")
    lines: list[str] = []
    with pytest.raises(DataError, match="1 of 11 files"):
        verify(recipe, memory, say=lines.append)
    assert lines == [f"{memory}/data/images/00000/more.png: added: no shard has written it"]


def test_verify_finds_a_flipped_byte_and_a_missing_object(tmp_path: Path, memory: str) -> None:
    recipe = recipe_for(tmp_path, DIODE, "detection")
    synthesize(recipe, memory, 6)
    before = fetched(memory, tmp_path / "before")
    store = fsspec.filesystem("memory")
    image, label, about = (
        f"{memory}/data/{name}" for name in ("images/00001/00002.png", "labels/00000/00001.txt", "annotations.json")
    )
    store.pipe_file(image, store.cat_file(image)[:-20] + b"x" * 20)
    store.rm_file(label)
    store.pipe_file(about, b"{}")
    lines: list[str] = []
    with pytest.raises(DataError, match=r"^3 of "):
        verify(recipe, memory, say=lines.append)
    assert lines == [f"{label}: missing", f"{image}: damaged", f"{about}: damaged"]

    # What the message says makes it whole again.
    for name in (about, f"{memory}/shards/00000.json", f"{memory}/shards/00001.json"):
        store.rm_file(name)
    synthesize(recipe_for(tmp_path, DIODE, "detection"), memory, 6)
    assert fetched(memory, tmp_path / "after") == before


def test_what_a_bucket_holds_is_refused_by_its_url(tmp_path: Path, memory: str) -> None:
    recipe = recipe_for(tmp_path, INVERSION)
    with pytest.raises(RunError, match=f"{memory} holds no made data set"):
        verify(recipe, memory)
    synthesize(recipe, memory, 5)
    before = fetched(memory, tmp_path / "before")
    other = recipe_for(tmp_path, INVERSION, training={"seed": 1})
    for use in (lambda: synthesize(other, memory, 10), lambda: verify(other, memory)):
        with pytest.raises(RunError, match=rf"^{memory} holds the data set of another recipe .*training\.seed: 1 here"):
            use()
    assert fetched(memory, tmp_path / "after") == before
    store = fsspec.filesystem("memory")
    store.pipe_file(f"{memory}/shards/00000.json", b"{}")
    with pytest.raises(RunError, match=rf"^{memory}/shards/00000\.json is damaged"):
        synthesize(recipe, memory, 10)
    for name in ("photo.png", "metrics.jsonl"):
        store.pipe_file(f"memory://other/{name}", b"")
        with pytest.raises(RunError, match=r"^memory://other is not empty and holds no made data set"):
            synthesize(recipe, "memory://other", 10)
        store.rm_file(f"memory://other/{name}")


# Several at one set.


def begun(url: str) -> BucketShards:
    shards = BucketShards(url, RECIPE)
    shards.begin(["cat", "dog"])
    return shards


def test_each_claims_what_no_other_is_at_and_sees_what_it_has_made(memory: str) -> None:
    with closing(begun(memory)) as one, closing(begun(memory)) as other:
        assert [one.claim(6), other.claim(6), other.claim(6), one.claim(6)] == [0, 1, 2, 3]
        assert one.claim(4) is None and other.claim(4) is None
        assert one.if_killed == " (for 2 minutes, should one have been killed)"
        one.write(0, DETECTION, batch_of(DETECTION, 2))
        assert (one.images, other.images) == (2, 0)
        assert other.claim(4) is None  # 1 is missing, and its own
        assert other.images == 2
        one.leave(3)
        assert other.claim(8) == 3
    with closing(begun(memory)) as later:
        assert later.images == 2
        assert later.claim(8) == 1


def test_the_index_is_about_what_others_have_made_meanwhile(memory: str) -> None:
    with closing(begun(memory)) as one, closing(begun(memory)) as other:
        assert one.claim(2, 2) == 0 and other.claim(2, 2) is None
        one.write(0, DETECTION, batch_of(DETECTION, 2))
        with one.alone_at("index"):
            assert other.claim(4) == 1
            other.write(1, DETECTION, batch_of(DETECTION, 2))
            assert not other.finish(DETECTION) and other.finish(DETECTION) is False
        assert other.finish(DETECTION)
        index = Bucket(memory).read("index.json")
        assert index is not None and json.loads(index)["shards"] == 2
        assert not list(other.damages())
        with other.alone_at("index"):
            assert not one.finish(DETECTION)
        stamp = Bucket(memory).names()["index.json"]
        assert one.finish(DETECTION) and Bucket(memory).names()["index.json"] == stamp


def test_shards_that_carry_something_on_are_made_one_after_the_other(memory: str) -> None:
    with closing(begun(memory)) as one, closing(begun(memory)) as other:
        one.carries = other.carries = True
        assert one.claim(4) == 0 and other.claim(4) is None
        one.write(0, DETECTION, batch_of(DETECTION, 2), {"bank": torch.arange(3)})
        assert other.claim(4) == 1
        assert torch.equal(other.state_before(1)["bank"], torch.arange(3))
        other.write(1, DETECTION, batch_of(DETECTION, 2), {"bank": torch.arange(4)})
        assert one.claim(6) == 2
        assert torch.equal(one.state_before(2)["bank"], torch.arange(4))
    assert list(Bucket(memory).names("state")) == ["before-00002.pt"]


def test_one_that_was_taken_for_dead_drops_its_shard_and_goes_on(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(begun(memory)) as slow, closing(begun(memory)) as other:
        assert slow.claim(4) == 0 and other.claim(1) is None
        with monkeypatch.context() as patched:
            patched.setattr(leases_module, "EXPIRES", 0.0)
            assert other.claim(1) == 0
        slow.write(0, DETECTION, batch_of(DETECTION, 2, seed=1))
        assert slow.count == 0 and not Bucket(memory).names("data").keys() - {"classes.txt"}
        other.write(0, DETECTION, batch_of(DETECTION, 2, seed=2))
        assert slow.claim(4) == 1 and slow.images == 2
        assert not list(other.damages())


def test_a_set_of_another_recipe_begun_meanwhile_is_noticed(memory: str) -> None:
    with closing(BucketShards(memory, RECIPE)) as late, closing(BucketShards(memory, {"training": {"seed": 1}})) as one:
        one.begin(["cat", "dog"])
        with pytest.raises(
            RunError, match=rf"^{memory} holds the data set of another recipe \(training\.seed: 0 here, 1"
        ):
            late.begin(["cat", "dog"])


def test_a_lease_that_is_renewed_does_not_expire(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(leases_module, "RENEWED", 0.01)
    bucket = Bucket(memory)
    alive, other = Leases(bucket), Leases(bucket)
    monkeypatch.setattr(other, "_now", lambda: now)
    with closing(alive), closing(other):
        assert alive.take("00000")
        other.look()
        for _ in range(3):
            now += leases_module.EXPIRES - 1
            written = bucket.read(".claims/00000")
            while bucket.read(".claims/00000") == written:
                time.sleep(0.001)
            other.look()
            assert not other.take("00000")
        alive.drop("00000")
        other.look()
        assert other.take("00000") and not alive.holds("00000")
        alive.drop("00000")
        assert other.holds("00000")


def test_a_lease_of_the_dead_expires_by_the_clock_of_who_waits(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    bucket = Bucket(memory)
    bucket.write(".claims/00000", b"dead 7\n")
    waiting = Leases(bucket)
    monkeypatch.setattr(waiting, "_now", lambda: now)
    with closing(waiting):
        waiting.look()
        now += leases_module.EXPIRES - 1
        waiting.look()
        assert not waiting.take("00000")
        now += 1
        assert waiting.take("00000") and waiting.holds("00000")
    assert not bucket.names(".claims")


def makes(recipe: Recipe, url: str, images: int, dies_at: str | None) -> None:
    """What a process of several does; `dies_at`: killed when it puts an object whose path ends so."""
    torch.set_num_threads(1)
    leases_module.RENEWED, leases_module.EXPIRES = 0.1, 1.0

    def dies(path: str) -> None:
        if dies_at is not None and path.endswith(dies_at):
            os.kill(os.getpid(), signal.SIGKILL)

    FolderStore.before_put = staticmethod(dies)
    synthesize(recipe, url, images)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("method", "dies_at"),
    [("cmi", "images/00001/00002.png"), ("inversion", "shards/00002.json"), ("cgdd", "state/trained.pt")],
)
def test_processes_make_one_set_together_and_take_over_from_one_that_is_killed(
    method: str, dies_at: str, tmp_path: Path
) -> None:
    (source, kind), forked = METHODS[method], multiprocessing.get_context("fork")
    synthesize(recipe_for(tmp_path, source, kind), tmp_path / "alone", 27)
    out = tmp_path / "together"
    dying, *others = [
        forked.Process(target=makes, args=(recipe_for(tmp_path, source, kind), f"folder://{out}", 27, at))
        for at in (dies_at, None, None)
    ]
    dying.start()
    dying.join()
    assert list((out / ".claims").iterdir()), "the dead one has left a lease"
    for process in others:
        process.start()
    for process in others:
        process.join()
    assert [process.exitcode for process in (dying, *others)] == [-signal.SIGKILL, 0, 0]
    assert everything(out) == everything(tmp_path / "alone")


# S3's protocol, as moto's server speaks it (pip install s3fs 'moto[server]').


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (
        ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir("bucket")
    yield "s3://bucket/some where/set"
    server.stop()


@pytest.mark.slow
@pytest.mark.timeout(600)  # three commands start, and one server answers them
@pytest.mark.filterwarnings("default")  # of the server's libraries
def test_three_commands_make_one_set_on_s3_though_one_is_killed(tmp_path: Path, s3: str) -> None:
    recipe = recipe_for(tmp_path, DIODE, "detection")
    synthesize(recipe, tmp_path / "disk", 30)
    (tmp_path / "it.yaml").write_text(to_yaml(recipe))
    short = "import datafree.leases as l; l.RENEWED, l.EXPIRES = 1.0, 5.0; import datafree.cli as c; c.main()"
    command = [sys.executable, "-c", short, "synthesize", str(tmp_path / "it.yaml"), "--out", s3]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen([*command, "--images", "30"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    dying, bucket = start(), Bucket(s3)
    while not bucket.names("shards"):
        assert dying.poll() is None, dying.communicate()
        time.sleep(0.5)
    dying.kill()
    dying.communicate()
    for process in [start(), start()]:
        out, errors = process.communicate()
        assert process.returncode == 0, errors
        assert out == f"data set: {s3}/data, 30 images in 10 shards\n"
    checked = subprocess.run([*command, "--verify"], capture_output=True, text=True, check=False)
    assert checked.stdout == f"data set: {s3}/data, 30 images in 10 shards, every file as it was written\n"
    assert fetched(s3, tmp_path / "fetched") == everything(tmp_path / "disk")
    wrong = subprocess.run([*command[:-1], "s3://nobucket/set", "--images", "5"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines()[-1].startswith("error: cannot read or write s3://nobucket/set: ")
