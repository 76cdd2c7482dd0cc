"""A data set being made in a bucket: what `synthesis/shards.py` is on a disk, with the same files.

A shard is made whole in a temporary folder of this machine, by `shards`, and then put: its files first, its record
last. So a record that is there means a whole shard, and a shard whose put was cut off is made again. Which process
makes which shard is settled by `leases`; should two make the same one, on equal hardware they put the same bytes.

The folder also mirrors what is small: the recipe, the names of classes, the records (some 300 bytes an image), and the
state that was last read. It is removed at the end; nothing in it is needed by who goes on.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from datafree.errors import DataError, RunError
from datafree.sources.base import Batch
from datafree.storage.made_set import INDEX, NAMES, hashes, is_finished, read_record, records
from datafree.storage.scratch import Scratch
from datafree.synthesis.object_store.bucket import Bucket, in_words
from datafree.synthesis.object_store.leases import EXPIRES, Leases
from datafree.synthesis.shard_names import is_past, named, state_for
from datafree.synthesis.shards import Shards
from datafree.tasks.base import Task

_BEGUN = ("recipe.yaml", "environment.json", f"data/{NAMES}")  # the first is there if any is
_KNOWN = {"recipe.yaml", "environment.json", "data", "shards", "state", INDEX}
_WEIGHTS = ".safetensors"


class BucketShards:
    """One data set in a bucket, opened for making more of it. Looks, but writes nothing before `begin`.

    Arguments and methods are those of `Shards`. All raise RunError also where the bucket cannot be reached.
    """

    def __init__(self, url: str, recipe: dict[str, Any], is_free: Callable[[str], bool] = lambda key: False) -> None:
        self._bucket = Bucket(url)
        self.recipe = recipe
        self.place = self._bucket.url
        self.data = f"{self.place}/data"
        self._leases = Leases(self._bucket)
        self.if_killed = f" (for {EXPIRES / 60:.0f} minutes, should one have been killed)"
        self._states: dict[str, str] = {}  # those that the mirror has, and which they are
        self._awaited = False  # whether another process was writing the index
        self._folder = Scratch()
        self.path = self._folder.path / "set"  # the mirror
        try:
            self._fetch()
            with self._called():
                self._mirror = Shards(self.path, recipe, is_free)
        except BaseException:
            self._folder.close()
            raise

    def _fetch(self) -> None:
        there = {name for name in self._bucket.names() if not name.startswith(".") and not name.endswith(_WEIGHTS)}
        if not there:
            return
        if _BEGUN[0] not in there or there - _KNOWN:
            raise RunError(f"{self.place} is not empty and holds no made data set; choose another --out")
        for name in (*_BEGUN, INDEX):
            self._fetch_one(name)
        (self.path / "shards").mkdir()
        self._fetch_records()

    def _fetch_one(self, name: str) -> None:
        if (content := self._bucket.read(name)) is not None:
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            (self.path / name).write_bytes(content)

    def _fetch_records(self) -> None:
        names = [name for name in self._bucket.names("shards") if name.endswith(".json")]
        here = {file.name for file in (self.path / "shards").glob("*.json")}
        self._bucket.get({f"shards/{name}": self.path / "shards" / name for name in names if name not in here})

    @property
    def class_names(self) -> list[str] | None:
        return self._mirror.class_names

    @property
    def images(self) -> int:
        return self._mirror.images

    @property
    def count(self) -> int:
        return self._mirror.count

    @property
    def carries(self) -> bool:
        return self._mirror.carries

    @carries.setter
    def carries(self, value: bool) -> None:
        self._mirror.carries = value

    def begin(self, class_names: list[str]) -> None:
        with self._called():
            self._mirror.begin(class_names)
        for name in _BEGUN:
            if not self._bucket.create(name, (self.path / name).read_bytes()):
                self._fetch_one(name)
        with self._called():
            self._mirror.begin(class_names)  # looks at what another process may have begun meanwhile
        self.look()

    @property
    def origin(self) -> dict[str, Any]:
        return self._mirror.origin

    @origin.setter
    def origin(self, value: dict[str, Any]) -> None:
        self._mirror.origin = value

    def begun_with(self) -> dict[str, Any]:
        return self._mirror.begun_with()

    def look(self) -> None:
        self._fetch_records()
        with self._called():
            self._mirror.look()

    def claim(self, images: int, each: int = 1) -> int | None:
        self.look()
        self._leases.look()
        passed = []  # shards that others are at
        try:
            while (number := self._mirror.claim(images, each)) is not None:
                passed.append(number)
                if not self._leases.take(named(number)):
                    continue
                if f"{named(number)}.json" not in self._bucket.names("shards"):
                    return number
                self._leases.drop(named(number))  # made since `look`
                self.look()
        finally:
            for number in passed:
                self._mirror.leave(number)
        return None

    def leave(self, number: int) -> None:
        self._leases.drop(named(number))

    @contextmanager
    def alone_at(self, what: str) -> Iterator[bool]:
        self._leases.look()
        mine = self._leases.take(what)
        try:
            yield mine
        finally:
            if mine:
                self._leases.drop(what)

    def close(self) -> None:
        self._leases.close()
        self._mirror.close()
        self._folder.close()

    def write(self, number: int, task: Task, batch: Batch, state: dict[str, Any] | None = None) -> None:
        """Add a shard, as `Shards.write` does. It is dropped where another process has taken it over meanwhile."""
        folder = self.path.with_name("shard")
        assert self.class_names is not None
        try:
            with closing(Shards(folder, self.recipe)) as made:
                made.begin(self.class_names)
                made.write(number, task, batch, state)
            self._send(number, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            self._leases.drop(named(number))
        self.look()

    def _send(self, number: int, folder: Path) -> None:
        record = f"shards/{named(number)}.json"
        files = [f"data/{name}" for name in read_record(folder / record)["files"]]
        states = [f"state/{file.name}" for file in (folder / "state").glob("*.pt")]
        if not self._leases.holds(named(number)):
            return
        self._bucket.put({name: folder / name for name in (*states, *files)})
        if not self._leases.holds(named(number)):
            return
        self._bucket.put({record: folder / record})
        for name in self._bucket.names("state") if states else ():
            if is_past(name, number):
                self._bucket.remove(f"state/{name}")

    def state_before(self, number: int) -> Any:
        if self.carries and number:
            self._fetch_state(state_for(number))
        with self._called():
            state = self._mirror.state_before(number)
        self._states.pop(state_for(number), None)  # it may be large, and is not asked for again soon
        (self.path / "state" / state_for(number)).unlink(missing_ok=True)
        return state

    def save_state(self, name: str, state: dict[str, Any], *, keep: bool = False) -> None:
        self._mirror.save_state(name, state)  # a put is whole or nothing, so none before it need be kept
        self._bucket.put({f"state/{name}": self.path / "state" / name})
        self._states[name] = self._bucket.names("state")[name]

    def load_state(self, name: str) -> Any:
        self._fetch_state(name)
        with self._called():
            return self._mirror.load_state(name)

    def _fetch_state(self, name: str) -> None:
        stamp = self._bucket.names("state").get(name)
        if stamp is not None and stamp != self._states.get(name):
            self._bucket.get({f"state/{name}": self.path / "state" / name})
            self._states[name] = stamp

    def keep(self, write: Callable[[Path], None]) -> None:
        folder = self.path.with_name("kept")
        folder.mkdir()
        try:
            write(folder)
            files = [file for file in folder.rglob("*") if file.is_file()]
            self._bucket.put({file.relative_to(folder).as_posix(): file for file in files})
        finally:
            shutil.rmtree(folder)

    def finish(self, task: Task) -> bool:
        with self.alone_at("index") as mine:
            if self._awaited:
                self._fetch_one(INDEX)
                self.look()
            if mine and not (self._awaited and is_finished(self.path)):
                with self._called():
                    self._mirror.finish(task)
                about = [f"data/{name}" for name in read_record(self.path / INDEX)["files"]]
                self._bucket.put({name: self.path / name for name in about})
                self._bucket.put({INDEX: self.path / INDEX})
            self._awaited |= not mine
            return mine

    def damages(self) -> Iterator[tuple[str, str]]:
        index = [read_record(self.path / INDEX)] if (self.path / INDEX).exists() else []
        for record in (*records(self.path), *index):
            names = [f"data/{name}" for name in record["files"]]
            for name, wanted, digest in zip(names, record["files"].values(), self._bucket.digests(names), strict=True):
                if isinstance(digest, Exception):
                    yield name, "missing" if isinstance(digest, FileNotFoundError) else in_words(digest)
                elif digest != wanted:
                    yield name, "damaged"
        if is_finished(self.path):
            known = {f"data/{name}" for name, _ in hashes(self.path)}
            for name in sorted(set(self._bucket.below("data")) - known):
                yield name, "added: no shard has written it"

    @contextmanager
    def _called(self) -> Iterator[None]:
        """Within it, what is said of the mirror is said of the bucket."""
        try:
            yield
        except (DataError, RunError) as error:
            raise type(error)(str(error).replace(str(self.path), self.place)) from error
